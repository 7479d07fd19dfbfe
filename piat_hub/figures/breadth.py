"""How far robustness reaches: under other threat models, and on corrupted images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from piat_hub.config import COMMON, SEVERITIES, InputError
from piat_hub.figures import style
from piat_hub.figures.style import canvas, ends, styled
from piat_hub.records.groups import grouped
from piat_hub.records.labels import attack_name
from piat_hub.records.rundir import RunDirectory


@styled
def corruptions(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy (percent) against severity: the mean of the 15 corruptions, and thin each one.

    Args:
        found: by name of the model, what results.json says under "corruptions".

    Raises:
        InputError: where a model lacks one of the 15.
    """
    if lacking := [name for name, told in found.items() if not told.get("mean")]:
        raise InputError(f"{lacking[0]} was not measured under all 15 corruptions; evaluate it with --corruptions DIR")
    figure, axis = canvas(7, 4)
    severities, labels = range(1, SEVERITIES + 1), []
    for k, (name, told) in enumerate(found.items()):
        colour = style.COLOURS[k % len(style.COLOURS)]
        each = {c: [100 * f["accuracy"] for f in told["severities"][c]] for c in COMMON}
        for values in each.values():
            axis.plot(severities, values, color=colour, linewidth=0.5, alpha=0.4)
        mean = np.mean(list(each.values()), 0)
        axis.plot(severities, mean, marker="o", color=colour)
        labels.append((SEVERITIES, float(mean[-1]), name, colour))
    axis.set(xlabel="severity", ylabel="accuracy (%)", ylim=(0, 100), xticks=list(severities))
    ends(axis, labels)
    images = " / ".join(dict.fromkeys(f"{t['dataset']['n']} images of {t['dataset']['name']}" for t in found.values()))
    figure.set_label(f"Accuracy without an attack on {images}: the mean of 15 corruptions, and thin each of them.")
    return figure


@styled
def union(runs: Sequence[RunDirectory]) -> Figure:
    """Accuracy (percent) under each threat model and their union, with 95 % Wilson intervals, of runs that have one.

    Args:
        runs: as `records.groups.read_run` gives them.

    Raises:
        InputError: where none has a union of its last weights, or two have those of different threat models.
    """
    each = [
        (label, run.unions["last"]) for label, group in grouped(runs).items() for run in group if "last" in run.unions
    ]
    if not each:
        raise InputError("no run was measured under several threat models; evaluate one with --threat-models")
    if len({tuple(one.parts) for _, one in each}) > 1:
        raise InputError("the runs were measured under different threat models; evaluate all under the same")
    figure, axis = canvas(7, 4)
    first = each[0][1]
    names = [*(str(part.threat_model) for part in first.parts.values()), "union"]
    for k, (label, one) in enumerate(each):
        told = one.to_dict()
        figures = [*told["threat_models"], told["union"]]
        values = [100 * f["accuracy"] for f in figures]
        errors = [[abs(v - 100 * f["ci95"][end]) for v, f in zip(values, figures, strict=True)] for end in (0, 1)]
        at = np.arange(len(names)) + 0.12 * (k - (len(each) - 1) / 2)
        axis.errorbar(at, values, errors, fmt="o", capsize=3, color=style.COLOURS[k % len(style.COLOURS)], label=label)
    axis.set(ylabel="accuracy (%)", ylim=(0, 100), xticks=range(len(names)), xticklabels=names)
    axis.legend(frameon=False)
    attacks = ", ".join(map(attack_name, dict.fromkeys(a for part in first.parts.values() for a in part.attacks)))
    figure.set_label(
        f"{first.first.n} images of {first.first.dataset}: the worst of {attacks} under each threat model, and under all."
    )
    return figure


def of_runs(runs: Sequence[RunDirectory]) -> Figure:
    """`corruptions` of the runs' last weights.

    Args:
        runs: as `records.groups.read_run` gives them.
    """
    found = {}
    for label, group in grouped(runs).items():
        for run in group:
            told = [m.record.corruptions for m in run.measured if m.checkpoint == "last" and m.record.corruptions]
            found[f"{label}, seed {run.config.seed}"] = told[0] if told else {}
    return corruptions(found)
