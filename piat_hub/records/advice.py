"""Which of several measured models to take for what."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from piat_hub.config import InputError
from piat_hub.records.compare import compare
from piat_hub.records.labels import attack_name, percent, said
from piat_hub.records.results import Record
from piat_hub.records.rundir import read_model


class Sheet(NamedTuple):
    """One evaluation of a model's last checkpoint."""

    model: Path
    folder: Path
    record: Record

    def accuracy(self, attack: str) -> float:
        """Under an attack that it has."""
        return self.record.attacks[attack]["accuracy"]


def advice(directories: Iterable[str | Path]) -> list[str]:
    """For each data set and threat model, which of the models that were measured on it to take, by their last checkpoints.

    The one of the highest clean accuracy; and the most robust one, if the same images, paired, tell it from that under
    AutoAttack, or under PGD-20 where no two have AutoAttack. Figures that need a note beside them count for nothing. A model
    that alone was measured so is named for it, where others were measured on something else.

    Args:
        directories: of models, whole ones.

    Returns:
        A sentence each; none where there is nothing to choose.
    """
    groups: dict[str, list[Sheet]] = {}
    for directory in map(Path, directories):
        for found in read_model(directory).measured:
            record = found.record
            if found.checkpoint == "last" and not said(record):
                images = record.dataset if record.split == "test" else f"{record.dataset} ({record.split})"
                sheet = Sheet(directory, directory / found.folder, record)
                groups.setdefault(f"{images}, {record.threat_model}", []).append(sheet)
    several = len({sheet.model for sheets in groups.values() for sheet in sheets}) > 1
    sentences = []
    for group, sheets in groups.items():
        if _alike(sheets, "clean"):
            sentences.append(f"{group}: {_choice(sheets)}")
        elif several and len({sheet.model for sheet in sheets}) == 1:
            sentences.append(f"{group}: take {sheets[0].model}, which alone was measured")
    return sentences


def _alike(sheets: list[Sheet], attack: str) -> list[Sheet]:
    """The sheets with an attack on the same images, the most that two models or more have; none if there are no such."""
    groups: dict[str, list[Sheet]] = {}
    for sheet in sheets:
        if attack in sheet.record.attacks:
            groups.setdefault(sheet.record.images, []).append(sheet)
    several = [group for group in groups.values() if len({sheet.model for sheet in group}) > 1]
    return max(several, key=lambda group: group[0].record.n, default=[])


def _choice(sheets: list[Sheet]) -> str:
    """What to take of the models of one group."""
    attack = next((name for name in ("aa", "pgd20") if _alike(sheets, name)), "clean")
    under = {sheet.model: sheet for sheet in _alike(sheets, attack)}

    def rank(sheet: Sheet) -> tuple[float, float]:
        robust = under[sheet.model].accuracy(attack) if sheet.model in under else -1.0
        return sheet.accuracy("clean"), robust

    first = max(_alike(sheets, "clean"), key=rank)
    clean = f"{percent(first.accuracy('clean'))} of {first.record.n}"
    alone = f"take {first.model}, of the highest clean accuracy ({clean})"
    if attack == "clean":
        return alone
    most, name = max(under.values(), key=lambda sheet: sheet.accuracy(attack)), attack_name(attack)
    if first.model not in under:
        return f"{alone}; under {name}, where it was not measured, {most.model} is highest"
    ours = under[first.model]
    if ours.accuracy(attack) == most.accuracy(attack):
        return f"take {first.model}, of the highest accuracy on clean images ({clean}) and under {name}"
    try:
        pair = next(p for p in compare(ours.folder, most.folder) if p.attack == attack)
    except InputError as error:
        return f"{alone}; under {name} {most.model} is higher, but cannot be paired with it: {error}"
    low, high = (f"{100 * end:+.2f}" for end in pair.ci95)
    by = f"{100 * pair.difference:+.2f} points, 95 % {low} to {high}, n {pair.n}"
    if pair.ci95[0] > 0:
        return f"take {first.model} for clean images ({clean}), {most.model} for {name} ({by})"
    return f"{alone}; under {name} {most.model} is highest, and not told apart from it ({by})"
