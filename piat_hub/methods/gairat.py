"""GAIRAT, geometry-aware instance-reweighted adversarial training (Zhang et al. 2021)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.config import Checked, option
from piat_hub.methods.base import Attack, at_least_fp32, average, likeliest, register


@register("gairat")
@dataclass(frozen=True)
class GAIRAT(Checked):
    """sum_i w_i CE_i(z', y) / sum_i w_i, w = (1 + tanh(offset + 5 (1 - 2 kappa/K))) / 2 (Zhang et al. 2021, ICLR).

    kappa counts the K attack steps at which an image is still right before the update: few for images near the boundary,
    which weigh most. The sums are over the whole batch, of all processes, so that it cannot be accumulated. Before the
    share `start` of the run, plain CE (the authors weight from epoch 60 of 120 on).
    """

    needs_class: ClassVar[bool] = True
    needs_pgd: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = True
    offset: float = option(-1.0, "offset in the tanh, the paper's lambda: larger, more even weights")
    start: float = option(59 / 120, "share of the run after which images are weighted", least=0, most=1)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        right: list[Tensor] = []  # (B,) bool for each step
        classes = likeliest(y)

        def count(k: int, logits: Tensor) -> None:
            right.append(logits.argmax(1) == classes)

        x_adv = attack(model, x, y, on_step=count)
        losses = F.cross_entropy(at_least_fp32(model(x_adv)), y, reduction="none")
        if progress < self.start:
            return losses.mean()
        weights = self.weights(torch.stack(right).sum(0).to(losses.dtype), len(right))
        average([mean := weights.mean()])
        return (weights * losses).mean() / mean

    def weights(self, kappa: Tensor, steps: int) -> Tensor:
        """The weights w (B,) in (0, 1) of images that stayed right for some of the attack's steps.

        Args:
            kappa: at how many steps each image was right before the update, (B,), from 0 to steps.
            steps: of the attack, K.
        """
        # (1 + tanh(a)) / 2, whose tanh would round to -1
        return torch.sigmoid(2 * (self.offset + 5 * (1 - 2 * kappa / steps)))
