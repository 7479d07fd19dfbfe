"""Attacks by name, as stages that run one after the other."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from piat_hub.attacks import ATTACKS
from piat_hub.attacks.autoattack import STANDARD, changes, components
from piat_hub.config import InputError, ThreatModel, nearest, pixels

Stage = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> x_adv


@dataclass
class Suite:
    """One attack by name.

    Attributes:
        stages: name to (model, x, y) -> x_adv, run one after the other, each on the images that still stand.
        facts: what results.json says about the attack beside the counts.
    """

    stages: dict[str, Stage]
    facts: dict[str, Any]


def unharmed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The stage of "clean", which gives x back."""
    return x


def suite(
    name: str,
    threat_model: ThreatModel,
    num_classes: int,
    step_size: float | None = None,
    seed: int = 0,
    restarts: int = 1,
) -> Suite:
    """The attack called "clean", "pgd20", "mim", "cw100", "aa", "square" and so on.

    "aa" is AutoAttack's standard version after ten steps of PGD, which find most of what it finds at a small part of
    the cost; an image it breaks is broken, so the whole is at least as strong.

    Args:
        name: "clean", "aa", one of AutoAttack's components, or a registered attack, with any step count as suffix (20).
        threat_model: norm and eps.
        num_classes: classes that the model tells apart.
        step_size: of a registered attack, in pixel units, 0 < step_size <= 2 eps; eps/4 if None.
        seed: of AutoAttack's components.
        restarts: of a registered attack.

    Raises:
        InputError: for an unknown name, with the nearest one; a component that these classes leave undefined; or a
            step_size out of its range.
    """
    if name == "clean":
        return Suite({}, {})
    if name == "aa" or name in STANDARD:
        parts = components(threat_model.eps, threat_model.norm, num_classes, seed)
        facts: dict[str, Any] = {"version": "standard"}
        if changed := changes(num_classes):
            facts["changed"] = changed
        if name == "aa":
            budget: dict[str, Any] = {"eps": threat_model.eps, "step_size": threat_model.eps / 4}
            first = partial(ATTACKS["pgd"], **budget, steps=10, norm=threat_model.norm, leave=True)
            return Suite({"pgd10": first, **parts}, facts)
        if name not in parts:
            raise InputError(f"{name} is undefined for {num_classes} classes: {changes(num_classes)}; leave it out")
        return Suite({name: parts[name]}, facts)
    match = re.fullmatch(r"([a-z_]+?)([1-9][0-9]{0,4})?", name)
    if not match or match[1] not in ATTACKS:
        known = ["clean", "aa", *STANDARD, *ATTACKS, *(f"{attack}20" for attack in ATTACKS)]
        raise InputError(
            f"unknown attack {name!r}{nearest(name, known)}; known: clean, aa, {', '.join(STANDARD)}, and with any step "
            f"count {', '.join(ATTACKS)}"
        )
    steps, step_size = int(match[2] or 20), step_size or threat_model.eps / 4
    threat_model.check_step(step_size)
    attack = partial(ATTACKS[match[1]], eps=threat_model.eps, step_size=step_size, steps=steps, norm=threat_model.norm)
    facts = {"steps": steps, "step_size": pixels(step_size), "restarts": restarts}
    options: dict[str, Any] = {"restarts": restarts} if restarts > 1 else {}
    parameters = inspect.signature(attack).parameters.values()
    if any(p.name == "leave" or p.kind is p.VAR_KEYWORD for p in parameters):
        options["leave"] = True  # one misclassification is enough
    return Suite({name: partial(attack, **options)}, facts)
