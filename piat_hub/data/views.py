"""How training looks at an image: a random part of a photograph, by workers, or a crop after padding, by one gather."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import RandomErasing

from piat_hub.config import InputError, PictureConfig, TrainConfig, nearest
from piat_hub.data.encoded import Encoded
from piat_hub.data.pictures import levels
from piat_hub.data.split import derived_seed

GREY = 128  # the level of what is erased


@dataclass(frozen=True)
class Asked:
    """A micro-batch that workers are to make.

    Attributes:
        epoch: counted from 1.
        numbers: of its images, which seed their views: rows of the data set, or places in the epoch's stream.
        labels: their classes.
        cells: the undecoded images themselves, where they come from a stream.
    """

    epoch: int
    numbers: list[int]
    labels: list[int]
    cells: list[Any] | None = None


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

    def of(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """The views of a batch, (B, C, H, W) uint8, and its labels, (B,) int64.

        Args:
            asked: which.

        Raises:
            InputError: if a picture cannot be read.
        """
        images, rows = self.images, asked.numbers
        if asked.cells:
            cells = np.empty(len(asked.cells), object)
            cells[:] = asked.cells
            images, rows = replace(images, cells=cells), list(range(len(cells)))
        labels = torch.tensor(asked.labels)
        if self.config.pictures.augment != "rrc":
            return images.decode(rows), labels
        grey, erase = images.shape[1] == 1, RandomErasing(self.config.pictures.reprob, value=GREY)
        seen = []
        for number, picture in zip(asked.numbers, images.pictures(rows), strict=True):
            with seeded(derived_seed(self.config.seed, asked.epoch, number)):
                view = self.transform(picture.convert("RGB") if grey else picture)
                seen.append(erase(levels(view.convert("L") if grey else view)))
        return torch.stack(seen), labels


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
    """Inside, torch's generator of the CPU and the global ones of numpy and Python begin at this seed; after, they go on.

    Args:
        seed: of 64 bits, of which numpy takes 32.
    """
    cpu = torch.random.default_generator  # torch.manual_seed sees to every device, and takes as long as a small picture
    before = cpu.get_state(), np.random.get_state(), random.getstate()
    cpu.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        cpu.set_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def varied(images: Tensor, config: TrainConfig) -> Tensor:
    """How training looks at images that are held decoded: cropped, perhaps mirrored, perhaps with a grey square.

    Draws from the device's global generator.

    Args:
        images: (B, C, H, W) uint8, or floats in [0, 1].
        config: says the crop, the flip and the square.

    Returns:
        Images like those.
    """
    if config.crop_shift:
        seen = augment(crop_shift(images, config.crop_shift), 0, config.flip)
    else:
        seen = augment(images, config.crop_pad, config.flip)
    return cutout(seen, config.cutout) if config.cutout else seen


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
    b, _, h, w = images.shape
    device = images.device
    rows = torch.randint(2 * pad + 1, (b, 1), device=device) + torch.arange(h, device=device)
    cols = torch.randint(2 * pad + 1, (b, 1), device=device) + torch.arange(w, device=device)
    if flip:
        cols = torch.where(torch.rand(b, 1, device=device) < 0.5, cols.flip(1), cols)
    return _gathered(F.pad(images, (pad, pad, pad, pad)), rows, cols)


def crop_shift(images: Tensor, most: int) -> Tensor:
    """Cut some rows and columns off each image and put the rest back at a random place, on black (Li & Spratling 2023).

    How many go in all is uniform from 0 to `most`, how many of them are columns uniform too (arXiv:2301.09879 and its
    authors' code, where CIFAR-10 has 10 and SVHN 8). Draws from the device's global generator.

    Args:
        images: (B, C, H, W).
        most: rows and columns together; less than H and W.

    Returns:
        Images like those.
    """
    b, _, h, w = images.shape
    cut = _below(torch.full((b, 1), most + 1, device=images.device))
    columns = _below(cut + 1)
    return _gathered(F.pad(images, (0, 1, 0, 1)), _put_back(h, cut - columns), _put_back(w, columns))


def _put_back(length: int, cut: Tensor) -> Tensor:
    """For each place of an axis what lies there after crop and shift, (B, length); `length`, beyond the image, for nothing."""
    start, to = _below(cut + 1), _below(cut + 1)
    place = torch.arange(length, device=cut.device) - to
    return torch.where((place >= 0) & (place < length - cut), place + start, length)


def _below(bounds: Tensor) -> Tensor:
    """Whole numbers from 0, each uniform below its bound."""
    return (torch.rand(bounds.shape, device=bounds.device) * bounds).long()


def _gathered(images: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """The pixels of each image at these rows (B, H) and columns (B, W)."""
    b, c, _, w = images.shape
    pixels = (rows[:, :, None] * w + cols[:, None, :]).view(b, 1, -1).expand(-1, c, -1)
    return images.view(b, c, -1).gather(2, pixels).view(b, c, rows.shape[1], cols.shape[1])


def cutout(images: Tensor, side: int) -> Tensor:
    """A grey square in each image, its centre any pixel, so that it may reach beyond an edge (DeVries & Taylor 2017).

    Its level is the middle of the range, where arXiv:1708.04552 takes the data set's mean. Draws from the device's global
    generator.

    Args:
        images: (B, C, H, W) uint8, or floats in [0, 1].
        side: pixels; 16 for CIFAR-10 and 8 for CIFAR-100 there.

    Returns:
        Images like those.
    """
    b, _, h, w = images.shape

    def near(length: int) -> Tensor:
        first = torch.randint(length, (b, 1), device=images.device) - side // 2
        place = torch.arange(length, device=images.device) - first
        return (place >= 0) & (place < side)

    hole = near(h)[:, None, :, None] & near(w)[:, None, None, :]
    return images.masked_fill(hole, GREY / 255 if images.is_floating_point() else GREY)
