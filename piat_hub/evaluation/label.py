"""Pseudo-labels: what a model takes pictures for, as a data set of the pictures and these labels."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet
from torch import Tensor, nn

from piat_hub import data
from piat_hub.attacks.core import usable
from piat_hub.config import InputError
from piat_hub.data.encoded import in_workers
from piat_hub.evaluation.model import fit_of, label_names
from piat_hub.evaluation.verdict import class_count, logits_of, verdict_mode
from piat_hub.machine import device_of
from piat_hub.records import files, lock
from piat_hub.records.statistics import proportion

TABLE, RECORD = "train.parquet", "piat-label.json"
TOGETHER = 256  # pictures that are held while they are written


def pictures_for(
    model: nn.Module,
    dataset: str,
    split: str,
    image_column: str | None = None,
    img_size: int | None = None,
    skip_broken: bool = False,
) -> tuple[data.Encoded, Tensor | None, Sequence[str]]:
    """A split's pictures in the model's size, and the labels that they have already.

    Args:
        model: as `load_model` gives it.
        dataset: as `data.load` takes it, and so are the others; its pictures need no labels.
        split: "train", say.
        image_column: by default found.
        img_size: pixels a side, in place of the model's own.
        skip_broken: leave out pictures that cannot be opened.

    Returns:
        The pictures; their labels as the model numbers its classes, (N,) int64, or None; and notes, why they have none too.

    Raises:
        InputError: where `data.load_pictures` refuses.
    """
    images, notes = data.load_pictures(dataset, split, image_column, skip_broken)
    fitted = images.fitted(fit_of(model, images.mixed, img_size))
    try:
        known = data.load_encoded(dataset, split, image_column, skip_broken=skip_broken)
        own = data.numbered_as(known, label_names(model), "this model")
        class_count(model, replace(own, images=fitted))
    except InputError as error:
        return fitted, None, (*notes, f"how many are right is not known: {error}")
    return fitted, own.labels, tuple(dict.fromkeys((*notes, *own.notes)))


def answers(model: nn.Module, images: data.Encoded, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The class that the model gives each picture, and that class's probability; in fp32 with TF32 off.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        images: in its size; decoded by workers, a batch at a time.
        batch_size: images of a batch.

    Yields:
        Class numbers, (B,) int64, and probabilities, (B,) float64 in [0, 1], on the CPU.

    Raises:
        InputError: for a picture that cannot be decoded, images that the model cannot take, or an answer that is none.
    """
    device, batches = device_of(model), [rows.tolist() for rows in images.rows.split(batch_size)]
    what = f"the {'x'.join(map(str, images.shape[1:]))} images of {images.name}"
    with verdict_mode(model) as exact:
        for batch in in_workers(images.decode, batches, device.type == "cuda"):
            x = data.to_unit(batch.to(device, non_blocking=True))
            logits = usable(
                logits_of(
                    exact, x, what, "label pictures of its size, or give it with --img-size, and of its channels"
                ),
                x,
            )
            if not logits.isfinite().all():
                raise InputError(
                    f"the model gives NaN or Inf for images of {images.name}, which label nothing; use another"
                )
            confidence, classes = logits.double().softmax(1).max(1)
            yield classes.cpu(), confidence.cpu()


def most_confident(classes: Tensor, confidence: Tensor, share: float) -> Tensor:
    """The rows of this share of each class, the most confident of it, at least one; of equals the first.

    Args:
        classes: class numbers, (N,) int64.
        confidence: of these, (N,).
        share: in (0, 1], rounded to whole pictures of each class.

    Returns:
        Their numbers, rising, int64.
    """
    kept = []
    for number in classes.unique():
        rows = (classes == number).nonzero().flatten()
        order = confidence[rows].argsort(descending=True, stable=True)
        kept.append(rows[order[: max(1, round(share * len(rows)))]])
    return torch.cat(kept).sort().values


def described(
    classes: Tensor, confidence: Tensor, kept: Tensor, names: Sequence[str], own: Tensor | None
) -> dict[str, Any]:
    """What is known of pseudo-labels, as JSON holds it.

    Args:
        classes: of all pictures, (N,) int64.
        confidence: of these, (N,).
        kept: the rows that are kept.
        names: of the classes; numbers where there are none.
        own: the labels that the pictures had before, by the same numbers, (N,); None where they had none.

    Returns:
        "n" and "kept", "kept_by_class", the "confidence" of those kept, and, where there are labels to hold against,
        "agreement" of all and "agreement_kept" of those kept, if they are fewer, as results.json holds an accuracy.

    Raises:
        InputError: where all pictures are of one class.
    """
    counts = torch.bincount(classes[kept], minlength=len(names)).tolist()
    if sum(map(bool, counts)) < 2:
        raise InputError(
            f"the model takes all {len(classes)} pictures for one class, which is no data to train with; use another"
        )
    held = confidence[kept]
    summary = {"least": held.min(), "median": held.median(), "mean": held.mean(), "most": held.max()}
    facts: dict[str, Any] = {"n": len(classes), "kept": len(kept)}
    facts["kept_by_class"] = dict(zip(names or map(str, range(len(counts))), counts, strict=True))
    facts["confidence"] = {name: round(float(value), 6) for name, value in summary.items()}
    if own is not None:
        right = classes == own
        facts["agreement"] = proportion(int(right.sum()), len(right))
        if len(kept) < len(classes):
            facts["agreement_kept"] = proportion(int(right[kept].sum()), len(kept))
    return facts


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Inside the block nobody else writes in the directory, in which nothing lies.

    Args:
        output: made if there is none, and taken away again where nothing was written.

    Raises:
        InputError: if something lies there, or it cannot be written to; InUse, while another process writes there.
    """
    files.check_output(output)
    with lock.only_writer(output):
        if taken := [path.name for path in output.iterdir() if path.name[0] != "." and path.name != RECORD]:
            raise InputError(f"{output} holds {sorted(taken)[0]} already; name another --output")
        yield


def write(
    output: Path, images: data.Encoded, kept: Tensor, classes: Tensor, names: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Write the kept pictures with their pseudo-labels: one parquet file, which appears whole, and the record beside it.

    Args:
        output: a directory that is `claimed`.
        images: all pictures; their own bytes are kept, and those that have none become PNG.
        kept: the rows to write.
        classes: class numbers of all, (N,) int64.
        names: of the classes; () where the model names none: the labels are then plain numbers.
        facts: what the record says.

    Raises:
        Broken: if the system refuses to write.
    """
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    schema = datasets.Features({"image": datasets.Image(), "label": label}).arrow_schema
    with files.whole_file(output / TABLE) as scratch:
        with parquet.ParquetWriter(scratch, schema) as table:
            for rows in kept.split(TOGETHER):
                cells = [_stored(cell) for cell in images.cells[images.rows[rows].tolist()]]
                columns = {"image": cells, "label": classes[rows].tolist()}
                table.write_table(pyarrow.table(columns, schema=schema))
        files.write_text(output / RECORD, json.dumps(files.sealed(facts), indent=2) + "\n")


def _stored(cell: Any) -> dict[str, Any]:
    """A cell of pictures with its bytes, and its file's name alone."""
    if isinstance(cell, Image.Image):
        return datasets.Image().encode_example(cell)
    path = Path(cell["path"]) if cell["path"] else None
    content = path.read_bytes() if cell["bytes"] is None and path else cell["bytes"]
    return {"bytes": content, "path": path.name if path else None}
