"""Data sets as uint8 tensors: loaded through Hugging Face `datasets`, decoded once, augmented by one gather.

    train = data.load("cifar10", "train")
    x = data.to_unit(train.images[:8])

What is too large to be held decoded, or is to be cut anew in every epoch, stays encoded and is read by workers.
"""

from piat_hub.data.classes import numbered_as as numbered_as
from piat_hub.data.corrupted import Corrupted as Corrupted
from piat_hub.data.encoded import Encoded as Encoded
from piat_hub.data.extra import (
    load_extra as load_extra,
    shared_images as shared_images,
    training_digest as training_digest,
)
from piat_hub.data.feed import (
    batches as batches,
    shards as shards,
    steps_per_epoch as steps_per_epoch,
    training_batches as training_batches,
)
from piat_hub.data.folders import pictures_at as pictures_at
from piat_hub.data.npz import open_npz as open_npz
from piat_hub.data.pictures import Fit as Fit, open_picture as open_picture, read_image as read_image
from piat_hub.data.sources import (
    LIMIT as LIMIT,
    listed as listed,
    load as load,
    load_encoded as load_encoded,
    load_pictures as load_pictures,
    named_by as named_by,
    of_one_size as of_one_size,
)
from piat_hub.data.split import (
    Split as Split,
    derived_seed as derived_seed,
    hold_out as hold_out,
    to_unit as to_unit,
)
from piat_hub.data.stream import Stream as Stream, open_stream as open_stream
from piat_hub.data.views import (
    augment as augment,
    crop_shift as crop_shift,
    cutout as cutout,
    seeded as seeded,
    transform as transform,
)
