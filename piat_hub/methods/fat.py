"""FAT, friendly adversarial training (Zhang et al. 2020)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.config import Checked, InputError, option
from piat_hub.methods.base import Attack, at_least_fp32, likeliest, register


@register("fat")
@dataclass(frozen=True)
class FAT(Checked):
    """CE(z', y) on friendly x', which leave the attack soon after they mislead (Zhang et al. 2020, ICML, Alg. 1-2).

    An image stops once it has been misclassified at more than tau steps; tau is 0, 1, then 2 as
    training goes on (the authors' epochs 50 and 90 of 120). Every step adds noise N(0, 1) * `noise`. A stopped image
    keeps its place in the batch.
    """

    needs_class: ClassVar[bool] = True
    needs_pgd: ClassVar[bool] = True
    noise: float = option(0.001, "scale of the noise at every step, the authors' omega", least=0)
    tau_one: float = option(5 / 12, "share of the run from which tau is 1", least=0, most=1)
    tau_two: float = option(3 / 4, "share of the run from which tau is 2", least=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_two < self.tau_one:
            raise InputError(f"tau-two must be at least tau-one, got {self.tau_two} < {self.tau_one}; tau only grows")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        x_adv = attack(model, x, y, on_step=friendly_stop(likeliest(y), self.tau(progress)), noise=self.noise)
        return F.cross_entropy(at_least_fp32(model(x_adv)), y)

    def tau(self, progress: float) -> int:
        """Steps that an image goes on after it is first misclassified: 0, 1 or 2.

        Args:
            progress: share of the run's epochs that are done, in [0, 1).
        """
        return int(progress >= self.tau_one) + int(progress >= self.tau_two)


def friendly_stop(y: Tensor, tau: int) -> Callable[[int, Tensor], Tensor]:
    """on_step for an attack: an image moves until it has been misclassified at more than tau steps (Alg. 1).

    Args:
        y: class numbers, (B,).
        tau: steps that a misclassified image still goes on.

    Returns:
        (k, logits (B, K)) -> (B,) bool, true where still moving; it counts, so that each attack needs one of its own.
    """
    misled = torch.zeros_like(y)  # (B,) steps so far at which each was

    def moving(k: int, logits: Tensor) -> Tensor:
        wrong = logits.argmax(1) != y
        misled.add_(wrong)
        return ~wrong | (misled <= tau)

    return moving
