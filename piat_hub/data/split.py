"""Images and labels of one split, and everything that draws from them by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from piat_hub.config import InputError
from piat_hub.data.arrays import images_of, labels_of
from piat_hub.data.pictures import Encoded, _as_they_are, _Decoder, workers

SPLIT_SEED = 20230728  # fixes which images are held out (and digits' test split), whatever a run's own seed


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, on one device.

    Arrays of one's own are taken as what they mean, or refused in one line. Images are levels 0..255 of any whole-number
    type, or floats in [0, 1]: those that are n/255 become uint8, others stay floats, and nothing is rounded. Labels are
    class numbers from 0 of any whole-number type.

    Attributes:
        images: (N, C, H, W) uint8, or read like that; float32 in [0, 1] where they are no multiples of 1/255.
        labels: (N,) int64 in [0, len(label_names)).
        label_names: one for each class; () where they have none, and the numbers found are the names.
        name: what results call the data set.
        inferred: label_names are only the classes this split happens to hold: there may be more.
        notes: what was mended or left out when it was made, a line each, for people.

    Raises:
        InputError: for images or labels of another shape, type or range.
    """

    images: Tensor | Encoded
    labels: Tensor
    label_names: tuple[str, ...]
    name: str
    inferred: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.label_names or ()
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise InputError(f"label_names must be a text for each class, got {names!r:.80}; write ('cat', 'dog')")
        images = self.images if isinstance(self.images, Encoded) else images_of(self.images, self.name)
        labels = labels_of(
            self.labels, len(images.rows if isinstance(images, Encoded) else images), len(names), self.name
        )
        if not names:
            names = tuple(map(str, range(int(labels.max()) + 1 if len(labels) else 0)))
            object.__setattr__(self, "inferred", True)
        for field, value in (("images", images), ("labels", labels), ("label_names", tuple(names))):
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Split:
        images = self.images.select(index) if isinstance(self.images, Encoded) else self.images[index]
        return replace(self, images=images, labels=self.labels[index])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def first(self, n: int | None) -> Split:
        """The first n images, or all for None.

        Raises:
            InputError: if there are fewer, or none.
        """
        if not len(self):
            raise InputError(f"{self.name} has no images; give a split that has some")
        if n is not None and n > len(self):
            raise InputError(f"n={n} is larger than the split of {self.name}, which has {len(self)} images; lower it")
        return self if n is None else self[:n]

    def digest(self) -> str:
        """The sha256 of all pixels."""
        whole = hashlib.sha256()
        for index in torch.arange(len(self)).split(1000):
            whole.update(self.images[index.to(self.labels.device)].cpu().numpy().tobytes())
        return whole.hexdigest()

    def feed(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of each batch of indices, on the device; encoded images by a DataLoader.

        Args:
            batches: (B,) int64 each, all of one length; at least one.

        Yields:
            Images (B, C, H, W) uint8 and labels (B,) int64.

        Raises:
            InputError: if an encoded image cannot be decoded.
        """
        indices = torch.stack(list(batches)).to(self.labels.device)  # at once: a copy to a GPU makes the host wait
        if not isinstance(self.images, Encoded):
            yield from ((self.images[index], self.labels[index]) for index in indices)
            return
        rows = [self.images.rows[index].tolist() for index in indices.cpu()]
        settings: dict[str, Any] = {"num_workers": workers(), "pin_memory": self.labels.is_cuda}
        settings["generator"] = torch.Generator()  # else it draws from the global one
        loader = DataLoader(_Decoder(self.images), batch_sampler=rows, collate_fn=_as_they_are, **settings)  # type: ignore[arg-type]
        for images, index in zip(loader, indices, strict=True):
            if isinstance(images, InputError):
                raise images
            yield images.to(self.labels.device, non_blocking=True), self.labels[index]


def hold_out(train: Split, holdout: int, train_size: int | None = None) -> tuple[Split, Split]:
    """(training images, held-out images), disjoint, both from `train` by one fixed permutation.

    Neither depends on a run's seed, and a larger training set contains every smaller one.

    Args:
        train: all training images.
        holdout: how many are held out, the first of the permutation.
        train_size: how many are trained on, the next of the permutation; all the rest by default.

    Raises:
        InputError: if there are too few images.
    """
    room = len(train) - holdout
    if room < 1 or (train_size or 1) > room:
        raise InputError(
            f"{train.name} has {len(train)} training images: too few for holdout={holdout} and "
            f"train-size={train_size or 'all'}; lower --holdout or --train-size"
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SPLIT_SEED))
    order = order.to(train.labels.device)
    return train[order[holdout:][:train_size]], train[order[:holdout]]


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


def derived_seed(*counters: int) -> int:
    """A 64-bit seed from counters such as (seed, epoch, step, rank): no generator state has to be saved or restored."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0])


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


def to_unit(images: Tensor) -> Tensor:
    """The images as float32 in [0, 1], laid out channels last (convolutions are faster so).

    Args:
        images: (B, C, H, W) uint8, or floats that lie in [0, 1] already, as `Split.images` are.

    Raises:
        InputError: for another type, whose range would be a guess.
    """
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(
            f"images must be uint8 or floats in [0, 1], got {images.dtype}; make a piat_hub.data.Split of them"
        )
    unit = images.to(torch.float32, memory_format=torch.channels_last)
    return unit if images.is_floating_point() else unit.div_(255)
