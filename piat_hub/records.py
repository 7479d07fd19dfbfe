"""What runs recorded, read back: groups of runs that differ by their seed alone, and what their curves and verdicts say."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from piat_hub import card, methods
from piat_hub.config import InputError, ThreatModel, TrainConfig, flat, to_dict
from piat_hub.files import read_metrics
from piat_hub.published import PAPER_ATTACKS, paper


@dataclass(frozen=True)
class Run:
    """A run directory read: `results` by checkpoint as `card.measured` gives them; the configuration as strangers may see it."""

    directory: Path
    config: TrainConfig
    metrics: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]

    def figures(self, attack: str, beside: str | None = None) -> dict[str, Any] | None:
        """accuracy, correct, n and ci95 of the last weights under this attack, or None: on the run's own images first.

        beside: an attack that was measured on the same images.
        """
        last = [r["attacks"] for key, r in self.results.items() if key.rpartition("/")[2] == "last"]
        return next((found[attack] for found in last if {attack, beside or attack} <= set(found)), None)


def read(directory: str | Path) -> Run:
    """Read a run directory. InputError if it is none, or damaged."""
    path = Path(directory)
    _, config = card.read(path)
    metrics = read_metrics(path)
    if not metrics:
        raise InputError(f"{path} has no metrics.jsonl with an epoch in it; train it first")
    return Run(path, config, metrics, card.measured(path))


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by label, those of one configuration under all its seeds together, in the order of their first one.

    A label is the method's name; where that is the same for several configurations, what they differ in is added.
    """
    settings = [_settings(run.config) for run in runs]
    labels = [card.method_name(run.config) for run in runs]
    groups: dict[str, list[Run]] = {}
    for run, setting, label in zip(runs, settings, labels, strict=True):
        alike = [other for other, name in zip(settings, labels, strict=True) if name == label]
        differ = [key for key in setting if any(other.get(key) != setting[key] for other in alike)]
        groups.setdefault(", ".join([label, *(f"{key} {setting[key]}" for key in differ)]), []).append(run)
    return groups


def _settings(config: TrainConfig) -> dict[str, Any]:
    """All of a configuration but its seed, flat, with the method's defaults."""
    method = dataclasses.asdict(methods.get(config.method)(**config.method_args))  # type: ignore[call-overload]
    values = to_dict(config) | {"method_args": method}
    return {key.rpartition(".")[2]: value for key, value in flat(values).items() if key not in ("seed", "recipe")}


def series(run: Run, what: str) -> tuple[str, list[float] | None]:
    """(the images, accuracy per epoch) of "clean" or "pgd10": on test images where those were tracked, else held out."""
    for images, words in (("test", "1,000 test images"), ("holdout", f"{run.config.holdout:,} held-out images")):
        values = [m.get(f"{images}_{what}_acc") for m in run.metrics]
        if all(v is not None for v in values):
            return words, [float(v) for v in values if v is not None]
    return "no images", None


def robust_gap(metrics: Sequence[dict[str, Any]]) -> float | None:
    """Robust overfitting: held-out PGD-10 accuracy of the best epoch minus the last one's; None without held-out images."""
    values = [m["holdout_pgd10_acc"] for m in metrics]
    return None if None in values else max(values) - values[-1]


def generalisation_gap(metrics: Sequence[dict[str, Any]]) -> float | None:
    """PGD-10 accuracy on the training subset minus the held-out one's, after the last epoch."""
    last = metrics[-1]
    return None if last["holdout_pgd10_acc"] is None else last["train_pgd10_acc"] - last["holdout_pgd10_acc"]


def oscillation(metrics: Sequence[dict[str, Any]]) -> float | None:
    """The standard deviation of held-out PGD-10 accuracy's change from one epoch to the next, over the run's last half."""
    values = [m["holdout_pgd10_acc"] for m in metrics[len(metrics) // 2 :]]
    changes = [] if None in values else [b - a for a, b in itertools.pairwise(values)]
    return statistics.stdev(changes) if len(changes) > 1 else None


CURVES = {"robust-overfitting gap": robust_gap, "generalisation gap": generalisation_gap, "oscillation": oscillation}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % interval of the mean over seeds by Student's t. ValueError for fewer than two values."""
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least two values, got {len(values)}")
    mean = statistics.fmean(values)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def accuracy(runs: Iterable[Run], attack: str, beside: str | None = None) -> tuple[float, float, float] | None:
    """(accuracy, low, high) of a group: over its seeds, or a single run's Wilson interval; None where one was not measured."""
    found = [run.figures(attack, beside) for run in runs]
    if not found or any(f is None for f in found):
        return None
    measured = [f for f in found if f is not None]
    if len(measured) == 1:
        low, high = measured[0]["ci95"]
        return measured[0]["accuracy"], low, high
    mean, low, high = mean_interval([f["accuracy"] for f in measured])
    return mean, max(0.0, low), min(1.0, high)


def attacks(runs: Iterable[Run]) -> list[str]:
    """The attacks that were measured on every run, "clean" first, then in the order of the first run's results."""
    every = [list(dict.fromkeys(a for results in run.results.values() for a in results["attacks"])) for run in runs]
    common = [a for a in every[0] if all(a in other for other in every)] if every else []
    return sorted(common, key=lambda attack: attack != "clean")


def strongest(runs: Sequence[Run]) -> str | None:
    """Of the attacks measured on every run the one that leaves the least; None where there is none but "clean"."""
    left = {a: statistics.fmean(f["accuracy"] for run in runs if (f := run.figures(a))) for a in attacks(runs)}
    return min(left, key=left.__getitem__) if set(left) - {"clean"} else None


def method_of(name: str) -> tuple[str, str]:
    """(method, interpolation) of a name in the paper's tables: 'PIAT+TRADES' -> ('trades', 'piat')."""
    kind, rest = ("piat", name.removeprefix("PIAT").removeprefix("+")) if name.startswith("PIAT") else ("none", name)
    return (rest.removeprefix("PGD-AT+") or "PGD-AT").lower().replace("-", "_"), kind


def beside(config: TrainConfig, table: str = "") -> dict[str, float]:
    """The paper's accuracies of this method, architecture and data by attack, from one of its tables or from the fullest row.

    {} where it has none, and for all but the paper's own data under its threat model: a copy that is not pixel-equal is
    another benchmark.
    """
    averages = (config.ema, config.swa, config.awp) != (None, None, None) or config.interpolation.kind == "constant"
    if config.dataset not in ("cifar10", "cifar100", "svhn") or config.threat_model != ThreatModel() or averages:
        return {}
    model = config.backbone.removeprefix("cifar_").replace("_", "-"), config.dataset
    asked = *model, config.method, config.interpolation.kind
    rows = [r for r in paper() if (r["architecture"], r["dataset"], *method_of(r["method"])) == asked]
    found = [
        {attack: float(row[key]) / 100 for key, attack in PAPER_ATTACKS.items() if row[key]}
        for row in rows
        if table in ("", row["table"])
    ]
    return max(found, key=len, default={})


def benchmarks(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by the data and threat model they are measured with, such as 'digits, Linf eps 0.15': only these compare."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(f"{run.config.dataset}, {run.config.threat_model}", []).append(run)
    return found
