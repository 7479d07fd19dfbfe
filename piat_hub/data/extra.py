"""A second set of training images, generated or pseudo-labelled, as it is mixed into every batch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from piat_hub.config import InputError, TrainConfig, first_line
from piat_hub.data.classes import numbered_as
from piat_hub.data.encoded import Encoded
from piat_hub.data.npz import checksum, open_npz, outline_npz
from piat_hub.data.pictures import Fit
from piat_hub.data.sources import load_encoded, of_one_size
from piat_hub.data.split import Split

LOOKED_AT = 4  # GiB of extra images, in which held-out ones are looked for


def load_extra(config: TrainConfig, real: Split, limit: float) -> Split:
    """The configured extra data, its labels numbered as the real ones.

    They lie on the device of the real images where they fit beside them. Else what an .npz holds stays on the disk, from
    which each batch is read, and pictures stay encoded and are decoded by workers.

    Args:
        config: names them, and says how pictures get their size; settled.
        real: the training images.
        limit: GiB that real and extra images may take on the device, decoded.

    Raises:
        InputError: for data that cannot be loaded, or do not go with the real ones: other classes, another shape, too few.
        Broken: where an .npz cannot be converted.
    """
    room = limit if isinstance(real.images, Encoded) else limit - _gib(real)
    name = _named(config)
    if name.endswith(".npz"):
        _fitted(outline_npz(name), config, real)  # before it is converted
        extra = _fitted(open_npz(name), config, real)
    else:
        extra = _fitted(_pictures(name, config, real, room), config, real)
    mapped = not isinstance(extra.images, Encoded) and _gib(extra) > room
    return extra if mapped else extra.to(real.labels.device)


def shared_images(extra: Split, held: Split) -> int | None:
    """How many held-out images are among the extra ones, pixel by pixel; None where images are not held decoded.

    Args:
        extra: as `load_extra` gives it; more than `LOOKED_AT` GiB are not looked through.
        held: images that are to tell how well training goes.
    """
    if isinstance(extra.images, Encoded) or isinstance(held.images, Encoded) or _gib(extra) > LOOKED_AT:
        return None
    sums, those = (
        torch.cat([part.flatten(1).sum(1) for part in images.split(4096)]) for images in (extra.images, held.images)
    )
    alike = torch.isin(sums, those.to(sums.device)).nonzero().flatten()
    known = {image.tobytes() for rows in alike.split(4096) for image in extra.images[rows].cpu().numpy()}
    return sum(image.tobytes() in known for image in held.images.cpu().numpy())


def training_digest(real: Split, extra: Split | None, config: TrainConfig) -> str:
    """What a run learns from, as far as it is cheap to say: its labels, and the checksum of an .npz of extra data.

    Args:
        real: the training images, held out or not; of a stream the first ones.
        extra: those mixed in, or None.
        config: names them.
    """
    digest = hashlib.sha256()
    for split in (real, extra) if extra else (real,):
        digest.update(split.labels.cpu().numpy().tobytes())
    if extra and config.extra_data and config.extra_data.endswith(".npz"):
        digest.update(checksum(config.extra_data).encode())
    return digest.hexdigest()


def _named(config: TrainConfig) -> str:
    """The extra data. InputError where they are not named, or images are cut anew."""
    if not config.extra_data:
        raise InputError(
            f"{config.recipe} mixes other images into every batch; name them with --extra-data FILE.npz, such as "
            "cifar10/1m.npz of huggingface.co/datasets/P2333/DM-Improves-AT"
        )
    if config.pictures.augment == "rrc":
        raise InputError(
            "--extra-data goes with images that are padded and cropped, not with --augment rrc; leave out one of them"
        )
    return config.extra_data


def _pictures(name: str, config: TrainConfig, real: Split, room: float) -> Split:
    """A data set's pictures in the real images' size, decoded where that takes no more GiB than there is room."""
    fit = Fit.trained(real.shape[1:], config.pictures.crop_pct) if config.img_size or config.pictures.crop_pct else None
    columns = (config.image_column, config.label_column)
    try:
        found = load_encoded(name, "train", *columns, config.pictures.skip_broken, columns_may_lack=True)
        return of_one_size(found, limit=room, fit=fit)
    except InputError as error:
        raise InputError(str(error).replace("--dataset", "--extra-data")) from error


def _fitted(extra: Split, config: TrainConfig, real: Split) -> Split:
    """The extra data as they go with the real ones: labels numbered alike, images of one shape, enough for every batch."""
    most, classes = int(extra.labels.max()), len(real.label_names)
    if extra.name.endswith(".npz"):  # numbers alone, whatever the real classes are called
        if most >= classes:
            raise InputError(
                f"{extra.name}: labels reach {most}, and {real.name} has the classes 0 to {classes - 1}; number them alike"
            )
        note = f"label k of {extra.name} is class k of {real.name}: {real.label_names[0]!r} for 0"
        extra = replace(extra, label_names=real.label_names, inferred=False, notes=(*extra.notes, note))
    extra = numbered_as(extra, real.label_names, real.name)
    if (part := _labelled_split(config.extra_data)) not in ("", "train"):
        note = f"warning: {extra.name} was labelled from the split {part!r}: figures on that split will flatter"
        extra = replace(extra, notes=(*extra.notes, note))
    if extra.shape != real.shape:
        shapes = " and ".join("x".join(map(str, split.shape)) for split in (extra, real))
        raise InputError(
            f"{extra.name} and {real.name} have images of {shapes} (channels, height, width); make them alike, pictures of "
            "another size by --img-size"
        )
    for split, share in ((extra, config.extra_share), (real, config.batch_size - config.extra_share)):
        if len(split) < share:
            raise InputError(
                f"{split.name} has {len(split)} images, and every batch takes {share} of them; change --extra-fraction"
            )
    if (config.epoch_size or len(real)) < config.batch_size:
        raise InputError(
            f"an epoch is the {len(real)} images of {real.name}, less than one batch of {config.batch_size}; give --epoch-size"
        )
    return extra


def _labelled_split(folder: str | None) -> str:
    """Of which split `piat label` made a folder; "" for any other data. InputError for a damaged record of it."""
    told = Path(folder or "") / "piat-label.json"
    if not folder or not told.is_file():
        return ""
    try:
        return str(json.loads(told.read_text(encoding="utf-8")).get("split", ""))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{told} is damaged ({first_line(error)}); label those images again with piat label"
        ) from error


def _gib(split: Split) -> float:
    """What decoded images take."""
    return split.images.numel() * split.images.element_size() / 2**30  # type: ignore[union-attr]
