"""Momentum iterative method (Dong et al. 2018, arXiv:1710.06081, Eqs. 6-7), with a uniform random start."""

from __future__ import annotations

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
    step_size: Budget = 2 / 255,
    steps: int = 20,
    *,
    momentum: float = 1.0,
    **options: Any,
) -> Tensor:
    """PGD that steps along accumulated gradients: v <- momentum v + g / mean|g|, the mean over each image.

    Arguments and result as in `pgd`; a zero gradient leaves v as it was.
    """
    return pgd(model, x, y, eps, step_size, steps, momentum=momentum, **options)
