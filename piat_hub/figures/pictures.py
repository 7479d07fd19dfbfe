"""Figures of what probes found in weights: the loss around them, and single images before and after an attack."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from piat_hub.config import InputError
from piat_hub.figures.probes import Examples, Surface
from piat_hub.figures.style import VERMILION, canvas, styled

WIDEST = 16  # characters of a class's name that have room above an image


@styled
def landscape(surfaces: dict[str, Surface]) -> Figure:
    """The adversarial loss around the weights of one or two models (He et al. 2023, Eq. 7 and Fig. 6).

    Above in three dimensions on one vertical scale, below as contours at the same levels.

    Args:
        surfaces: by the models' labels.
    """
    first = next(iter(surfaces.values()))
    figure, _ = canvas(4 * len(surfaces), 6.8, rows=0)
    every = np.array([s.losses for s in surfaces.values()])
    low, high = float(every.min()), float(every.max())
    if not (np.isfinite(every).all() and high > 1e-3):
        raise InputError(f"losses from {low:.3g} to {high:.3g} have no landscape; leave it out with --only")
    levels = np.geomspace(max(low, 1e-3), high, 12)
    for column, (label, found) in enumerate(surfaces.items(), 1):
        at, losses = np.array(found.at), np.array(found.losses)
        down, across = np.meshgrid(at, at, indexing="ij")
        solid: Any = figure.add_subplot(2, len(surfaces), column, projection="3d")
        solid.plot_surface(down, across, losses, cmap="viridis", vmin=low, vmax=high, linewidth=0, rasterized=True)
        solid.set(zlim=(0, high), xlabel="along d₁", ylabel="along d₂")
        solid.set_title(f"{label}: adversarial loss")
        flat = figure.add_subplot(2, len(surfaces), len(surfaces) + column)
        flat.contourf(at, at, losses.T, levels=levels, cmap="viridis", vmin=low, vmax=high, extend="both")
        lines = flat.contour(at, at, losses.T, levels=levels, colors="white", linewidths=0.6)
        flat.clabel(lines, fmt="%.2g", fontsize=7)
        flat.plot([0], [0], "+", color=VERMILION)
        flat.set(xlabel="along d₁", ylabel="along d₂", aspect="equal")
        middle, edge = middle_and_edge(found.losses)
        flat.set_title(f"loss {middle:.2f} at the weights, {edge:.2f} on average at the edge")
    length = "of each filter's own length (Li et al. 2018)" if first.filterwise else "as long as the weights"
    figure.set_label(
        f"Cross-entropy on {first.n} test images, attacked anew at every point (PGD-{first.steps}, {first.threat_model}), "
        f"at the weights + a d₁ + b d₂; d₁ and d₂ are random directions {length}, drawn with seed {first.seed} for each; "
        "contours rise by a constant factor; the cross is the trained model."
    )
    return figure


def middle_and_edge(losses: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(loss at the trained weights, mean loss over the edge of the square).

    Args:
        losses: a square of an odd number of points a side, at least 3.
    """
    values = np.array(losses)
    inside = values[1:-1, 1:-1]
    edge = (values.sum() - inside.sum()) / (values.size - inside.size)
    return float(values[len(values) // 2, len(values) // 2]), float(edge)


@styled
def images(shown: Examples, label_names: Sequence[str], title: str = "") -> Figure:
    """Rows of clean image, magnified perturbation, adversarial image, with the model's class for both.

    Args:
        shown: images before and after the attack.
        label_names: one a class.
        title: above the figure.
    """
    count, delta = len(shown.x), (shown.x_adv - shown.x).numpy()
    factor = max(1, int(0.5 / max(float(abs(delta).max()), 1e-6)))
    figure, grid = canvas(1.35 * count + 0.6, 4.9, 3, count, squeeze=False)
    for k in range(count):
        _picture(grid[0, k], shown.x[k].numpy(), label_names, int(shown.predicted[k, 0]), int(shown.y[k]))
        _picture(grid[1, k], 0.5 + factor * delta[k])
        _picture(grid[2, k], shown.x_adv[k].numpy(), label_names, int(shown.predicted[k, 1]), int(shown.y[k]))
    for axis, words in zip(grid[:, 0], ("clean", f"perturbation x {factor}", "adversarial"), strict=True):
        axis.set_ylabel(words)
    figure.suptitle(title, fontsize=9)
    figure.set_label(
        f"{count} test images; {shown.attack}. The perturbation is magnified {factor} times about grey; above "
        "each image is what the model sees, ✓ where that is its class."
    )
    return figure


@styled
def beside(models: dict[str, Examples], label_names: Sequence[str]) -> Figure:
    """Rows of clean images, then for each model of what the attack makes of them, with the model's class.

    Args:
        models: the same images before and after the attack, by the models' labels.
        label_names: one a class.
    """
    first = next(iter(models.values()))
    count = len(first.x)
    figure, grid = canvas(1.35 * count + 0.6, 1.6 * (len(models) + 1) + 0.2, len(models) + 1, count, squeeze=False)
    for k in range(count):
        label = int(first.y[k])
        _picture(grid[0, k], first.x[k].numpy(), label_names, label, label)
        for row, shown in enumerate(models.values(), 1):
            _picture(grid[row, k], shown.x_adv[k].numpy(), label_names, int(shown.predicted[k, 1]), label)
    for axis, words in zip(grid[:, 0], ("clean", *models), strict=True):
        axis.set_ylabel("\n".join(textwrap.wrap(words, 16)))
    figure.set_label(
        f"{count} test images and their classes, then the same under {first.attack} against each model; above "
        "each image is what that model sees, ✓ where that is its class."
    )
    return figure


def _picture(
    axis: Axes, picture: np.ndarray, label_names: Sequence[str] = (), seen: int | None = None, label: int | None = None
) -> None:
    """An image (C, H, W) in [0, 1], and above it the class that is seen in it, marked as right or wrong."""
    pixels = picture.clip(0, 1).transpose(1, 2, 0)
    axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    if seen is not None:
        right, name = seen == label, label_names[seen]
        name = name if len(name) <= WIDEST else f"{name[: WIDEST - 1].rstrip(' ,')}…"
        axis.set_title(f"{name} {'✓' if right else '✗'}", color="black" if right else VERMILION)
