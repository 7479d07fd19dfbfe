"""MART (Wang et al. 2020)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.config import Checked, option
from piat_hub.methods.base import Attack, at_least_fp32, divergence, likeliest, probability_of, register


@register("mart")
@dataclass(frozen=True)
class MART(Checked):
    """BCE(z', y) + beta mean KL(p(x) || p(x')) (1 - p_y(x)) (Wang et al. 2020, ICLR), nothing detached.

    BCE is CE(z', y) - log(1 - max_{k != y} p_k(x')); the two 1s are 1.0001 and 1.0000001 as in the authors' code. x'
    maximises CE from x + 0.001 N(0, 1). The authors take beta 5 for ResNet-18 and 6 for WRN.
    """

    needs_class: ClassVar[bool] = True
    beta: float = option(5.0, "weight of the divergence", least=0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        x_adv = attack(model, x, y, start=0.001)
        logits, logits_adv = at_least_fp32(model(x)), at_least_fp32(model(x_adv))
        p_true = probability_of(y, logits.softmax(1))  # (B,)
        p_wrong = logits_adv.softmax(1).scatter(1, likeliest(y)[:, None], 0).amax(1)  # (B,) the likeliest wrong class
        bce = F.cross_entropy(logits_adv, y) - torch.log(1.0001 - p_wrong + 1e-12).mean()
        return bce + self.beta * (divergence(logits, logits_adv) * (1.0000001 - p_true)).mean()
