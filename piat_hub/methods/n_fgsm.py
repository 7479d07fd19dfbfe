"""N-FGSM, fast adversarial training with one step from stronger noise, not clipped to the ball (de Jorge et al. 2022)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.config import Checked, InputError, TrainConfig, option
from piat_hub.methods.base import Attack, Method, at_least_fp32, register


@register("n_fgsm")
@dataclass(frozen=True)
class NFGSM(Checked):
    """CE(z', y) on x' of one step from noise beyond the ball, never clipped to it (de Jorge et al. 2022, NeurIPS, Eq. 7).

    x' lies up to (noise + step) eps from x; only the box [0, 1] holds it. The attack's own steps and step size play no
    part.
    """

    needs_pgd: ClassVar[bool] = True  # it sets the step of its attack

    noise: float = option(2.0, "radius of the uniform noise, in eps, the authors' k", above=0)
    step: float = option(1.0, "length of the step, in eps", above=0, most=2)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float, **budget: float
    ) -> Tensor:
        x_adv = attack(model, x, y, steps=1, clip=False, **budget)
        return F.cross_entropy(at_least_fp32(model(x_adv)), y)

    def begin(self, config: TrainConfig) -> Method:
        """The method with its noise and its step in pixel units.

        Args:
            config: says eps.

        Raises:
            InputError: for noise beyond all levels.
        """
        eps = config.threat_model.eps
        if config.threat_model.norm == "Linf" and self.noise * eps > 1:
            raise InputError(
                f"method.noise {self.noise:g} x eps {eps:g} is {self.noise * eps:g}, more than images in [0, 1] have; "
                "lower --method.noise"
            )
        return partial(self, eps=self.noise * eps, step_size=self.step * eps)
