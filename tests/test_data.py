"""data.py: real directories through `datasets`, decoding, columns, splits, augmentation by its definition."""

import dataclasses
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from piat_hub import data
from piat_hub.config import AttackConfig, InputError, RunOptions, TrainConfig


def picture(pixels, kind="PNG", mode=None):
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, kind)
    return {"bytes": out.getvalue(), "path": None}


def make(folder, images, labels, features=None, split="test", **columns):
    """A directory with one parquet split, as the Hub's data sets have it."""
    features = features or {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])}
    first, second = list(features)[:2]
    table = datasets.Dataset.from_dict({first: images, second: labels, **columns}, features=datasets.Features(features))
    folder.mkdir(exist_ok=True)
    table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return str(folder)


def random_images(n, size=(5, 4, 3)):
    return np.random.default_rng(0).integers(0, 256, (n, *size), dtype=np.uint8)


def test_png_directory_decodes_exactly(tmp_path):
    pixels = random_images(6)
    folder = make(tmp_path / "animals", [picture(p) for p in pixels], [0, 1, 2, 0, 1, 2])
    split = data.load(folder, "test")
    assert split.images.dtype == torch.uint8 and split.shape == (3, 5, 4)
    assert torch.equal(split.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert split.labels.tolist() == [0, 1, 2, 0, 1, 2] and split.labels.dtype == torch.int64
    assert split.label_names == ("cat", "dog", "owl") and split.name == "animals"


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "WEBP"])
def test_other_formats_equal_pillow(tmp_path, kind):
    cells = [picture(p, kind) for p in random_images(3, (16, 16, 3))]
    expected = [np.asarray(Image.open(io.BytesIO(c["bytes"])).convert("RGB")).astype(int) for c in cells]
    split = data.load(make(tmp_path / "d", cells, [0, 1, 2]), "test")
    worst = (split.images.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(expected)).__abs__().max()
    assert worst <= (0 if kind == "BMP" else 3)  # decoders may round a level or so differently


def test_grey_stays_one_channel_and_mixed_becomes_three(tmp_path):
    grey = random_images(2, (4, 4))
    split = data.load(make(tmp_path / "grey", [picture(g) for g in grey], [0, 1]), "test")
    assert split.shape == (1, 4, 4) and torch.equal(split.images[:, 0], torch.from_numpy(grey))
    colour, alpha = random_images(1, (4, 4, 3))[0], random_images(1, (4, 4, 4))[0]
    mixed = data.load(make(tmp_path / "mixed", [picture(grey[0]), picture(colour), picture(alpha)], [0, 1, 2]), "test")
    assert mixed.shape == (3, 4, 4)
    assert torch.equal(mixed.images[0], torch.from_numpy(grey[0]).expand(3, 4, 4))
    share = alpha[..., 3:].astype(float) / 255  # what is not opaque stands on white
    shown = np.rint(alpha[..., :3] * share + 255 * (1 - share))
    assert (mixed.images[2] - torch.from_numpy(shown).permute(2, 0, 1)).abs().max() <= 1


def test_image_folder(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "pets" / "train" / label).mkdir(parents=True)
        for i, pixels in enumerate(random_images(2)):
            Image.fromarray(pixels).save(tmp_path / "pets" / "train" / label / f"{i}.png")
    split = data.load(str(tmp_path / "pets"), "train")
    assert split.label_names == ("cat", "dog") and sorted(split.labels.tolist()) == [0, 0, 1, 1]


def test_validation_stands_in_for_a_missing_test_split(tmp_path):
    folder = make(tmp_path / "d", [picture(p) for p in random_images(2)], [0, 1], split="validation")
    assert len(data.load(folder, "test")) == 2
    with pytest.raises(InputError, match="has no split 'train'; it has validation"):
        data.load(folder, "train")


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_plain_integer_labels(tmp_path, dtype):
    features = {"img": datasets.Image(), "label": datasets.Value(dtype)}
    split = data.load(make(tmp_path / "d", [picture(p) for p in random_images(3)], [0, 4, 1], features), "test")
    assert split.label_names == ("0", "1", "2", "3", "4") and split.inferred


def test_columns_can_be_named(tmp_path):
    features = {"a": datasets.Image(), "fine": datasets.ClassLabel(names=["x", "y"]), "b": datasets.Image()}
    features["coarse"] = datasets.ClassLabel(names=["u", "v", "w"])
    one, two = random_images(2), random_images(2, (3, 3, 3))
    cells = [picture(p) for p in one]
    folder = make(tmp_path / "d", cells, [0, 1], features, b=[picture(p) for p in two], coarse=[2, 0])
    with pytest.raises(InputError, match="2 image columns .*--image-column"):
        data.load(folder, "test")
    with pytest.raises(InputError, match="2 label columns .*--label-column"):
        data.load(folder, "test", "a")
    split = data.load(folder, "test", "b", "coarse")
    assert split.shape == (3, 3, 3) and split.labels.tolist() == [2, 0]
    with pytest.raises(InputError, match="did you mean 'coarse'"):
        data.load(folder, "test", "b", "coarses")


def bad_cases(tmp_path):
    images = [picture(p) for p in random_images(2)]
    plain = datasets.Value("int64")
    yield "has no image column", images, {"img": datasets.Value("binary"), "label": plain}, [0, 1]
    yield "has no label column", images, {"img": datasets.Image(), "year": plain}, [0, 1]
    yield (
        "a single class",
        images,
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["one", "two"])},
        [1, 1],
    )
    yield "a single class", images, {"img": datasets.Image(), "label": plain}, [3, 3]
    yield "row 1 is no image", [images[0], {"bytes": b"no image", "path": None}], None, [0, 1]
    yield "row 0 is no image .it is empty", [None, images[0]], None, [0, 1]
    yield "label -1 .*outside 0..1", images, {"img": datasets.Image(), "label": plain}, [1, -1]
    mixed = [picture(random_images(1)[0]), picture(random_images(1, (7, 4, 3))[0])]
    yield "mixes image sizes: 5x4 and 7x4", mixed, None, [0, 1]


@pytest.mark.parametrize("case", range(8))
def test_bad_data_sets_are_named(tmp_path, case):
    message, images, features, labels = list(bad_cases(tmp_path))[case]
    if features and isinstance(features["img"], datasets.Value):
        images = [image["bytes"] for image in images]
    folder = make(tmp_path / "d", images, labels, features)
    with pytest.raises(InputError, match=message) as caught:
        data.load(folder, "test")
    assert "\n" not in str(caught.value)


def test_a_label_column_of_text_gives_its_classes_sorted_by_name(tmp_path):
    features = {"img": datasets.Image(), "label": datasets.Value("string")}
    folder = make(tmp_path / "d", [picture(p) for p in random_images(3)], ["emu", "cat", "emu"], features)
    for column in (None, "label"):
        split = data.load(folder, "test", "img", column)
        assert split.label_names == ("cat", "emu") and split.labels.tolist() == [1, 0, 1] and not split.inferred
        assert split.notes == ("d: column 'label' holds text; its 2 classes by name are cat, emu",)


@pytest.mark.parametrize(
    ("feature", "labels", "message"),
    [
        (datasets.Value("float64"), [0.0, 1.0], "holds float64, neither class numbers nor text"),
        (datasets.List(datasets.Value("int64")), [[0], [1]], "holds several values a row"),
        (datasets.Value("string"), ["cat", None], "row 1 has no label"),
        (datasets.Value("int64"), [None, 1], "row 0 has no label"),
        (datasets.Value("string"), ["cat", "Cat "], "'Cat ' and 'cat' differ in writing alone"),
        (datasets.Value("string"), ["cat", "cat"], "a single class"),
        (
            datasets.Value("int64"),
            [0, 300_000_000],
            "holds 2 numbers up to 300000000, which are no class numbers from 0",
        ),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, feature, labels, message):
    features = {"img": datasets.Image(), "label": feature}
    folder = make(tmp_path / "d", [picture(p) for p in random_images(2)], labels, features)
    with pytest.raises(InputError, match=message):
        data.load(folder, "test", "img", "label")


def test_numbers_that_begin_with_one_are_told_in_training(tmp_path):
    from piat_hub.training.images import load_images

    features = {"img": datasets.Image(), "label": datasets.Value("int64")}
    folder = make(tmp_path / "d", [picture(p) for p in random_images(2)], [1, 2], features, "train")
    _, whole, *_ = load_images(TrainConfig(dataset=folder), RunOptions(), Accelerator())
    note = "d: its class numbers begin with 1, so that of 0 there is no image; number from 0, or use text"
    assert whole.label_names == ("0", "1", "2") and whole.notes == (note,)


def test_of_images_that_lie_class_by_class_some_of_all_over_are_shown():
    images = torch.zeros(60, 1, 2, 2, dtype=torch.uint8)
    ordered = data.Split(images, torch.arange(60) // 20, ("a", "b", "c"), "d")
    mixed = dataclasses.replace(ordered, labels=torch.arange(60) % 3)
    assert len(ordered.samples(12)) == 12 and set(ordered.samples(12).labels.tolist()) == {0, 1, 2}
    assert mixed.samples(12).labels.tolist() == [0, 1, 2] * 4 and ordered.samples(60).labels.equal(ordered.labels)
    with pytest.raises(InputError, match="n=61 is larger than the split of d"):
        ordered.samples(61)


def test_each_split_keeps_the_classes_of_its_own_file(tmp_path):
    """`datasets` alone gives the test file's numbers the names of the training file's classes."""
    folder = tmp_path / "d"
    for split, names in (("train", ["cat", "dog", "owl"]), ("test", ["owl", "cat"])):
        features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        make(folder, [picture(p) for p in random_images(len(names))], list(range(len(names))), features, split)
    assert data.load(str(folder), "train").label_names == ("cat", "dog", "owl")
    test = data.load(str(folder), "test")
    assert test.label_names == ("owl", "cat") and test.labels.tolist() == [0, 1]


def test_unreachable_and_unknown_names(tmp_path):
    with pytest.raises(InputError, match="--dataset DIR with a local copy"):
        data.load("nobody/nothing", "test")
    with pytest.raises(InputError, match="--dataset DIR"):
        data.load("cifar10", "test")
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        data.load("cifar-10", "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a directory that datasets.load_dataset reads"):
        data.load(str(tmp_path / "empty"), "test")


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train), len(test), train.shape) == (1397, 400, (1, 8, 8))
    levels = torch.cat([train.images, test.images]).double().mul(16 / 255).round().sum()
    assert levels == load_digits().images.sum()
    assert torch.cat([train.labels, test.labels]).bincount().tolist() == np.bincount(load_digits().target).tolist()
    with pytest.raises(InputError, match="digits has no split"):
        data.load("digits", "tests")


def test_images_from_all_over_are_of_all_classes_and_always_the_same():
    labels = torch.arange(3).repeat_interleave(60)
    split = data.Split(torch.arange(180, dtype=torch.uint8)[:, None, None, None], labels, ("a", "b", "c"), "sorted")
    some = split.spread(30)
    assert len(some) == 30 and set(some.labels.tolist()) == {0, 1, 2}
    assert torch.equal(some.images, split.spread(30).images) and (some.images.flatten().diff() > 0).all()
    assert torch.equal(split.spread(180).images, split.images) and len(split.spread(1000)) == 180


def test_the_first_images_of_a_folder_sorted_by_class_are_told():
    labels = torch.tensor([2, 0, 1]).repeat_interleave(20)  # class by class, in any order
    split = data.Split(torch.zeros(60, 1, 2, 2, dtype=torch.uint8), labels, ("a", "b", "c"), "d")
    (note,) = split.first(40).notes
    assert note == "the first 40 images of d, which lie class by class, hold none of b; take all, or shuffle them"
    assert split.first(60).notes == split.first(45).notes == split.first(5).notes == split.first(None).notes == ()
    mixed = data.Split(split.images, torch.arange(60) % 2, ("a", "b", "c"), "d")
    assert mixed.first(40).notes == ()


def test_hold_out_is_disjoint_and_nested():
    train = data.load("digits", "train")
    numbers = torch.stack([torch.arange(1397) // 256, torch.arange(1397) % 256], 1).to(torch.uint8)
    marked = data.Split(numbers[:, :, None, None], train.labels, train.label_names, "marked")
    small, held = data.hold_out(marked, 100, 500)
    large, same = data.hold_out(marked, 100)
    sets = [set(map(tuple, s.images.flatten(1).tolist())) for s in (small, held, large)]
    assert [len(s) for s in sets] == [500, 100, 1297]
    assert sets[0] < sets[2] and not sets[1] & sets[2]
    assert torch.equal(held.images, same.images)
    assert len(data.hold_out(marked, 0)[1]) == 0
    with pytest.raises(InputError, match="too few"):
        data.hold_out(marked, 1000, 398)


@pytest.mark.parametrize(("images", "train_size", "expected"), [(1397, 64, 139), (19, None, 1), (9, None, 0)])
def test_a_tenth_is_held_out_by_default_and_recorded(small_digits, monkeypatch, images, train_size, expected):
    """A tenth of all, whatever --train-size says; at most 1,000. Resuming by the same command finds the same number."""
    from piat_hub.training import run

    whole = data.load("digits", "train")[:images]
    monkeypatch.setattr(data, "load_encoded", lambda *_: whole)
    config = small_digits(holdout=None, train_size=train_size, epochs=1, clean_epochs=0, attack=AttackConfig(1, 0.01))
    list(run.train(config, RunOptions(output="r")))
    facts, metrics = json.loads(Path("r/config.json").read_text()), Path("r/metrics.jsonl").read_text()
    assert facts["piat"]["holdout"] == expected and Path("r/model_best.safetensors").exists() == bool(expected)
    assert (json.loads(metrics)["holdout_pgd10_acc"] is None) == (not expected)
    list(run.train(config, RunOptions(output="r", resume=True)))
    with pytest.raises(InputError, match=f"has holdout={expected}, this command {expected + 1}"):
        list(run.train(dataclasses.replace(config, holdout=expected + 1), RunOptions(output="r", resume=True)))


def test_at_most_a_thousand_are_held_out_by_default(small_digits, monkeypatch):
    from piat_hub.training.setup import make_setup

    pixels = torch.zeros(50_000, 1, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(
        data, "load_encoded", lambda *_: data.Split(pixels, torch.arange(50_000) % 10, tuple("0123456789"), "many")
    )
    setup = make_setup(small_digits(holdout=None, train_size=None), RunOptions(), Path("r"), Accelerator())
    assert len(setup.held) == 1000 == setup.parts.config.holdout and len(setup.parts.split) == 49_000


def test_a_held_out_part_that_is_too_large_is_refused_with_the_numbers():
    train = data.load("digits", "train")
    with pytest.raises(
        InputError, match="digits has 1397 training images: too few for holdout=1397 and train-size=all; lower"
    ):
        data.hold_out(train, 1397)


def test_n_beyond_the_split():
    test = data.load("digits", "test")
    assert len(test.first(None)) == 400 and len(test.first(7)) == 7
    with pytest.raises(InputError, match="n=401 .*400 images"):
        test.first(401)


def test_batches_cover_each_epoch_in_its_own_order():
    orders = [torch.cat(list(data.batches(100, 32, 0, epoch))) for epoch in (1, 2)]
    assert all(len(order) == 96 == len(order.unique()) for order in orders)
    assert not torch.equal(*orders)
    assert torch.equal(orders[0], torch.cat(list(data.batches(100, 32, 0, 1))))
    assert not torch.equal(orders[0], torch.cat(list(data.batches(100, 32, 1, 1))))
    assert [len(b) for b in data.batches(10, 32, 0, 1)] == [10]


def test_derived_seeds_differ():
    seeds = {data.derived_seed(s, e, i, r) for s in range(3) for e in range(5) for i in range(7) for r in range(2)}
    assert len(seeds) == 3 * 5 * 7 * 2
    assert data.derived_seed(0, 1) == data.derived_seed(0, 1) != data.derived_seed(1, 0)


def test_augment_is_a_shifted_window_perhaps_mirrored():
    images = torch.randint(1, 256, (200, 2, 6, 5), dtype=torch.uint8)
    out = data.augment(images, 2, flip=True)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    found = []
    for image, crop in zip(padded, out, strict=True):
        windows = {(i, j): image[:, i : i + 6, j : j + 5] for i in range(5) for j in range(5)}
        matches = [
            (i, j, f) for (i, j), w in windows.items() for f in (0, 1) if torch.equal(crop, w.flip(2) if f else w)
        ]
        assert len(matches) == 1
        found += matches
    shifts = {(i, j) for i, j, _ in found}
    mirrored = sum(f for *_, f in found)
    assert len(shifts) == 25 and 70 < mirrored < 130


def test_augment_without_pad_or_flip_changes_nothing():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    assert torch.equal(data.augment(images, 0, flip=False), images)


def test_to_unit():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(data.to_unit(levels).flatten(), torch.arange(256) / 255)
    assert data.to_unit(levels.expand(2, 3, 16, 16)).is_contiguous(memory_format=torch.channels_last)


def test_images_are_resized_on_request_mixed_sizes_too(tmp_path):
    big, small = np.zeros((16, 16), np.uint8), np.full((4, 8), 200, np.uint8)
    big[:, 8:] = 255
    table = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(big), Image.fromarray(small)], "label": [0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}),
    )
    table.to_parquet(tmp_path / "train-0.parquet")
    split = data.load(str(tmp_path), "train", None, None, 8)
    assert split.shape == (1, 8, 8) and split.images.dtype == torch.uint8
    assert (split.images[1] == 200).all()
    assert (split.images[0, 0, :, :3] == 0).all() and (split.images[0, 0, :, 5:] == 255).all()
    digits = data.load("digits", "test", img_size=16)
    assert digits.shape == (1, 16, 16) and torch.equal(
        data.load("digits", "test", img_size=8).images, data.load("digits", "test").images
    )


def coloured(folder, n=70):
    images = [picture(p) for p in random_images(n)]
    return make(folder, images, [i % 3 for i in range(n)], split="train")


def test_what_is_too_large_streams_the_same_images(tmp_path):
    whole = data.load(coloured(tmp_path / "d"), "train")
    streamed = data.load(str(tmp_path / "d"), "train", limit=0)
    assert isinstance(streamed.images, data.Encoded) and isinstance(whole.images, torch.Tensor)
    assert streamed.shape == whole.shape and len(streamed) == len(whole) and streamed.digest() == whole.digest()
    for split in (streamed, whole):
        train, held = data.hold_out(split, 20, 40)
        assert (len(train), len(held)) == (40, 20) and train.shape == split.shape
    small, large = data.hold_out(streamed, 20, 40)[0], data.hold_out(whole, 20, 40)[0]
    index = torch.tensor([5, 0, 39])
    assert torch.equal(small.images[index], large.images[index])
    assert torch.equal(small[3:6].images[:], large[3:6].images[:]) and small[:0].images[:].shape == (0, 3, 5, 4)
    batches = list(data.batches(40, 16, 0, 1))
    for (a, la), (b, lb) in zip(small.to("cpu").feed(batches), large.feed(batches), strict=True):
        assert torch.equal(a, b) and torch.equal(la, lb) and a.shape == (16, 3, 5, 4)
    one = data.load(str(tmp_path / "d"), "train", limit=70 * 3 * 5 * 4 / 2**30)
    assert isinstance(one.images, torch.Tensor)  # it just fits


def test_a_stream_names_the_row_that_is_wrong(tmp_path):
    """Only 64 images are looked at beforehand; what is wrong with the others shows when they are read."""
    looked_at = torch.randperm(90, generator=torch.Generator().manual_seed(0))[:64].tolist()
    row = min({*range(90)} - {*looked_at})
    for name, wrong, message in (
        ("size", picture(random_images(1, (6, 4))[0]), f"mixes image sizes: 5x4 and 6x4 .row {row}."),
        ("bytes", {"bytes": b"no image", "path": None}, f"row {row} is no image"),
    ):
        cells = [picture(p) for p in random_images(90)]
        cells[row] = wrong
        folder = make(tmp_path / name, cells, [i % 3 for i in range(90)], split="train")
        split = data.load(folder, "train", limit=0)
        with pytest.raises(InputError, match=message):
            split.images[torch.arange(row + 1)]
        with pytest.raises(InputError, match=message) as caught:
            list(split.feed([torch.arange(row + 1)]))
        assert "\n" not in str(caught.value) and "worker" not in str(caught.value)
