"""What training sees of its images: which of them, in which order, in which micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from piat_hub.config import InputError, TrainConfig
from piat_hub.data.encoded import Encoded, in_workers
from piat_hub.data.split import Split, derived_seed
from piat_hub.data.stream import Stream
from piat_hub.data.views import Asked, Views, varied


def training_batches(
    source: Split | Stream,
    config: TrainConfig,
    rank: int = 0,
    world: int = 1,
    epochs_done: int = 0,
    steps_done: int = 0,
    extra: Split | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of every micro-batch of one process, from where an earlier run ended to the end of the last epoch.

    Images held decoded are augmented as they are asked for, by the device's global generator; encoded ones of any sizes
    by workers, ahead of time, each by a seed that (seed, epoch, its number) decides.

    Args:
        source: the training images.
        config: says the batches, the epochs, the seed and the augmentation.
        rank: of this process.
        world: how many processes share a batch.
        epochs_done: whole epochs behind the run.
        steps_done: steps of the next epoch behind it.
        extra: images that share every batch, see `mixed_batches`.

    Yields:
        Images (B, C, H, W) uint8, or floats as the split's are, on the split's device, and labels (B,) int64.

    Raises:
        InputError: for a picture that cannot be read.
    """
    split = source.head if isinstance(source, Stream) else source
    views = Views(split.images, config) if isinstance(split.images, Encoded) else None
    cut = config.pictures.augment == "rrc"
    if cut and not views:
        raise InputError(f"{split.name} is held decoded; random resized crops are cut from encoded pictures")
    epochs, device = range(epochs_done + 1, config.epochs + 1), split.labels.device
    known = split.labels.cpu()  # once: asked for one batch at a time, a GPU would make the host wait

    def indices(epoch: int) -> list[Tensor]:
        order = batches(len(split), config.batch_size, config.seed, epoch)
        left = islice(order, steps_done if epoch == epochs_done + 1 else 0, None)
        return [share for batch in left for share in shards(batch, world, config.accumulation)[:, rank]]

    def asked() -> Iterator[Asked]:
        for epoch in epochs:
            if isinstance(source, Stream):
                done = steps_done if epoch == epochs_done + 1 else 0
                yield from _streamed(source, config, rank, world, epoch, done)
                continue
            for index in indices(epoch):
                rows = split.images.rows[index].tolist()  # type: ignore[union-attr]
                yield Asked(epoch, rows, known[index].tolist())

    if extra:
        seen: Iterator[tuple[Tensor, Tensor]] = mixed_batches(
            split, extra, config, rank, world, epochs_done, steps_done
        )
    elif views:
        seen = in_workers(views.of, asked(), split.labels.is_cuda)
    else:
        seen = (pair for epoch in epochs for pair in split.feed(indices(epoch)))
    for images, labels in seen:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        yield images if cut else varied(images, config), labels


def mixed_batches(
    real: Split, extra: Split, config: TrainConfig, rank: int, world: int, epochs_done: int, steps_done: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of every micro-batch of one process, where each batch holds `config.extra_share` extra images.

    Each set goes through an endless order of its own, in which a step's place depends on its number in the run alone, so a
    run goes on from any step. A batch's parts, one for each process and micro-batch, hold equally many of a set, or differ
    by one image.

    Args:
        real: the training images.
        extra: those mixed in, on any device.
        config: says the batches, the share, the epochs and the seed.
        rank: of this process.
        world: how many processes share a batch.
        epochs_done: whole epochs behind the run.
        steps_done: steps of the next epoch behind it.

    Yields:
        Images (B, C, H, W) and labels (B,) on the device of the real labels.
    """
    size, share, device = config.batch_size, config.extra_share, real.labels.device
    steps = steps_per_epoch(config.epoch_size or len(real), size)
    done, parts = epochs_done * steps + steps_done, world * config.accumulation
    cuts = [ends[rank::world] for ends in portions(size - share, share, parts)]
    seeds = [derived_seed(config.seed, 0, source) for source in (1, 2)]  # of no epoch: they begin with 1
    orders = endless(len(real), size - share, seeds[0], done), endless(len(extra), share, seeds[1], done)
    place = _shuffled(size // parts, config.seed, 0, 3).to(device)  # mixup blends image k with -k: let all kinds meet
    for epoch in range(epochs_done, config.epochs):
        left = steps - (steps_done if epoch == epochs_done else 0)
        indices = [
            [batch[cut] for batch in islice(order, left) for cut in own]
            for order, own in zip(orders, cuts, strict=True)
        ]
        for (images, labels), (others, theirs) in zip(*map(Split.feed, (real, extra), indices), strict=True):
            both = torch.cat([images, _sent(others, device)]), torch.cat([labels, _sent(theirs, device)])
            yield both[0][place], both[1][place]


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device; a GPU gets them from memory that it reads by itself, so the host need not wait."""
    pinned = values.pin_memory() if device.type == "cuda" and not values.is_cuda else values
    return pinned.to(device, non_blocking=True)


def _shuffled(n: int, *counters: int) -> Tensor:
    """The numbers below n in an order that these counters decide."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derived_seed(*counters)))


def endless(n: int, size: int, seed: int, begun: int = 0) -> Iterator[Tensor]:
    """Batches of indices from one pass over a set after another, without end; each pass is an order that (seed, pass) decide.

    No index comes again before all others have come. A batch may end one pass and begin the next.

    Args:
        n: images of the set.
        size: images of a batch, at most n.
        seed: of this set's orders.
        begun: batches to leave out.

    Yields:
        (size,) int64 on the CPU, from [0, n).
    """
    number, place = divmod(begun * size, n)
    rest = _shuffled(n, seed, number)[place:]
    while True:
        while len(rest) < size:
            number += 1
            rest = torch.cat([rest, _shuffled(n, seed, number)])
        yield rest[:size]
        rest = rest[size:]


def portions(real: int, extra: int, parts: int) -> tuple[list[slice], list[slice]]:
    """What each part of a batch takes of its real and of its extra images; shares of a kind differ by one at most.

    Args:
        real: images of the one kind.
        extra: of the other; together a multiple of `parts`.
        parts: of equal size.
    """
    ends = [k * real // parts for k in range(parts + 1)]
    others = [k * (real + extra) // parts - end for k, end in enumerate(ends)]
    return list(map(slice, ends, ends[1:])), list(map(slice, others, others[1:]))


def _streamed(stream: Stream, config: TrainConfig, rank: int, world: int, epoch: int, done: int) -> Iterator[Asked]:
    """The micro-batches of one process's share of an epoch, but for those of the first `done` steps, which are read past."""
    examples, left_out = stream.examples(config.seed, epoch, rank, world), done * config.accumulation
    micro = config.batch_size // (world * config.accumulation)
    for k in range(steps_per_epoch(len(stream), config.batch_size) * config.accumulation):
        numbers, cells, labels = zip(*islice(examples, micro), strict=True)
        if k >= left_out:
            yield Asked(epoch, list(numbers), list(labels), list(cells))


def batches(n: int, size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The epoch's full batches of indices, in an order that only seed and epoch decide.

    The last, partial batch is left out, so that every step has one static shape and equal shares for every process;
    each epoch leaves out other images. A set smaller than one batch is one batch.

    Args:
        n: images of the set.
        size: images of a batch.
        seed: of the run.
        epoch: counted from 1.

    Yields:
        (size,) int64 on the CPU, from [0, n).
    """
    order = _shuffled(n, seed, epoch)
    for i in range(steps_per_epoch(n, size)):
        yield order[i * size : (i + 1) * size]


def steps_per_epoch(n: int, size: int) -> int:
    """How many batches `batches` gives for n images in batches of `size`."""
    return max(1, n // size)


def shards(index: Tensor, world: int, accumulation: int) -> Tensor:
    """A batch of indices as (accumulation, world, micro-batch). A lone partial batch gives up its remainder.

    Args:
        index: (B,).
        world: processes.
        accumulation: micro-batches of one process's step.

    Raises:
        InputError: for fewer images than parts.
    """
    parts = world * accumulation
    if len(index) < parts:
        raise InputError(
            f"a batch of {len(index)} images cannot be divided by {world} processes x {accumulation} accumulation; lower one"
        )
    return index[: len(index) // parts * parts].view(accumulation, world, -1)
