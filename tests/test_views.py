"""data/views.py: crop shift and Cutout by batch, beside their definitions image by image, every outcome with its probability."""

import dataclasses
import itertools
from collections import Counter, defaultdict
from fractions import Fraction

import pytest
import torch

from piat_hub import cli, data
from piat_hub.config import recipes
from piat_hub.data import views

DRAWS = 60_000


def moved(image, rows, columns, top, left, to_top, to_left):
    """An image of which a window is cut out and put back elsewhere on black, by slices."""
    h, w = image.shape[-2] - rows, image.shape[-1] - columns
    out = torch.zeros_like(image)
    out[..., to_top : to_top + h, to_left : to_left + w] = image[..., top : top + h, left : left + w]
    return out


def crop_shift_outcomes(image, most):
    """Every result, as its pixels, with its probability."""
    found = defaultdict(Fraction)
    for cut in range(most + 1):
        for columns in range(cut + 1):
            rows = cut - columns
            places = list(itertools.product(range(rows + 1), range(columns + 1), range(rows + 1), range(columns + 1)))
            for place in places:
                pixels = tuple(moved(image, rows, columns, *place).flatten().tolist())
                found[pixels] += Fraction(1, (most + 1) * (cut + 1) * len(places))
    return found


def cutout_outcomes(image, side):
    """Likewise."""
    found = defaultdict(Fraction)
    _, h, w = image.shape
    for y, x in itertools.product(range(h), range(w)):
        out = image.clone()
        top, left = y - side // 2, x - side // 2
        out[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = views.GREY
        found[tuple(out.flatten().tolist())] += Fraction(1, h * w)
    return found


@pytest.mark.parametrize(
    ("change", "outcomes", "size", "shape"),
    [
        (data.crop_shift, crop_shift_outcomes, 2, (1, 3, 4)),
        (data.crop_shift, crop_shift_outcomes, 3, (2, 4, 5)),
        (data.cutout, cutout_outcomes, 2, (1, 3, 4)),
        (data.cutout, cutout_outcomes, 3, (2, 3, 5)),
    ],
)
def test_every_outcome_has_its_probability(change, outcomes, size, shape):
    """What comes is what the definition gives, and all of it, as often: chi squared within five of its deviations."""
    image = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.uint8).view(shape)
    expected = outcomes(image, size)
    assert sum(expected.values()) == 1
    seen = change(image.expand(DRAWS, *shape).contiguous(), size)
    counts = Counter(map(tuple, seen.flatten(1).tolist()))
    assert set(counts) == set(expected)
    chi = sum((counts[pixels] - DRAWS * float(p)) ** 2 / (DRAWS * float(p)) for pixels, p in expected.items())
    freedom = len(expected) - 1
    assert abs(chi - freedom) < 5 * (2 * freedom) ** 0.5


def test_each_image_has_draws_of_its_own_from_the_global_generator():
    images = torch.randint(1, 255, (64, 3, 8, 8), dtype=torch.uint8)
    for change in (data.crop_shift, data.cutout):
        torch.manual_seed(1)
        first = change(images, 4)
        torch.manual_seed(1)
        assert torch.equal(change(images, 4), first) and not torch.equal(change(images, 4), first)
        assert first.dtype == torch.uint8 and (first != images).flatten(1).any(1).sum() > 40
        assert torch.equal(change(images / 255, 0), images / 255), "nothing cut, nothing changed"
    assert set(data.cutout(torch.zeros(9, 1, 4, 4), 2).unique().tolist()) == {
        0.0,
        float(torch.tensor(views.GREY / 255)),
    }


def test_training_takes_them_where_they_are_asked_for():
    config = dataclasses.replace(recipes.get("digits"), flip=True)
    images = torch.randint(1, 255, (64, 1, 8, 8), dtype=torch.uint8)
    alone = {"crop_shift": lambda: data.augment(data.crop_shift(images, 3), 0, True)}
    alone["cutout"] = lambda: data.cutout(data.augment(images, config.crop_pad, True), 3)
    for field, by_hand in alone.items():
        torch.manual_seed(2)
        expected = by_hand()
        torch.manual_seed(2)
        assert torch.equal(views.varied(images, dataclasses.replace(config, **{field: 3})), expected)
    torch.manual_seed(2)
    plain = data.augment(images, config.crop_pad, True)
    torch.manual_seed(2)
    assert torch.equal(views.varied(images, config), plain)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--crop-shift", "8"), "crop-shift 8 may cut all off an image of 8x8 pixels; lower it"),
        (("--cutout", "-1"), "cutout must be >= 0"),
        (("--cutout", "4", "--augment", "rrc"), "--crop-shift and --cutout are for images that are not cut anew"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(flags, message, capsys):
    assert cli.main(["train", "digits", "--output", "r", *flags]) == 2
    assert message in capsys.readouterr().err
