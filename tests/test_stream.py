"""data/stream.py: shards read through, in an order that (seed, epoch) decide, exactly again after a stop."""

import dataclasses
import json
from itertools import chain
from pathlib import Path

import datasets
import pytest
import torch
from toys import numbered_shards

from piat_hub import cli, data
from piat_hub.config import InputError, PictureConfig, RunOptions, recipes
from piat_hub.training import run

PAD = PictureConfig(augment="pad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return numbered_shards(tmp_path_factory.mktemp("stream") / "d", (20, 16, 16))


@pytest.fixture
def config(folder):
    changes = dict(dataset=folder, stream=True, epoch_size=48, holdout=4, crop_pad=0, pictures=PAD)
    return dataclasses.replace(recipes.get("digits"), epochs=2, clean_epochs=1, batch_size=16, **changes)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    """Datasets waits seconds whenever a stream is closed, for a process that might end right after; these do not."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def stream_of(config):
    stream = data.open_stream(config.dataset, None, None, config.epoch_size, config.holdout)
    return dataclasses.replace(stream, head=data.of_one_size(stream.head[config.holdout :], limit=0))


def numbers(batches):
    return [images[:, 0, 0, 0].tolist() for images, _ in batches]


def test_each_image_once_an_epoch_and_none_that_is_held_out(config):
    stream = stream_of(config)
    found = list(data.training_batches(stream, config))
    seen = numbers(found)
    assert [len(batch) for batch in seen] == [16] * 6
    for epoch in (seen[:3], seen[3:]):
        assert sorted(chain(*epoch)) == list(range(4, 52))
    assert seen[:3] != seen[3:], "each epoch in its own order"
    assert seen[0] != sorted(seen[0])
    assert all(labels.tolist() == [k % 2 for k in batch] for (_, labels), batch in zip(found, seen, strict=True))
    assert numbers(data.training_batches(stream, config)) == seen
    assert numbers(data.training_batches(stream, dataclasses.replace(config, seed=1))) != seen


def test_what_follows_a_stop_is_what_would_have_followed(config):
    """Within an epoch the images before are read past, so the shuffle buffer is what it was."""
    config = dataclasses.replace(config, pictures=PictureConfig(augment="rrc", crop_pct=1.0, aa="rand-m9-mstd0.5-inc1"))
    stream = stream_of(config)
    whole = [images for images, _ in data.training_batches(stream, config)]
    for epochs, steps in ((0, 2), (1, 1)):
        after = [images for images, _ in data.training_batches(stream, config, 0, 1, epochs, steps)]
        assert len(after) == 6 - 3 * epochs - steps
        assert all(map(torch.equal, after, whole[3 * epochs + steps :]))


def test_a_stream_that_ends_begins_again(config):
    stream = stream_of(dataclasses.replace(config, epoch_size=96))
    seen = numbers(data.training_batches(stream, dataclasses.replace(config, epoch_size=96, epochs=1, clean_epochs=0)))
    assert sorted(chain(*seen)) == sorted(2 * list(range(4, 52))) and seen[:3] != seen[3:]


def test_a_streamed_run_is_stopped_and_resumed_to_the_same_bytes(config):
    list(run.train(config, RunOptions(output="whole")))
    steps = iter([False, True])
    list(run.train(config, RunOptions(output="parts"), lambda: next(steps)))
    list(run.train(config, RunOptions(output="parts", resume=True)))
    for name in ("model.safetensors", "metrics.jsonl"):
        assert Path("whole", name).read_bytes() == Path("parts", name).read_bytes()
    assert json.loads(Path("whole/config.json").read_text())["label_names"] == ["even", "odd"]


def test_by_command(folder, capsys):
    """A tenth of an epoch is held out, where nothing else is said."""
    changes = dataclasses.replace(
        recipes.get("digits"), holdout=None, dataset=folder, stream=True, epoch_size=40, batch_size=20
    )
    list(run.train(dataclasses.replace(changes, epochs=1, clean_epochs=0), RunOptions(output="r")))
    assert json.loads(Path("r/config.json").read_text())["piat"]["holdout"] == 4
    words = [
        "train",
        "digits",
        "--dataset",
        folder,
        "--stream",
        "--epoch-size",
        "40",
        "--batch-size",
        "20",
        "--steps",
        "1",
    ]
    assert cli.main([*words, "--epochs", "1", "--clean-epochs", "0", "--holdout", "5", "--output", "s"]) == 0
    assert (
        "data: 40 images an epoch are read through in shards, of which the first 5 are held out"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--stream",), "--stream and --epoch-size go together"),
        (("--epoch-size", "40"), "--epoch-size goes with --stream or --extra-data"),
        (("--stream", "--epoch-size", "40", "--train-size", "9"), "leave out --train-size"),
        (("--stream", "--epoch-size", "40", "--skip-broken"), "--skip-broken"),
        (("--stream", "--epoch-size", "8"), "epoch-size 8 is less than one batch of 16"),
        (
            ("--stream", "--epoch-size", "40", "--holdout", "19"),
            "the first shard of d has 20 images: too few for holdout=19",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused_in_one_line(folder, capsys, flags, message):
    words = ["train", "digits", "--dataset", folder, "--batch-size", "16", "--holdout", "4", "--output", "r", *flags]
    assert cli.main(words) == 2 and message in capsys.readouterr().err and not Path("r").exists()


def test_a_folder_of_pictures_and_text_labels_are_refused(tmp_path):
    import datasets
    from test_feed import photographs

    with pytest.raises(InputError, match="is a folder of pictures, which lie on this disk; leave out --stream"):
        data.open_stream(photographs(tmp_path / "p", 4), None, None, 8, 0)
    numbered_shards(tmp_path / "t", (6,))
    table = datasets.load_dataset(str(tmp_path / "t"), split="train").cast_column("label", datasets.Value("int64"))
    table.to_parquet(str(tmp_path / "t/train-00000-of-00001.parquet"))
    with pytest.raises(InputError, match="column 'label' names no classes, and a stream cannot look for them"):
        data.open_stream(str(tmp_path / "t"), None, None, 4, 0)


def test_few_held_out_images_are_enough_and_a_missing_label_is_named(tmp_path):
    folder = numbered_shards(tmp_path / "d", (20, 16))
    assert len(data.open_stream(folder, None, None, 15, 1).head) == 20  # the shard is no longer
    table = datasets.load_dataset(folder, split="train")
    table = table.map(lambda row, k: {"label": None if k == 1 else row["label"]}, with_indices=True)
    table.to_parquet(str(tmp_path / "n.parquet"))
    (tmp_path / "null").mkdir()
    (tmp_path / "n.parquet").rename(tmp_path / "null/train.parquet")
    with pytest.raises(InputError, match="image 1 of its first shard has no label"):
        data.open_stream(str(tmp_path / "null"), None, None, 15, 4)
