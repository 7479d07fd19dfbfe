"""PGD on the margin loss of Carlini & Wagner 2017 (arXiv:1608.04644, f_6), as adversarial-training papers report "CW"."""

from typing import Any

from torch import Tensor, nn

from piat_hub.attacks.core import Budget, gap, register
from piat_hub.attacks.pgd import pgd
from piat_hub.config import InputError

CONFIDENCE = 50.0


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """-sum max(z_y - max_{k != y} z_k + 50, 0) over the batch (Carlini & Wagner 2017, f_6, negated to be maximised).

    Args:
        logits: z, (B, K).
        y: class numbers, (B,).

    Raises:
        InputError: for probabilities.
    """
    if y.dim() != 1:
        raise InputError(f"y is {y.dtype} of shape {tuple(y.shape)}; the margin is of a class: give its number, int64")
    return -(gap(logits, y) + CONFIDENCE).clamp_min(0).sum()


@register
def cw(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Budget = 8 / 255,
    step_size: Budget | None = None,
    steps: int = 20,
    **options: Any,
) -> Tensor:
    """PGD that maximises `margin`.

    Args:
        model: as in `pgd`, as are all the others.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        eps: budget in pixel units, 8/255 for eight levels.
        step_size: length of a step in pixel units; eps/4 if None.
        steps: iterations.
        **options: of `pgd`, but for its objective.

    Returns:
        x_adv, (B, C, H, W), within eps of x and in [0, 1].

    Raises:
        InputError: as `pgd` does.
    """
    return pgd(model, x, y, eps, step_size, steps, objective=margin, **options)
