"""Figures from runs' own records. Each function takes results and returns a matplotlib Figure, its caption as its label.

One style: colours that colour-blind readers tell apart (Okabe & Ito), labels at the data instead of legends, accuracy in
percent, and in the caption how many images and seeds a figure is made of.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from piat_hub import records
from piat_hub.card import attack_name, method_name
from piat_hub.config import InputError, TrainConfig, number
from piat_hub.files import whole_file
from piat_hub.probes import Examples, Surface
from piat_hub.records import Run

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY = COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#666666",
)
SERIES = (  # key in metrics.jsonl, label, colour, line style
    ("holdout_clean_acc", "clean, held out", BLUE, "-"),
    ("holdout_pgd10_acc", "PGD-10, held out", VERMILION, "-"),
    ("train_pgd10_acc", "PGD-10, training images", GREEN, "--"),
    ("test_pgd10_acc", "PGD-10, test", PURPLE, ":"),
)
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "piat_hub",  # the same figure is the same file
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.6,
}
WITHOUT, WITH = VERMILION, BLUE  # without and with PIAT
styled = matplotlib.rc_context(STYLE)


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """(a Figure of so many inches, its axes) in the house's style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options) if rows else None


@styled
def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG or SVG, after the path's suffix, with its caption below it; the file appears whole."""
    caption = figure.get_label()
    line = int(figure.get_figwidth() * 17)
    if caption and not getattr(figure, "_supxlabel", None):
        figure.supxlabel("\n".join(textwrap.wrap(str(caption), line)), x=0.01, ha="left", fontsize=8, parse_math=False)
    with whole_file(path) as scratch:
        kind = path.suffix.lstrip(".")
        figure.savefig(scratch, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def ends(axis: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) beside the ends of lines, moved up or down where they would lie on each other."""
    if not labels:
        return
    low, high = axis.get_ylim()
    height = axis.get_position().height * axis.get_figure(root=True).get_figheight()  # type: ignore[union-attr]
    gap = (high - low) * 0.16 / height  # a line of text, in the axis' units
    labels = sorted(labels, key=lambda one: one[1])
    for y, (x, _, text, colour) in zip(spread([one[1] for one in labels], gap, high), labels, strict=True):
        axis.annotate(text, (x, y), (6, 0), textcoords="offset points", color=colour, va="center", parse_math=False)


def spread(values: Sequence[float], gap: float, top: float = float("inf")) -> list[float]:
    """Rising values moved so that neighbours are at least `gap` apart: up, and all down again where that ends above `top`."""
    out: list[float] = []
    for value in values:
        out.append(max(value, out[-1] + gap) if out else value)
    for k in range(len(out) - 1, -1, -1):
        out[k], top = min(out[k], top), min(out[k], top) - gap
    return out


def whole_epochs(axis: Axes) -> None:
    """Ticks at whole epochs only."""
    axis.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]


def seeds(runs: Sequence[Run]) -> str:
    """'seeds 0, 1, 2' or 'seed 0'."""
    known = sorted({run.config.seed for run in runs})
    return f"seed{'s' if len(known) > 1 else ''} {', '.join(map(str, known))}"


def data(runs: Sequence[Run]) -> str:
    """'digits, Linf eps 0.15'."""
    return " / ".join(dict.fromkeys(f"{run.config.dataset}, {run.config.threat_model}" for run in runs))


@styled
def curves(metrics: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Accuracy (percent) per epoch, labelled at the line's end, and the interpolation weight lam below it."""
    figure, (top, bottom) = canvas(7, 5, 2, sharex=True, height_ratios=(4, 1))
    epochs, labels = [m["epoch"] for m in metrics], []
    for key, label, colour, style in SERIES:
        values = [m.get(key) for m in metrics]
        if not values or any(v is None for v in values):
            continue
        top.plot(epochs, [100 * v for v in values], style, color=colour, label=label)  # type: ignore[operator]
        labels.append((epochs[-1], 100 * values[-1], f"{label}: {100 * values[-1]:.1f} %", colour))  # type: ignore[operator]
    bottom.plot(epochs, [m["lam"] for m in metrics], color="#444444")
    top.set(ylabel="accuracy (%)", ylim=(0, 100))
    top.set_title(title, parse_math=False)
    bottom.set(xlabel="epoch", ylabel="λ", ylim=(0, 1))
    whole_epochs(bottom)
    ends(top, labels)
    return figure


@styled
def sweep(points: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Accuracy (percent) against eps for each attack, with 95 % Wilson intervals. points: `sweep` of results.json."""
    figure, axis = canvas(7, 4)
    labels = []
    for k, attack in enumerate(dict.fromkeys(a for point in points for a in point["attacks"])):
        colour = COLOURS[k % len(COLOURS)]
        at = [point for point in points if attack in point["attacks"]]
        eps, found = [number(point["eps"]) for point in at], [point["attacks"][attack] for point in at]
        values = [100 * f["accuracy"] for f in found]
        errors = [[abs(v - 100 * f["ci95"][end]) for v, f in zip(values, found, strict=True)] for end in (0, 1)]
        axis.errorbar(eps, values, errors, marker="o", capsize=3, color=colour, label=attack_name(attack))
        labels.append((eps[-1], values[-1], attack_name(attack), colour))
    axis.set(xlabel="eps, for images in [0, 1]", ylabel="accuracy (%)", ylim=(0, 100))
    axis.set_title(title, parse_math=False)
    ends(axis, labels)
    return figure


@styled
def epochs(runs: Sequence[Run]) -> Figure:
    """Clean and PGD-10 accuracy per epoch (He et al. 2023, Fig. 2): the mean over seeds, and between which they lie.

    Up to seven configurations share two panels; more have a panel each method, without and with PIAT.
    """
    groups = records.grouped(runs)
    if len(groups) <= len(COLOURS):
        figure, axes = canvas(7, 6.5, 2, sharex=True)
        for axis, what in zip(axes, ("clean", "pgd10"), strict=True):
            labels = [
                _band(axis, group, what, colour, label)
                for colour, (label, group) in zip(colours(list(groups.values())), groups.items(), strict=True)
            ]
            axis.set(ylabel=f"{attack_name(what)} accuracy (%)")
            ends(axis, [one for one in labels if one])
        axes[-1].set(xlabel="epoch")
    else:
        by_method: dict[str, dict[bool, list[Run]]] = {}
        for label, group in groups.items():
            law, name = group[0].config.interpolation.kind != "none", method_name(_plain(group[0]))
            panel = by_method.setdefault(name if law not in by_method.get(name, {}) else label, {})
            panel[law] = group
        rows = -(-len(by_method) // 3)
        figure, grid = canvas(8, 1.9 * rows + 0.4, rows, 3, sharex=False, sharey=True, squeeze=False)
        for axis, (name, pair) in zip(grid.flat, by_method.items(), strict=False):
            for law, group in sorted(pair.items()):
                for what, dashes in (("clean", ":"), ("pgd10", "-")):
                    _band(axis, group, what, WITH if law else WITHOUT, name, dashes)
            axis.set_title(name, parse_math=False)
            whole_epochs(axis)
        for axis in list(grid.flat)[len(by_method) :]:
            axis.set_visible(False)
        for axis in grid[:, 0]:
            axis.set(ylabel="accuracy (%)")
        for axis in list(grid.flat)[max(0, len(by_method) - 3) : len(by_method)]:
            axis.set(xlabel="epoch")
        for text, colour, y in (("with PIAT", WITH, 0.1), ("without", WITHOUT, 0.22)):
            grid[0, 0].text(0.97, y, text, color=colour, transform=grid[0, 0].transAxes, ha="right")
    images = records.series(runs[0], "pgd10")[0]
    many = len({run.config.seed for run in runs}) > 1
    over = f"mean of {seeds(runs)}, shaded from the lowest to the highest" if many else seeds(runs)
    dotted = "" if len(groups) <= len(COLOURS) else " Dotted: clean; solid: PGD-10."
    figure.set_label(f"Clean and PGD-10 accuracy after each epoch on {images} of {data(runs)}; {over}.{dotted}")
    return figure


def colours(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A colour for each of up to seven groups: without interpolation from vermilion on, with it from blue on."""
    left, found = list(COLOURS), []
    for group in groups:
        plain = group[0].config.interpolation.kind == "none"
        wanted = (VERMILION, ORANGE, PURPLE, GREY) if plain else (BLUE, GREEN, SKY)
        found.append(next((c for c in wanted if c in left), left[0]))
        left.remove(found[-1])
    return found


def _plain(run: Run) -> TrainConfig:
    """The run's configuration without interpolation."""
    law = dataclasses.replace(run.config.interpolation, kind="none")
    return dataclasses.replace(run.config, interpolation=law)


def _band(
    axis: Axes, group: Sequence[Run], what: str, colour: str, label: str, style: str = "-"
) -> tuple[float, float, str, str] | None:
    """Draw the mean over a group and the range; returns the label for the line's end. None without such images."""
    found = [values for run in group if (values := records.series(run, what)[1])]
    if not found:
        return None
    length = min(map(len, found))
    each, at = 100 * np.array([f[:length] for f in found]), [m["epoch"] for m in group[0].metrics[:length]]
    axis.plot(at, each.mean(0), style, color=colour, label=label)
    if len(each) > 1:
        axis.fill_between(at, each.min(0), each.max(0), color=colour, alpha=0.15, linewidth=0)
    return at[-1], float(each.mean(0)[-1]), label, colour


@styled
def interpolation(runs: Sequence[Run]) -> Figure:
    """Robust accuracy of each method with and without PIAT, with 95 % intervals (He et al. 2023, Fig. 3).

    AutoAttack where both of a method's were measured under it, else the strongest attack measured on all runs.
    """
    pairs: dict[str, dict[str, list[Run]]] = {}
    for label, group in records.grouped(runs).items():
        kind = group[0].config.interpolation.kind
        if kind in ("none", "piat") and (group[0].config.ema, group[0].config.swa) == (None, None):
            name = label.replace(method_name(group[0].config), method_name(_plain(group[0])), 1)
            pairs.setdefault(name, {})[kind] = group
    pairs = {name: pair for name, pair in pairs.items() if len(pair) == 2}
    every = [run for pair in pairs.values() for group in pair.values() for run in group]
    if not every:
        raise InputError("no method has runs with and without PIAT; give both")
    has_aa = all(any(r.figures("aa") for r in group) for pair in pairs.values() for group in pair.values())
    attack = "aa" if has_aa else records.strongest(every)
    if attack is None:
        raise InputError("no attack was measured on all runs; evaluate them with the same --attacks")
    figure, axis = canvas(6.5, 0.55 * len(pairs) + 1)
    used: list[Run] = []
    for row, (_, pair) in enumerate(reversed(pairs.items())):
        for kind, colour, shift in (("none", WITHOUT, 0.2), ("piat", WITH, -0.2)):
            group = [run for run in pair[kind] if run.figures(attack)]
            value, low, high = (100 * v for v in records.accuracy(group, attack) or (0, 0, 0))
            axis.barh(row + shift, value, 0.36, color=colour, alpha=0.85)
            axis.plot([low, high], [row + shift] * 2, color="#222222", linewidth=1)
            axis.annotate(f"{value:.1f}", (high, row + shift), (4, 0), textcoords="offset points", va="center")
            used += group
    axis.set(yticks=range(len(pairs)), yticklabels=list(reversed(pairs)), xlabel=f"{attack_name(attack)} accuracy (%)")
    axis.set_xlim(0, min(112, max(t.xy[0] for t in axis.texts) * 1.15 + 1))
    axis.grid(axis="y", visible=False)
    top = len(pairs) - 1
    for text, shift in (("without PIAT", 0.2), ("with PIAT", -0.2)):
        axis.text(0.5, top + shift, text, va="center", color="white", fontsize=8)
    figure.set_label(f"{attack_name(attack)} accuracy on {images_of(used, attack)} of {data(used)}; {interval(used)}.")
    return figure


def images_of(runs: Sequence[Run], attack: str) -> str:
    """'400 test images', of those runs."""
    counts = sorted({f["n"] for run in runs if (f := run.figures(attack))})
    return f"{' or '.join(f'{n:,}' for n in counts)} test images"


def interval(runs: Sequence[Run]) -> str:
    """What the error bars of groups of these runs are."""
    over = "over seeds (Student's t)" if len({run.config.seed for run in runs}) > 1 else "of one model (Wilson)"
    return f"{seeds(runs)}, 95 % intervals {over}, last checkpoint"


def schedule(run: Run) -> str:
    """'0', '0.3' or 'g(n)': the run's lam in words."""
    law = run.config.interpolation
    return {"none": "0", "constant": f"{law.constant:g}", "piat": "g(n)"}[law.kind]


@styled
def lambdas(runs: Sequence[Run]) -> Figure:
    """Schedules of lam, and the robust accuracy after each (He et al. 2023, Fig. 4): a dot a seed, mean and interval."""
    by_law: dict[str, list[Run]] = {}
    method = next((r.config.method for r in runs if r.config.interpolation.kind == "constant"), runs[0].config.method)
    default = {"bn": "interpolate"}
    for run in runs:
        copies = (run.config.ema, run.config.swa) != (None, None) or run.config.interpolation.bn != default["bn"]
        if run.config.method == method and not copies:
            by_law.setdefault(schedule(run), []).append(run)
    if len(by_law) < 3:
        raise InputError("fewer than three schedules of lam among these runs; `piat study lambda` makes them")
    by_law = dict(sorted(by_law.items(), key=lambda one: float("inf") if one[0] == "g(n)" else float(one[0])))
    used = [run for group in by_law.values() for run in group]
    figure, (top, bottom) = canvas(6.5, 6, 2, height_ratios=(2, 3))
    colours = {name: WITH if name == "g(n)" else GREY for name in by_law}
    for name, group in by_law.items():
        lam = [m["lam"] for m in group[0].metrics]
        top.plot([m["epoch"] for m in group[0].metrics], lam, color=colours[name], label=name)
    lasts = [(g[0].metrics[-1]["epoch"], g[0].metrics[-1]["lam"], name, colours[name]) for name, g in by_law.items()]
    top.set(xlabel="epoch", ylabel="λ", ylim=(-0.03, 1))
    whole_epochs(top)
    ends(top, lasts)
    attack = _dots(bottom, list(by_law.values()), list(range(len(by_law))), [colours[name] for name in by_law])
    bottom.set(xticks=range(len(by_law)), xticklabels=[f"λ = {name}" for name in by_law])
    figure.set_label(
        f"Above, λ by epoch; below, {attack_name(attack)} accuracy of {method_name(_plain(used[0]))} on "
        f"{images_of(used, attack)} of {data(used)}; dots are runs, bars mean and {interval(used)}."
    )
    return figure


@styled
def mus(runs: Sequence[Run]) -> Figure:
    """Clean and robust accuracy against mu, the weight of NMSE (He et al. 2023, Fig. 5): a dot a seed, mean and interval."""
    by_mu: dict[float, list[Run]] = {}
    for run in runs:
        if run.config.method == "nmse" and run.config.interpolation.kind == "piat":
            by_mu.setdefault(float(run.config.method_args.get("mu", 5)), []).append(run)
    if len(by_mu) < 2:
        raise InputError("fewer than two weights mu of PIAT+NMSE among these runs; `piat study mu` makes them")
    used, weights = [run for group in by_mu.values() for run in group], sorted(by_mu)
    figure, axes = canvas(5.5, 5, 2, sharex=True)
    groups = [by_mu[mu] for mu in weights]
    _dots(axes[0], groups, weights, [BLUE] * len(groups), "clean")
    attack = _dots(axes[1], groups, weights, [VERMILION] * len(groups))
    axes[1].set(xlabel="μ, weight of NMSE", xticks=weights)
    figure.set_label(
        f"PIAT+NMSE on {images_of(used, attack)} of {data(used)}; dots are runs, bars mean and {interval(used)}."
    )
    return figure


def _dots(
    axis: Axes, groups: Sequence[Sequence[Run]], at: Sequence[float], colours: Sequence[str], attack: str | None = None
) -> str:
    """A dot a run, mean and 95 % interval a group, under the attack or the strongest measured on all; returns its name."""
    chosen = attack or records.strongest([run for group in groups for run in group])
    if chosen is None:
        raise InputError("no attack was measured on all runs; evaluate them with the same --attacks")
    for x, group, colour in zip(at, groups, colours, strict=True):
        each = [100 * f["accuracy"] for run in group if (f := run.figures(chosen))]
        value, low, high = (100 * v for v in records.accuracy(group, chosen) or (np.nan,) * 3)
        axis.errorbar([x], [value], [[value - low], [high - value]], fmt="_", color=colour, capsize=4, markersize=14)
        if len(each) > 1:
            axis.scatter(np.full(len(each), x + 0.08), each, s=10, color=colour, alpha=0.6, linewidths=0)
    axis.set(ylabel=f"{attack_name(chosen)} accuracy (%)")
    return chosen


@styled
def gaps(runs: Sequence[Run]) -> Figure:
    """Robust-overfitting gap, generalisation gap and oscillation of each configuration: a dot a run, a bar at the mean."""
    groups = records.grouped(runs)
    if any(of(run.metrics) is None for run in runs for of in records.CURVES.values()):
        raise InputError("gaps and oscillation need held-out images and four epochs; train with --holdout above 0")
    figure, axes = canvas(8, 0.3 * len(groups) + 1.3, 1, 3, sharey=True)
    notes = ("best - last epoch", "training - held out", "sd of change, last half")
    for axis, (name, of), note in zip(axes, records.CURVES.items(), notes, strict=True):
        for row, group in enumerate(reversed(groups.values())):
            values = [100 * value for run in group if (value := of(run.metrics)) is not None]
            colour = WITHOUT if group[0].config.interpolation.kind == "none" else WITH
            axis.scatter(values, [row] * len(values), s=14, color=colour, alpha=0.7, linewidths=0)
            axis.plot([float(np.mean(values))], [row], "|", color=colour, markersize=11, markeredgewidth=2)
        axis.set_title(name)
        axis.set(xlabel=f"{note} (points)", ylim=(-0.7, len(groups) - 0.3))
        axis.axvline(0, color="#444444", linewidth=0.8)
    axes[0].set(yticks=range(len(groups)), yticklabels=list(reversed(groups)))
    figure.set_label(
        f"Of PGD-10 accuracy on {runs[0].config.holdout:,} held-out images of {data(runs)}; {seeds(runs)}; blue with "
        "interpolation, vermilion without; dots are runs, ticks their mean."
    )
    return figure


@styled
def scatter(runs: Sequence[Run]) -> Figure:
    """Clean against robust accuracy of each configuration, both with 95 % intervals."""
    groups, attack = records.grouped(runs), records.strongest(runs)
    if attack is None or any(run.figures("clean", attack) is None for run in runs):
        raise InputError("no attack was measured on all runs; evaluate them with the same --attacks")
    figure, axis = canvas(7, max(4.5, 0.2 * len(groups) + 1))
    labels, right = [], 0.0
    for label, group in groups.items():
        both = [records.accuracy(group, a, beside=attack) for a in ("clean", attack)]
        (x, *across), (y, *along) = ([100 * v for v in found or ()] for found in both)
        colour = WITHOUT if group[0].config.interpolation.kind == "none" else WITH
        errors: dict[str, Any] = {"xerr": [[x - across[0]], [across[1] - x]], "yerr": [[y - along[0]], [along[1] - y]]}
        axis.errorbar([x], [y], fmt="o", markersize=4, color=colour, elinewidth=0.8, label=label, **errors)
        labels.append((x, y, label, colour))
        right = max(right, across[1])
    axis.set(xlabel="clean accuracy (%)", ylabel=f"{attack_name(attack)} accuracy (%)")
    low, high = axis.get_ylim()
    ordered = sorted(labels, key=lambda one: one[1])
    gap = (high - low) * 0.17 / figure.get_figheight()
    for y, (x, at, text, colour) in zip(spread([o[1] for o in ordered], gap, high), ordered, strict=True):
        axis.plot([x, right + 0.02 * (right - axis.get_xlim()[0])], [at, y], color=colour, linewidth=0.4, alpha=0.5)
        where = (right + 0.025 * (right - axis.get_xlim()[0]), y)
        axis.annotate(text, where, color=colour, va="center", fontsize=8, annotation_clip=False, parse_math=False)
    figure.set_label(
        f"Clean and {attack_name(attack)} accuracy on {images_of(runs, attack)} of {data(runs)}; {interval(runs)}; blue "
        "with interpolation, vermilion without."
    )
    return figure


@styled
def landscape(surfaces: dict[str, Surface]) -> Figure:
    """The adversarial loss around the weights of one or two models (He et al. 2023, Eq. 7 and Fig. 6).

    Above in three dimensions on one vertical scale, below as contours at the same levels.
    """
    first = next(iter(surfaces.values()))
    figure, _ = canvas(4 * len(surfaces), 6.8, rows=0)
    every = np.array([s.losses for s in surfaces.values()])
    low, high = float(every.min()), float(every.max())
    levels = np.geomspace(max(low, 1e-3), high, 12)
    for column, (label, found) in enumerate(surfaces.items(), 1):
        at, losses = np.array(found.at), np.array(found.losses)
        down, across = np.meshgrid(at, at, indexing="ij")
        solid: Any = figure.add_subplot(2, len(surfaces), column, projection="3d")
        solid.plot_surface(down, across, losses, cmap="viridis", vmin=low, vmax=high, linewidth=0, rasterized=True)
        solid.set(zlim=(0, high), xlabel="along d₁", ylabel="along d₂")
        solid.set_title(f"{label}: adversarial loss", parse_math=False)
        flat = figure.add_subplot(2, len(surfaces), len(surfaces) + column)
        flat.contourf(at, at, losses.T, levels=levels, cmap="viridis", vmin=low, vmax=high, extend="both")
        lines = flat.contour(at, at, losses.T, levels=levels, colors="white", linewidths=0.6)
        flat.clabel(lines, fmt="%.2g", fontsize=7)
        flat.plot([0], [0], "+", color="#D55E00")
        flat.set(xlabel="along d₁", ylabel="along d₂", aspect="equal")
        middle, edge = middle_and_edge(found.losses)
        flat.set_title(f"loss {middle:.2f} at the weights, {edge:.2f} on average at the edge")
    length = "of each filter's own length (Li et al. 2018)" if first.filterwise else "as long as the weights"
    figure.set_label(
        f"Cross-entropy on {first.n} test images, attacked anew at every point (PGD-{first.steps}, {first.threat_model}), "
        f"at the weights + a d₁ + b d₂; d₁ and d₂ are random directions (seed {first.seed}) {length}, the same for all; "
        "contours rise by a constant factor; the cross is the trained model."
    )
    return figure


def middle_and_edge(losses: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(loss at the trained weights, mean loss over the edge of the square)."""
    values = np.array(losses)
    inside = values[1:-1, 1:-1]
    edge = (values.sum() - inside.sum()) / (values.size - inside.size)
    return float(values[len(values) // 2, len(values) // 2]), float(edge)


@styled
def images(shown: Examples, label_names: Sequence[str], title: str = "") -> Figure:
    """Rows of clean image, magnified perturbation, adversarial image, with the model's class for both."""
    count, delta = len(shown.x), (shown.x_adv - shown.x).numpy()
    factor = max(1, int(0.5 / max(float(abs(delta).max()), 1e-6)))
    figure, grid = canvas(1.35 * count + 0.6, 4.9, 3, count, squeeze=False)
    for k in range(count):
        pictures = (shown.x[k].numpy(), 0.5 + factor * delta[k], shown.x_adv[k].numpy())
        for row, picture in enumerate(pictures):
            axis = grid[row, k]
            pixels = picture.clip(0, 1).transpose(1, 2, 0)
            axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            if row != 1:
                seen = int(shown.predicted[k, row // 2])
                right = seen == int(shown.y[k])
                words = f"{label_names[seen]} {'✓' if right else '✗'}"
                axis.set_title(words, color="black" if right else VERMILION, parse_math=False)
    for axis, words in zip(grid[:, 0], ("clean", f"perturbation x {factor}", "adversarial"), strict=True):
        axis.set_ylabel(words)
    figure.suptitle(title, fontsize=9, parse_math=False)
    figure.set_label(
        f"The first {count} test images; {shown.attack}. The perturbation is magnified {factor} times about grey; above "
        "each image is what the model sees, ✓ where that is its class."
    )
    return figure
