"""Figures from runs' own records. Each function takes results and returns a matplotlib Figure, its caption as its label.

`runs` are of one benchmark (see `records.groups.benchmarks`), as `records.groups.read_run` gives them. Each function
raises InputError, saying why, where they do not allow its figure.

One style: colours that colour-blind readers tell apart (Okabe & Ito), labels at the data instead of legends, accuracy in
percent, and in the caption how many images and seeds a figure is made of.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from piat_hub.config import InputError, InterpolationConfig, number
from piat_hub.figures import style
from piat_hub.figures.style import canvas, ends, styled, whole_epochs
from piat_hub.records import groups as recorded
from piat_hub.records.labels import attack_name, measured_name, method_name
from piat_hub.records.rundir import RunDirectory


def seeds(runs: Sequence[RunDirectory]) -> str:
    """'seeds 0, 1, 2' or 'seed 0'."""
    known = sorted({run.config.seed for run in runs})
    return f"seed{'s' if len(known) > 1 else ''} {', '.join(map(str, known))}"


def data(runs: Sequence[RunDirectory]) -> str:
    """'digits, Linf eps 0.15'."""
    return " / ".join(dict.fromkeys(run.benchmark for run in runs))


@styled
def curves(metrics: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Accuracy (percent) per epoch, labelled at the line's end, and the interpolation weight lam below it.

    Args:
        metrics: the lines of metrics.jsonl, at least one.
        title: above the figure.
    """
    figure, (top, bottom) = canvas(7, 5, 2, sharex=True, height_ratios=(4, 1))
    epochs, labels = [m["epoch"] for m in metrics], []
    for key, label, colour, dashes in style.SERIES:
        values = [m.get(key) for m in metrics]
        if not values or any(v is None for v in values):
            continue
        top.plot(epochs, [100 * v for v in values], dashes, color=colour, label=label)  # type: ignore[operator]
        labels.append((epochs[-1], 100 * values[-1], f"{label}: {100 * values[-1]:.1f} %", colour))  # type: ignore[operator]
    bottom.plot(epochs, [m["lam"] for m in metrics], color="#444444")
    top.set(ylabel="accuracy (%)", ylim=(0, 100), title=title)
    bottom.set(xlabel="epoch", ylabel="λ", ylim=(0, 1))
    whole_epochs(bottom)
    ends(top, labels)
    return figure


@styled
def sweep(points: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Accuracy (percent) against eps for each attack, with 95 % Wilson intervals.

    Args:
        points: `sweep` of results.json.
        title: above the figure.
    """
    figure, axis = canvas(7, 4)
    labels = []
    for k, attack in enumerate(dict.fromkeys(a for point in points for a in point["attacks"])):
        colour = style.COLOURS[k % len(style.COLOURS)]
        at = [point for point in points if attack in point["attacks"]]
        eps, found = [number(point["eps"]) for point in at], [point["attacks"][attack] for point in at]
        values = [100 * f["accuracy"] for f in found]
        errors = [[abs(v - 100 * f["ci95"][end]) for v, f in zip(values, found, strict=True)] for end in (0, 1)]
        label = measured_name(attack, found[-1])
        axis.errorbar(eps, values, errors, marker="o", capsize=3, color=colour, label=label)
        labels.append((eps[-1], values[-1], label, colour))
    axis.set(xlabel="eps, for images in [0, 1]", ylabel="accuracy (%)", ylim=(0, 100), title=title)
    ends(axis, labels)
    return figure


@styled
def epochs(runs: Sequence[RunDirectory]) -> Figure:
    """Clean and PGD-10 accuracy per epoch (He et al. 2023, Fig. 2): the mean over seeds, and between which they lie.

    Up to seven configurations share two panels; more have a panel each method, without and with PIAT.
    """
    groups, which = recorded.grouped(runs), recorded.tracked(runs)
    few = len(groups) <= len(style.COLOURS)
    figure = _two_panels(groups, which) if few else _panel_each(groups, recorded.with_and_without(runs), which)
    several = any(len(group) > 1 for group in groups.values())
    over = f"mean of {seeds(runs)}, shaded from the lowest to the highest" if several else seeds(runs)
    dotted = "" if few else " Dotted: clean; solid: PGD-10."
    figure.set_label(
        f"Clean and PGD-10 accuracy after each epoch on {recorded.tracked_images(runs)} of {data(runs)}; {over}.{dotted}"
    )
    return figure


def _two_panels(groups: dict[str, list[RunDirectory]], which: str) -> Figure:
    """Clean accuracy above, PGD-10 below, a line each group."""
    figure, axes = canvas(7, 6.5, 2, sharex=True)
    for axis, what in zip(axes, ("clean", "pgd10"), strict=True):
        lines = zip(colours(list(groups.values())), groups.items(), strict=True)
        labels = [_band(axis, group, f"{which}_{what}_acc", colour, label) for colour, (label, group) in lines]
        axis.set(ylabel=f"{attack_name(what)} accuracy (%)")
        ends(axis, labels)
    axes[-1].set(xlabel="epoch")
    whole_epochs(axes[-1])
    return figure


def _panel_each(
    groups: dict[str, list[RunDirectory]], pairs: dict[str, tuple[list[RunDirectory], list[RunDirectory]]], which: str
) -> Figure:
    """A panel each method without and with PIAT, then one each configuration that has no such partner."""
    panels = {label: [(style.WITHOUT, plain), (style.WITH, piat)] for label, (plain, piat) in pairs.items()}
    drawn = [run for pair in pairs.values() for group in pair for run in group]
    panels |= {label: [(style.GREY, group)] for label, group in groups.items() if group[0] not in drawn}
    rows = -(-len(panels) // 3)
    figure, grid = canvas(8, 1.9 * rows + 0.4, rows, 3, sharex=False, sharey=True, squeeze=False)
    for axis, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        for colour, group in lines:
            for what, dashes in (("clean", ":"), ("pgd10", "-")):
                _band(axis, group, f"{which}_{what}_acc", colour, title, dashes)
        axis.set_title("\n".join(textwrap.wrap(title, 34)))
        whole_epochs(axis)
    for axis in list(grid.flat)[len(panels) :]:
        axis.set_visible(False)
    for axis in grid[:, 0]:
        axis.set(ylabel="accuracy (%)")
    for axis in list(grid.flat)[max(0, len(panels) - 3) : len(panels)]:
        axis.set(xlabel="epoch")
    for text, colour, y in (("with PIAT", style.WITH, 0.1), ("without", style.WITHOUT, 0.22)) if pairs else ():
        grid[0, 0].text(0.97, y, text, color=colour, transform=grid[0, 0].transAxes, ha="right")
    return figure


def colours(groups: Sequence[Sequence[RunDirectory]]) -> list[str]:
    """A colour for each of up to seven groups: with interpolation blue and its like, without it vermilion's."""
    left, found = list(style.COLOURS), {}
    kinds = [group[0].config.interpolation.kind for group in groups]
    order = ("piat", "constant", "none")  # PIAT chooses first
    for k in sorted(range(len(groups)), key=lambda k: order.index(kinds[k])):
        found[k] = next(colour for colour in (style.WARM if kinds[k] == "none" else style.COOL) if colour in left)
        left.remove(found[k])
    return [found[k] for k in range(len(groups))]


def _band(
    axis: Axes, group: Sequence[RunDirectory], key: str, colour: str, label: str, dashes: str = "-"
) -> tuple[float, float, str, str]:
    """Draw the mean over a group and the range of one of the metrics; returns the label for the line's end."""
    length = min(len(run.metrics) for run in group)
    each = 100 * np.array([[m[key] for m in run.metrics[:length]] for run in group])
    at = [m["epoch"] for m in group[0].metrics[:length]]
    axis.plot(at, each.mean(0), dashes, color=colour, label=label)
    if len(each) > 1:
        axis.fill_between(at, each.min(0), each.max(0), color=colour, alpha=0.15, linewidth=0)
    return at[-1], float(each.mean(0)[-1]), label, colour


@styled
def interpolation(runs: Sequence[RunDirectory]) -> Figure:
    """Robust accuracy of each method with and without PIAT, with 95 % intervals (He et al. 2023, Fig. 3).

    AutoAttack where both of every method were measured under it, else the strongest attack measured on all runs.
    """
    pairs = recorded.with_and_without(runs)
    every = [run for pair in pairs.values() for group in pair for run in group]
    if not every:
        raise InputError("no method has runs with and without PIAT; give both")
    has_aa = all(any(run.figures("aa") for run in group) for pair in pairs.values() for group in pair)
    attack = "aa" if has_aa else recorded.strongest(every)
    figure, axis = canvas(6.5, 0.55 * len(pairs) + 1)
    used: list[list[RunDirectory]] = []
    for row, pair in enumerate(reversed(pairs.values())):
        for group, colour, shift in zip(pair, (style.WITHOUT, style.WITH), (0.2, -0.2), strict=True):
            used.append([run for run in group if run.figures(attack)])
            value, low, high = (100 * v for v in recorded.mean_accuracy(used[-1], attack) or (np.nan,) * 3)
            axis.barh(row + shift, value, 0.36, color=colour, alpha=0.85)
            axis.plot([low, high], [row + shift] * 2, color="#222222", linewidth=1)
            axis.annotate(f"{value:.1f}", (high, row + shift), (4, 0), textcoords="offset points", va="center")
    axis.set(yticks=range(len(pairs)), yticklabels=list(reversed(pairs)), xlabel=f"{attack_name(attack)} accuracy (%)")
    axis.set_xlim(0, min(112, max(t.xy[0] for t in axis.texts) * 1.15 + 1))
    axis.grid(axis="y", visible=False)
    for text, shift in (("without PIAT", 0.2), ("with PIAT", -0.2)):
        axis.text(0.5, len(pairs) - 1 + shift, text, va="center", color="white", fontsize=8)
    figure.set_label(f"{attack_name(attack)} accuracy on {tested(used, attack)}.")
    return figure


def tested(groups: Sequence[Sequence[RunDirectory]], attack: str) -> str:
    """'400 test images of digits, Linf eps 0.15; seeds 0, 1, 95 % intervals over seeds (Student's t), last checkpoint'."""
    runs = [run for group in groups for run in group]
    counts = sorted({f["n"] for run in runs if (f := run.figures(attack))})
    images = f"{' or '.join(f'{n:,}' for n in counts)} test images of {data(runs)}"
    return f"{images}; {seeds(runs)}, 95 % intervals {recorded.intervals(groups)}, last checkpoint"


def schedule(run: RunDirectory) -> str:
    """'0', '0.3', 'g(n)', 'g(4n)' or '(2n + 1) / (3n + 9)': the run's lam in words."""
    law = run.config.interpolation
    paper = InterpolationConfig()
    if (law.b, law.c, law.d) == (paper.b, law.a, paper.d):
        g = "g(n)" if law.a == paper.a else f"g({law.a:g}n)"
    else:
        g = f"({law.a:g}n + {law.b:g}) / ({law.c:g}n + {law.d:g})"
    return {"none": "0", "constant": f"{law.constant:g}", "piat": g}[law.kind]


@styled
def lambdas(runs: Sequence[RunDirectory]) -> Figure:
    """Schedules of lam, and robust accuracy after each (He et al. 2023, Fig. 4): a dot a seed, mean and interval."""
    usual = [run for run in runs if recorded.usual(run.config)]
    groups = recorded.varied(usual, *recorded.LAW) if usual else []
    if len(groups) < 3:
        raise InputError(
            "fewer than three schedules of lam among runs that share all else; `piat study lambda` and `piat study speed` make them"
        )
    groups.sort(key=lambda g: (g[0].config.interpolation.kind == "piat", g[0].metrics[-1]["lam"]))  # constants first
    names = [schedule(group[0]) for group in groups]
    figure, (top, bottom) = canvas(6.5, 6, 2, height_ratios=(2, 3))
    shades = [style.WITH if name == "g(n)" else style.GREY for name in names]
    lasts = []
    for colour, (name, group) in zip(shades, zip(names, groups, strict=True), strict=True):
        at, lam = ([m[key] for m in group[0].metrics] for key in ("epoch", "lam"))
        top.plot(at, lam, color=colour, label=name)
        lasts.append((at[-1], lam[-1], name, colour))
    top.set(xlabel="epoch", ylabel="λ", ylim=(-0.03, 1))
    whole_epochs(top)
    ends(top, lasts)
    attack = _dots(bottom, groups, list(range(len(groups))), shades)
    bottom.set(xticks=range(len(names)), xticklabels=[f"λ = {name}" for name in names])
    plain = dataclasses.replace(groups[0][0].config, interpolation=InterpolationConfig(kind="none"))
    figure.set_label(
        f"Above, λ by epoch; below, {attack_name(attack)} accuracy of {method_name(plain)} on "
        f"{tested(groups, attack)}{_marks(groups)}."
    )
    return figure


@styled
def mus(runs: Sequence[RunDirectory]) -> Figure:
    """Clean and robust accuracy against mu, NMSE's weight (He et al. 2023, Fig. 5): a dot a seed, mean and interval."""
    nmse = [run for run in runs if run.config.method == "nmse"]
    by_mu = {recorded.settings(g[0].config)["mu"]: g for g in (recorded.varied(nmse, "mu") if nmse else ())}
    if len(by_mu) < 2:
        raise InputError("fewer than two weights mu of NMSE among runs that share all else; `piat study mu` makes them")
    weights = sorted(by_mu)
    groups = [by_mu[mu] for mu in weights]
    figure, axes = canvas(5.5, 5, 2, sharex=True)
    _dots(axes[0], groups, weights, [style.BLUE] * len(groups), "clean")
    attack = _dots(axes[1], groups, weights, [style.VERMILION] * len(groups))
    axes[1].set(xlabel="μ, weight of NMSE", xticks=weights)
    name = method_name(groups[0][0].config)
    figure.set_label(f"{name} on {tested(groups, attack)}{_marks(groups)}.")
    return figure


def _marks(groups: Sequence[Sequence[RunDirectory]]) -> str:
    """What `_dots` draws, where there is more than one run a group."""
    return "; dots are runs, bars their mean" if any(len(group) > 1 for group in groups) else ""


def _dots(
    axis: Axes,
    groups: Sequence[Sequence[RunDirectory]],
    at: Sequence[float],
    colours: Sequence[str],
    attack: str | None = None,
) -> str:
    """A dot a run, mean and 95 % interval a group, under the attack or the strongest measured on all; returns its name."""
    chosen = attack or recorded.strongest([run for group in groups for run in group])
    for x, group, colour in zip(at, groups, colours, strict=True):
        each = [100 * f["accuracy"] for run in group if (f := run.figures(chosen))]
        value, low, high = (100 * v for v in recorded.mean_accuracy(group, chosen) or (np.nan,) * 3)
        axis.errorbar([x], [value], [[value - low], [high - value]], fmt="_", color=colour, capsize=4, markersize=14)
        if len(each) > 1:
            axis.scatter(np.full(len(each), x + 0.08), each, s=10, color=colour, alpha=0.6, linewidths=0)
    axis.set(ylabel=f"{attack_name(chosen)} accuracy (%)")
    return chosen


@styled
def gaps(runs: Sequence[RunDirectory]) -> Figure:
    """Robust-overfitting gap, generalisation gap and oscillation by configuration: a dot a run, a bar at the mean."""
    groups = recorded.grouped(runs)
    for run in runs:
        if any(of(run.metrics) is None for of in recorded.CURVES.values()):
            has = f"{len(run.metrics)} epochs" if run.config.holdout else "--holdout 0"
            raise InputError(f"they need held-out images and five epochs, and {run.directory} has {has}; leave it out")
    figure, axes = canvas(8, 0.3 * len(groups) + 1.3, 1, 3, sharey=True)
    notes = ("best - last epoch", "training - held out", "sd of change, last half")
    for axis, (name, of), note in zip(axes, recorded.CURVES.items(), notes, strict=True):
        for row, group in enumerate(reversed(groups.values())):
            values = [100 * value for run in group if (value := of(run.metrics)) is not None]
            colour = style.WITHOUT if group[0].config.interpolation.kind == "none" else style.WITH
            axis.scatter(values, [row] * len(values), s=14, color=colour, alpha=0.7, linewidths=0)
            axis.plot([float(np.mean(values))], [row], "|", color=colour, markersize=11, markeredgewidth=2)
        axis.set(title=name, xlabel=f"{note} (points)", ylim=(-0.7, len(groups) - 0.3))
        axis.axvline(0, color="#444444", linewidth=0.8)
    axes[0].set(yticks=range(len(groups)), yticklabels=list(reversed(groups)))
    counts = " or ".join(f"{count:,}" for count in sorted({run.config.holdout or 0 for run in runs}))
    figure.set_label(
        f"Of PGD-10 accuracy on {counts} held-out images of {data(runs)}; {seeds(runs)}; blue with "
        "interpolation, vermilion without; dots are runs, ticks their mean."
    )
    return figure


@styled
def scatter(runs: Sequence[RunDirectory]) -> Figure:
    """Clean against robust accuracy of each configuration, both with 95 % intervals."""
    groups, attack = recorded.grouped(runs), recorded.strongest(runs)
    if any(run.figures("clean", attack) is None for run in runs):
        raise InputError("no attack was measured on all runs; evaluate them with the same --attacks")
    figure, axis = canvas(7, max(4.5, 0.2 * len(groups) + 1))
    labels, right = [], 0.0
    for label, group in groups.items():
        both = [recorded.mean_accuracy(group, a, beside=attack) for a in ("clean", attack)]
        (x, *across), (y, *along) = ([100 * v for v in found or ()] for found in both)
        colour = style.WITHOUT if group[0].config.interpolation.kind == "none" else style.WITH
        errors: dict[str, Any] = {"xerr": [[x - across[0]], [across[1] - x]], "yerr": [[y - along[0]], [along[1] - y]]}
        axis.errorbar([x], [y], fmt="o", markersize=4, color=colour, elinewidth=0.8, label=label, **errors)
        labels.append((x, y, label, colour))
        right = max(right, across[1])
    axis.set(xlabel="clean accuracy (%)", ylabel=f"{attack_name(attack)} accuracy (%)")
    ends(axis, labels, at=right + 0.02 * (right - axis.get_xlim()[0]))
    figure.set_label(
        f"Clean and {attack_name(attack)} accuracy on {tested(list(groups.values()), attack)}; blue with interpolation, "
        "vermilion without."
    )
    return figure
