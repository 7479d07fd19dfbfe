"""Free adversarial training (Shafahi et al. 2019)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.attacks import climb
from piat_hub.config import Checked, ThreatModel, TrainConfig, option
from piat_hub.methods.base import Attack, Method, at_least_fp32, register


@register("free_at")
@dataclass(frozen=True)
class FreeAT(Checked):
    """CE(f(x + delta), y), each batch replayed m times; delta climbs on the same backward (Shafahi et al. 2019, Alg. 1).

    The weights step on every replay, and delta, one for each place in the batch, is kept from batch to batch:
    delta <- project(delta + eps * steepest(gradient)); the attack's steps play no part. Called by itself, without `begin`,
    delta is 0 and this is clean training. The authors divide the epochs of another method by `replays`.
    """

    needs_pgd: ClassVar[bool] = True
    replays: int = option(8, "how often each batch is trained on, the authors' m", least=1)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        return F.cross_entropy(at_least_fp32(model(x)), y)

    def begin(self, config: TrainConfig) -> Method:
        """The method of one run, with its delta.

        Args:
            config: says the ball that delta is projected onto; its eps is also the length of delta's step.
        """
        return FreeRun(self.replays, config.threat_model)


class FreeRun:
    """Free-AT under way: its state is delta (B, C, H, W), that of this process's part of the batch."""

    def __init__(self, replays: int, threat_model: ThreatModel) -> None:
        self.replays, self.threat_model, self.delta = replays, threat_model, torch.zeros(())

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor:
        if self.delta.shape != x.shape:  # the first batch, or another number of processes
            self.delta = torch.zeros_like(x)
        delta = self.delta.detach().requires_grad_()
        delta.register_hook(self._climb)  # called by the backward that trains the weights
        return F.cross_entropy(at_least_fp32(model((x + delta).clamp(0, 1))), y)

    def _climb(self, gradient: Tensor) -> None:
        delta, eps, norm = self.delta, self.threat_model.eps, self.threat_model.norm
        self.delta = climb(delta, gradient.nan_to_num(0, 0, 0), torch.zeros_like(delta), eps, eps, norm)

    def state_dict(self) -> dict[str, Any]:
        """{"delta": tensor}."""
        return {"delta": self.delta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a `state_dict`."""
        self.delta = state["delta"]
