"""Attacks by name, as stages that run one after the other."""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from piat_hub.attacks import ATTACKS, apgd, attack_mode, malt
from piat_hub.attacks.autoattack import STANDARD, changes, components
from piat_hub.attacks.core import NO_L1, ROUNDING, choose, distances
from piat_hub.attacks.malt import LEAST, OF_L1, TARGETS
from piat_hub.config import InputError, ThreatModel, nearest, pixels
from piat_hub.evaluation.own_code import imported, raised, source_digest

Stage = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> x_adv
SLACK = 1e-4  # by which an image's distance may exceed eps, as rounding makes it; relative
OWN = ("pgd", "mim", "cw")
FEW = 3  # targets of MALT in `fast`
NOT = "not standard"
WHOLE = "every part attacks every image, also those that another misled, and the one example left of it is judged once"


@dataclass
class Suite:
    """One attack by name.

    Attributes:
        stages: name to (model, x, y) -> x_adv, run one after the other, each on the images that still stand.
        facts: what results.json says about the attack beside the counts.
        follows: it is known to follow the model's gradient.
        foreign: it is code from elsewhere, which gets the model itself and not a twin of it.
        nearest: it keeps to no budget but seeks each image's nearest example; the threat model of its verdict.
    """

    stages: dict[str, Stage] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    follows: bool = False
    foreign: bool = False
    nearest: ThreatModel | None = None


def names() -> list[str]:
    """What an evaluation may ask for, N standing for a step count."""
    return ["clean", *(f"{name}N" for name in ATTACKS), "malt", "fast", "aa", *STANDARD]


def suite(
    name: str,
    threat_model: ThreatModel,
    num_classes: int,
    step_size: float | None = None,
    seed: int = 0,
    restarts: int = 1,
    *,
    size: tuple[int, int] = (32, 32),
    whole: bool = False,
    precision: str = "fp32",
) -> Suite:
    """The attack called "clean", "pgd20", "mim", "cw100", "aa", "square", "mymodule:my_attack" and so on.

    "aa" is AutoAttack's standard version after ten steps of PGD, which find most of what it finds at a small part of
    the cost; an image it breaks is broken, so the whole is at least as strong. Under L1 it is the standard version alone.
    "fast" is those ten steps, MALT with three targets and 20 steps of APGD on the cross-entropy.

    Args:
        name: "clean", "aa", one of AutoAttack's components, "malt", "fast", or with any step count as suffix (20) a
            registered attack or "module:callable", a function (model, x, y, eps, …) -> x_adv that can be imported from the
            current directory.
        threat_model: norm and eps.
        num_classes: classes that the model tells apart.
        step_size: of a registered attack, in pixel units, 0 < step_size <= 2 eps; eps/4 if None.
        seed: of AutoAttack's components.
        restarts: of a registered attack.
        size: height and width of the images.
        whole: for a model that is no function of one image: no image leaves early, each is judged once, at the end.
        precision: "bf16" for a search on the twin in half precision; verdicts are fp32 all the same.

    Raises:
        InputError: for an unknown name, with the nearest one; a component that these classes leave undefined; PGD, MIM,
            CW, MALT or fast under L1; a step_size out of its range; an attack that does not take the steps or restarts
            asked of it; or one from elsewhere that is to search in bf16.
    """
    if name == "clean":
        return Suite()
    if name == "aa" or name in STANDARD:
        found = _autoattack(name, threat_model, num_classes, seed, size, whole)
    elif name in ("malt", "fast"):
        found = _with_malt(name, threat_model, num_classes, seed, whole)
    else:
        found = _registered(name, threat_model, step_size, restarts, whole)
    if precision != "fp32":
        if found.foreign:
            raise InputError(
                f"{name} attacks the model itself, in fp32; leave out --search-precision, or ask for it in a call of its own"
            )
        found.facts |= {"search_precision": precision} | ({"version": NOT} if "version" in found.facts else {})
    return found


def _registered(name: str, threat_model: ThreatModel, step_size: float | None, restarts: int, whole: bool) -> Suite:
    """An attack of ours by name, or anyone's."""
    attack, steps = _by_name(name)
    if threat_model.norm == "L1" and attack in map(ATTACKS.get, OWN):
        raise InputError(f"{name} has no L1: {NO_L1}")
    step_size = step_size or threat_model.eps / 4
    threat_model.check_step(step_size)
    parameters = inspect.signature(attack).parameters.values()
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def takes(option: str) -> bool:
        return anything or any(p.name == option for p in parameters)

    if steps and not takes("steps"):
        raise InputError(f"{name} takes no steps; leave out the number at its end")
    if restarts > 1 and not takes("restarts"):
        raise InputError(f"{name} takes no restarts, this call asks for {restarts}; leave out --restarts")
    facts: dict[str, Any] = {
        "steps": steps or 20,
        "step_size": pixels(step_size, threat_model.norm),
        "restarts": restarts,
    }
    facts = {option: fact for option, fact in facts.items() if takes(option)}
    offered = {"eps": threat_model.eps, "step_size": step_size, "steps": steps or 20, "norm": threat_model.norm}
    offered |= {"restarts": restarts} if restarts > 1 else {}
    offered |= {} if whole else {"leave": True}  # one misclassification is enough
    given = {option: value for option, value in offered.items() if takes(option)}
    try:
        inspect.signature(attack).bind(None, None, None, **given)
    except TypeError as error:
        raise InputError(f"{name} cannot be called as (model, x, y, {', '.join(given)}): {error}; mend it") from error
    stage, foreign = partial(attack, **given), ":" in name
    facts |= {"code": source_digest(name)} if foreign else {}
    nearest = None if foreign or takes("eps") else threat_model
    stage = partial(_held, name, stage, None if nearest else threat_model)
    follows = attack in map(ATTACKS.get, (*OWN, "apgd", "fmn"))
    return Suite({name: stage}, facts, follows=follows, foreign=foreign, nearest=nearest)


def _by_name(name: str) -> tuple[Callable[..., Tensor], int | None]:
    """The attack of that name, registered or at module:callable, and the step count behind it."""
    if ":" in name:
        bare = name.rstrip("0123456789")
        try:
            attack, steps = imported(name, "attack"), ""
        except InputError:
            if bare == name:
                raise
            attack, steps = imported(bare, "attack"), name[len(bare) :]
        if not callable(attack):
            raise InputError(
                f"{name} is a {type(attack).__name__}; an attack is a function (model, x, y, eps, …) -> x_adv"
            )
        return attack, int(steps) if steps else None
    match = re.fullmatch(r"([a-z_]+?)([1-9][0-9]{0,4})?", name)
    if not match or match[1] not in ATTACKS:
        known = [*(re.sub("N$", "20", one) for one in names()), *ATTACKS]
        raise InputError(
            f"unknown attack {name!r}{nearest(name, known)}; known: {', '.join(names())} with a number for N, and module:callable"
        )
    return ATTACKS[match[1]], int(match[2]) if match[2] else None


def _autoattack(
    name: str, threat_model: ThreatModel, num_classes: int, seed: int, size: tuple[int, int], whole: bool
) -> Suite:
    """AutoAttack, or one of its components; `whole` as one stage."""
    parts: dict[str, Stage] = dict(components(threat_model.eps, threat_model.norm, num_classes, seed))
    if name != "aa" and name not in parts:
        raise InputError(f"{name} is undefined for {num_classes} classes: {changes(num_classes)}; leave it out")
    stages = {name: parts[name]} if name in parts else parts
    if name == "aa" and threat_model.norm != "L1":
        stages = {"pgd10": _first_steps(threat_model, whole), **parts}
    framed = {"size": size} if name in ("aa", "square") else {}
    changed = changes(num_classes, threat_model.norm, **framed)
    differs = [words for words in (changed, WHOLE if whole else None) if words]
    facts: dict[str, Any] = {"version": NOT if whole else "standard"}
    facts |= {"changed": "; ".join(differs)} if differs else {}
    if whole:
        stages = {name: partial(_one_after_the_other, stages.values())}
    return Suite(stages, facts, follows=name != "square")


def _with_malt(name: str, threat_model: ThreatModel, num_classes: int, seed: int, whole: bool) -> Suite:
    """MALT, or the suite that is as fast as model selection wants it; `whole` as one stage."""
    budget: dict[str, Any] = {"eps": threat_model.eps, "norm": threat_model.norm}
    facts: dict[str, Any] = {"targets": min(FEW if name == "fast" else TARGETS, num_classes - 1)}
    stages: dict[str, Stage] = {"malt": partial(malt, **budget, **facts, seed=seed)}
    if threat_model.norm == "L1":
        raise InputError(f"{name} {OF_L1}")
    if num_classes < LEAST:
        if name == "malt":
            raise InputError(f"malt is undefined for {num_classes} classes: its loss needs {LEAST}; leave it out")
        stages, facts = {}, {"changed": f"malt left out, its loss needs {LEAST} classes"}
    if name == "fast":
        last = partial(apgd, **budget, steps=20, start="uniform", leave=not whole)
        stages = {"pgd10": _first_steps(threat_model, whole), **stages, "apgd-ce": last}
    if whole:
        stages = {name: partial(_one_after_the_other, stages.values())}
    return Suite(stages, facts, follows=True)


def _first_steps(threat_model: ThreatModel, whole: bool) -> Stage:
    """Ten steps of PGD, which break most of what will be broken."""
    eps = threat_model.eps
    return partial(ATTACKS["pgd"], eps=eps, step_size=eps / 4, steps=10, norm=threat_model.norm, leave=not whole)


def _one_after_the_other(stages: Iterable[Stage], model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Every stage on every image; an image keeps the first example that misled the model, else that of the first stage."""
    x_adv, standing = x, torch.ones_like(y, dtype=torch.bool)
    for number, stage in enumerate(stages):
        candidate = stage(model, x, y)
        with attack_mode(model) as frozen, torch.no_grad():
            misled = standing & (frozen(candidate).argmax(1) != y)
        taken = misled if number else torch.ones_like(misled)
        x_adv = choose(taken, candidate, x_adv)
        standing = standing & ~misled
    return x_adv


def _held(
    name: str, attack: Callable[..., Any], threat_model: ThreatModel | None, model: nn.Module, x: Tensor, y: Tensor
) -> Tensor:
    """What an attack gives, if it is images within the budget, where there is one, and the box; InputError if not."""
    try:
        with attack_mode(model) as frozen, torch.enable_grad():
            x_adv = attack(frozen, x.clone(), y.clone())
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # anyone's code
        raise InputError(f"{name} raised {raised(error)}; mend it") from error
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape or not x_adv.is_floating_point():
        kind = (
            f"{x_adv.dtype} of shape {tuple(x_adv.shape)}" if isinstance(x_adv, Tensor) else f"a {type(x_adv).__name__}"
        )
        raise InputError(f"{name} gave {kind}; an attack gives images like x, floats of shape {tuple(x.shape)}")
    x_adv = x_adv.detach().to(x)
    if not (whole := x_adv.isfinite()).all():
        if ":" in name:
            raise InputError(f"{name} gave pixels that are not finite; an attack gives images in [0, 1], so mend them")
        x_adv = torch.where(whole, x_adv, x)  # ours give such where the model's gradient is so, of which a note tells
    moved = distances(x_adv - x, threat_model.norm) if threat_model else x_adv.new_zeros(1)
    farthest, low, high = torch.stack([moved.amax(), x_adv.amin(), x_adv.amax()]).tolist()
    if threat_model and not farthest <= threat_model.eps * (1 + SLACK) + ROUNDING:
        raise InputError(
            f"{name} left its budget: it moved an image by {farthest:.4g}, the threat model is {threat_model}; "
            "an attack gives images within eps of x, so project them"
        )
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise InputError(
            f"{name} gave pixels in [{low:.4g}, {high:.4g}]; an attack gives images in [0, 1], so clamp them"
        )
    return x_adv
