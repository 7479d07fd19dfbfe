"""STAT, squeeze training (Li et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.config import Checked, option
from piat_hub.methods.base import Attack, at_least_fp32, divergence, probability_of, register


@register("stat")
@dataclass(frozen=True)
class STAT(Checked):
    """CE(z, y) + beta/2 mean [KL(sg p_lo || p_up) + KL(sg p_up || p_lo)] (Li et al. 2023, ICLR, squeeze training).

    Two twins of x start at x + 0.001 N(0, 1) and drive this same divergence between each other up: one becomes
    adversarial, one collaborative (its loss falls). up and lo are, per image, those with the largest and the smallest
    p_y among x and the twins. The authors take beta 6 for CIFAR-10 and 4 for CIFAR-100; while crafting they also put x in
    the place of a twin where x is extreme, so that one twin stays on each side: here both may end on one.
    """

    needs_pgd: ClassVar[bool] = True  # its twins share one objective
    beta: float = option(6.0, "weight of the squeeze", least=0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        twins = attack(model, torch.cat([x, x]), torch.cat([y, y]), objective=apart, start=0.001)
        logits = torch.stack([at_least_fp32(model(images)) for images in (x, *twins.chunk(2))])  # (3, B, K)
        p_true = torch.stack([probability_of(y, p) for p in logits.detach().softmax(2)])  # (3, B)
        rows = torch.arange(len(y), device=y.device)
        up, lo = logits[p_true.argmax(0), rows], logits[p_true.argmin(0), rows]  # (B, K) each
        return F.cross_entropy(logits[0], y) + self.beta * squeeze(up, lo).mean()


def squeeze(up: Tensor, lo: Tensor) -> Tensor:
    """[KL(sg p_lo || p_up) + KL(sg p_up || p_lo)] / 2 of each image, (B,), from logits (B, K).

    Args:
        up: logits of one side, (B, K).
        lo: logits of the other, (B, K).
    """
    return (divergence(lo.detach(), up) + divergence(up.detach(), lo)) / 2


def apart(logits: Tensor, _: Tensor) -> Tensor:
    """What the twins maximise: `squeeze` between the halves of the batch, (2B, K), summed."""
    return squeeze(*logits.chunk(2)).sum()
