"""Data sets as uint8 tensors: loaded through Hugging Face `datasets`, decoded once, augmented by one gather.

    train = data.load("cifar10", "train")
    x = data.to_unit(train.images[:8])

What is too large to be held decoded stays encoded, and streams.
"""

from piat_hub.data.classes import numbered_as as numbered_as
from piat_hub.data.pictures import Encoded as Encoded, open_picture as open_picture, read_image as read_image
from piat_hub.data.sources import LIMIT as LIMIT, load as load, named_by as named_by
from piat_hub.data.split import (
    Split as Split,
    augment as augment,
    batches as batches,
    derived_seed as derived_seed,
    hold_out as hold_out,
    steps_per_epoch as steps_per_epoch,
    to_unit as to_unit,
)
