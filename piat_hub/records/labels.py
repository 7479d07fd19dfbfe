"""What people call things: methods, attacks, percents, rows of a table."""

import shlex
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from piat_hub.config import TrainConfig, public, recipes
from piat_hub.records.results import Record

METHOD_NAMES = {
    "standard": "standard training",
    "pgd_at": "PGD-AT",
    "free_at": "Free-AT",
    "las_at": "LAS-AT",
    "fgsm_rs": "FGSM-RS",
    "n_fgsm": "N-FGSM",
}
OPTIMIZER_NAMES = {
    "momentum": "SGD",
    "sgd": "SGD with Nesterov momentum",
    "adamw": "AdamW",
    "lamb": "LAMB",
    "lion": "Lion",
}


def title(config: TrainConfig) -> str:
    """'PIAT+NMSE, cifar_resnet18 on cifar10'."""
    return f"{method_name(config)}, {config.backbone} on {public(config).dataset}"


def method_name(config: TrainConfig) -> str:
    """The method as papers name it, with its interpolation: 'PIAT+NMSE', 'PGD-AT', 'lam=0.9+NMSE'."""
    name = METHOD_NAMES.get(config.method, config.method.upper())
    law = config.interpolation
    prefix = {"none": "", "piat": "PIAT+", "constant": f"lam={law.constant:g}+"}[law.kind]
    name = "PIAT" if prefix == "PIAT+" and config.method == "pgd_at" else prefix + name
    extras = {"+AWP": config.awp, " with EMA": config.ema, " with SWA": config.swa}
    return name + "".join(words for words, value in extras.items() if value is not None)


def percent(fraction: float) -> str:
    """Two decimals, for people: '53.54 %'."""
    return f"{100 * fraction:.2f} %"


AUTOATTACK = {"aa": "AutoAttack", "apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}


def attack_name(name: str) -> str:
    """'pgd20' -> 'PGD-20', 'aa' -> 'AutoAttack', 'clean' -> 'clean'; an attack of one's own keeps its name."""
    if name == "clean" or name in AUTOATTACK or ":" in name:
        return AUTOATTACK.get(name, name)
    letters = name.rstrip("0123456789")
    return f"{letters.upper()}-{name[len(letters) :] or 20}"


def rows(results: Record) -> list[list[str]]:
    """One row per attack: name, accuracy, 95 % interval, correct of n; where several attacked, their worst case last."""
    other = {a: f" ({f['version']})" for a, f in results.attacks.items() if f.get("version", "standard") != "standard"}
    named = [(attack_name(a) + other.get(a, ""), f) for a, f in results.attacks.items()]
    if len(named) > 2 and results.worst_case:
        named.append(("worst case of these", results.worst_case))
    return [
        [name, percent(f["accuracy"]), " to ".join(percent(e) for e in f["ci95"]), f"{f['correct']} of {f['n']}"]
        for name, f in named
    ]


def said(results: Record) -> list[str]:
    """What must stand beside the figures: notes, an answer that never changes, an AutoAttack other than its standard."""
    found = list(results.notes)
    if one := results.one_class:
        found.append(
            f"every image of class {one} is right and none of any other: so does a model that answers this class to everything, "
            "and no attack changes its answer"
        )
    changed = {attack_name(name): f["changed"] for name, f in results.attacks.items() if "changed" in f}
    return [*found, *(f"{name} differs from its standard version: {how}" for name, how in changed.items())]


HEADERS = ("attack", "accuracy", "95 % interval (Wilson)", "correct")


def table(rows: Iterable[Sequence[object]], headers: Sequence[str], form: str = "simple") -> str:
    """Cells under their headers, as they are written: '80.10' keeps its 0.

    Args:
        rows: of cells.
        headers: one a column.
        form: one of tabulate's, "github" for Markdown.
    """
    return tabulate(rows, headers, tablefmt=form, disable_numparse=True)


def command(config: TrainConfig) -> str:
    """A command that trains this, for a shell: its recipe and what differs from it; local paths by their last part."""
    return shlex.join(["piat", "train", *recipes.words(public(config))])
