"""data/arrays.py: arrays of one's own, taken as what they mean or refused in one line; the figure is that of uint8."""

import numpy as np
import pytest
import torch
from torch import nn

import piat_hub
from piat_hub.config import InputError
from piat_hub.data import Split, to_unit

LEVELS = torch.randint(0, 256, (12, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
NAMES = ("cat", "dog", "emu")


@pytest.mark.parametrize(
    "images",
    [
        LEVELS,
        LEVELS.float() / 255,
        LEVELS.double() / 255,
        LEVELS.float(),
        LEVELS.long(),
        LEVELS.int(),
        LEVELS.to(torch.uint16),
        LEVELS.numpy(),
        LEVELS.numpy() / 255,
        (LEVELS.float() / 255 - 0.5) / 0.25 * 0.25 + 0.5,  # normalised, and that undone
    ],
    ids=range(10),
)
def test_the_same_images_in_other_numbers(images):
    split = Split(images, LABELS, NAMES, "mine")
    assert split.images.dtype == torch.uint8 and torch.equal(split.images, LEVELS)


def test_uint8_is_not_copied_or_looked_into():
    assert Split(LEVELS, LABELS, NAMES, "mine").images is LEVELS


def test_floats_between_the_levels_are_kept_and_not_rounded():
    between = torch.rand(12, 3, 6, 7, generator=torch.Generator().manual_seed(1))
    split = Split(between, LABELS, NAMES, "mine")
    assert torch.equal(split.images, between) and torch.equal(to_unit(split.images), between)
    assert to_unit(split.images).is_contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(nn.Flatten(), nn.Linear(126, 3)).eval()
    found = piat_hub.evaluate(model, split, ["clean"]).attacks["clean"]["correct"]
    assert found == int((model(between).argmax(1) == LABELS).sum())


BAD_IMAGES = [
    ((LEVELS.float() / 255 - 0.5) / 0.25, "from -2 to 2; undo their normalisation"),
    (LEVELS.float() / 255 * 1.02, "floats must lie in .0, 1., these reach 1.0"),
    (LEVELS.float() + 0.5, "got torch.float32 from 0.5 to 255.5"),
    ((LEVELS.float() + 0.5).clamp(max=255), "floats must lie in .0, 1., these reach 255; divide them by 255"),
    (LEVELS.float() / 255 + float("nan"), "from nan to nan"),
    (LEVELS.float().clamp(min=1) / 0, "from inf to inf"),
    (LEVELS.int() * 257, "got torch.int32 from 0 to 65535"),
    (LEVELS.int() - 1, "from -1 to 254"),
    ((LEVELS > 127).int(), "these are 0 and 1 alone; multiply them by 255"),
    (LEVELS > 127, "got torch.bool"),
    (LEVELS.permute(0, 2, 3, 1), r"have their channels last; give images.permute\(0, 3, 1, 2\)"),
    (LEVELS[:, 0], r"must be \(N, C, H, W\), got \(12, 6, 7\); images\[:, None\]"),
    (LEVELS.flatten(1), r"must be \(N, C, H, W\), got \(12, 126\)"),
    (LEVELS[:11], "mine has 11 images and 12 labels"),
    ([LEVELS, "text"], r"images must be a tensor \(N, C, H, W\), got a list"),
    (None, "images must be a tensor"),
]


@pytest.mark.parametrize("case", range(len(BAD_IMAGES)))
def test_images_that_would_be_a_guess_are_refused(case):
    images, message = BAD_IMAGES[case]
    with pytest.raises(InputError, match=message) as caught:
        Split(images, LABELS, NAMES, "mine")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "labels", [LABELS.int(), LABELS.to(torch.uint8), LABELS.short(), LABELS.numpy(), LABELS.tolist(), np.uint16(LABELS)]
)
def test_whole_numbers_of_any_type_are_labels(labels):
    split = Split(LEVELS, labels, list(NAMES), "mine")
    assert split.labels.dtype == torch.int64 and torch.equal(split.labels, LABELS) and split.label_names == NAMES


BAD_LABELS = [
    (nn.functional.one_hot(LABELS), r"of shape \(N,\), got \(12, 3\); give labels.argmax\(1\)"),
    (LABELS[:, None], r"got \(12, 1\); give labels.flatten\(\)"),
    (LABELS.float(), "must be whole numbers, got torch.float32"),
    (LABELS > 1, "got torch.bool"),
    (LABELS + 1, r"labels run from 1 to 3, they must lie in 0..2; number the classes from 0"),
    (LABELS - 1, "labels run from -1 to 1"),
    (LABELS[:5], "12 images and 5 labels"),
    (torch.tensor(1), r"got \(\)"),
    (["cat"] * 12, "labels must be a tensor"),
]


@pytest.mark.parametrize("case", range(len(BAD_LABELS)))
def test_labels_that_are_no_class_numbers_are_refused(case):
    labels, message = BAD_LABELS[case]
    with pytest.raises(InputError, match=message) as caught:
        Split(LEVELS, labels, NAMES, "mine")
    assert "\n" not in str(caught.value)


def test_names_are_texts_and_may_be_left_out():
    for names in ("cats", range(3), (b"cat", b"dog", b"emu")):
        with pytest.raises(InputError, match="label_names must be a text for each class"):
            Split(LEVELS, LABELS, names, "mine")
    for none in ((), None):
        split = Split(LEVELS, LABELS, none, "mine")
        assert split.label_names == ("0", "1", "2") and split.inferred


def test_a_split_without_images_can_be_but_not_be_measured():
    empty = Split(LEVELS[:0], LABELS[:0], NAMES, "mine")
    assert len(empty) == 0
    with pytest.raises(InputError, match="mine has no images"):
        piat_hub.evaluate(nn.Flatten(), empty, ["clean"])


def test_to_unit_guesses_no_range():
    with pytest.raises(InputError, match="must be uint8 or floats in .0, 1., got torch.int64"):
        to_unit(LEVELS.long())
