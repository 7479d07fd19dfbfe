"""SCORE, self-consistent robust error (Pang et al. 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from piat_hub.config import Checked, option
from piat_hub.methods.base import Attack, at_least_fp32, eval_logits, register


@register("score")
@dataclass(frozen=True)
class SCORE(Checked):
    """mean ||p(x) - y~||^2 + beta mean ||p(x') - p(x)||^2 (Pang et al. 2022, ICML), gradient through both.

    y~ is the smoothed label: 1 - smoothing on the class, the rest shared by the others. x' maximises ||p(x') - p(x)||^2
    from a uniform start. By default no epoch is clean: after cross-entropy the squared loss has hardly a gradient.
    """

    beta: float = option(4.0, "weight of the consistency", least=0)
    smoothing: float = option(0.0, "label mass given to the other classes", least=0, below=1)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        fixed = eval_logits(model, x).softmax(1)
        x_adv = attack(model, x, y, objective=lambda z, _: (z.softmax(1) - fixed).square().sum())
        p, p_adv = at_least_fp32(model(x)).softmax(1), at_least_fp32(model(x_adv)).softmax(1)  # (B, K) each
        label = y if y.dim() == 2 else torch.zeros_like(p).scatter(1, y[:, None], 1)  # F.one_hot would make a GPU wait
        label = (1 - self.smoothing) * label + self.smoothing / (p.shape[1] - 1) * (1 - label)
        return ((p - label).square().sum(1) + self.beta * (p_adv - p).square().sum(1)).mean()
