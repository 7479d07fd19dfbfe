"""Data sets by name, through Hugging Face `datasets`: which columns, which labels, which classes."""

import glob
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piat_hub.config import DATASETS, LISTED, InputError, first_line, local_name, nearest, plainly, shortened
from piat_hub.data.encoded import Encoded
from piat_hub.data.folders import PictureFolder, declared
from piat_hub.data.pictures import Fit
from piat_hub.data.split import Split, fixed_order

LIMIT = 4.0  # GiB that a decoded split may take
WIDEST_DIGITS = 256  # pixels a side that digits are resized to: beyond it they only take memory


def load(
    dataset: str,
    split: str,
    image_column: str | None = None,
    label_column: str | None = None,
    img_size: int | None = None,
    limit: float = LIMIT,
    fit: Fit | None = None,
) -> Split:
    """Load one split and decode it.

    Args:
        dataset: "digits", "cifar10", "cifar100", "svhn", a Hub id, or a directory that `datasets.load_dataset` reads.
        split: "train" or "test", or another that the data set has; without "test" it gives its "validation".
        image_column: by default the alias's, or the only one of images.
        label_column: by default the alias's, or the only one of class labels, or else the one called "label" or
            "labels", of whole numbers or of text, whose classes are then sorted by name.
        img_size: squeeze every image to this many pixels a side (bilinear, antialiased).
        limit: a split that would take more than this many GiB decoded stays encoded.
        fit: how every image gets its size, in place of img_size.

    Returns:
        The split on the CPU, its images (N, C, H, W) uint8 and its labels (N,) int64; `notes` say what was left out or
        made of its labels.

    Raises:
        InputError: for a data set that cannot be reached, has no such split, no image or label column or several, a
            single class, images of mixed sizes or labels out of range; the message says what to do.
    """
    return of_one_size(load_encoded(dataset, split, image_column, label_column), img_size, limit, fit)


def of_one_size(split: Split, img_size: int | None = None, limit: float = LIMIT, fit: Fit | None = None) -> Split:
    """The split with images of one size, decoded where they fit into memory.

    Args:
        split: as `load_encoded` gives it; images that are decoded already stay as they are.
        img_size: as `load` takes it, and so are the others.
        limit: GiB.
        fit: in place of img_size.

    Raises:
        InputError: for images of mixed sizes where nothing says theirs, or a size that digits have not.
    """
    if not isinstance(split.images, Encoded):
        return split
    fit = fit or (Fit((img_size, img_size)) if img_size else None)
    if fit and fit.size[0] > WIDEST_DIGITS and split.name == "digits":
        raise InputError(
            f"digits are 8x8 pixels: img-size must be at most {WIDEST_DIGITS}, got {fit.size[0]}; lower it"
        )
    images = split.images.fitted(fit)
    return replace(split, images=images.in_colour() if images.gib > limit else images.decoded())


def load_encoded(
    dataset: str,
    split: str,
    image_column: str | None = None,
    label_column: str | None = None,
    skip_broken: bool = False,
    *,
    columns_may_lack: bool = False,
) -> Split:
    """One split whose images stay encoded, of whatever sizes they are; see `load`.

    Args:
        dataset: as `load` takes it, and so are the others.
        split: "train" or "test", or another that the data set has.
        image_column: by default found.
        label_column: by default found.
        skip_broken: leave out pictures that cannot be opened, which a note names; each is decoded once, by workers.
        columns_may_lack: find a column that is named and not there, as one that is not named.

    Raises:
        InputError: as `load` does, but for the sizes.
    """
    if dataset == "digits":
        if not columns_may_lack and (image_column or label_column):
            raise InputError("digits are no table; leave out --image-column and --label-column")
        return _digits(split)
    table, name, files, notes = _table(dataset, split)
    if dataset in DATASETS:
        image_column, label_column = image_column or DATASETS[dataset][2], label_column or DATASETS[dataset][3]
    if columns_may_lack:
        image_column, label_column = (c if c in table.features else None for c in (image_column, label_column))
    image_column = _column(table, name, "image", image_column)
    label_column = _column(table, name, "label", label_column)
    labels, label_names, inferred, more = _labels(table, name, label_column)
    notes += more
    images = _encoded(table, name, image_column)
    if files and (rest := sorted(set(files) - {cell["path"] for cell in images.cells if cell})):
        notes += (
            f"{name}: {len(rest)} files are left out of {split}: {shortened([Path(file).name for file in rest])}",
        )
    if skip_broken:
        opened, broken = images.whole()
        images, labels, notes = images.select(opened), labels[opened], (*notes, *broken)
    if not len(labels):
        raise InputError(f"{name} has no picture in this split that can be opened; name another data set")
    return Split(images.looked_at(), labels, label_names, name, inferred, notes)


def load_pictures(
    dataset: str, split: str, image_column: str | None = None, skip_broken: bool = False
) -> tuple[Encoded, tuple[str, ...]]:
    """The images of one split, still encoded, whether all of them have labels, some or none; and notes.

    Args:
        dataset: as `load` takes it; a folder's pictures may lie in no folders of classes.
        split: as in `load`.
        image_column: as in `load`.
        skip_broken: as in `load_encoded`.

    Raises:
        InputError: as `load_encoded` does, but for labels.
    """
    if dataset == "digits":
        return _digits(split).images, ()  # type: ignore[return-value]  # encoded by that
    table, name, _, notes = _table(dataset, split, labelled=False)
    usual = DATASETS[dataset][2] if dataset in DATASETS else None
    images = _encoded(table, name, _column(table, name, "image", image_column or usual))
    if skip_broken:
        opened, broken = images.whole()
        images, notes = images.select(opened), (*notes, *broken)
    if not len(images.rows):
        raise InputError(f"{name} has no picture in this split that can be opened; name another data set")
    return images.looked_at().in_colour(), notes


def listed(split: Split, file: str) -> Split:
    """The images that a text file names, a file name a line, in its order: RobustBench's 5,000 of ImageNet, say.

    Suffixes count for nothing, nor does the class that ImageNet's copies on the Hub have at a name's end; folders only
    where several pictures have a name.

    Args:
        split: as `load_encoded` gives it, with pictures that have file names.
        file: its path.

    Raises:
        InputError: if it cannot be read, or names a picture that there is not, one of several, or one twice.
    """

    def stem(name: str) -> str:
        return re.sub(r"_n\d{8}$", "", Path(name).stem)

    try:
        wanted = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no list of file names ({first_line(error)}); write one a line") from error
    rows: dict[str, list[int]] = {}
    cells = split.images.cells if isinstance(split.images, Encoded) else ()
    paths = [str((isinstance(cell, dict) and cell["path"]) or "") for cell in cells]
    for row, path in enumerate(paths):
        rows.setdefault(stem(path), []).append(row)
    found = []
    for name in wanted:
        known = rows.get(stem(name), [])
        if folders := Path(name).parent.parts if len(known) > 1 else ():
            known = [row for row in known if Path(paths[row]).parent.parts[-len(folders) :] == folders]
        if len(known) != 1:
            raise InputError(f"{file} names {name}, of which {split.name} has {len(known)}; list what it has once")
        found += known
    if len(set(found)) < len(found):
        twice = next(name for k, name in enumerate(wanted) if found[k] in found[k + 1 :])
        raise InputError(f"{file} names {twice} twice; name it once")
    note = f"{LISTED} {Path(file).name} lists, in its order"
    return replace(split[torch.tensor(found, dtype=torch.int64)], notes=(*split.notes, note))


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


def _digits(split: str) -> Split:
    """scikit-learn's 1,797 digits of 8x8 grey levels, 0..16 scaled to 0..255: 1,397 train, 400 test."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pictures = np.empty(len(bunch.images), object)
    pictures[:] = [Image.fromarray(levels) for levels in np.rint(bunch.images * 255 / 16).astype(np.uint8)]
    images = Encoded(pictures, torch.arange(len(pictures)), (1, 8, 8), "digits")
    whole = Split(images, torch.from_numpy(bunch.target).long(), tuple("0123456789"), "digits")
    order = fixed_order(len(whole))
    parts = {"train": order[400:], "test": order[:400]}
    if split not in parts:
        raise InputError(f"digits has no split {split!r}{nearest(split, parts)}; it has train and test")
    return whole[parts[split]]


def _table(
    dataset: str, split: str, labelled: bool = True, **how: Any
) -> tuple[Any, str, Sequence[str], tuple[str, ...]]:
    """The split as a `datasets.Dataset`, the data set's name for results, of a folder of pictures its files, and notes.

    Those files must lie in folders of their classes if they are to be `labelled`. `how` goes to `load_dataset`; with
    streaming=True it is an IterableDataset.
    """
    import datasets

    if not dataset:
        raise InputError("no data set is named; give --dataset DIR, the folder of your pictures, or a Hub id")
    hub_id, configuration = DATASETS.get(dataset, (dataset, None))[:2]
    root = Path(dataset)
    local, files, asked, notes = root.is_dir() and dataset not in DATASETS, list[str](), split, tuple[str, ...]()
    if dataset not in DATASETS and not local and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", dataset):
        raise InputError(
            f"no data set {dataset!r}{nearest(dataset, [*DATASETS, 'digits'])}; give --dataset digits, cifar10, cifar100, "
            "svhn, a Hub id ORG/NAME, or a directory that load_dataset reads"
        )
    try:
        folder = PictureFolder.read(root) if local else None
        if folder and how:
            raise InputError(f"{dataset} is a folder of pictures, which lie on this disk; leave out --stream")
        if folder:
            split = _which(dataset, split, list(folder.splits))
            if labelled:
                folder.check(split)
            else:
                how = {"drop_labels": True}
            files, notes = folder.paths(split), folder.notes(split) if labelled else ()
            table = datasets.load_dataset("imagefolder", data_files={split: folder.patterns(split)}, split=split, **how)
        elif local and not declared(root):
            splits = datasets.load_dataset_builder(str(root.resolve())).config.data_files
            split = _which(dataset, split, list(map(str, splits)))
            alone = {split: list(map(glob.escape, splits[split]))}  # with others, it would get the classes of the first
            table = datasets.load_dataset(str(root.resolve()), data_files=alone, split=split, **how)
        else:
            hub_id = str(root.resolve()) if local else hub_id
            split = _which(dataset, split, datasets.get_dataset_split_names(hub_id, configuration))
            table = datasets.load_dataset(hub_id, configuration, split=split, **how)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = first_line(
            (isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__) or error
        )
        if local:
            packed = next(root.rglob("*.zip"), None)
            unpack = f"; unpack {packed}, and put each picture into SPLIT/CLASS" if packed else ""
            raise InputError(
                f"{dataset} is not a directory that datasets.load_dataset reads: {reason}{unpack}"
            ) from error
        raise InputError(
            f"data set {hub_id!r} could not be loaded from the Hub ({reason}); "
            "pass --dataset DIR with a local copy that datasets.load_dataset reads"
        ) from error
    name = local_name(root) if local else dataset
    if split != asked:
        notes += (f"{name} has no split {asked!r}: these are the images of its split {split!r}",)
    return table, name, files, notes


def _which(dataset: str, split: str, splits: Sequence[str]) -> str:
    """The split of this name; without "test" the validation split."""
    if split == "test" and "test" not in splits:
        split = next((s for s in splits if s.startswith("val")), split)
    if split not in splits:
        raise InputError(
            f"{dataset} has no split {split!r}{nearest(split, splits)}; it has {', '.join(splits)}; "
            "choose other data (or --split, to evaluate)"
        )
    return split


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
        known = ("int", "uint", "string", "large_string", "bool")
        found = [c for c in ("label", "labels") if getattr(features.get(c), "dtype", "").startswith(known)]
    if len(found) != 1:
        state = f"has {len(found)} {what} columns ({', '.join(found)})" if found else f"has no {what} column"
        raise InputError(f"{name} {state} among {', '.join(features)}; name one with --{what}-column")
    return found[0]


def _labels(table: Any, name: str, column: str) -> tuple[Tensor, tuple[str, ...], bool, tuple[str, ...]]:
    """(class numbers, class names, whether the names were inferred from the numbers, notes)."""
    import datasets

    feature, cells = table.features[column], table.data.column(column)
    notes: tuple[str, ...] = ()
    if cells.null_count:
        row = cells.is_null().to_pylist().index(True)
        raise InputError(f"{name}: row {row} has no label in column {column!r}; give it one, or drop it")
    if getattr(feature, "dtype", "") in ("string", "large_string", "bool"):
        words, values = np.unique(np.array(cells.to_pylist()).astype(str), return_inverse=True)
        names, inferred = tuple(map(str, words)), False
        _refuse_alike(names, name)
        notes = (f"{name}: column {column!r} holds text; its {len(names)} classes by name are {shortened(names)}",)
    else:
        values, inferred = cells.to_numpy(), not isinstance(feature, datasets.ClassLabel)
        if values.dtype.kind not in "iu":
            raise InputError(
                f"{name}: column {column!r} holds {feature.dtype if hasattr(feature, 'dtype') else 'several values a row'}, "
                "neither class numbers nor text; name another with --label-column"
            )
        values = values.astype(np.int64)
        most, several = int(values.max(initial=-1)) + 1, len(np.unique(values))
        if inferred and most > 10 * several + 1000:
            raise InputError(
                f"{name}: column {column!r} holds {several} numbers up to {most - 1}, which are no class numbers from 0; "
                "make them text, or name another column with --label-column"
            )
        names = tuple(map(str, range(most) if inferred else feature.names))
    bad = values[(values < 0) | (values >= len(names))]
    if len(bad):
        raise InputError(
            f"{name}: label {bad[0]} in column {column!r} lies outside 0..{len(names) - 1}; drop or relabel those images"
        )
    if len(np.unique(values)) < 2:
        raise InputError(f"{name}: column {column!r} holds a single class; a classifier needs at least two")
    return torch.from_numpy(values), names, inferred, notes


def _refuse_alike(names: Sequence[str], name: str) -> None:
    """InputError for two classes that only someone's typing tells apart."""
    known: dict[str, str] = {}
    for word in names:
        if (other := known.setdefault(plainly(word), word)) != word:
            raise InputError(f"{name}: classes {other!r} and {word!r} differ in writing alone; make them one")


def _encoded(table: Any, name: str, column: str) -> Encoded:
    """The column's images."""
    import datasets

    if not isinstance(table.features[column], datasets.Image):
        raise InputError(f"{name}: column {column!r} does not hold images; name one with --image-column")
    if not len(table):
        raise InputError(f"{name} has no images in this split; name another data set")
    cells = table.cast_column(column, datasets.Image(decode=False))[column]
    return Encoded(cells, torch.arange(len(cells)), (), name)
