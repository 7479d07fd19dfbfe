"""Data sets as uint8 tensors: loaded through Hugging Face `datasets`, decoded once, augmented by one gather.

    train = data.load("cifar10", "train")
    x = data.to_unit(train.images[:8])

What is too large to be held decoded stays encoded, and streams.
"""

from piat_hub.data.pictures import Encoded, read_image
from piat_hub.data.sources import LIMIT, load, named_by
from piat_hub.data.split import (
    SPLIT_SEED,
    Split,
    augment,
    batches,
    derived_seed,
    hold_out,
    steps_per_epoch,
    to_unit,
)

__all__ = [
    "LIMIT",
    "SPLIT_SEED",
    "Encoded",
    "Split",
    "augment",
    "batches",
    "derived_seed",
    "hold_out",
    "load",
    "named_by",
    "read_image",
    "steps_per_epoch",
    "to_unit",
]
