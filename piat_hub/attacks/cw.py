"""PGD on the margin loss of Carlini & Wagner 2017 (arXiv:1608.04644, f_6), as adversarial-training papers report "CW"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from piat_hub.attacks.core import Budget, register
from piat_hub.attacks.pgd import pgd

CONFIDENCE = 50.0


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """-sum max(z_y - max_{k != y} z_k + 50, 0) over the batch; logits (B, K), y (B,)."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return -(true - others + CONFIDENCE).clamp_min(0).sum()


@register
def cw(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Budget = 8 / 255,
    step_size: Budget = 2 / 255,
    steps: int = 20,
    **options: Any,
) -> Tensor:
    """PGD that maximises `margin`. Arguments and result as in `pgd`."""
    return pgd(model, x, y, eps, step_size, steps, objective=margin, **options)
