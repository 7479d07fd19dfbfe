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
        Broken: where an .npz cannot be converted.
    """
    room = limit if isinstance(real.images, Encoded) else limit - _gib(real)
    extra = numbered_as(_loaded(config, real, room), real.label_names, real.name)
    if extra.shape != real.shape:
        shapes = " and ".join("x".join(map(str, split.shape)) for split in (extra, real))
        raise InputError(
            f"{extra.name} and {real.name} have images of {shapes} (channels, height, width); make them alike"
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


def _loaded(config: TrainConfig, real: Split, room: float) -> Split:
    """The extra data as they number their classes themselves, decoded where that takes no more GiB than there is room."""
    if not config.extra_data:
        raise InputError(
            f"{config.recipe} mixes other images into every batch; name them with --extra-data FILE.npz, such as "
            "cifar10/1m.npz of huggingface.co/datasets/P2333/DM-Improves-AT"
        )
    if config.pictures.augment == "rrc":
        raise InputError(
            "--extra-data goes with images that are padded and cropped, not with --augment rrc; leave out one of them"
        )
    if config.extra_data.endswith(".npz"):
        extra = open_npz(config.extra_data)
    else:
        crop_pct = config.pictures.crop_pct
        fit = Fit.trained(real.shape[1:], crop_pct) if config.img_size or crop_pct else None
        try:
            extra = of_one_size(
                load_encoded(config.extra_data, "train", skip_broken=config.pictures.skip_broken), limit=room, fit=fit
            )
        except InputError as error:
            raise InputError(str(error).replace("--dataset", "--extra-data")) from error
    most, classes = int(extra.labels.max()), len(real.label_names)
    if extra.inferred and most >= classes:
        raise InputError(
            f"{extra.name}: labels reach {most}, and {real.name} has the classes 0 to {classes - 1}; number them alike"
        )
    return extra


def _gib(split: Split) -> float:
    """What decoded images take."""
    return split.images.numel() * split.images.element_size() / 2**30  # type: ignore[union-attr]
