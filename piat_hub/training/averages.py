"""Side copies of the weights, EMA and SWA: only evaluated, never trained on."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from piat_hub.config import InputError


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure BatchNorm's running mean and variance again: their plain average over `batches`, nothing dropped.

    Args:
        model: its statistics are changed in place, modes and momenta put back; without BatchNorm nothing is computed.
        batches: images (B, C, H, W) in [0, 1] on the model's device.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    modes = [(m, m.training) for m in model.modules()]
    momenta = [(m, m.momentum) for m in norms]
    model.eval()  # dropout and drop-path draw from a generator
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a cumulative average
        m.train()
    try:
        for x in batches:
            model(x)
    finally:
        for m, momentum in momenta:
            m.momentum = momentum
        for module, training in modes:
            module.training = training


class EMA:
    """Exponential moving average of the weights after every step (SEAT: Wang & Wang 2022, ICLR): the model evaluated.

    copy <- d copy + (1 - d) model with d = min(decay, (t + 1) / (t + 10)) at step t = 0, 1, …: parameters and floating
    buffers; integer buffers are copied. Call `step` after every optimizer step; `copy` is the averaged model. What PIAT
    writes back at an epoch's end enters with the next step.

    Args:
        model: the bare module; left as it is.
        decay: the most that d may be, in [0, 1).
        bn: BatchNorm's statistics are "average"d like the weights, or a "copy" of the model's.

    Raises:
        InputError: a ValueError, for another decay.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, bn: Literal["average", "copy"] = "average") -> None:
        if not 0 <= decay < 1:
            raise InputError(f"ema must lie in [0, 1), got {decay}; 0.999 is usual")
        self.model, self.decay, self.bn, self.steps = model, decay, bn, 0
        self.copy = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def step(self, averaging: bool = True) -> float:
        """Take the model's weights into the average; returns d.

        Args:
            averaging: False before the average begins: d is then 0, the copy is the model, and t stays 0.
        """
        d = min(self.decay, (self.steps + 1) / (self.steps + 10)) if averaging else 0.0
        self.steps += int(averaging)
        average(self.copy, self.model, 1 - d)
        if self.bn == "copy":
            for mine, its in zip(self.copy.buffers(), self.model.buffers(), strict=True):
                mine.copy_(its)
        return d

    def state_dict(self) -> dict[str, Any]:
        """{"steps": how many were taken, "copy": the averaged model's}."""
        return {"steps": self.steps, "copy": self.copy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a `state_dict`."""
        self.steps = int(state["steps"])
        self.copy.load_state_dict(state["copy"])


class SWA:
    """Stochastic weight averaging (Izmailov et al. 2018): the plain mean of the weights at the ends of epochs.

    Call `step` at each epoch's end. From `start_epoch` on the copy is the mean of those epochs, its BatchNorm
    statistics measured again on the batches; before, it is the model itself.

    Args:
        model: the bare module; left as it is.
        start_epoch: the first epoch in the mean, counted from 1.
    """

    def __init__(self, model: nn.Module, start_epoch: int = 1) -> None:
        self.model, self.start_epoch, self.epochs = model, start_epoch, 0
        self.copy = copy.deepcopy(model).requires_grad_(False).eval()

    def step(self, batches: Iterable[Tensor]) -> None:
        """End an epoch.

        Args:
            batches: images (B, C, H, W) in [0, 1] on the model's device; used from the mean's second epoch on.
        """
        self.epochs += 1
        averaged = max(1, self.epochs - self.start_epoch + 1)  # epochs in the mean
        average(self.copy, self.model, 1 / averaged)
        if averaged > 1:
            recalibrate(self.copy, batches)

    def state_dict(self) -> dict[str, Any]:
        """{"epochs": how many have ended, "copy": the averaged model's}."""
        return {"epochs": self.epochs, "copy": self.copy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a `state_dict`."""
        self.epochs = int(state["epochs"])
        self.copy.load_state_dict(state["copy"])


@torch.no_grad()
def average(copy: nn.Module, model: nn.Module, weight: float) -> None:
    """copy <- copy + weight (model - copy), in place: parameters and floating buffers; integer buffers are copied.

    Args:
        copy: changed in place.
        model: of the same architecture, on the same device.
        weight: of the model, in [0, 1].
    """
    pairs = list(zip(copy.state_dict().values(), model.state_dict().values(), strict=True))
    moving = [(c, m) for c, m in pairs if c.is_floating_point()]
    lerp([c for c, _ in moving], [m for _, m in moving], weight)
    for c, m in pairs:
        if not c.is_floating_point():
            c.copy_(m)


@torch.no_grad()
def lerp(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """t <- t + weight (end - t) for each pair, in place, in a few kernels for all of them.

    Args:
        tensors: the t, of floating point; changed in place.
        ends: as many, of the same shapes.
        weight: of the ends; 0 changes nothing.
    """
    torch._foreach_lerp_(list(tensors), list(ends), weight)
