"""Momentum iterative method (Dong et al. 2018, arXiv:1710.06081, Eqs. 6-7), with a uniform random start."""

from typing import Any

from torch import Tensor, nn

from piat_hub.attacks.core import Budget, register
from piat_hub.attacks.pgd import pgd


@register
def mim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Budget = 8 / 255,
    step_size: Budget | None = None,
    steps: int = 20,
    *,
    momentum: float = 1.0,
    **options: Any,
) -> Tensor:
    """PGD that steps along accumulated gradients: v <- momentum v + g / mean|g|, the mean over each image.

    Dong et al. 2018, arXiv:1710.06081, Eqs. 6-7. A zero gradient adds nothing to v.

    Args:
        model: as in `pgd`, as are all the others but momentum.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        eps: budget in pixel units, 8/255 for eight levels.
        step_size: length of a step in pixel units; eps/4 if None.
        steps: iterations.
        momentum: the share of v that is kept at each step; 1 in the paper, 0 forgets all earlier gradients.
        **options: of `pgd`.

    Returns:
        x_adv, (B, C, H, W), within eps of x and in [0, 1].

    Raises:
        InputError: as `pgd` does.
    """
    return pgd(model, x, y, eps, step_size, steps, momentum=momentum, **options)
