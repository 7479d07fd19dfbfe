"""Training images that fit no disk: read through shard by shard, by Hugging Face `datasets`, and never held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch

from piat_hub.config import DATASETS, InputError, shortened
from piat_hub.data.encoded import Encoded
from piat_hub.data.sources import _column, _table
from piat_hub.data.split import Split, derived_seed

BUFFER = 1000  # images among which the next one is drawn


@dataclass(frozen=True)
class Stream:
    """All training images but those held out.

    Attributes:
        table: a `datasets.IterableDataset` with undecoded images.
        columns: the names of its images and labels.
        head: the first images of the first shard, held encoded: those held out and then `BUFFER` or more that are trained on.
        size: images of an epoch, over all processes.
    """

    table: Any
    columns: tuple[str, str]
    head: Split
    size: int

    def __len__(self) -> int:
        return self.size

    def examples(self, seed: int, epoch: int, rank: int, world: int) -> Iterator[tuple[int, Any, int]]:
        """(number, undecoded image, label) of one process's images of an epoch, in an order that these arguments decide.

        Shards are shuffled, and images within a buffer of `BUFFER`. Where the number of shards is a multiple of the
        processes each reads its own, else every one reads all and keeps its share. A process whose images are at their end
        begins again.

        Args:
            seed: of the run.
            epoch: counted from 1.
            rank: of this process.
            world: how many processes share an epoch.

        Yields:
            The number counts an epoch's images of all processes.

        Raises:
            InputError: for an image without label.
        """
        from datasets.distributed import split_dataset_by_node

        images, labels = self.columns
        numbers, classes = count(rank, world), len(self.head.label_names)
        for again in count():
            shuffled = self.table.shuffle(seed=derived_seed(seed, epoch, again), buffer_size=BUFFER)
            for example in split_dataset_by_node(shuffled, rank, world):
                label = example[labels]
                if label is None or not 0 <= label < classes:
                    raise InputError(
                        f"{self.head.name}: an image has label {label}, outside 0..{classes - 1}; relabel it"
                    )
                yield next(numbers), example[images], label


def open_stream(dataset: str, image_column: str | None, label_column: str | None, size: int, holdout: int) -> Stream:
    """A data set's training split as a stream.

    Args:
        dataset: a Hub id, an alias of one, or a directory of tables (Parquet, WebDataset).
        image_column: by default found.
        label_column: by default found; of class labels.
        size: images of an epoch.
        holdout: how many images at the beginning of the first shard are left out of it.

    Raises:
        InputError: for a data set that cannot be had so, that does not say its classes, or whose first shard is too small.
    """
    import datasets

    table, name, *_ = _table(dataset, "train", streaming=True)
    if table.features is None:
        raise InputError(
            f"{name} does not say which columns it has; give it a README.md with dataset_info, or leave out --stream"
        )
    if dataset in DATASETS:
        image_column, label_column = image_column or DATASETS[dataset][2], label_column or DATASETS[dataset][3]
    columns = _column(table, name, "image", image_column), _column(table, name, "label", label_column)
    label_names = getattr(table.features[columns[1]], "names", None)
    if not label_names:
        raise InputError(
            f"{name}: column {columns[1]!r} names no classes, and a stream cannot look for them; leave out --stream"
        )
    table = table.cast_column(columns[0], datasets.Image(decode=False)).select_columns(list(columns))
    first, *others = (table.shard(table.num_shards, k) for k in range(table.num_shards))
    begun = list(islice(first, holdout + max(holdout, BUFFER)))
    if len(begun) < holdout + 2:
        raise InputError(
            f"the first shard of {name} has {len(begun)} images: too few for holdout={holdout}; lower --holdout"
        )
    cells = np.empty(len(begun), object)
    cells[:] = [example[columns[0]] for example in begun]
    images = Encoded(cells, torch.arange(len(cells)), (), name).looked_at()
    given = [example[columns[1]] for example in begun]
    if None in given:
        raise InputError(f"{name}: image {given.index(None)} of its first shard has no label; drop it")
    labels, notes = torch.tensor(given), tuple[str, ...]()
    if missing := sorted(set(range(len(label_names))) - set(labels[:holdout].tolist())) if holdout else []:
        notes = (
            f"warning: the {holdout} images held out of {name}, the first of its first shard, hold none of "
            f"{shortened([label_names[k] for k in missing])}: the best epoch is chosen without; shuffle the data before",
        )
    head = Split(images, labels, tuple(label_names), name, notes=notes)
    return Stream(datasets.concatenate_datasets([first.skip(holdout), *others]), columns, head, size)
