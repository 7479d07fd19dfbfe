"""Data sets by name, through Hugging Face `datasets`: which columns, which labels, which classes."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piat_hub.config import DATASETS, InputError, local_name, nearest
from piat_hub.data.pictures import Encoded, _decode, _line, _pixels
from piat_hub.data.split import SPLIT_SEED, Split

LIMIT = 4.0  # GiB that a decoded split may take
WIDEST_DIGITS = 256  # pixels a side that digits are resized to: beyond it they only take memory


def load(
    dataset: str,
    split: str,
    image_column: str | None = None,
    label_column: str | None = None,
    img_size: int | None = None,
    limit: float = LIMIT,
) -> Split:
    """Load one split and decode it.

    Args:
        dataset: "digits", "cifar10", "cifar100", "svhn", a Hub id, or a directory that `datasets.load_dataset` reads.
        split: "train" or "test", or another that the data set has; without "test" it gives its "validation".
        image_column: by default the alias's, or the only one of images.
        label_column: by default the alias's, or the only one of class labels, or else of whole numbers called "label"
            or "labels".
        img_size: resize every image to this many pixels a side (bilinear, antialiased).
        limit: a split that would take more than this many GiB decoded stays encoded.

    Returns:
        The split on the CPU, its images (N, C, H, W) uint8 and its labels (N,) int64.

    Raises:
        InputError: for a data set that cannot be reached, has no such split, no image or label column or several, a
            single class, images of mixed sizes or labels out of range; the message says what to do.
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
    """The data set that a model's config names: one of our aliases, else only where the model lies beside a run's state.

    A model that was downloaded has none, so what a stranger writes neither chooses a folder here nor is asked of the Hub.

    Args:
        model: its directory or name.
        dataset: what its config says: an alias, a Hub id or a folder.

    Returns:
        The same `dataset`.

    Raises:
        InputError: for any but an alias, unless the model lies beside a run's state.
    """
    if dataset not in (*DATASETS, "digits") and not (Path(model) / "state" / "state.safetensors").is_file():
        what = "the folder" if Path(dataset).exists() else "the data set"
        raise InputError(
            f"{model} names {what} {dataset} as its data, which a model from elsewhere may not choose; "
            "name the data with --dataset"
        )
    return dataset


def _digits(split: str, img_size: int | None) -> Split:
    """scikit-learn's 1,797 digits of 8x8 grey levels, 0..16 scaled to 0..255: 1,397 train, 400 test."""
    from sklearn.datasets import load_digits

    if img_size and img_size > WIDEST_DIGITS:
        raise InputError(f"digits are 8x8 pixels: img-size must be at most {WIDEST_DIGITS}, got {img_size}; lower it")
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
