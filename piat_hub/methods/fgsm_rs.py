"""FGSM-RS, fast adversarial training with one step from a random start (Wong et al. 2020)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.config import Checked, TrainConfig, option
from piat_hub.methods.base import Attack, Method, at_least_fp32, register


@register("fgsm_rs")
@dataclass(frozen=True)
class FGSMRS(Checked):
    """CE(z', y) on x' of one step from a uniform start (Wong et al. 2020, ICLR, arXiv:2001.03994, Alg. 3).

    The step is longer than eps, then projected. With a large eps the model may learn to withstand this attack alone:
    catastrophic overfitting. The attack's own steps and step size play no part.
    """

    needs_pgd: ClassVar[bool] = True  # it sets the step of its attack

    step: float = option(1.25, "length of the step, in eps", above=0, most=2)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float, **budget: float
    ) -> Tensor:
        x_adv = attack(model, x, y, steps=1, **budget)
        return F.cross_entropy(at_least_fp32(model(x_adv)), y)

    def begin(self, config: TrainConfig) -> Method:
        """The method with its step's length in pixel units.

        Args:
            config: says eps.
        """
        return partial(self, step_size=self.step * config.threat_model.eps)
