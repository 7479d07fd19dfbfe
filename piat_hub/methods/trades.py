"""TRADES (Zhang et al. 2019)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.config import Checked, option
from piat_hub.methods.base import Attack, at_least_fp32, divergence, eval_logits, register


@register("trades")
@dataclass(frozen=True)
class TRADES(Checked):
    """CE(z, y) + beta mean KL(p(x) || p(x')), gradient through both (Zhang et al. 2019, arXiv:1901.08573).

    x' maximises the same divergence from p(x) in eval mode, from x + 0.001 N(0, 1).
    """

    beta: float = option(6.0, "weight of the divergence", least=0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        fixed = eval_logits(model, x)
        x_adv = attack(model, x, y, objective=lambda z, _: divergence(fixed, z).sum(), start=0.001)
        logits, logits_adv = at_least_fp32(model(x)), at_least_fp32(model(x_adv))
        return F.cross_entropy(logits, y) + self.beta * divergence(logits, logits_adv).mean()
