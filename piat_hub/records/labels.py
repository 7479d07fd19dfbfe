"""What people call things: methods, attacks, percents, rows of a table."""

from __future__ import annotations

import shlex

from piat_hub.config import TrainConfig, public, recipes
from piat_hub.records.results import Record

METHOD_NAMES = {"standard": "standard training", "pgd_at": "PGD-AT", "free_at": "Free-AT", "las_at": "LAS-AT"}
METHOD_NAMES |= {"fgsm_rs": "FGSM-RS", "n_fgsm": "N-FGSM"}


def title(config: TrainConfig) -> str:
    """'PIAT+NMSE, cifar_resnet18 on cifar10'."""
    return f"{method_name(config)}, {config.backbone} on {public(config).dataset}"


def method_name(config: TrainConfig) -> str:
    """The method as papers name it, with its interpolation: 'PIAT+NMSE', 'PGD-AT', 'lam=0.9+NMSE'."""
    name = METHOD_NAMES.get(config.method, config.method.upper())
    prefix = {"none": "", "piat": "PIAT+", "constant": f"lam={config.interpolation.constant:g}+"}[
        config.interpolation.kind
    ]
    name = "PIAT" if prefix == "PIAT+" and config.method == "pgd_at" else prefix + name
    extras = {"+AWP": config.awp, " with EMA": config.ema, " with SWA": config.swa}
    return name + "".join(words for words, value in extras.items() if value is not None)


def percent(fraction: float) -> str:
    """Two decimals, for people: '53.54 %'."""
    return f"{100 * fraction:.2f} %"


AUTOATTACK = {"aa": "AutoAttack", "apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}


def attack_name(name: str) -> str:
    """'pgd20' -> 'PGD-20', 'aa' -> 'AutoAttack', 'clean' -> 'clean'."""
    if name == "clean" or name in AUTOATTACK:
        return AUTOATTACK.get(name, name)
    letters = name.rstrip("0123456789")
    return f"{letters.upper()}-{name[len(letters) :] or 20}"


def rows(results: Record) -> list[list[str]]:
    """One row per attack: name, accuracy, 95 % interval, correct of n; where several attacked, their worst case last."""
    named = [(attack_name(a), f) for a, f in results.attacks.items()]
    if len(named) > 2 and results.worst_case:
        named.append(("worst case of these", results.worst_case))
    return [
        [name, percent(f["accuracy"]), " to ".join(percent(e) for e in f["ci95"]), f"{f['correct']} of {f['n']}"]
        for name, f in named
    ]


HEADERS = ("attack", "accuracy", "95 % interval (Wilson)", "correct")


def command(config: TrainConfig) -> str:
    """The command that trains this: its recipe and what differs from it; local paths by their last part."""
    return shlex.join(["accelerate", "launch", "train.py", *recipes.words(public(config))])
