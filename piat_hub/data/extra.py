"""A second set of training images, generated or pseudo-labelled, as it is mixed into every batch."""

from __future__ import annotations

from piat_hub.config import InputError, TrainConfig
from piat_hub.data.classes import numbered_as
from piat_hub.data.encoded import Encoded
from piat_hub.data.npz import open_npz
from piat_hub.data.pictures import Fit
from piat_hub.data.sources import load_encoded, of_one_size
from piat_hub.data.split import Split


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
        Broken: where an .npz cannot be unpacked.
    """
    if not config.extra_data:
        raise InputError(
            f"{config.recipe} mixes other images into every batch; name them with --extra-data, a FILE.npz say"
        )
    if config.pictures.augment == "rrc":
        raise InputError(
            "--extra-data goes with images that are padded and cropped, not with --augment rrc; leave one of them out"
        )
    room = limit if isinstance(real.images, Encoded) else limit - _gib(real)
    if config.extra_data.endswith(".npz"):
        extra = open_npz(config.extra_data)
    else:
        fit = (
            Fit.trained(real.shape[1:], config.pictures.crop_pct)
            if config.img_size or config.pictures.crop_pct
            else None
        )
        extra = of_one_size(_encoded(config), limit=room, fit=fit)
    if extra.inferred and len(extra.label_names) > len(real.label_names):
        raise InputError(
            f"{extra.name}: labels reach {len(extra.label_names) - 1}, and {real.name} has the classes 0 to "
            f"{len(real.label_names) - 1}; number them alike"
        )
    extra = numbered_as(extra, real.label_names, real.name)
    if extra.shape != real.shape:
        shapes = " and ".join("x".join(map(str, split.shape)) for split in (extra, real))
        raise InputError(
            f"images of {extra.name} and {real.name} have shapes {shapes} (channels, height, width); make them alike"
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
    mapped = not isinstance(extra.images, Encoded) and _gib(extra) > room
    return extra if mapped else extra.to(real.labels.device)


def _encoded(config: TrainConfig) -> Split:
    try:
        return load_encoded(config.extra_data or "", "train", skip_broken=config.pictures.skip_broken)
    except InputError as error:
        raise InputError(str(error).replace("--dataset", "--extra-data")) from error


def _gib(split: Split) -> float:
    """What decoded images take."""
    return split.images.numel() * split.images.element_size() / 2**30  # type: ignore[union-attr]
