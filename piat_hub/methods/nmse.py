"""NMSE, the regulariser of PIAT (He et al. 2023)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.config import Checked, option
from piat_hub.methods.base import Attack, at_least_fp32, probability_of, register


@register("nmse")
@dataclass(frozen=True)
class NMSE(Checked):
    """CE(z', y) + mu (1 - p_y(x)) ||z/||z|| - z'/||z'||||^2, the mean over the batch (He et al. 2023, Eqs. 5-6).

    The gradient flows through (1 - p_y) too, as MART's weight does in its authors' code; the paper does not say.
    """

    mu: float = option(5.0, "weight of the regulariser", least=0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        x_adv = attack(model, x, y)
        logits, logits_adv = at_least_fp32(model(x)), at_least_fp32(model(x_adv))  # (B, K) each
        p_true = probability_of(y, logits.softmax(1))  # (B,)
        gap = (F.normalize(logits, dim=1) - F.normalize(logits_adv, dim=1)).square().sum(1)  # (B,), norms clamped
        return F.cross_entropy(logits_adv, y) + self.mu * ((1 - p_true) * gap).mean()
