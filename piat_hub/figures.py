"""Figures from a run's own records. Each function takes results and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from piat_hub.card import attack_name
from piat_hub.config import number
from piat_hub.files import whole_file

SERIES = (  # key in metrics.jsonl, label, colour (Okabe & Ito's, told apart by colour-blind readers), line style
    ("holdout_clean_acc", "clean, held out", "#0072B2", "-"),
    ("holdout_pgd10_acc", "PGD-10, held out", "#D55E00", "-"),
    ("train_pgd10_acc", "PGD-10, training images", "#009E73", "--"),
)


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def curves(metrics: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Accuracy (percent) per epoch, labelled at the line's end, and the interpolation weight lam below it."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    epochs = [m["epoch"] for m in metrics]
    ends: list[tuple[float, str, str]] = []
    for key, label, colour, style in SERIES:
        values = [m[key] for m in metrics]
        if not values or any(v is None for v in values):
            continue
        top.plot(epochs, [100 * v for v in values], style, color=colour, label=label, linewidth=1.8)
        ends.append((100 * values[-1], label, colour))
    for height, (value, label, colour) in zip(spread([e[0] for e in sorted(ends)], 5.0), sorted(ends), strict=True):
        text = f"{label}: {value:.1f} %"
        top.annotate(text, (epochs[-1], height), (8, 0), textcoords="offset points", color=colour, va="center")
    bottom.plot(epochs, [m["lam"] for m in metrics], color="#444444", linewidth=1.8)
    top.set(ylabel="accuracy (%)", ylim=(0, 100))
    top.set_title(title, parse_math=False)
    bottom.set(xlabel="epoch", ylabel="λ", ylim=(0, 1))
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Rising values moved up where needed, so that neighbours are at least `gap` apart."""
    out: list[float] = []
    for value in values:
        out.append(max(value, out[-1] + gap) if out else value)
    return out


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG; the file appears whole."""
    with whole_file(path) as scratch:
        figure.savefig(scratch, dpi=150)


def sweep(points: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Accuracy (percent) against eps for each attack, with 95 % Wilson intervals. points: `sweep` of results.json."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    ends_at: list[tuple[float, str, str, float]] = []
    for k, attack in enumerate(dict.fromkeys(a for point in points for a in point["attacks"])):
        colour = COLOURS[k % len(COLOURS)]
        at = [point for point in points if attack in point["attacks"]]
        eps, found = [number(point["eps"]) for point in at], [point["attacks"][attack] for point in at]
        values = [100 * f["accuracy"] for f in found]
        ends = [[abs(v - 100 * f["ci95"][end]) for v, f in zip(values, found, strict=True)] for end in (0, 1)]
        axis.errorbar(eps, values, ends, marker="o", capsize=3, color=colour, label=attack_name(attack))
        ends_at.append((values[-1], attack_name(attack), colour, eps[-1]))
    for height, (_, name, colour, x) in zip(spread([e[0] for e in sorted(ends_at)], 5.0), sorted(ends_at), strict=True):
        axis.annotate(name, (x, height), (8, 0), textcoords="offset points", color=colour, va="center")
    axis.set(xlabel="eps, for images in [0, 1]", ylabel="accuracy (%)", ylim=(0, 100))
    axis.set_title(title, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    return figure
