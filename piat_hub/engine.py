"""The training loop. It knows no hub, no data set by name, no file: it trains, and tells what happened."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from piat_hub import methods
from piat_hub.config import Diverged, InputError, TrainConfig
from piat_hub.data import Split, augment, batches, derived_seed, steps_per_epoch, to_unit
from piat_hub.interpolation import ParameterInterpolation


@dataclass(frozen=True)
class Step:
    """One optimizer step is done: step counts from 1 to steps within the epoch; images and loss are those of all ranks."""

    epoch: int
    step: int
    steps: int
    images: int
    loss: float


@dataclass(frozen=True)
class Epoch:
    """One epoch is done and its interpolation written: lr is its last step's, train_loss its mean."""

    epoch: int
    lam: float
    lr: float
    train_loss: float


def train(
    model: nn.Module,
    method: methods.Method,
    attack: methods.Attack,
    split: Split,
    optimizer: torch.optim.Optimizer,
    interpolation: ParameterInterpolation | None,
    accelerator: Accelerator,
    config: TrainConfig,
    first_epoch: int = 1,
) -> Iterator[Step | Epoch]:
    """Train from `first_epoch` to `config.epochs`; model and optimizer are prepared by Accelerate, the split is on its device.

    Examples are crafted on the bare module, losses go through the wrapped one. All randomness of a step is drawn from a
    seed derived from (seed, epoch, step, rank), so a run can go on from any epoch with no generator state.
    Raises Diverged if a loss is not finite, before it touches the weights.
    """
    bare, standard = unwrap(model, accelerator), methods.get("standard")()
    rank, world = accelerator.process_index, accelerator.num_processes

    def craft(_: nn.Module, x: Tensor, y: Tensor, /, **options: Any) -> Tensor:
        return attack(bare, x, y, **options)

    steps = steps_per_epoch(len(split), config.batch_size)
    for epoch in range(first_epoch, config.epochs + 1):
        model.train()
        objective, total = (standard if epoch <= config.warmup else method), 0.0
        for step, index in enumerate(batches(len(split), config.batch_size, config.seed, epoch), 1):
            torch.manual_seed(derived_seed(config.seed, epoch, step, rank))
            lr = set_lr(optimizer, config.lr_at((epoch - 1 + step / steps) / config.epochs))
            loss_sum = 0.0
            for micro in shards(index, world, config.accumulation)[:, rank]:
                with accelerator.accumulate(model):
                    x = to_unit(augment(split.images[micro], config.crop_pad, config.flip))
                    loss = objective(model, x, split.labels[micro], craft, (epoch - 1) / config.epochs)
                    value = float(accelerator.gather(loss.detach()).mean())  # not finite on one rank: on all
                    if not math.isfinite(value):
                        raise Diverged(f"the loss is {value} at epoch {epoch}, step {step} of {steps}")
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                loss_sum += value / config.accumulation
            average_buffers(bare, accelerator)
            total += loss_sum / steps
            yield Step(epoch, step, steps, len(index), loss_sum)
        lam = 0.0
        if interpolation:
            order = batches(len(split), config.batch_size, config.seed, epoch)
            lam = interpolation.step(to_unit(split.images[index]) for index in order)
        yield Epoch(epoch, lam, lr, total)


def prepare(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Model and optimizer for `train`, wrapped by Accelerate; buffers are averaged by `train`, not broadcast by DDP."""
    model, optimizer = accelerator.prepare(model, optimizer)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model.broadcast_buffers = False
    return model, optimizer


def unwrap(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The bare module: without DDP and without torch.compile, still with autocast."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def shards(index: Tensor, world: int, accumulation: int) -> Tensor:
    """A batch of indices as (accumulation, world, micro-batch). A lone partial batch gives up its remainder."""
    parts = world * accumulation
    if len(index) < parts:
        raise InputError(f"a batch of {len(index)} images cannot be divided by {world} processes x {accumulation}")
    return index[: len(index) // parts * parts].view(accumulation, world, -1)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


@torch.no_grad()
def average_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the mean of their BatchNorm statistics, so that their models stay equal after every step."""
    if accelerator.num_processes == 1:
        return
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if buffers:
        flat = accelerator.reduce(torch.cat([b.flatten() for b in buffers]), "mean")
        for b, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            b.copy_(mean.view_as(b))
