"""Images and labels of one split, and everything that draws from them by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from piat_hub.config import InputError, shortened
from piat_hub.data.arrays import images_of, labels_of
from piat_hub.data.encoded import Encoded, in_workers

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
        """The first n images, or all for None; a note says where they lack classes because the images lie class by class.

        Raises:
            InputError: if there are fewer, or none.
        """
        if not len(self):
            raise InputError(f"{self.name} has no images; give a split that has some")
        if n is not None and n > len(self):
            raise InputError(f"n={n} is larger than the split of {self.name}, which has {len(self)} images; lower it")
        if n is None:
            return self
        some = self[:n]
        missing = sorted({*self.labels.tolist()} - {*some.labels.tolist()})
        if n < 10 or not missing or not _class_by_class(some.labels):
            return some
        lacks = shortened([self.label_names[k] for k in missing])
        note = f"the first {n} images of {self.name}, which lie class by class, hold none of {lacks}; take all, or shuffle them"
        return replace(some, notes=(*some.notes, note))

    def spread(self, n: int) -> Split:
        """n of the images from all over, always the same, in their order; all where there are no more."""
        order = fixed_order(len(self))
        return self[order[:n].sort().values.to(self.labels.device)] if n < len(self) else self

    def samples(self, n: int) -> Split:
        """n images to show: the first, or from all over where the images lie class by class.

        Raises:
            InputError: if there are fewer.
        """
        return self.spread(n) if _class_by_class(self.labels) and n < len(self) else self.first(n)

    def as_rgb(self) -> Split:
        """The images with three channels: grey ones have three alike."""
        if self.shape[0] != 1:
            return self
        if isinstance(self.images, Encoded):
            return replace(self, images=replace(self.images, each=(3, *self.images.each[1:])))
        return replace(self, images=self.images.expand(-1, 3, -1, -1))

    def digest(self) -> str:
        """The sha256 of all pixels."""
        whole = hashlib.sha256()
        for index in torch.arange(len(self)).split(1000):
            whole.update(self.images[index.to(self.labels.device)].cpu().numpy().tobytes())
        return whole.hexdigest()

    def feed(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of each batch of indices, on the device; encoded images are decoded by workers.

        Args:
            batches: (B,) int64 each.

        Yields:
            Images (B, C, H, W) uint8 and labels (B,) int64.

        Raises:
            InputError: if an encoded image cannot be decoded.
        """
        if not batches:
            return
        whole = torch.cat(list(batches)).to(self.labels.device)  # at once: a copy to a GPU makes the host wait
        indices = whole.split([len(index) for index in batches])
        if not isinstance(self.images, Encoded):
            # index_select copies whole rows, four times as fast as images[index]
            yield from ((self.images.index_select(0, index), self.labels[index]) for index in indices)
            return
        rows = [self.images.rows[index].tolist() for index in batches]
        decoded = in_workers(self.images.decode, rows, self.labels.is_cuda)
        for images, index in zip(decoded, indices, strict=True):
            yield images.to(self.labels.device, non_blocking=True), self.labels[index]


def _class_by_class(labels: Tensor) -> bool:
    """Whether each class's images lie together."""
    return len(labels.unique_consecutive()) == len(labels.unique())


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
    order = fixed_order(len(train)).to(train.labels.device)
    return train[order[holdout:][:train_size]], train[order[:holdout]]


def fixed_order(n: int) -> Tensor:
    """A permutation of 0 … n - 1, (n,) int64, always the same."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))


def derived_seed(*counters: int) -> int:
    """A 64-bit seed from counters such as (seed, epoch, step, rank): no generator state has to be saved or restored."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0])


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
