"""The training loop. It knows no hub, no data set by name, no file: it trains, and tells what happened."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from piat_hub import data, methods
from piat_hub.attacks import Twin
from piat_hub.config import Diverged, TrainConfig, schedules
from piat_hub.training import averages, awp, mixing, optimizers
from piat_hub.training.interpolation import ParameterInterpolation


@dataclass(frozen=True)
class Step:
    """An optimizer step is launched.

    Attributes:
        epoch: counted from 1.
        step: counted from 1 to steps within the epoch.
        steps: of the epoch.
        images: those of the step's batch, of all ranks.
        loss: the mean of the last losses that have arrived from the device, as many as a step has micro-batches and
            replays; on a GPU the newest is still under way.
        losses: all of the epoch's, which a run that is to go on from here needs.
    """

    epoch: int
    step: int
    steps: int
    images: int
    loss: float
    losses: Losses


@dataclass(frozen=True)
class Epoch:
    """One epoch is done and its interpolation written.

    Attributes:
        epoch: counted from 1.
        lam: weight of theta'_{n-1} in its interpolation, 0 without one.
        lr: the learning rate at its end.
        train_loss: the mean of its losses.
    """

    epoch: int
    lam: float
    lr: float
    train_loss: float


@dataclass
class Parts:
    """What the loop works with: model and optimizer are prepared by Accelerate (see `prepare`).

    Attributes:
        config: what is learnt, and how.
        accelerator: as launched.
        model: maps images in [0, 1] to logits (B, K); the losses go through it.
        optimizer: of its parameters.
        method: the outer loss, after the clean epochs.
        attack: with its budget bound; crafts the examples.
        split: the training images, on the accelerator's device; of a stream the first ones.
        twin: what examples are crafted on; without one, the bare module.
        interpolation: of the bare module, stepped at each epoch's end.
        ema: stepped after each weight update.
        swa: stepped at each epoch's end.
        stream: what is trained on, where not all of it can be held.
        extra: images that share every batch with the training images.
    """

    config: TrainConfig
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    method: methods.Method
    attack: methods.Attack
    split: data.Split
    twin: Twin | None = None
    interpolation: ParameterInterpolation | None = None
    ema: averages.EMA | None = None
    swa: averages.SWA | None = None
    stream: data.Stream | None = None
    extra: data.Split | None = None

    @property
    def epoch_size(self) -> int:
        """Images of an epoch, of which whole batches are trained on."""
        return self.config.epoch_size or len(self.split)


def train(
    parts: Parts, *, epochs_done: int = 0, steps_done: int = 0, losses_done: Sequence[float] = ()
) -> Iterator[Step | Epoch]:
    """Train to `config.epochs`, from wherever an earlier run ended; yields after every step and every epoch.

    Losses go through the wrapped model. All randomness of a step is drawn from a seed derived from (seed, epoch, step,
    rank), so a run can go on from any step with no generator state. Nothing here waits for the device, but for the loss
    of one update earlier, and for overflows under fp16.

    Args:
        parts: model, optimizer and side copies, in the state in which the earlier run ended.
        epochs_done: whole epochs behind the run.
        steps_done: steps of the next epoch behind it.
        losses_done: what those steps gave.

    Yields:
        A Step after each step, and an Epoch once its interpolation is written.

    Raises:
        Diverged: if a loss or gradient is not finite, on a CPU before it touches the weights, on a GPU one update
            later.
        InputError: if a batch cannot be divided among processes and accumulation.
    """
    config, accelerator, split = parts.config, parts.accelerator, parts.split
    standard = methods.get("standard")()
    rank, world = accelerator.process_index, accelerator.num_processes
    steps = data.steps_per_epoch(parts.epoch_size, config.batch_size)
    feed = data.training_batches(parts.stream or split, config, rank, world, epochs_done, steps_done, parts.extra)
    for epoch in range(epochs_done + 1, config.epochs + 1):
        parts.model.train()
        clean, progress = epoch <= config.warmup, (epoch - 1) / config.epochs
        begun = steps_done if epoch == epochs_done + 1 else 0
        losses = Losses(epoch, steps, losses_done if begun else ())
        objective, gamma = (standard, None) if clean else (parts.method, config.awp)
        replays = getattr(objective, "replays", 1)
        for step in range(begun + 1, steps + 1):
            torch.manual_seed(data.derived_seed(config.seed, epoch, step, rank))
            optimizers.set_lr(parts.optimizer, schedules.lr_at(config, epoch, step, steps))
            attack = partial(parts.attack, **schedules.budget(config, epoch, step, steps))
            averaging = epoch - 1 + step / steps > config.ema_start * config.epochs
            for _ in range(config.accumulation):
                images, y = next(feed)
                x, y = mixing.mixed(data.to_unit(images), y, config.mixing, len(split.label_names))
                for _ in range(replays):
                    with accelerator.accumulate(parts.model):
                        loss_of = partial(objective, x=x, y=y, progress=progress)
                        loss = backward(parts.model, loss_of, attack, gamma, accelerator, parts.twin)
                        losses.add(step, loss)
                        update(parts, averaging)
            images_of_all, few = min(config.batch_size, parts.epoch_size), config.accumulation * replays
            yield Step(epoch, step, steps, images_of_all, losses.latest(few), losses)
        order = partial(data.batches, len(split), config.batch_size, config.seed, epoch)
        lam = parts.interpolation.step(plain(split, order())) if parts.interpolation else 0.0
        if parts.swa:
            parts.swa.step(plain(split, order()))
        yield Epoch(epoch, lam, schedules.lr_at(config, epoch, steps, steps), losses.mean())


def plain(split: data.Split, order: Iterator[Tensor]) -> Iterator[Tensor]:
    """The images of these batches as they are, (B, C, H, W) in [0, 1]: what statistics are measured again on."""
    yield from (data.to_unit(images) for images, _ in split.feed(list(order)))


class Losses:
    """The losses of an epoch, on their way from the device: the host waits for one only when the next is under way.

    Args:
        epoch: for messages, counted from 1.
        steps: of the epoch, for messages.
        values: those that an earlier run had.
    """

    def __init__(self, epoch: int, steps: int, values: Sequence[float] = ()) -> None:
        self.where = f"epoch {epoch}, step {{}} of {steps}"
        self.coming: deque[tuple[int, Callable[[], float]]] = deque()
        self.values = list(values)

    def add(self, step: int, loss: Tensor) -> None:
        """Take one more.

        Args:
            step: it is of, for messages.
            loss: (), NaN for a gradient that is not finite.

        Raises:
            Diverged: if it is not finite, or on a GPU the one before.
        """
        self.coming.append((step, arrival(loss)))
        while len(self.coming) > int(loss.is_cuda):
            self._read()

    def _read(self) -> None:
        step, read = self.coming.popleft()
        if not math.isfinite(value := read()):
            what = "the loss or its gradient" if math.isnan(value) else "the loss"
            raise Diverged(f"{what} is {value} at {self.where.format(step)}")
        self.values.append(value)

    def latest(self, count: int) -> float:
        """The mean of the last `count` that have arrived."""
        if not self.values:
            self._read()
        return fmean(self.values[-count:])

    def all(self) -> list[float]:
        """Every one so far; waits for them."""
        while self.coming:
            self._read()
        return self.values

    def mean(self) -> float:
        """The mean of all; waits for them."""
        return fmean(self.all())


def arrival(value: Tensor) -> Callable[[], float]:
    """A function that gives the number; on a GPU it waits for what is queued by now, and for nothing queued later.

    Args:
        value: ().
    """
    if not value.is_cuda:
        return value.item
    host, event = torch.empty_like(value, device="cpu", pin_memory=True), torch.cuda.Event()
    host.copy_(value, non_blocking=True)
    event.record()

    def read() -> float:
        event.synchronize()
        return float(host)

    return read


def backward(
    model: nn.Module,
    loss_of: Callable[..., Tensor],
    attack: methods.Attack,
    gamma: float | None,
    accelerator: Accelerator,
    twin: Twin | None = None,
) -> Tensor:
    """Add the gradient of one micro-batch, under AWP of `gamma` if not None; returns the mean loss over processes, ().

    It is NaN where the gradient is not finite; but under fp16, whose scaler leaves out such an update.

    Args:
        model: as prepared by Accelerate; gradients add to those that its parameters have.
        loss_of: loss_of(model, attack=…), the method with its batch bound.
        attack: runs on the twin, or else on the bare module.
        gamma: size of the weight perturbation relative to the weights; None for no AWP.
        accelerator: as launched.
        twin: takes up the weights as they are then, before each crafting.
    """
    bare = unwrap(model, accelerator)

    def craft(_: nn.Module, x: Tensor, y: Tensor, /, **options: Any) -> Tensor:
        return attack(twin.refresh() if twin else bare, x, y, **options)

    def at_w(craft: methods.Attack) -> Tensor:
        loss = loss_of(bare, attack=craft)
        return accelerator.scaler.scale(loss) if accelerator.scaler else loss

    with awp.perturbed(bare, gamma, craft, at_w, mean=partial(accelerator.reduce, reduction="mean")) as crafted:
        loss = loss_of(model, attack=crafted)
        accelerator.backward(loss)
    loss = loss.detach()
    if not accelerator.scaler:
        largest = get_total_norm([p.grad for p in bare.parameters() if p.grad is not None], float("inf"))
        loss = torch.where(loss.isfinite() & ~largest.isfinite(), torch.nan, loss)
    return accelerator.gather(loss).mean()  # not finite on one process: on all


def update(parts: Parts, averaging: bool = True) -> None:
    """After a micro-batch's backward: once a step's gradients are together, update the weights and what follows them.

    Args:
        parts: its model's parameters have the gradients.
        averaging: whether EMA's average has begun; before, it is the model.
    """
    accelerator, bare = parts.accelerator, unwrap(parts.model, parts.accelerator)
    if accelerator.sync_gradients and parts.config.optimizer.clip_grad is not None:
        accelerator.clip_grad_norm_(bare.parameters(), parts.config.optimizer.clip_grad)
    parts.optimizer.step()  # Accelerate waits for the gradients of all micro-batches
    parts.optimizer.zero_grad()
    if accelerator.sync_gradients:
        average_buffers(bare, accelerator)
        if parts.ema:
            parts.ema.step(averaging)


def prepare(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Model and optimizer for `train`, wrapped by Accelerate; buffers are averaged by `train`, not broadcast by DDP.

    Args:
        model: the bare module, on the accelerator's device.
        optimizer: of its parameters.
        accelerator: as launched.
    """
    model, optimizer = accelerator.prepare(model, optimizer)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model.broadcast_buffers = False
    return model, optimizer


def unwrap(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The bare module: without DDP and without torch.compile, still with autocast.

    Args:
        model: as prepared by Accelerate, or bare.
        accelerator: that prepared it.
    """
    return accelerator.unwrap_model(model, keep_torch_compile=False)


@torch.no_grad()
def average_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the mean of their BatchNorm statistics, so that their models stay equal after every step.

    Args:
        model: the bare module; its floating buffers are changed in place.
        accelerator: as launched; every process must call this.
    """
    if accelerator.num_processes == 1:
        return
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if buffers:
        flat = accelerator.reduce(torch.cat([b.flatten() for b in buffers]), "mean")
        for b, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            b.copy_(mean.view_as(b))
