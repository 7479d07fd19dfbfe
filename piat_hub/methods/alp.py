"""ALP, adversarial logit pairing (Kannan et al. 2018)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.config import Checked, option
from piat_hub.methods.base import Attack, at_least_fp32, register


@register("alp")
@dataclass(frozen=True)
class ALP(Checked):
    """(CE(z, y) + CE(z', y)) / 2 + w mean (z - z')^2 over batch and classes (Kannan et al. 2018, arXiv:1803.06373)."""

    w: float = option(0.5, "weight of the logit pairing", least=0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        x_adv = attack(model, x, y)
        logits, logits_adv = at_least_fp32(model(x)), at_least_fp32(model(x_adv))
        both = (F.cross_entropy(logits, y) + F.cross_entropy(logits_adv, y)) / 2
        return both + self.w * (logits - logits_adv).square().mean()
