"""Standard training: cross-entropy on clean images."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.methods.base import Attack, at_least_fp32, register


@register("standard")
@dataclass(frozen=True)
class Standard:
    """CE(z, y): empirical risk minimisation, the baseline without robustness; also every method's clean warm-up."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        return F.cross_entropy(at_least_fp32(model(x)), y)
