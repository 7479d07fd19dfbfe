"""data/feed.py: photographs of any sizes, cut anew by a seed of (seed, epoch, number), and what follows obeys the same decision."""

import dataclasses
import gc
import json
import os
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader

import piat_hub
from piat_hub import cli, data
from piat_hub.config import InputError, PictureConfig, RunOptions, recipes
from piat_hub.data import encoded, views
from piat_hub.evaluation.model import images_for, load_model, predict
from piat_hub.training import run

HEAVY = PictureConfig(augment="rrc", scale=(0.2, 1.0), aa="rand-m9-mstd0.5-inc1", reprob=0.5)
SIZES = ((40, 30), (24, 36), (33, 33), (50, 20))  # width, height


def photographs(folder, n=24, sizes=SIZES, kind="jpg"):
    """A folder of two classes, bright and dark, of pictures of these sizes, half of them to test on."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for k in range(n):
            where = folder / split / ("bright", "dark")[k % 2]
            where.mkdir(parents=True, exist_ok=True)
            width, height = sizes[k % len(sizes)]
            levels = rng.integers(0, 120, (height, width, 3)) + (130, 0)[k % 2]
            Image.fromarray(levels.astype(np.uint8)).save(where / f"{k:03}.{kind}")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs") / "d")


@pytest.fixture
def config(folder):
    """A run of two epochs on that folder, at 16 pixels."""
    made = dataclasses.replace(recipes.get("digits"), dataset=folder, img_size=16, holdout=4, epochs=2, clean_epochs=1)
    return dataclasses.replace(made, batch_size=8, flip=True, pictures=HEAVY)


def split_of(config):
    fit = data.Fit.trained((16, 16), 0.875)
    whole = data.of_one_size(data.load_encoded(config.dataset, "train"), limit=0, fit=fit)
    return data.hold_out(whole, config.holdout)[0]


def by_hand(split, config, epoch, index):
    """The views of a batch, one after the other in this process: seeds, timm's transform, the rectangle."""
    seen = []
    for number in split.images.rows[index].tolist():
        picture = data.open_picture(split.images.cells[number]["path"], "it").convert("RGB")
        seed = data.derived_seed(config.seed, epoch, number)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        view = data.transform((16, 16), config.pictures, config.flip)(picture)
        pixels = torch.from_numpy(np.array(view)).permute(2, 0, 1)
        seen.append(views.RandomErasing(config.pictures.reprob, value=views.GREY)(pixels))
    return torch.stack(seen)


def test_workers_give_what_each_image_gives_by_itself(config):
    split, batches = split_of(config), []
    for epoch in (1, 2):
        batches += [(epoch, index) for index in data.batches(len(split), 8, config.seed, epoch)]
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    found = list(data.training_batches(split, config))
    assert torch.equal(torch.get_rng_state(), before[0]), "training's own generator is left alone"
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]
    assert len(found) == len(batches) == 4
    for (images, labels), (epoch, index) in zip(found, batches, strict=True):
        assert images.dtype == torch.uint8 and images.shape == (8, 3, 16, 16)
        assert torch.equal(images, by_hand(split, config, epoch, index))
        assert torch.equal(labels, split.labels[index])
    assert any(bool((images == views.GREY).all(1).flatten(1).sum(1).gt(5).any()) for images, _ in found), "none erased"


def test_an_image_of_an_epoch_looks_the_same_wherever_it_stands(config):
    """Another rank, another start, another batch: the view goes with (seed, epoch, number)."""
    split = split_of(config)
    whole = list(data.training_batches(split, config))
    after = list(data.training_batches(split, config, 0, 1, 1, 1))  # epoch 2, from its second step on
    assert len(after) == 1 and torch.equal(after[0][0], whole[3][0])
    halves = [list(data.training_batches(split, config, rank, 2)) for rank in (0, 1)]
    for k, (images, _) in enumerate(whole):
        assert torch.equal(torch.cat([halves[0][k][0], halves[1][k][0]]), images)

    def view(*numbers, epoch=1, seed=0):
        seeded = dataclasses.replace(config, seed=seed)
        return views.Views(split.images, seeded).of(views.Asked(epoch, list(numbers), [0] * len(numbers)))[0]

    assert torch.equal(view(3, 5)[1], view(5)[0])
    assert not torch.equal(view(5, epoch=2), view(5)) and not torch.equal(view(5, seed=1), view(5))


@pytest.mark.slow
def test_spawned_workers_give_the_same(config, monkeypatch):
    """As on macOS and Windows, where a worker is a new python, whose generators begin elsewhere."""
    split = split_of(config)
    forked = [images for images, _ in data.training_batches(split, config)]
    monkeypatch.setattr(encoded, "DataLoader", partial(DataLoader, multiprocessing_context="spawn"))
    spawned = [images for images, _ in data.training_batches(split, config)]
    assert all(map(torch.equal, forked, spawned)) and len(spawned) == 4


class Abandoned:
    """A thing in a circle, which only the collector finds; it notes the process that does."""

    def __init__(self, file):
        self.file, self.itself = file, self

    def __del__(self):
        with self.file.open("a") as file:
            file.write(f"{os.getpid()} ")


def collected(batch):
    gc.collect()
    return batch


def test_what_a_process_abandoned_is_closed_in_it_and_not_in_its_workers(tmp_path):
    """The threads that a half-read stream waits for are no worker's, which would wait for ever."""
    gc.collect()
    gc.disable()
    try:
        Abandoned(tmp_path / "by")
        assert list(encoded.in_workers(collected, [[1], [2]])) == [[1], [2]]
    finally:
        gc.enable()
    assert (tmp_path / "by").read_text().split() == [str(os.getpid())]


def test_images_of_one_size_and_grey_ones_are_cut_on_request():
    config = dataclasses.replace(recipes.get("digits"), pictures=dataclasses.replace(HEAVY, crop_pct=1.0), epochs=1)
    split = data.load("digits", "train", limit=0)
    images, _ = next(data.training_batches(split, config))
    assert images.shape == (64, 1, 8, 8) and images.float().std() > 20


def test_shards_part_a_batch_evenly():
    parts = data.shards(torch.arange(24), world=3, accumulation=2)
    assert parts.shape == (2, 3, 4) and sorted(parts.flatten().tolist()) == list(range(24))
    assert data.shards(torch.arange(10), 3, 1).shape == (1, 3, 3)
    with pytest.raises(ValueError, match="cannot be divided by 4 processes"):
        data.shards(torch.arange(3), 4, 1)


def trained_on(folder, *flags, output="r"):
    """`piat train` for two epochs at 16 pixels; gives its config.json, or None where it was refused."""
    words = (
        "train",
        "digits",
        "--dataset",
        folder,
        "--img-size",
        16,
        "--epochs",
        2,
        "--clean-epochs",
        1,
        "--holdout",
        4,
    )
    words += ("--batch-size", 8, "--steps", 1, "--output", output, *flags)
    if cli.main(list(map(str, words))) == 2:
        return None
    return json.loads(Path(output, "config.json").read_text())


def test_a_folder_of_photographs_is_trained_on_evaluated_and_told_about(folder, capsys):
    """Nothing but --img-size is said: parts for training, the middle for everything after it, as timm reads it too."""
    facts = trained_on(folder)
    pictures = facts["piat"]["pictures"]
    assert (pictures["augment"], pictures["crop_pct"]) == ("rrc", 0.875)
    assert "pictures, of which each epoch sees random parts, at 16x16 pixels" in capsys.readouterr().out
    model = piat_hub.from_pretrained("r")
    said = timm.data.resolve_model_data_config(model)
    assert (said["crop_mode"], said["crop_pct"], said["interpolation"]) == ("center", 0.875, "bicubic")
    theirs = timm.data.create_transform(**said)
    test = images_for(load_model("r")[0], folder, "test")
    files = [str(p) for p in sorted(Path(folder, "test").rglob("*.jpg"))]
    for k in range(0, len(files), 5):
        picture = Image.open(files[k])
        assert torch.equal(theirs(picture), test.images[k] / 255), "timm's own transform gives the same image"
    with torch.no_grad():
        expected = model(data.to_unit(test.images[:4])).softmax(1)
    for (_, found), row in zip(predict("r", files[:4]), expected, strict=True):
        assert dict(found)["bright"] == pytest.approx(row[0].item(), abs=1e-5)
    line = next(line for line in Path("r/README.md").read_text().splitlines() if "read_image" in line)
    shown = eval(line.split(" = ")[1].replace("image.png", files[0]), {"data": data})  # the card's own words
    assert torch.equal(shown[0], test.images[0] / 255)
    cli.main(["evaluate", "r", "--attacks", "clean", "--output", "e"])
    results = json.loads(Path("e/results.json").read_text())
    assert results["attacks"]["clean"]["n"] == 24 and results["images_sha256"] == test.digest()


def test_in_python_a_named_data_set_gets_the_models_size_as_the_command_gives_it(folder):
    trained_on(folder)
    found = piat_hub.evaluate(piat_hub.from_pretrained("r"), folder, ["clean"])
    assert found.images == images_for(load_model("r")[0], folder, "test").digest()


@pytest.mark.parametrize("limit", [data.LIMIT, 0.0])
def test_a_grey_test_split_of_a_model_that_takes_colour(tmp_path, monkeypatch, limit):
    photographs(tmp_path / "d", sizes=((16, 16),), kind="png")
    for file in Path(tmp_path, "d", "test").rglob("*.png"):
        Image.open(file).convert("L").save(file)
    monkeypatch.setattr("piat_hub.data.sources.of_one_size.__defaults__", (None, limit, None))
    folder = str(tmp_path / "d")
    trained_on(folder, "--track-test", output="r")
    assert json.loads(Path("r/metrics.jsonl").read_text().splitlines()[0])["test_clean_acc"] is not None
    found = images_for(load_model("r")[0], folder, "test")
    first = found.images[:4]
    assert found.shape[0] == 3 and torch.equal(first, first[:, :1].expand(-1, 3, -1, -1))
    assert found.notes[-1].endswith(
        "is all grey; the model, which takes colour, sees each picture in three equal channels"
    )
    assert isinstance(found.images, data.Encoded) == (not limit)
    with pytest.warns(UserWarning, match="all grey"):
        assert piat_hub.evaluate(piat_hub.from_pretrained("r"), folder, ["clean"]).n == len(found)


def test_squeezed_where_that_is_asked_for_and_remembered(folder):
    facts = trained_on(folder, "--augment", "pad")
    assert facts["pretrained_cfg"]["crop_mode"] == "squash" and facts["piat"]["pictures"]["crop_pct"] is None
    test = images_for(load_model("r")[0], folder, "test")
    assert torch.equal(test.images[1], data.load(folder, "test", img_size=16).images[1])


def test_a_resumed_run_ends_with_the_same_bytes(config):
    """Stopped within an epoch, with RandAugment and erasing: nothing of the views is saved, and nothing is missing."""
    options = RunOptions(output="whole")
    list(run.train(config, options))
    steps = iter([False, False, False, True])
    list(run.train(config, RunOptions(output="parts"), lambda: next(steps)))
    list(run.train(config, RunOptions(output="parts", resume=True)))
    for name in ("model.safetensors", "metrics.jsonl"):
        assert Path("whole", name).read_bytes() == Path("parts", name).read_bytes()


def test_one_size_keeps_the_papers_path(tmp_path):
    """Decoded once, padded and cropped; a run of before these fields is resumed by the same command."""
    folder = photographs(tmp_path / "d", sizes=((16, 16),), kind="png")
    facts = trained_on(folder, output="one")
    assert facts["piat"]["pictures"] == json.loads(json.dumps(dataclasses.asdict(PictureConfig())))
    assert facts["pretrained_cfg"]["crop_mode"] == "squash"


def test_timms_own_models_see_photographs_as_timm_shows_them(folder, tmp_path):
    """A directory of timm's format, without a training of ours: its crop, at its size or at another."""
    model = timm.create_model("resnet18", num_classes=2)
    config = {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bilinear", "input_size": (3, 32, 32)}
    facts = {"label_names": ["bright", "dark"], "pretrained_cfg": config}
    timm.models.save_for_hf(model, str(tmp_path / "m"), facts, safe_serialization=True)
    loaded = load_model(f"local-dir:{tmp_path / 'm'}")[0]
    expected = timm.data.create_transform((3, 32, 32), use_prefetcher=True, **{k: config[k] for k in list(config)[:3]})
    first = Image.open(next(iter(sorted(Path(folder, "test", "bright").iterdir()))))
    assert torch.equal(images_for(loaded, folder, "test").images[0], expected(first))
    assert images_for(loaded, folder, "test", img_size=24).shape == (3, 24, 24)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--aa", "rnad-m9"), "timm knows no --aa 'rnad-m9' (did you mean 'rand'?)"),
        (("--aa", "rand-q9"), "timm knows no --aa 'rand-q9'"),
        (("--aa", "rand-m9", "--augment", "pad"), "give --augment rrc, not pad"),
        (("--scale", "0.5"), "scale must be two shares"),
        (("--scale", "0.5", "2"), "scale must be two shares"),
        (("--crop-pct", "1.2"), "crop_pct must be <= 1"),
        (("--reprob", "2"), "reprob must be <= 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, capsys, flags, message):
    assert trained_on(folder, *flags) is None
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told.replace("-pct", "_pct") and not Path("r").exists()


def test_sizes_that_differ_want_one(folder, capsys):
    assert cli.main(["train", "digits", "--dataset", folder, "--output", "r"]) == 2
    assert (
        "d mixes image sizes: 30x40 and 33x33; give them one with --img-size" in capsys.readouterr().err
        and not Path("r").exists()
    )


def test_a_broken_photograph_is_named_or_left_out_and_counted(tmp_path, capsys):
    folder = Path(photographs(tmp_path / "d"))
    whole = (folder / "train/dark/003.jpg").read_bytes()
    (folder / "train/dark/003.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "train/notes.txt").write_text("none of them")
    assert trained_on(folder) is None
    assert "train/dark/003.jpg is not an image file" in (told := capsys.readouterr().err) and "--skip-broken" in told
    trained_on(folder, "--skip-broken", output="s")
    out = capsys.readouterr().out
    assert f"d: 1 broken images are left out: {folder}/train/dark/003.jpg" in out and "1 files are left out" in out
    assert "data: 19 pictures" in out


def test_only_the_images_of_a_list_in_its_order(folder, tmp_path):
    """RobustBench's list has folders and suffixes, the Hub's copy of ImageNet a class at the end of each name."""
    model, names = torch.nn.Identity(), tmp_path / "names.txt"
    names.write_text("n01440764/004.JPEG\n\n001_n01440764.jpg\n")
    whole, some = (images_for(model, folder, "test", img_size=16, files=files) for files in (None, str(names)))
    stems = [Path(cell["path"]).stem for cell in data.load_encoded(folder, "test").images.cells]
    assert torch.equal(some.images, whole.images[[stems.index("004"), stems.index("001")]])
    assert some.labels.tolist() == [whole.labels[stems.index(name)] for name in ("004", "001")]
    assert some.notes == ("the images are those that names.txt lists, in its order",)
    names.write_text("004\n001\n004.jpg\n")
    with pytest.raises(InputError, match="names 004 twice"):
        images_for(model, folder, "test", img_size=16, files=str(names))
    names.write_text("004\n999\n")
    with pytest.raises(InputError, match="names 999, of which d has 0"):
        images_for(model, folder, "test", img_size=16, files=str(names))
    with pytest.raises(InputError, match="no list of file names"):
        images_for(model, folder, "test", img_size=16, files=str(tmp_path))


def test_a_name_that_several_pictures_have_goes_with_its_folder(tmp_path):
    for k, (name, label) in enumerate((("0.png", "cat"), ("0.png", "dog"), ("1.png", "dog"))):
        (tmp_path / "d/test" / label).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * k).save(tmp_path / "d/test" / label / name)
    names = tmp_path / "names.txt"
    names.write_text("dog/0.png\n1\ncat/0.png\n")
    some = images_for(torch.nn.Identity(), str(tmp_path / "d"), "test", files=str(names))
    assert some.images[:, 0, 0, 0].tolist() == [10, 20, 0]
    names.write_text("0.png\n")
    with pytest.raises(InputError, match="names 0.png, of which d has 2"):
        images_for(torch.nn.Identity(), str(tmp_path / "d"), "test", files=str(names))
