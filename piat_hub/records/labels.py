"""What people call things: methods, attacks, percents, rows of a table."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from piat_hub.config import EXTRA, SEVERITIES, TrainConfig, public, recipes
from piat_hub.records.claims import Figures
from piat_hub.records.results import Record
from piat_hub.records.union import Union

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
    extras = {
        "+AWP": config.awp,
        " with EMA": config.ema,
        " with SWA": config.swa,
        " with extra data": config.extra_data,
    }
    return name + "".join(words for words, value in extras.items() if value is not None)


def percent(fraction: float) -> str:
    """Two decimals, for people: '53.54 %'."""
    return f"{100 * fraction:.2f} %"


ATTACK_NAMES = {"clean": "clean", "fast": "fast", "aa": "AutoAttack", "square": "Square"}
ATTACK_NAMES |= {name: name.upper() for name in ("apgd-ce", "apgd-t", "fab-t", "malt")}
ATTACK_NAMES |= {name: f"{name.upper()}-20" for name in ("pgd", "mim", "cw", "apgd", "fmn")}  # the steps they then take


def attack_name(name: str) -> str:
    """'pgd20' -> 'PGD-20', 'aa' -> 'AutoAttack', 'clean' -> 'clean'; an attack of one's own keeps its name."""
    if name in ATTACK_NAMES or ":" in name:
        return ATTACK_NAMES.get(name, name)
    letters = name.rstrip("0123456789")
    return "-".join(part for part in (letters.upper(), name[len(letters) :]) if part)


def measured_name(name: str, figures: Figures) -> str:
    """An attack's name with how it differs from what the name says: 'AutoAttack (not standard, found in bf16)'."""
    differs = [version] if (version := figures.get("version", "standard")) != "standard" else []
    differs += [f"found in {precision}"] if (precision := figures.get("search_precision")) else []
    return attack_name(name) + (f" ({', '.join(differs)})" if differs else "")


def rows(results: Record) -> list[list[str]]:
    """One row per attack: name, accuracy, 95 % interval, correct of n; where several attacked, their worst case last."""
    named = [(measured_name(a, f), f) for a, f in results.attacks.items()]
    if len(named) > 2 and results.worst_case:
        named.append(("worst case of these", results.worst_case))
    return [[name, *_cells(f)] for name, f in named]


def _cells(figures: Mapping[str, Any]) -> list[str]:
    """Accuracy, 95 % interval and count of one row."""
    interval = " to ".join(percent(end) for end in figures["ci95"])
    return [percent(figures["accuracy"]), interval, f"{figures['correct']} of {figures['n']}"]


def corruption_rows(told: Mapping[str, Any]) -> list[list[str]]:
    """A row for each corruption: its accuracy at every severity and their mean; then the mean of the 15, and mCE."""
    lines = []
    for corruption, each in told["severities"].items():
        shares = [f["accuracy"] for f in each]
        whole = percent(sum(shares) / SEVERITIES) if len(shares) == SEVERITIES else ""
        cells = [percent(share) for share in shares] + [""] * (SEVERITIES - len(shares))
        lines.append([corruption.replace("_", " ") + (" (extra)" if corruption in EXTRA else ""), *cells, whole])
    if mean := told["mean"]:
        low, high = (percent(end) for end in mean["ci95"])
        lines.append(["mean of the 15", *[""] * SEVERITIES, f"{percent(mean['accuracy'])} [{low}, {high}]"])
    if told["mce"] is not None:
        lines.append([f"mCE, beside {told['reference']}", *[""] * SEVERITIES, percent(told["mce"])])
    return lines


def union_rows(union: Union) -> list[list[str]]:
    """A row for each threat model, with the attacks of which it is the worst, and its time; their union last."""
    told = union.to_dict()
    named = [
        (str(part.threat_model), ", ".join(map(attack_name, part.attacks)), figures)
        for part, figures in zip(union.parts.values(), told["threat_models"], strict=True)
    ]
    whole = told["union"] | {"seconds": told["seconds"]}
    rows = (*named, ("union", "the worst of all", whole))
    return [[name, attacks, *_cells(f), f"{f['seconds']:.0f} s"] for name, attacks, f in rows]


def said(results: Record) -> list[str]:
    """What must stand beside the figures: notes, an answer that never changes, an AutoAttack other than its standard."""
    found = list(results.notes)
    if one := results.one_class:
        found.append(
            f"every image of class {one} is right and none of any other: so does a model that answers this class to everything, "
            "and no attack changes its answer"
        )
    if found_in := {f["search_precision"] for f in results.attacks.values() if "search_precision" in f}:
        found.append(
            f"what is said to be found in {found_in.pop()} was searched on a twin in half precision and confirmed by the model "
            "in fp32: a search in fp32 may break more images"
        )
    changed = {attack_name(name): f["changed"] for name, f in results.attacks.items() if "changed" in f}
    return [*found, *(f"{name} differs from its standard version: {how}" for name, how in changed.items())]


HEADERS = ("attack", "accuracy", "95 % interval (Wilson)", "correct")
CORRUPTION_HEADERS = ("corruption", *(f"severity {s}" for s in range(1, SEVERITIES + 1)), "mean")
UNION_HEADERS = ("threat model", "worst of", *HEADERS[1:], "took")


def by_attack(first: str, rows: Sequence[tuple[str, Mapping[str, str]]], form: str = "simple") -> str:
    """A table with a row for each name and a column for each attack; "" where there is no cell for one.

    Args:
        first: header of the names.
        rows: a name and its cells by attack.
        form: one of tabulate's.
    """
    attacks = dict.fromkeys(attack for _, cells in rows for attack in cells)
    lines = [[name, *(cells.get(attack, "") for attack in attacks)] for name, cells in rows]
    return table(lines, [first, *map(attack_name, attacks)], form)


def accuracies(attacks: Mapping[str, Figures]) -> dict[str, str]:
    """Each attack's accuracy for people: '53.54 %', or '53.54 % (bf16)' where it was searched in that."""
    found_in = {attack: figures.get("search_precision") for attack, figures in attacks.items()}
    return {a: percent(f["accuracy"]) + (f" ({found_in[a]})" if found_in[a] else "") for a, f in attacks.items()}


def table(rows: Iterable[Sequence[object]], headers: Sequence[str], form: str = "simple") -> str:
    """Cells under their headers, as they are written: '80.10' keeps its 0.

    Args:
        rows: of cells.
        headers: one a column.
        form: one of tabulate's, "github" for Markdown.
    """
    return tabulate(rows, headers, tablefmt=form, disable_numparse=True)


def place(directory: Path) -> str:
    """A directory as it was named; of a path from the root only the last part."""
    return directory.name if directory.is_absolute() else str(directory)


def command(config: TrainConfig) -> str:
    """A command that trains this, for a shell: its recipe and what differs from it; local paths by their last part."""
    return shlex.join(["piat", "train", *recipes.words(public(config))])
