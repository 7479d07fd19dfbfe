"""Extra data: exact shares of every batch, endless orders without replacement, .npz files converted whole or not at all."""

import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import sys
import zipfile
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import killed
from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME
from test_data import make, picture, random_images

from piat_hub import cli, data
from piat_hub.config import Broken, InputError, RunOptions, TrainConfig, recipes
from piat_hub.data import feed, npz
from piat_hub.hub import card
from piat_hub.records.files import read_json
from piat_hub.training import run

CONVERTED = Path(HF_HOME, "piat_hub")
CLASSES = tuple(map(str, range(100)))


def numbered(start, stop, size=2):
    """Grey images of size x size pixels, whose level and label are their number."""
    labels = torch.arange(start, stop)
    return data.Split(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, size, size).clone(), labels, CLASSES, "it")


REAL, EXTRA = numbered(0, 23), numbered(30, 80)


def asked(**changes):
    """4 real and 6 extra images a batch."""
    fields = {"extra_data": "it.npz", "extra_fraction": 0.6, "batch_size": 10, "crop_pad": 0, "clean_epochs": 0}
    return dataclasses.replace(recipes.get("digits"), **(fields | {"epochs": 30} | changes))


def seen(config, rank=0, world=1, epochs=0, steps=0, extra=EXTRA):
    """The numbers of the images of every micro-batch."""
    found = []
    for images, labels in data.training_batches(REAL, config, rank, world, epochs, steps, extra):
        assert images.is_contiguous() and images[:, 0, 0, 0].tolist() == labels.tolist(), "each has its own label"
        found.append(labels.tolist())
    return found


def test_every_batch_has_its_share_of_both():
    assert TrainConfig(extra_data="it.npz", batch_size=512).extra_share == 358, "and 154 real ones, as published"
    batches = seen(asked())
    assert len(batches) == 30 * 2, "23 real images are two batches of 10"
    assert {sum(k < 30 for k in batch) for batch in batches} == {4} and {len(batch) for batch in batches} == {10}
    assert len(seen(asked(epoch_size=55))) == 30 * 5


@pytest.mark.parametrize("accumulation", [1, 2])
def test_no_image_comes_again_before_all_others_have_come(accumulation):
    """At no time has one been drawn twice more often than another, over five passes of the real and seven of the extra ones."""
    counts = Counter(dict.fromkeys([*REAL.labels.tolist(), *EXTRA.labels.tolist()], 0))
    for batch in seen(asked(accumulation=accumulation)):
        counts.update(batch)
        for split in (REAL, EXTRA):
            times = [counts[k] for k in split.labels.tolist()]
            assert max(times) - min(times) <= 1 + (accumulation > 1)
    assert sum(counts.values()) == 600 and counts[0] >= 10 and counts[30] >= 7


def test_an_endless_order_is_its_passes_one_after_the_other():
    passes = [torch.randperm(7, generator=torch.Generator().manual_seed(data.derived_seed(5, p))) for p in range(9)]
    whole = torch.cat(passes).tolist()
    for size, begun in ((3, 0), (3, 4), (7, 2), (5, 1)):
        got = torch.cat(list(islice(feed.endless(7, size, 5, begun), 4))).tolist()
        assert got == whole[begun * size : (begun + 4) * size]


def test_seed_and_source_decide_the_order_and_nothing_else():
    one = seen(asked())
    assert seen(asked()) == one and seen(asked(seed=1)) != one
    twice = data.training_batches(REAL, asked(extra_fraction=0.5), extra=REAL)
    assert any(Counter(labels.tolist()).most_common()[0][1] == 1 for _, labels in twice), (
        "a set beside itself is no pair of twins"
    )


def test_what_follows_a_stop_is_what_would_have_followed():
    whole = seen(asked(accumulation=2))
    for epochs, steps in ((0, 1), (11, 0), (17, 1)):
        assert seen(asked(accumulation=2), epochs=epochs, steps=steps) == whole[2 * (2 * epochs + steps) :]


@pytest.mark.parametrize(("world", "accumulation", "share"), [(2, 1, 6), (2, 1, 5), (5, 1, 6), (5, 2, 9), (1, 5, 3)])
def test_parts_of_a_batch_are_the_batch_and_hold_alike_of_both(world, accumulation, share):
    config = asked(accumulation=accumulation, extra_fraction=share / 10)
    parts = [seen(config, rank, world) for rank in range(world)]
    for k, batch in enumerate(seen(asked(extra_fraction=share / 10))):
        mine = [rank[j] for rank in parts for j in range(k * accumulation, (k + 1) * accumulation)]
        assert sorted(chain(*mine)) == sorted(batch)
        assert {len(part) for part in mine} == {10 // (world * accumulation)}
        real = [sum(number < 30 for number in part) for part in mine]
        assert max(real) - min(real) <= 1
        assert min(real) == max(real) or (10 - share) % (world * accumulation)


def test_blended_pairs_are_of_all_kinds():
    """Mixup blends image k with image -k: real with real, real with extra, extra with extra."""
    pairs = [
        (a < 30) + (b < 30)
        for batch in seen(asked(batch_size=40, epoch_size=40, epochs=1, extra_fraction=0.5))
        for a, b in zip(batch, batch[::-1], strict=True)
    ]
    assert set(pairs) == {0, 1, 2}


def saved(path, n=40, **changes):
    """An .npz of digits as generated sets come, channels last; gives its path."""
    digits = data.load("digits", "train")[:n]
    arrays = {"image": digits.images.permute(0, 2, 3, 1).contiguous().numpy(), "label": digits.labels.numpy()} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def left():
    """What lies in the cache, but for locks."""
    return sorted(path.name for path in CONVERTED.glob("*") if path.suffix != ".lock")


@pytest.fixture(autouse=True)
def _empty_cache():
    shutil.rmtree(CONVERTED, ignore_errors=True)


def test_an_npz_is_converted_once_and_mapped(tmp_path, monkeypatch):
    file = saved(tmp_path / "gen.npz")
    monkeypatch.setattr(npz, "ROWS", 16)  # a last block of 8
    split = data.open_npz(file)
    digits = data.load("digits", "train")[:40]
    assert torch.equal(split.images, digits.images) and torch.equal(split.labels, digits.labels) and split.inferred
    (name,) = left()
    assert name.startswith("gen-") and f"converted into {CONVERTED / name}" in split.notes[0]
    if sys.platform == "linux":
        place = split.images.data_ptr()
        (line,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if "image.npy" in line][-1:]
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        assert begin <= place < end, "read from the file, not held"
    with monkeypatch.context() as patch:
        patch.setattr(npz, "_convert", None)
        assert torch.equal(data.open_npz(file).images, split.images)
    saved(tmp_path / "gen.npz", n=50)
    assert len(data.open_npz(file)) == 50, "another file under the same name"
    compressed = data.load("digits", "train")[:9]
    np.savez_compressed(
        file, image=compressed.images.permute(0, 2, 3, 1).numpy(), label=compressed.labels.numpy().astype(np.uint8)
    )
    assert torch.equal(data.open_npz(file).images, compressed.images)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


BAD = {
    "objects": ({"image": np.array([Bomb(), None])}, "'image' holds Python objects, which are never unpickled"),
    "object labels": ({"label": np.array([Bomb()] * 40)}, "'label' holds Python objects"),
    "floats": (
        {"image": np.zeros((40, 8, 8, 1), np.float32)},
        "'image' is float32 of shape (40, 8, 8, 1), it must be uint8",
    ),
    "flat": (
        {"image": np.zeros((40, 64), np.uint8)},
        "'image' is uint8 of shape (40, 64), it must be uint8 of shape (N, H, W, C)",
    ),
    "soft labels": (
        {"label": np.zeros((40, 10), np.int64)},
        "'label' is int64 of shape (40, 10), it must be whole numbers",
    ),
    "float labels": ({"label": np.zeros(40)}, "'label' is float64"),
    "nothing": ({"image": np.zeros((0, 8, 8, 1), np.uint8)}, "'image' is empty"),
    "fewer labels": ({"label": np.zeros(39, np.int64)}, "it has 40 images and 39 labels"),
    "other names": ({"image": None, "images": np.zeros(3)}, "it has no array 'image'; it has label.npy, images.npy"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_npz_of_something_else_is_refused_in_one_line(tmp_path, name):
    arrays, message = BAD[name]
    file = saved(tmp_path / "gen.npz", **arrays)
    with pytest.raises(InputError) as caught:
        data.open_npz(file)
    assert (
        message in str(caught.value)
        and "gen.npz is no whole .npz" in str(caught.value)
        and "\n" not in str(caught.value)
    )
    assert not left() and not Path("exploded").exists()


def test_a_damaged_npz_leaves_nothing(tmp_path):
    whole = Path(saved(tmp_path / "gen.npz")).read_bytes()
    for broken in (whole[:-100], whole[:400] + bytes(50) + whole[450:], b"no archive"):
        (tmp_path / "bad.npz").write_bytes(broken)
        with pytest.raises(InputError, match="bad.npz is no whole .npz of images and labels"):
            data.open_npz(tmp_path / "bad.npz")
        assert not left()
    short = io.BytesIO()
    np.lib.format.write_array(short, np.zeros((2, 8, 8, 1), np.uint8))
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as packed:
        packed.writestr("image.npy", short.getvalue()[:-1])
        packed.writestr("label.npy", b"")
    with pytest.raises(InputError, match="'image' is cut off"):
        data.open_npz(tmp_path / "bad.npz")
    with pytest.raises(InputError, match="none.npz is no file"):
        data.open_npz(tmp_path / "none.npz")


def test_a_kill_within_converting_leaves_no_half_set(tmp_path):
    file = saved(tmp_path / "gen.npz")

    def die_at_the_labels():
        npz.np.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    assert killed(lambda: data.open_npz(file), die_at_the_labels)
    (scratch,) = left()
    assert scratch.startswith(".gen-") and (CONVERTED / scratch / "image.npy").exists()
    assert len(data.open_npz(file)) == 40
    assert left() == [scratch[1:].removesuffix(".new")]


def test_one_process_converts_at_a_time(tmp_path, monkeypatch):
    file, real, tried = saved(tmp_path / "gen.npz"), npz._write_images, []

    def written(*files):
        (scratch,) = left()
        with pytest.raises(Timeout):
            FileLock(CONVERTED / f"{scratch[1:].removesuffix('.new')}.lock").acquire(timeout=0)
        tried.append(scratch)
        real(*files)

    monkeypatch.setattr(npz, "_write_images", written)
    assert len(data.open_npz(file)) == 40 and len(tried) == 1


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="the system limits no files")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    file, before = saved(tmp_path / "gen.npz"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(
            Broken, match="gen.npz cannot be converted into .*piat_hub: File too large; make room there, or set HF_HOME"
        ):
            data.open_npz(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not left() and len(data.open_npz(file)) == 40


def loaded(extra, real=None, limit=4.0, **changes):
    """The extra data beside these real ones, by default digits."""
    config = asked(extra_data=str(extra), **changes)
    return data.load_extra(config, real or data.load("digits", "train"), limit)


@pytest.mark.parametrize("names", [("1", "2", "3"), ("0", "1", "10", "2")])
def test_label_k_of_an_npz_is_class_k_also_where_classes_are_called_by_numbers(tmp_path, names):
    real = data.Split(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 3, names, "real")
    for labels in (np.arange(40) % 2 + 1, np.arange(40) % 3):
        extra = loaded(saved(tmp_path / "gen.npz", label=labels), real)
        assert extra.labels.tolist() == labels.tolist() and extra.label_names == names
        assert extra.notes[-1] == f"label k of gen.npz is class k of real: {names[0]!r} for 0"


def test_numbers_of_a_table_that_are_taken_for_names_are_told(tmp_path):
    import datasets

    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    folder = make(tmp_path / "d", [picture(p) for p in random_images(12)], [1, 2] * 6, features, split="train")
    real = data.Split(torch.zeros(12, 3, 5, 4, dtype=torch.uint8), torch.arange(12) % 3, ("1", "2", "3"), "real")
    extra = loaded(folder, real)
    assert extra.labels.tolist() == [0, 1] * 6
    three = make(tmp_path / "e", [picture(p) for p in random_images(12)], [1, 2, 3] * 4, features, split="train")
    assert loaded(three, real).labels.tolist() == [0, 1, 2] * 4
    assert extra.notes[0] == "the labels of d are read as class names: 1 is class '1' of real, its number 0"


def test_columns_that_are_named_are_those_of_both_sets_where_both_have_them(tmp_path):
    import datasets

    cells = [picture(p) for p in random_images(12)]
    features = {"a": datasets.Image(), "b": datasets.Image(), "label": datasets.Value("int64")}
    columns = {"a": cells[::-1], "b": cells, "label": [0, 1] * 6}
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(tmp_path / "two" / "train.parquet")
    one = make(tmp_path / "one", cells, [0, 1] * 6, split="train")
    real = data.load(one, "train")
    with pytest.raises(InputError, match="two has 2 image columns .*name one with --image-column"):
        loaded(tmp_path / "two", real)
    for extra, column in ((tmp_path / "two", "b"), (one, "b")):
        assert torch.equal(loaded(extra, real, image_column=column).images, real.images)


@pytest.mark.parametrize("damage", ["image.npy", "label.npy", "image.npy gone", "label.npy gone"])
def test_what_was_converted_and_is_damaged_is_converted_anew(tmp_path, damage):
    file = saved(tmp_path / "gen.npz")
    whole = data.open_npz(file)
    images, labels = whole.images.clone(), whole.labels.clone()
    name, _, gone = damage.partition(" ")
    (place,) = (path for path in CONVERTED.iterdir() if path.is_dir())
    if gone:
        (place / name).unlink()
    else:
        (place / name).write_bytes((place / name).read_bytes()[:150])
    again = data.open_npz(file)
    assert torch.equal(again.images, images) and torch.equal(again.labels, labels)


def test_held_out_images_among_the_extra_ones_are_counted_and_told(tmp_path, capsys):
    digits = data.load("digits", "train")
    held, extra = digits[:10], digits[5:40]
    assert data.shared_images(extra, held) == 5 and data.shared_images(digits[10:], held) == 0
    twisted = dataclasses.replace(extra, images=extra.images.flip(2))  # the same levels in other places
    assert data.shared_images(twisted, held) == 0
    assert data.shared_images(data.load_encoded("digits", "train"), held) is None
    order = data.hold_out(digits, 16)[1]
    arrays = {"image": order.images.permute(0, 2, 3, 1).contiguous().numpy(), "label": order.labels.numpy()}
    assert trained(saved(tmp_path / "gen.npz", **arrays), "--extra-fraction", ".2") == 0
    assert "warning: 16 of the 16 held-out images are among the extra data" in capsys.readouterr().out


def test_where_images_lie_changes_nothing(tmp_path):
    """Mapped, held, and decoded by workers: the same batches."""
    folder = make(tmp_path / "d", [picture(p) for p in random_images(60)], [k % 3 for k in range(60)], split="train")
    real = data.load(folder, "train")[:20]
    packed = {"image": random_images(60), "label": np.arange(60) % 3}
    np.savez(tmp_path / "d.npz", **packed)
    for split, notes in (("train", 0), ("test", 1)):
        (tmp_path / "d/piat-label.json").write_text(json.dumps({"split": split}))
        warned = [note for note in loaded(folder, real).notes if "labelled from the split 'test'" in note]
        assert len(warned) == notes
    (tmp_path / "d/piat-label.json").write_text('{"split": "tra')
    with pytest.raises(InputError, match="piat-label.json is damaged .* label those images again"):
        loaded(folder, real)
    (tmp_path / "d/piat-label.json").unlink()
    sets = [
        loaded(folder, real),
        loaded(folder, real, limit=0),
        loaded(tmp_path / "d.npz", real),
        loaded(tmp_path / "d.npz", real, limit=0),
    ]
    assert [isinstance(split.images, data.Encoded) for split in sets] == [False, True, False, False]
    assert {split.label_names for split in sets} == {("cat", "dog", "owl")}
    found = [list(data.training_batches(real, asked(epochs=2), extra=split)) for split in sets]
    encoded = data.load(folder, "train", limit=0)[:20]
    found.append(list(data.training_batches(encoded, asked(epochs=2), extra=sets[1])))
    assert len(found[0]) == 4
    for other in found[1:]:
        assert all(torch.equal(a, b) for pair in zip(found[0], other, strict=True) for a, b in zip(*pair, strict=True))


def test_classes_go_by_name(tmp_path):
    import datasets

    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "Cat", "dog"])}
    cells = [picture(p) for p in random_images(12)]
    folder = make(tmp_path / "d", cells, [k % 3 for k in range(12)], features, split="train")
    real = data.Split(torch.zeros(12, 3, 5, 4, dtype=torch.uint8), torch.arange(12) % 3, ("cat", "dog", "owl"), "pets")
    extra = loaded(folder, real)
    assert extra.labels.tolist() == [2, 0, 1] * 4 and "stand in another order than those of pets" in extra.notes[0]
    some = loaded(make(tmp_path / "e", cells, [1, 2] * 6, features, split="train"), real)
    assert some.labels.tolist() == [0, 1] * 6 and some.notes[-1] == "e has 2 of the 3 classes of pets"
    with pytest.raises(
        InputError,
        match=r"digits has 10 classes and d has 3; name the classes alike.*owl, Cat, dog against 0, 1, 2, 3, 4 and 5 more",
    ):
        loaded(folder, data.load("digits", "train"))


def test_what_a_model_labelled_is_extra_data():
    model = Path(cli.__file__).parents[1] / "demo" / "models" / "robust"
    assert cli.main(["label", str(model), "digits", "--split", "test", "--output", "out"]) == 0
    extra = loaded("out")
    assert torch.equal(extra.images, data.load("digits", "test").images) and extra.label_names == tuple("0123456789")


def trained(file, *flags, output="r"):
    """`piat train` on digits beside this extra data for a short epoch; gives its exit code."""
    words = [
        "train",
        "digits",
        "--extra-data",
        file,
        "--train-size",
        128,
        "--holdout",
        16,
        "--epochs",
        2,
        "--clean-epochs",
        1,
    ]
    words += ["--batch-size", 64, "--steps", 1, "--output", output, *flags]
    return cli.main(list(map(str, words)))


def test_by_command_recorded_and_told(tmp_path, capsys):
    file = saved(tmp_path / "gen.npz", n=50)
    assert (
        trained(
            file,
            "--extra-fraction",
            ".5",
            "--extra-license",
            "cc0-1.0",
            "--ema",
            ".9",
            "--mixup",
            ".5",
            "--method",
            "trades",
        )
        == 0
    )
    told = capsys.readouterr().out
    assert (
        "extra data: 50 images on cpu, 32 of every batch of 64" in told and "gen.npz: 50 images, converted into" in told
    )
    kept = json.loads(Path("r/config.json").read_text())["piat"]
    assert (kept["extra_data"], kept["extra_fraction"], kept["extra_images"]) == (file, 0.5, 50)
    text = Path("r/README.md").read_text()
    line = "32 of the 64 images of every batch come from extra data: gen.npz, 50 images, licence cc0-1.0."
    assert (
        line in text
        and "--extra-data gen.npz --extra-fraction 0.5 --extra-license cc0-1.0" in text
        and str(tmp_path) not in text
    )
    assert "PIAT+TRADES with EMA with extra data" in text
    kept = read_json(Path("r/config.json"))
    kept["piat"]["extra_license"] = None
    Path("r/config.json").write_text(json.dumps(kept))
    assert "gen.npz, 50 images, licence not stated." in card.write(Path("r")).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, {"accumulation": 2, "awp": 0.01, "epoch_size": 200, "extra_fraction": 0.4}])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, small_digits, extra):
    """Stopped within an epoch and at one's end: the passes of both sets straddle the epochs, and no place is saved."""
    attack = dataclasses.replace(recipes.get("digits").attack, steps=1)
    file = saved(tmp_path / "gen.npz", n=70)
    config = small_digits(extra_data=file, train_size=160, epochs=2, attack=attack, **extra)
    list(run.train(config, RunOptions(output="whole")))
    for after in (1, 2):
        stops = iter([False] * after + [True] * 9)
        list(run.train(config, RunOptions(output="parts", resume=after > 1), lambda stops=stops: next(stops)))
    list(run.train(config, RunOptions(output="parts", resume=True)))
    for name in ("model.safetensors", "metrics.jsonl"):
        assert Path("whole", name).read_bytes() == Path("parts", name).read_bytes()


def test_another_extra_set_is_another_run(tmp_path, capsys):
    file = saved(tmp_path / "gen.npz", n=50)
    assert trained(file) == 0
    saved(tmp_path / "gen.npz", n=60)
    assert trained(file, "--resume") == 2
    assert "has extra_images=50, this command 60" in capsys.readouterr().err
    digits = data.load("digits", "train")[50:100]
    saved(tmp_path / "gen.npz", n=50, image=digits.images.permute(0, 2, 3, 1).contiguous().numpy())
    assert trained(file, "--resume") == 2
    assert "or the extra data are another file; put the former back" in capsys.readouterr().err
    saved(tmp_path / "gen.npz", n=50)  # the same again, only later
    assert trained(file, "--resume") == 0


def test_a_run_goes_on_with_the_labels_that_it_began_with(small_digits, monkeypatch):
    stops = iter([False, True])
    list(run.train(small_digits(), RunOptions(output="r"), lambda: next(stops)))
    first, load = True, data.load_encoded

    def relabelled(*given, **options):
        split = load(*given, **options)
        return dataclasses.replace(split, labels=split.labels.roll(1) if first else split.labels)

    monkeypatch.setattr(data, "load_encoded", relabelled)
    before = Path("r/state/state.safetensors").read_bytes()
    with pytest.raises(InputError, match="the training images have other labels than when this run began"):
        list(run.train(small_digits(), RunOptions(output="r", resume=True)))
    assert Path("r/state/state.safetensors").read_bytes() == before
    first = False
    assert list(run.train(small_digits(), RunOptions(output="r", resume=True)))


WRONG = {
    "none": (("--extra-fraction", "0"), "extra-fraction must be > 0"),
    "all": (("--extra-fraction", "1"), "extra-fraction must be < 1"),
    "less than one": (("--extra-fraction", ".001"), "extra-fraction 0.001 is 0 images of a batch of 64: a batch needs"),
    "few": (("--batch-size", "128", "--extra-fraction", ".5"), "gen.npz has 50 images, and every batch takes 64 of them"),
    "few real": (("--train-size", "20", "--extra-fraction", ".5", "--epoch-size", "64"), "digits has 20 images, and every"),
    "no epoch": (("--train-size", "40",), "an epoch is the 40 images of digits, less than one batch of 64; give --epoch-size"),
    "small epoch": (("--epoch-size", "63"), "epoch-size 63 is less than one batch of 64"),
    "photographs": (("--augment", "rrc"), "not with --augment rrc; leave out one of them"),
    "size": (("--img-size", "16"), "gen.npz and digits have images of 1x8x8 and 1x16x16 (channels, height, width)"),
    "nowhere": (("--extra-data", "nothere"), "no data set 'nothere'; give --extra-data"),
    "no file": (("--extra-data", "nothere.npz"), "nothere.npz is no file; name an .npz file that is there"),
    "unnamed": (("--extra-data", ""), "digits mixes other images into every batch; name them with --extra-data FILE.npz"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_mixed_is_refused_in_one_line(tmp_path, capsys, name):
    flags, message = WRONG[name]
    assert trained(saved(tmp_path / "gen.npz", n=50), *flags) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1] and len(told) == 1 and not Path("r").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label": np.arange(40) % 13},
            "gen.npz: labels reach 12, and digits has the classes 0 to 9; number them alike",
        ),
        ({"label": np.arange(40) - 1}, "gen.npz: labels run from -1 to 38, they must lie in 0 and above"),
        ({"image": np.zeros((40, 8, 8, 3), np.uint8)}, "gen.npz and digits have images of 3x8x8 and 1x8x8"),
        ({"image": np.zeros((40, 9, 9, 1), np.uint8)}, "gen.npz and digits have images of 1x9x9 and 1x8x8"),
    ],
)
def test_an_npz_that_does_not_go_with_the_real_images(tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        loaded(saved(tmp_path / "gen.npz", **changes))
    assert message in str(caught.value) and not left(), "looked at before it is converted"


@pytest.mark.parametrize("flags", [("--extra-fraction", ".5"), ("--extra-license", "mit"), ("--epoch-size", "64")])
def test_flags_of_extra_data_want_it(flags, capsys):
    assert cli.main(["train", "digits", "--output", "r", *flags]) == 2
    assert f"{flags[0]} " in capsys.readouterr().err and not Path("r").exists()


def test_a_stream_shares_no_batches():
    with pytest.raises(InputError, match="images that are held; leave out --stream, or --extra-data"):
        asked(dataset="a/b", stream=True, epoch_size=99)
