"""What runs recorded, read back: groups of runs that differ by their seed alone, and what their curves and verdicts say."""

import dataclasses
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from piat_hub import methods
from piat_hub.config import TRACKED, InputError, InterpolationConfig, TrainConfig, flat, recipes, to_dict
from piat_hub.records.labels import method_name
from piat_hub.records.published import PAPER_ATTACKS, method_of, paper
from piat_hub.records.rundir import RunDirectory


def read_run(directory: str | Path) -> RunDirectory:
    """Read a run directory that has trained an epoch.

    Raises:
        InputError: if it is none, or damaged.
    """
    run = RunDirectory.read(directory)
    if not run.metrics:
        raise InputError(f"{run.directory} has no metrics.jsonl with an epoch in it; train it first")
    _ = run.measured  # or InputError
    return run


def grouped(runs: Sequence[RunDirectory]) -> dict[str, list[RunDirectory]]:
    """The runs by label, those of one configuration under all its seeds together, in the order of their first one.

    A label is the method's name; where that is the same for several configurations, what they differ in is added.

    Args:
        runs: as `read_run` gives them.

    Raises:
        InputError: for two runs of one configuration and seed.
    """
    each = [settings(run.config) for run in runs]
    labels = [method_name(run.config) for run in runs]
    groups: dict[str, list[RunDirectory]] = {}
    for run, setting, label in zip(runs, each, labels, strict=True):
        alike = [other for other, name in zip(each, labels, strict=True) if name == label]
        differ = [key for key in setting if any(other.get(key) != setting[key] for other in alike)]
        group = groups.setdefault(", ".join([label, *(f"{key} {setting[key]}" for key in differ)]), [])
        if twin := next((other for other in group if other.config.seed == run.config.seed), None):
            raise InputError(f"{twin.directory} and {run.directory} are one configuration and seed; give one of them")
        group.append(run)
    return groups


def varied(runs: Sequence[RunDirectory], *keys: str) -> list[list[RunDirectory]]:
    """The groups of runs that differ in these settings alone; of several such sets the one with the most groups.

    Args:
        runs: at least one.
        *keys: names of settings, as `settings` has them.
    """
    sets: dict[tuple[Any, ...], list[list[RunDirectory]]] = {}
    for group in grouped(runs).values():
        rest = tuple((k, str(v)) for k, v in settings(group[0].config).items() if k not in keys)
        sets.setdefault(rest, []).append(group)
    return max(sets.values(), key=len)


LENGTH = ("epochs", "clean_epochs", "accumulation", "holdout")  # what a run may choose and stand beside the paper's
LAW = ("kind", "constant", *"abcd", "start_epoch", "bn")  # what `settings` says of interpolation


def with_and_without(runs: Sequence[RunDirectory]) -> dict[str, tuple[list[RunDirectory], list[RunDirectory]]]:
    """(runs without interpolation, runs with the paper's) that differ in nothing else, by the label of the former."""
    plain, piat = ([run for run in runs if law_of(run.config) == kind] for kind in ("none", "piat"))
    pairs = {
        label: (group, [run for run in piat if same_but_law(run.config, group[0].config)])
        for label, group in grouped(plain).items()
    }
    return {label: pair for label, pair in pairs.items() if pair[1]}


def law_of(config: TrainConfig) -> str:
    """The kind of interpolation, or "other" where g(n)'s numbers, its start or BatchNorm's treatment are not the paper's."""
    law, paper = config.interpolation, InterpolationConfig()
    papers = dataclasses.replace(law, kind=paper.kind, constant=paper.constant) == paper
    return law.kind if papers or law.kind == "none" else "other"


def usual(config: TrainConfig) -> bool:
    """Whether interpolation, if there is any, begins with the first epoch and takes BatchNorm's statistics along."""
    law, paper = config.interpolation, InterpolationConfig()
    return law.kind == "none" or (law.start_epoch, law.bn) == (paper.start_epoch, paper.bn)


def same_but_law(a: TrainConfig, b: TrainConfig) -> bool:
    """Whether two configurations differ in nothing but interpolation and seed."""
    one, other = ({k: v for k, v in settings(config).items() if k not in LAW} for config in (a, b))
    return one == other


def settings(config: TrainConfig) -> dict[str, Any]:
    """All of a configuration but its seed and recipe, flat, with the method's defaults, without what has no effect."""
    method = dataclasses.asdict(methods.get(config.method)(**config.method_args))  # type: ignore[call-overload]
    values = flat(to_dict(config.least_said) | {"method_args": method})
    law = config.interpolation.kind
    idle = {"none": LAW[1:], "piat": ("constant",), "constant": ("a", "b", "c", "d")}[law]
    last = {key: key.rpartition(".")[2] for key in values}
    count = Counter(last.values())  # SCORE's smoothing is another than the training's
    named = {last[key] if count[last[key]] == 1 else key: value for key, value in values.items()}
    return {key: value for key, value in named.items() if key not in ("seed", "recipe", *idle)}


def tracked(runs: Iterable[RunDirectory]) -> str:
    """Whose curves all these runs have: "test" where test images were tracked in every epoch, else "holdout".

    Raises:
        InputError: where a run has neither.
    """
    for images in ("test", "holdout"):
        if all(
            m.get(f"{images}_{what}_acc") is not None for r in runs for m in r.metrics for what in ("clean", "pgd10")
        ):
            return images
    raise InputError("a run has no held-out images; train with --holdout above 0, or with --track-test")


def tracked_images(runs: Sequence[RunDirectory]) -> str:
    """Those images in words."""
    counts = " or ".join(f"{count:,}" for count in sorted({run.config.holdout or 0 for run in runs}))
    tested = f"{TRACKED:,} test images (or all there are)"
    return tested if tracked(runs) == "test" else f"{counts} held-out images"


def robust_gap(metrics: Sequence[dict[str, Any]]) -> float | None:
    """Robust overfitting, held-out PGD-10 accuracy of the best epoch minus the last one's; None without such images.

    Args:
        metrics: the lines of metrics.jsonl, at least one; the gap is a fraction, as accuracies are.
    """
    values = [m["holdout_pgd10_acc"] for m in metrics]
    return None if None in values else max(values) - values[-1]


def generalisation_gap(metrics: Sequence[dict[str, Any]]) -> float | None:
    """PGD-10 accuracy on the training subset minus the held-out one's, after the last epoch; None without the latter.

    Args:
        metrics: the lines of metrics.jsonl, at least one; the gap is a fraction, as accuracies are.
    """
    last = metrics[-1]
    return None if last["holdout_pgd10_acc"] is None else last["train_pgd10_acc"] - last["holdout_pgd10_acc"]


def oscillation(metrics: Sequence[dict[str, Any]]) -> float | None:
    """How held-out PGD-10 accuracy swings: the standard deviation of its change by epoch, over the run's last half.

    Args:
        metrics: the lines of metrics.jsonl; None for fewer than three in that half, or without held-out images.
    """
    values = [m["holdout_pgd10_acc"] for m in metrics[len(metrics) // 2 :]]
    changes = [] if None in values else [b - a for a, b in itertools.pairwise(values)]
    return statistics.stdev(changes) if len(changes) > 1 else None


CURVES = {"robust-overfitting gap": robust_gap, "generalisation gap": generalisation_gap, "oscillation": oscillation}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % interval of the mean over seeds by Student's t.

    Args:
        values: one a seed.

    Raises:
        ValueError: for fewer than two values.
    """
    from scipy.stats import t as student

    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least two values, got {len(values)}")
    mean = statistics.fmean(values)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def mean_accuracy(
    runs: Iterable[RunDirectory], attack: str, beside: str | None = None
) -> tuple[float, float, float] | None:
    """(accuracy, low, high) of a group, fractions; None where one was not measured.

    Args:
        runs: of one configuration; several give an interval over seeds, cut to [0, 1], a single one its Wilson
            interval.
        attack: under which the last weights were measured.
        beside: an attack that must have been measured on the same images.
    """
    found = [run.figures(attack, beside) for run in runs]
    if not found or any(f is None for f in found):
        return None
    measured = [f for f in found if f is not None]
    if len(measured) == 1:
        low, high = measured[0]["ci95"]
        return measured[0]["accuracy"], low, high
    mean, low, high = mean_interval([f["accuracy"] for f in measured])
    return mean, max(0.0, low), min(1.0, high)


def intervals(groups: Iterable[Sequence[RunDirectory]]) -> str:
    """What the intervals of `mean_accuracy` are for these groups, in words."""
    several = {len(group) > 1 for group in groups}
    words = {True: "over seeds (Student's t)", False: "of one model (Wilson)"}
    return words[several.pop()] if len(several) == 1 else f"{words[True]}, {words[False]} where there is one"


def common_attacks(runs: Sequence[RunDirectory]) -> list[str]:
    """The attacks that the last weights of every run were measured under, "clean" first, then in the order of the results."""
    known = dict.fromkeys(a for run in runs for results in run.results for a in results.record.attacks)
    return sorted((a for a in known if all(run.figures(a) for run in runs)), key=lambda attack: attack != "clean")


def strongest(runs: Sequence[RunDirectory]) -> str:
    """Of the attacks measured on every run the one that leaves the least.

    Args:
        runs: as `read_run` gives them.

    Raises:
        InputError: where there is none but "clean".
    """
    left = {a: statistics.fmean(f["accuracy"] for run in runs if (f := run.figures(a))) for a in common_attacks(runs)}
    if not set(left) - {"clean"}:
        raise InputError("no attack was measured on all runs; evaluate them with the same --attacks")
    return min(left, key=left.__getitem__)


def beside(config: TrainConfig, table: str = "") -> dict[str, float]:
    """The paper's accuracies of this method, architecture and data by attack, as fractions.

    {} where it has none: for a run that differs from the paper's recipe in more than method, `piat` or `none`, seed,
    length and held-out images, be it extra data, other weights to begin with or another copy of the images.

    Args:
        config: of a run.
        table: the paper's table, by its number; "" for the row with the most attacks.
    """
    model = config.backbone.removeprefix("cifar_").replace("_", "-"), config.dataset
    name = "-".join(model)
    if name not in recipes.names() or law_of(config) not in ("none", "piat"):
        return {}
    same = {key: getattr(config, key) for key in ("method", "interpolation", *LENGTH)}
    if settings(dataclasses.replace(recipes.get(name), **same)) != settings(config):
        return {}
    asked = *model, config.method, config.interpolation.kind
    rows = [r for r in paper() if (r["architecture"], r["dataset"], *method_of(r["method"])) == asked]
    found = [
        {attack: float(row[key]) / 100 for key, attack in PAPER_ATTACKS.items() if row[key]}
        for row in rows
        if table in ("", row["table"])
    ]
    return max(found, key=len, default={})


def benchmarks(runs: Sequence[RunDirectory]) -> dict[str, list[RunDirectory]]:
    """The runs by benchmark: only those of one compare.

    Args:
        runs: as `read_run` gives them.

    Raises:
        InputError: where two had other images by the same name.
    """
    found: dict[str, list[RunDirectory]] = {}
    for run in runs:
        found.setdefault(run.benchmark, []).append(run)
    for name, group in found.items():
        seen: dict[int, tuple[str, Path]] = {}
        for run in group:
            for measured in run.results:
                digest, n = measured.record.images, measured.record.n
                if digest and seen.setdefault(n, (digest, run.directory))[0] != digest:
                    where = seen[n][1]
                    raise InputError(f"{where} and {run.directory} were measured on other images, both called {name}")
    return found
