"""What training sees of its images: which of them in which order, and each from another view."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import RandomErasing

from piat_hub.config import InputError, PictureConfig, TrainConfig, nearest
from piat_hub.data.encoded import Encoded, in_workers
from piat_hub.data.pictures import levels
from piat_hub.data.split import Split, derived_seed

GREY = 128  # the level of what is erased


def training_batches(
    split: Split, config: TrainConfig, rank: int = 0, world: int = 1, epochs_done: int = 0, steps_done: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of every micro-batch of one process, from where an earlier run ended to the end of the last epoch.

    Images held decoded are augmented as they are asked for, by the device's global generator; encoded ones of any sizes
    by workers, ahead of time, each by a seed that (seed, epoch, its number) decides.

    Args:
        split: the training images.
        config: says the batches, the epochs, the seed and the augmentation.
        rank: of this process.
        world: how many processes share a batch.
        epochs_done: whole epochs behind the run.
        steps_done: steps of the next epoch behind it.

    Yields:
        Images (B, C, H, W) uint8, or floats as the split's are, on the split's device, and labels (B,) int64.

    Raises:
        InputError: for a picture that cannot be read.
    """
    views = Views(split.images, config) if isinstance(split.images, Encoded) else None
    cut = config.pictures.augment == "rrc"
    if cut and not views:
        raise InputError(f"{split.name} is held decoded; random resized crops are cut from encoded pictures")

    def micro_batches(epoch: int) -> list[Tensor]:
        order = batches(len(split), config.batch_size, config.seed, epoch)
        left = islice(order, steps_done if epoch == epochs_done + 1 else 0, None)
        return [share for batch in left for share in shards(batch, world, config.accumulation)[:, rank]]

    epochs = range(epochs_done + 1, config.epochs + 1)
    asked = (
        ((epoch, views.images.rows[share].tolist()) for epoch in epochs for share in micro_batches(epoch))
        if views
        else ()
    )
    ahead = in_workers(views.of, asked, split.labels.is_cuda) if views else None
    for epoch in epochs:
        for images, labels in split.feed(micro_batches(epoch), ahead):
            yield images if cut else augment(images, config.crop_pad, config.flip), labels


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
    order = torch.randperm(n, generator=torch.Generator().manual_seed(derived_seed(seed, epoch)))
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
        raise InputError(f"a batch of {len(index)} images cannot be divided by {world} processes x {accumulation}")
    return index[: len(index) // parts * parts].view(accumulation, world, -1)


@dataclass(frozen=True)
class Views:
    """How training looks at a picture of any size, by timm's transforms and never normalised.

    A random part of it, stretched to the square (RandomResizedCrop, bicubic), perhaps mirrored, changed as `aa` says, and
    perhaps with a grey rectangle.

    Attributes:
        images: the pictures.
        config: says how they are cut and changed, or that they are not, and the run's seed.
    """

    images: Encoded
    config: TrainConfig

    @cached_property
    def transform(self) -> Callable[[Image.Image], Image.Image]:
        """Of a picture of mode RGB."""
        return transform(self.images.each[1:], self.config.pictures, self.config.flip)

    def of(self, asked: tuple[int, list[int]]) -> Tensor:
        """The views of these rows in this epoch, (B, C, H, W) uint8.

        Args:
            asked: the epoch, from 1, and rows.

        Raises:
            InputError: if a picture cannot be read.
        """
        epoch, rows = asked
        if self.config.pictures.augment != "rrc":
            return self.images.decode(rows)
        grey, erase = self.images.shape[1] == 1, RandomErasing(self.config.pictures.reprob, value=GREY)
        seen = []
        for row, picture in zip(rows, self.images.pictures(rows), strict=True):
            with seeded(derived_seed(self.config.seed, epoch, row)):
                view = self.transform(picture.convert("RGB"))
                seen.append(erase(levels(view.convert("L") if grey else view)))
        return torch.stack(seen)


def transform(size: tuple[int, ...], pictures: PictureConfig, flip: bool) -> Callable[[Image.Image], Image.Image]:
    """timm's training transform of a picture of mode RGB, up to where it would become a tensor.

    Args:
        size: (H, W) of the result.
        pictures: says the crop's scale, and `aa`.
        flip: mirror with probability 1/2.

    Raises:
        InputError: for an `aa` that timm does not know.
    """
    words: dict[str, Any] = {"scale": pictures.scale, "hflip": 0.5 * flip, "color_jitter": None}
    words |= {"auto_augment": pictures.aa, "interpolation": "bicubic", "mean": (0.5,) * 3}  # grey beyond the edges
    try:
        crop, change, _ = create_transform(size, is_training=True, separate=True, **words)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        known = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")
        raise InputError(
            f"timm knows no --aa {pictures.aa!r}{nearest(pictures.aa.partition('-')[0], known)}; it begins with one of "
            f"{', '.join(known)}, as in rand-m9-mstd0.5-inc1"
        ) from error
    return lambda picture: change(crop(picture))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's, numpy's and Python's global generators begin at this seed; after, they go on as before."""
    before = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])


def augment(images: Tensor, pad: int, flip: bool) -> Tensor:
    """Random crop after zero-padding by `pad`, then random horizontal flip, by one gather.

    Draws from the device's global generator.

    Args:
        images: (B, C, H, W) uint8.
        pad: pixels on each side.
        flip: mirror each image with probability 1/2.

    Returns:
        (B, C, H, W) uint8, of the same size.
    """
    b, c, h, w = images.shape
    device = images.device
    rows = torch.randint(2 * pad + 1, (b, 1), device=device) + torch.arange(h, device=device)
    cols = torch.randint(2 * pad + 1, (b, 1), device=device) + torch.arange(w, device=device)
    if flip:
        cols = torch.where(torch.rand(b, 1, device=device) < 0.5, cols.flip(1), cols)
    pixels = (rows[:, :, None] * (w + 2 * pad) + cols[:, None, :]).view(b, 1, -1).expand(-1, c, -1)
    return F.pad(images, (pad, pad, pad, pad)).view(b, c, -1).gather(2, pixels).view(b, c, h, w)
