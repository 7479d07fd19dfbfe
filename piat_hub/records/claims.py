"""What a results.json may claim: counts, accuracies and intervals that fit each other, whoever wrote it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypedDict

from piat_hub.config import COMMON, EXTRA, SEVERITIES, number
from piat_hub.records import files, statistics

if TYPE_CHECKING:
    from piat_hub.records.results import Record

ROUNDING = 1e-9
HOW = (
    "steps",
    "step_size",
    "restarts",
    "version",
    "targets",
    "search_precision",
    "code",
)  # of figures: how an attack was run


class Figures(TypedDict, total=False):
    """What results.json says of one attack: a count of n images with its interval, and how the attack was run.

    accuracy: correct / n. ci95: the Wilson interval. step_size: in pixel units, as text, "2/255". version:
    AutoAttack's; changed: how this differs from it, in words. per_attack: by stage, images attacked and broken, and
    seconds. targets: classes that MALT aimed at. search_precision: "bf16" where examples were found on a twin in half
    precision. code: of the file that an attack from elsewhere lies in, the beginning of its sha256.
    """

    accuracy: float
    correct: int
    n: int
    ci95: list[float]
    steps: int
    step_size: str
    restarts: int
    version: str
    changed: str
    targets: int
    search_precision: str
    code: str
    per_attack: dict[str, dict[str, Any]]
    seconds: float
    attacks: list[str]  # of the worst case: over which attacks


def precision_of(figures: Figures) -> str:
    """In which an attack searched, "fp32" or "bf16"; its verdicts are fp32."""
    return figures.get("search_precision", "fp32")


def hold(record: Record) -> None:
    """ValueError unless the figures can be what they say.

    Args:
        record: as JSON gave it: its values may be of any type.

    Raises:
        ValueError: naming what does not fit; or the KeyError, TypeError or AttributeError of a value of another type.
    """
    attacks, worst = record.attacks, record.worst_case
    figures = [*attacks.values(), *([worst] if worst else [])]
    if type(record.seed) is not int or type(record.n) is not int or any(f["n"] != record.n for f in figures):
        raise ValueError("its seed and numbers of images do not fit")
    for f in itertools.chain(figures, *(point["attacks"].values() for point in record.sweep)):
        _hold_figures(f)
    if worst and worst["correct"] > min(f["correct"] for f in attacks.values()):
        raise ValueError("its worst case is above one of its attacks")
    if "clean" in attacks and any(f["correct"] > attacks["clean"]["correct"] for f in figures):
        raise ValueError("one of its attacks is above the clean accuracy")
    if any(number(point["eps"]) <= 0 for point in record.sweep):
        raise ValueError("a budget of its sweep is none")
    for each in record.per_class.values():
        known = [share for share in each if share is not None]
        if len(each) != len(record.label_names) or not all(files.is_number(s) and 0 <= s <= 1 for s in known):
            raise ValueError("its accuracies by class are none")
    _hold_corruptions(record.corruptions)
    if not all({"check", "found", "passed", "n"} <= check.keys() for check in record.checks):
        raise ValueError("its checks lack something")
    names = [
        record.dataset,
        record.split,
        record.checkpoint,
        record.weights,
        record.images,
        *record.label_names,
        *record.notes,
    ]
    if not all(isinstance(name, str) for name in names) or not files.is_number(record.seconds):
        raise ValueError("its data set, split, checkpoint, digests, classes, notes or seconds are none")
    _ = dict(record.environment.get("versions") or {})


def _hold_corruptions(told: dict[str, Any]) -> None:
    """ValueError unless what stands under "corruptions" fits itself; {} is nothing measured."""
    if not told:
        return
    images, mean, mce = told["dataset"], told["mean"], told["mce"]
    if type(images["n"]) is not int or not isinstance(images["name"], str):
        raise ValueError("its corrupted images have no name or number")
    if set(told["severities"]) - {*COMMON, *EXTRA} or set(told["severities"]) != set(told["images_sha256"]):
        raise ValueError("its corruptions are none")
    for each in told["severities"].values():
        if len(each) > SEVERITIES or any(figures["n"] != images["n"] for figures in each):
            raise ValueError("its corruptions have other severities or numbers of images")
        for figures in each:
            _hold_figures(figures)
    shares = [mean["accuracy"], *mean["ci95"]] if mean else []
    if not all(files.is_number(share) and 0 <= share <= 1 for share in shares) or len(shares) not in (0, 3):
        raise ValueError("its mean over corruptions is none")
    if mce is not None and not (files.is_number(mce) and mce >= 0 and mean):
        raise ValueError("its mCE is none")


def _hold_figures(figures: Figures) -> None:
    """ValueError unless a count, its accuracy and its interval fit each other."""
    correct, n = figures["correct"], figures["n"]
    if type(correct) is not int or type(n) is not int or not 0 <= correct <= n:
        raise ValueError("its counts are none")
    if not all(isinstance(figures.get(key, ""), str) for key in ("version", "search_precision", "changed", "code")):
        raise ValueError("what it says of an attack is no text")
    known: dict[str, Any] = statistics.proportion(correct, n)
    told, true = ([f["accuracy"], *f["ci95"]] for f in (figures, known))
    if len(told) != len(true) or any(not abs(a - b) <= ROUNDING for a, b in zip(told, true, strict=True)):
        raise ValueError("its counts, accuracies and intervals do not fit")
