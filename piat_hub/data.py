"""A data set as one uint8 tensor: loaded through Hugging Face `datasets`, decoded once, augmented by one gather.

Names: an alias (digits, cifar10, cifar100, svhn), a Hub id, or a local directory that `datasets.load_dataset` reads. What
is too large to be held decoded stays encoded, and streams.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from piat_hub.config import DATASETS, InputError, local_name, nearest

SPLIT_SEED = 20230728  # fixes which images are held out (and digits' test split), whatever a run's own seed
LIMIT = 4.0  # GiB that a decoded split may take


@dataclass(frozen=True)
class Encoded:
    """Images (N, C, H, W) uint8 that stay encoded, read like a tensor: each is decoded whenever an index asks for it.

    cells: a column of a `datasets.Dataset`, undecoded; rows: which of them, in order. device: where they are given out.
    """

    cells: Any
    rows: Tensor
    each: tuple[int, ...]
    img_size: int | None
    name: str
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return len(self.rows), *self.each

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self.decode(self.select(index).rows.tolist()).to(self.device)

    def select(self, index: Tensor | slice) -> Encoded:
        """These images alone, still encoded."""
        return replace(self, rows=self.rows[index.cpu() if isinstance(index, Tensor) else index])

    def to(self, device: torch.device | str) -> Encoded:
        """The same images, given out on `device`."""
        return replace(self, device=torch.device(device))

    def decode(self, rows: Sequence[int]) -> Tensor:
        """The images of these rows, (B, C, H, W) on the CPU. InputError if one is no image of this shape."""
        images, channels = [], self.each[0]
        for row, cell in zip(rows, self.cells[list(rows)] if rows else (), strict=True):
            image = self.open(row, cell)
            if len(image) > channels:
                raise InputError(f"{self.name}: row {row} is in colour and the first ones are grey; make them alike")
            images.append(image.expand(channels, -1, -1))
        return torch.stack(images) if images else torch.empty(0, *self.each, dtype=torch.uint8)

    def open(self, row: int, cell: Any) -> Tensor:
        """A cell as (1 or 3, H, W). InputError if it is no image, or has another size than the first."""
        try:
            raw = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
            with Image.open(io.BytesIO(raw)) as picture:
                image = _pixels(picture, self.img_size)
        except (OSError, TypeError, ValueError) as error:
            raise InputError(f"{self.name}: row {row} is no image ({_line(error)}); drop it") from error
        if self.each and image.shape[1:] != self.each[1:]:
            sizes = " and ".join(f"{h}x{w}" for h, w in (self.each[1:], image.shape[1:]))
            raise InputError(f"{self.name} mixes image sizes: {sizes} (row {row}); give them one with --img-size")
        return image


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, on one device.

    images: (N, C, H, W) uint8, or read like that. labels: (N,) int64 in [0, len(label_names)). name: what results call
    the data set.
    """

    images: Tensor | Encoded
    labels: Tensor
    label_names: tuple[str, ...]
    name: str
    inferred: bool = False  # label_names are only the classes this split happens to hold: there may be more

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
        """The first n images, or all. InputError if there are fewer."""
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
        """(images, labels) of each batch of indices, all of one length, on the device; encoded images by a DataLoader."""
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


class _Decoder(Dataset[Any]):
    """Encoded images as a DataLoader's worker takes them, a batch of rows at a time."""

    def __init__(self, images: Encoded) -> None:
        self.images = images

    def __getitems__(self, rows: list[int]) -> Tensor | InputError:
        try:
            return self.images.decode(rows)
        except InputError as error:  # raised here, it would come back inside a worker's traceback
            return error


def _as_they_are(batch: Tensor | InputError) -> Tensor | InputError:
    return batch


def workers() -> int:
    """Threads or processes that decode for this process: its share of the cores, at most 8."""
    return min(8, cores())


def cores() -> int:
    """This process's share of the machine's cores, at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def load(
    dataset: str,
    split: str,
    image_column: str | None = None,
    label_column: str | None = None,
    img_size: int | None = None,
    limit: float = LIMIT,
) -> Split:
    """Load one split ("train" or "test"; a data set without "test" gives its "validation") and decode it.

    img_size: resize every image to this many pixels a side (bilinear, antialiased). limit: a split that would take more
    than this many GiB decoded stays encoded. Raises InputError for a data set that cannot be reached, has no image or
    label column, a single class, images of mixed sizes or labels out of range; the message says what to do.
    """
    if dataset == "digits":
        return _digits(split, img_size)
    table, name = _table(dataset, split)
    if dataset in DATASETS:
        image_column, label_column = image_column or DATASETS[dataset][2], label_column or DATASETS[dataset][3]
    image_column = _column(table, name, "image", image_column)
    label_column = _column(table, name, "label", label_column)
    labels, label_names, inferred = _labels(table, name, label_column)
    encoded = _encoded(table, name, image_column, img_size)
    images = encoded if math.prod(encoded.shape) > limit * 2**30 else _decode(encoded)
    return Split(images, labels, label_names, name, inferred)


def named_by(model: str | Path, dataset: str) -> str:
    """The data set that a model's config names. InputError for a folder, unless the model lies beside a run's state.

    A model that was downloaded has none, so what a stranger writes chooses no folder here.
    """
    known = dataset in (*DATASETS, "digits")
    if not known and Path(dataset).exists() and not (Path(model) / "state" / "state.safetensors").is_file():
        raise InputError(
            f"{model} names the folder {dataset} as its data, which a model from elsewhere may not choose; "
            "name the data with --dataset"
        )
    return dataset


def hold_out(train: Split, holdout: int, train_size: int | None = None) -> tuple[Split, Split]:
    """(training images, held-out images), disjoint, both from `train` by one fixed permutation.

    The first `holdout` of the permutation are held out and the next `train_size` (default: all the rest) are trained
    on, so neither depends on a run's seed, and a larger training set contains every smaller one.
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
    """The epoch's full batches of indices, (size,) each, in an order that only seed and epoch decide.

    The last, partial batch is left out, so that every step has one static shape and equal shares for every process;
    each epoch leaves out other images. A set smaller than one batch is one batch.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(derived_seed(seed, epoch)))
    for i in range(steps_per_epoch(n, size)):
        yield order[i * size : (i + 1) * size]


def steps_per_epoch(n: int, size: int) -> int:
    """How many batches `batches` gives."""
    return max(1, n // size)


def derived_seed(*counters: int) -> int:
    """A 64-bit seed from counters such as (seed, epoch, step, rank): no generator state has to be saved or restored."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0])


def augment(images: Tensor, pad: int, flip: bool) -> Tensor:
    """Random crop after zero-padding by `pad`, then random horizontal flip; (B, C, H, W) uint8, by one gather.

    Draws from the device's global generator.
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
    """uint8 images as float32 in [0, 1], laid out channels last (convolutions are faster so)."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def _digits(split: str, img_size: int | None) -> Split:
    """scikit-learn's 1,797 digits of 8x8 grey levels, 0..16 scaled to 0..255: 1,397 train, 400 test."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pictures = [Image.fromarray(levels) for levels in np.rint(bunch.images * 255 / 16).astype(np.uint8)]
    images = torch.stack([_pixels(picture, img_size) for picture in pictures])
    whole = Split(images, torch.from_numpy(bunch.target).long(), tuple("0123456789"), "digits")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(SPLIT_SEED))
    parts = {"train": order[400:], "test": order[:400]}
    if split not in parts:
        raise InputError(f"digits has no split {split!r}{nearest(split, parts)}; it has train and test")
    return whole[parts[split]]


def _table(dataset: str, split: str) -> tuple[Any, str]:
    """The split as a `datasets.Dataset`, and the data set's name for results."""
    import datasets

    hub_id, configuration = DATASETS.get(dataset, (dataset, None))[:2]
    folder = Path(dataset)
    if dataset not in DATASETS and not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", dataset):
        raise InputError(
            f"no data set {dataset!r}{nearest(dataset, [*DATASETS, 'digits'])}; "
            "give digits, cifar10, cifar100, svhn, a Hub id ORG/NAME, or a directory that load_dataset reads"
        )
    try:
        splits = datasets.get_dataset_split_names(hub_id, configuration)
        if split == "test" and "test" not in splits:
            split = next((s for s in splits if s.startswith("val")), split)
        if split not in splits:
            has = f"it has {', '.join(splits)}"
            raise InputError(
                f"{dataset} has no split {split!r}{nearest(split, splits)}; {has}; choose other data (or --split, to evaluate)"
            )
        table = datasets.load_dataset(hub_id, configuration, split=split)
    except InputError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if folder.is_dir():
            raise InputError(
                f"{dataset} is not a directory that datasets.load_dataset reads: {_line(error)}"
            ) from error
        raise InputError(
            f"data set {hub_id!r} could not be loaded from the Hub ({_line(error)}); "
            "pass --dataset DIR with a local copy that datasets.load_dataset reads"
        ) from error
    return table, local_name(folder) if folder.is_dir() and dataset not in DATASETS else dataset


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _column(table: Any, name: str, what: str, given: str | None) -> str:
    """The image or label column: the one given, or the only one whose feature type fits."""
    import datasets

    features = table.features
    if given is not None:
        if given not in features:
            raise InputError(f"{name} has no column {given!r}{nearest(given, features)}; it has {', '.join(features)}")
        return given
    kind = datasets.Image if what == "image" else datasets.ClassLabel
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if not found and what == "label":
        found = [
            column
            for column in ("label", "labels")
            if getattr(features.get(column), "dtype", "").startswith(("int", "uint"))
        ]
    if len(found) != 1:
        state = f"has {len(found)} {what} columns ({', '.join(found)})" if found else f"has no {what} column"
        raise InputError(f"{name} {state} among {', '.join(features)}; name one with --{what}-column")
    return found[0]


def _labels(table: Any, name: str, column: str) -> tuple[Tensor, tuple[str, ...], bool]:
    """(class numbers, class names, whether the names were inferred from the numbers)."""
    import datasets

    feature = table.features[column]
    values = np.asarray(table.data.column(column).to_numpy() if table._indices is None else table[column])
    if values.dtype.kind not in "iu":
        raise InputError(
            f"{name}: column {column!r} holds {values.dtype}, not class numbers; name another with --label-column, or make "
            f"class numbers of it: dataset.class_encode_column({column!r})"
        )
    values = values.astype(np.int64)
    inferred = not isinstance(feature, datasets.ClassLabel)
    names = tuple(map(str, range(int(values.max(initial=-1)) + 1) if inferred else feature.names))
    bad = values[(values < 0) | (values >= len(names))]
    if len(bad):
        raise InputError(
            f"{name}: label {bad[0]} in column {column!r} lies outside 0..{len(names) - 1}; drop or relabel those images"
        )
    if len(np.unique(values)) < 2:
        raise InputError(f"{name}: column {column!r} holds a single class; a classifier needs at least two")
    return torch.from_numpy(values), names, inferred


def _encoded(table: Any, name: str, column: str, img_size: int | None) -> Encoded:
    """The column's images, their shape found on some: C = 1 where all of those are 8-bit grey, else 3 (RGB, alpha dropped)."""
    import datasets

    if not isinstance(table.features[column], datasets.Image):
        raise InputError(f"{name}: column {column!r} does not hold images; name one with --image-column")
    if not len(table):
        raise InputError(f"{name} has no images in this split; name another data set")
    cells = table.cast_column(column, datasets.Image(decode=False))[column]
    unseen = Encoded(cells, torch.arange(len(table)), (), img_size, name, torch.device("cpu"))
    seen = [unseen.open(row, cells[row]).shape for row in range(0, len(table), len(table) // 64 + 1)]
    return replace(unseen, each=(max(c for c, *_ in seen), *seen[0][1:]))


def _decode(encoded: Encoded) -> Tensor:
    """All of them as one tensor, (N, C, H, W) uint8, C = 3 if only one of them is in colour."""
    images = [encoded.open(row, cell) for row, cell in enumerate(encoded.cells)]
    channels = max(map(len, images))
    return torch.stack([image.expand(channels, -1, -1) for image in images])


def read_image(path: str, shape: Sequence[int]) -> Tensor:
    """An image file as (C, H, W) uint8 of this shape, grey or RGB, resized (bilinear) where it differs."""
    channels, height, width = shape
    try:
        with Image.open(path) as file:
            picture = file.convert("L" if channels == 1 else "RGB")
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            return _pixels(picture, None)
    except OSError as error:
        raise InputError(f"{path} is not an image file ({_line(error)}); give PNG, JPEG or the like") from error


def _pixels(picture: Image.Image, img_size: int | None) -> Tensor:
    """A picture as (C, H, W) uint8, C = 1 for 8-bit grey, else 3."""
    if picture.mode != "L":
        picture = picture.convert("RGB")
    if img_size is not None and picture.size != (img_size, img_size):
        picture = picture.resize((img_size, img_size), Image.Resampling.BILINEAR)
    pixels = np.array(picture)
    return torch.from_numpy(pixels)[None] if pixels.ndim == 2 else torch.from_numpy(pixels).permute(2, 0, 1)
