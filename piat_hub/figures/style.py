"""One style for all figures."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from piat_hub.records.files import whole_file

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY = COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#666666",
)
COOL = (BLUE, SKY, GREEN, PURPLE, ORANGE, GREY, VERMILION)  # in the order in which lines with interpolation take them
WARM = (VERMILION, ORANGE, PURPLE, GREY, GREEN, SKY, BLUE)  # and those without


SERIES = (  # key in metrics.jsonl, label, colour, line style
    ("holdout_clean_acc", "clean, held out", BLUE, "-"),
    ("holdout_pgd10_acc", "PGD-10, held out", VERMILION, "-"),
    ("train_pgd10_acc", "PGD-10, training images", GREEN, "--"),
    ("test_pgd10_acc", "PGD-10, test", PURPLE, ":"),
)


STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a $ in a name is a $
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
    """(a Figure, its axes) in the house's style.

    Args:
        width: in inches.
        height: in inches.
        rows: of axes; 0 for none yet, and None in place of the axes.
        columns: of axes.
        **options: of matplotlib's `Figure.subplots`.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options) if rows else None


@styled
def save(figure: Figure, path: Path) -> None:
    """Write the figure, with its caption below it; the file appears whole.

    Args:
        figure: its label is the caption.
        path: with suffix .png or .svg.

    Raises:
        Broken: where the system refuses.
    """
    caption = figure.get_label()
    line = int(figure.get_figwidth() * 17)
    if caption and not getattr(figure, "_supxlabel", None):
        figure.supxlabel("\n".join(textwrap.wrap(str(caption), line)), x=0.01, ha="left", fontsize=8)
    with whole_file(path) as scratch:
        kind = path.suffix.lstrip(".")
        figure.savefig(scratch, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def ends(axis: Axes, labels: Sequence[tuple[float, float, str, str]], at: float | None = None) -> None:
    """Write texts beside the ends of lines, moved up or down where they would lie on each other.

    Args:
        axis: with its limits as they will be.
        labels: (x, y, text, colour) of each.
        at: the x where all texts begin, tied to their points by thin lines.
    """
    low, high = axis.get_ylim()
    height = axis.get_position().height * axis.get_figure(root=True).get_figheight()  # type: ignore[union-attr]
    gap = (high - low) * 0.16 / height  # a line of text, in the axis' units
    labels = sorted(labels, key=lambda one: one[1])
    for y, (x, value, text, colour) in zip(spread([one[1] for one in labels], gap, high), labels, strict=True):
        if at is not None:
            axis.plot([x, at], [value, y], color=colour, linewidth=0.4, alpha=0.5, clip_on=False)
        where = (x if at is None else at, y)
        axis.annotate(text, where, (6, 0), textcoords="offset points", color=colour, va="center", annotation_clip=False)


def spread(values: Sequence[float], gap: float, top: float = float("inf")) -> list[float]:
    """Rising values moved so that neighbours are at least `gap` apart: up, and down again where that ends above `top`.

    Args:
        values: in rising order.
        gap: in their unit.
        top: what the last may be at most; the first may then fall below where it was.
    """
    out: list[float] = []
    for value in values:
        out.append(max(value, out[-1] + gap) if out else value)
    for k in range(len(out) - 1, -1, -1):
        out[k], top = min(out[k], top), min(out[k], top) - gap
    return out


def whole_epochs(axis: Axes) -> None:
    """Ticks at whole epochs only."""
    axis.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
