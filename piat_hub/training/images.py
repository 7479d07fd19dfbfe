"""From a configuration to the images of a run."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from piat_hub import data
from piat_hub.config import TRACKED, InputError, RunOptions, TrainConfig, printable


def load_images(
    config: TrainConfig, options: RunOptions, accelerator: Accelerator
) -> tuple[TrainConfig, data.Split, data.Split | None, data.Stream | None]:
    """(configuration, all training images, the test images whose accuracy is recorded or None, a stream or None).

    Of a stream the training images are its first ones.

    The first process reads them first. In the configuration it is decided how pictures become images of one size.

    Args:
        config: names the data set, its columns and the size of its images.
        options: says whether test images are tracked, and how large decoded data may be.
        accelerator: as launched; the tracked images are put on its device.

    Raises:
        InputError: for data that cannot be loaded, or a class whose name cannot be printed.
    """
    columns, limit = (config.image_column, config.label_column), options.device_data_limit
    with accelerator.main_process_first():
        sizes = config.epoch_size or 0, config.holdout or 0
        stream = data.open_stream(config.dataset, *columns, *sizes) if config.stream else None
        skip = config.pictures.skip_broken
        found = stream.head if stream else data.load_encoded(config.dataset, "train", *columns, skip)
        config, fit = fitting(config, found)
        whole = data.of_one_size(found, limit=0 if stream or config.pictures.augment == "rrc" else limit, fit=fit)
        test = data.load_encoded(config.dataset, "test", *columns) if options.track_test else None
        tracked = data.of_one_size(test, limit=limit, fit=fit) if test else None
        tracked = tracked.as_rgb() if tracked and whole.shape[0] == 3 else tracked
    if not stream and whole.inferred and len(whole) and (least := int(whole.labels.min())) > 0:
        note = f"{whole.name}: its class numbers begin with {least}, so that of 0 there is no image; number from 0, or use text"
        whole = dataclasses.replace(whole, notes=(*whole.notes, note))
    if bad := [name for name in whole.label_names if not printable(name)]:
        raise InputError(f"{whole.name} has a class {bad[0]!a}, which cannot be printed on one line; rename it")
    if config.crop_shift >= min(whole.shape[1:]):
        raise InputError(
            f"crop-shift {config.crop_shift} may cut all off an image of {whole.shape[1]}x{whole.shape[2]} pixels; lower it"
        )
    if config.cutout >= 2 * min(whole.shape[1:]):
        raise InputError(
            f"cutout {config.cutout} covers an image of {whole.shape[1]}x{whole.shape[2]} pixels wherever it falls; lower it"
        )
    if tracked:
        numbered = data.numbered_as(tracked, whole.label_names, "the training split")
        tracked = numbered.spread(TRACKED).to(accelerator.device)
    return config, whole, tracked, stream


def fitting(config: TrainConfig, found: data.Split) -> tuple[TrainConfig, data.Fit | None]:
    """(the configuration, in which it is decided how pictures become images of one size; how that is done, or None).

    Args:
        config: as asked for.
        found: the training pictures, of whatever sizes they are.

    Raises:
        InputError: where they differ in size and nothing says which they are to have, for an `aa` that timm does not know,
            and for changes that go with images of one size alone.
    """
    asked, sizes = config.pictures, found.images.sizes if isinstance(found.images, data.Encoded) else ()
    mixed = len(sizes) > 1
    if mixed and not config.img_size:
        some = " and ".join(f"{h}x{w}" for h, w in sizes[:2])
        raise InputError(f"{found.name} mixes image sizes: {some}; give them one with --img-size, 224 say")
    size = (config.img_size, config.img_size) if config.img_size else found.shape[1:]
    cut = asked.augment == "rrc" or (asked.augment is None and bool(mixed or asked.aa or asked.reprob))
    if cut and (config.crop_shift or config.cutout):
        raise InputError(
            "--crop-shift and --cutout are for images that are not cut anew; give --augment pad, or --scale and --reprob"
        )
    if cut:
        crop_pct = asked.crop_pct or (0.875 if mixed else 1.0)
        asked = dataclasses.replace(asked, augment="rrc", crop_pct=crop_pct)
        data.transform(size, asked, config.flip)  # or InputError
    given = config.img_size or asked.crop_pct
    return dataclasses.replace(config, pictures=asked), data.Fit.trained(size, asked.crop_pct) if given else None


def load_extra(
    config: TrainConfig, real: data.Split, options: RunOptions, accelerator: Accelerator
) -> data.Split | None:
    """The images that share every batch, or None; see `data.load_extra`. The first process reads them first.

    Args:
        config: settled.
        real: the training images, on the accelerator's device.
        options: says how large decoded data may be.
        accelerator: as launched.

    Raises:
        InputError: for data that cannot be loaded or do not go with the real ones.
    """
    if config.extra_data is None:
        return None
    with accelerator.main_process_first():
        return data.load_extra(config, real, options.device_data_limit)


def seen_before(config: TrainConfig, held: int, made: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning if the model that training begins with was trained on images that are held out now, else nothing.

    All runs hold out the first of one permutation of the training images; a model knows those beyond its own.

    Args:
        config: settled.
        held: how many images are held out.
        made: how that model was trained, from anyone's config.json; empty without one.
    """
    first, size, data_set = made.get("holdout"), made.get("train_size"), made.get("dataset")
    if config.stream or made.get("stream") or not isinstance(data_set, str) or type(first) is not int or first < 0:
        return ()
    name, end = Path(config.dataset).name, first + size if type(size) is int else held
    seen = min(held, end) - first
    if seen <= 0 or Path(data_set).name != name:
        return ()
    told = f"give --holdout {first}" if first else "it held none out, so believe the test images alone"
    return (
        f"warning: {config.init_from} was trained on {seen:,} of the {held:,} held-out images, if its {name} is this one: "
        f"held-out accuracy flatters, and with it the best epoch; {told}",
    )
