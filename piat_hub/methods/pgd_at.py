"""PGD-AT (Madry et al. 2018)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.methods.base import Attack, at_least_fp32, register


@register("pgd_at")
@dataclass(frozen=True)
class PGDAT:
    """CE(z', y) on adversarial examples alone (Madry et al. 2018, arXiv:1706.06083, Eq. 2.1)."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        x_adv = attack(model, x, y)
        return F.cross_entropy(at_least_fp32(model(x_adv)), y)
