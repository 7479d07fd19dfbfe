"""data/folders.py: what a folder of pictures means; each layout as someone has it."""

import json
import re
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from piat_hub import data
from piat_hub.config import InputError

RANDOM = np.random.default_rng(0)


def draw(*files):
    """A picture of its own in each of these files."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(file)


def layout(root, splits=("train", "test"), classes=("cat", "dog"), n=2):
    """ROOT/SPLIT/CLASS/NUMBER.png."""
    draw(*(root / split / name / f"{i}.png" for split in splits for name in classes for i in range(n)))
    return str(root)


def counts(folder, split):
    """How many images each class of a split has."""
    found = data.load(folder, split)
    return {name: int((found.labels == k).sum()) for k, name in enumerate(found.label_names)}


def refused(folder, split="train"):
    with pytest.raises(InputError) as caught:
        data.load(folder, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["train", "test", "val", "dev", "eval", "bullet train", "test-tube", "my_validation"])
def test_a_class_may_be_called_like_a_split(tmp_path, name):
    folder = layout(tmp_path / "d", classes=("car", name))
    for split in ("train", "test"):
        assert counts(folder, split) == {"car": 2, name: 2}
    train, test = (data.load(folder, split).images for split in ("train", "test"))
    assert not {x.numpy().tobytes() for x in train} & {x.numpy().tobytes() for x in test}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("Training", "Testing"),
        ("train_images", "test_images"),
        ("training", "valid"),
    ],
)
def test_a_splits_folder_may_be_written_otherwise(tmp_path, train, test):
    folder = layout(tmp_path / "d", splits=(train, test))
    assert counts(folder, "train") == {"cat": 2, "dog": 2} == counts(folder, "test")


def test_splits_may_lie_one_folder_further_in(tmp_path):
    layout(tmp_path / "d/archive/photos", classes=("car", "train"))
    draw(tmp_path / "d/__MACOSX/archive/._0.png", tmp_path / "d/.hidden/0.png")
    assert counts(str(tmp_path / "d"), "test") == {"car": 2, "train": 2}


def test_folders_of_classes_alone_are_the_training_split(tmp_path):
    folder = layout(tmp_path, splits=("d",), classes=("cat", "dog", "bullet train"))
    draw(tmp_path / "d/cat/test 3.png")  # nor does a picture's name make a split
    assert counts(f"{folder}/d", "train") == {"bullet train": 2, "cat": 3, "dog": 2}
    assert "has no split 'test'; it has train" in refused(f"{folder}/d", "test")


def test_what_could_be_a_split_or_a_class_is_refused(tmp_path):
    layout(tmp_path, splits=("vehicles",), classes=("bus", "car", "train"))
    message = refused(str(tmp_path / "vehicles"))
    assert f"{tmp_path}/vehicles/train could be a split or a class, beside bus, car; put the folders" in message


def test_other_folders_beside_the_splits_are_none(tmp_path):
    folder = layout(tmp_path / "d")
    draw(tmp_path / "d/masks/0.png", tmp_path / "d/notes/cover.png")
    assert counts(folder, "train") == {"cat": 2, "dog": 2}


@pytest.mark.parametrize("name", ["imagefolder", "csv", "d [1] *", "ünï cödé"])
def test_the_folder_may_have_any_name(tmp_path, monkeypatch, name):
    """`datasets` has readers called imagefolder and csv, and takes brackets and stars for patterns."""
    layout(tmp_path / name, classes=("cat [2]", "dog*"))
    monkeypatch.chdir(tmp_path)
    assert counts(name, "test") == {"cat [2]": 2, "dog*": 2}


def test_the_order_is_that_of_datasets_and_suffixes_may_be_large(tmp_path):
    import datasets

    folder = layout(tmp_path / "d", n=12)
    for file in sorted((tmp_path / "d/train/cat").iterdir())[:3]:
        file.rename(file.with_suffix(".PNG"))
    plain = datasets.load_dataset(folder, split="train")
    images = [np.asarray(picture).transpose(2, 0, 1) for picture in plain["image"]]
    found = data.load(folder, "train")
    assert np.array_equal(found.images, images) and found.labels.tolist() == plain["label"]


def test_what_is_no_picture_is_left_out_and_said(tmp_path):
    folder = layout(tmp_path / "d")
    for name in ("cat/Thumbs.db", "dog/0.txt", "dog/1.txt", "dog/2.heic", "readme.json", ".DS_Store"):
        (tmp_path / "d/train" / name).write_text("no picture")
    for i in range(20):
        (tmp_path / f"d/train/cat/{i}.txt").write_text("one beside each, as detectors have them")
    found = data.load(folder, "train")
    assert len(found) == 4 and data.load(folder, "test").notes == ()
    assert found.notes == ("d: 25 files are left out of train: 0.txt, 1.txt, 10.txt, 11.txt, 12.txt and 20 more",)


def test_folders_that_datasets_passes_over_are_said(tmp_path):
    folder = layout(tmp_path / "d", classes=("cat", "dog", "__background__"))
    (tmp_path / "d/train/emu").symlink_to(tmp_path / "d/train/dog")
    found = data.load(folder, "train")
    assert found.label_names == ("cat", "dog")
    assert found.notes == ("d: 3 files are left out of train: 0.png, 1.png, emu",)


def test_splits_and_classes_that_are_links_are_refused_by_name(tmp_path):
    layout(tmp_path / "d")
    for name, linked in (("a", ["test"]), ("b", ["train", "test"]), ("c", ["train/cat", "train/dog"])):
        for target in linked:
            (tmp_path / name / target).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / target).symlink_to(tmp_path / "d" / target)
    shutil.copytree(tmp_path / "d/train", tmp_path / "a/train")
    for name, link in (("a", "test"), ("b", "test"), ("c", "train/cat")):
        assert f"{tmp_path}/{name}/{link} is a link to a folder, and none is followed" in refused(str(tmp_path / name))


def archive(root, *inside):
    with zipfile.ZipFile(root, "w") as packed:
        for file in inside:
            packed.write(file, f"{file.parent.name}/{file.name}")


def test_an_archive_among_the_pictures_is_refused_by_name(tmp_path):
    folder = layout(tmp_path / "d")
    archive(tmp_path / "d/train/cat/old.zip", tmp_path / "d/train/cat/0.png")
    assert f"{folder}/train/cat/old.zip lies among pictures, which is no picture; unpack it" in refused(folder)
    assert counts(folder, "test") == {"cat": 2, "dog": 2}


def test_archives_alone_are_to_be_unpacked(tmp_path):
    """`datasets` takes the name of the folder that an archive lies in for the class of all its pictures."""
    layout(tmp_path / "raw")
    (tmp_path / "d").mkdir()
    for split in ("train", "test"):
        archive(tmp_path / f"d/{split}.zip", *sorted((tmp_path / "raw" / split).rglob("*.png")))
    assert (
        "; unpack" in (message := refused(str(tmp_path / "d"), "test"))
        and "put each picture into SPLIT/CLASS" in message
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["train/cat/0.png", "train/cat/1.png"],
            "d/train holds a single class, 'cat'; a classifier needs at least two",
        ),
        (["cat/0.png", "cat/1.png"], "d holds a single class, 'cat'"),
        (["train/0.png", "train/1.png"], "d/train/1.png lies in no folder of its class; make it"),
        (["0.png", "1.png"], "d/1.png lies in no folder of its class"),
        (
            ["train/0.png", "train/cat/1.png", "train/dog/1.png"],
            "d/train/0.png and .*d/train/dog/1.png lie at different depths",
        ),
        (["train/pets/cat/0.png", "train/dog/1.png"], "lie at different depths"),
        (
            ["train/cat/0.png", "train/dog/0.png", "test/emu/0.png"],
            "d/train has no picture of emu, which the test split has",
        ),
    ],
)
def test_pictures_without_a_class_are_refused(tmp_path, files, message):
    draw(*(tmp_path / "d" / file for file in files))
    assert re.search(message, refused(str(tmp_path / "d")))


def test_classes_may_lie_deeper_and_only_in_training(tmp_path):
    draw(
        *(
            tmp_path / "d/train" / f"{group}/{name}/0.png"
            for group, name in (("pets", "cat"), ("pets", "dog"), ("birds", "emu"))
        )
    )
    draw(*(tmp_path / "d/test" / f"pets/{name}/0.png" for name in ("cat", "dog")))
    (tmp_path / "d/train/birds/empty").mkdir()
    assert counts(str(tmp_path / "d"), "train") == {"cat": 1, "dog": 1, "emu": 1}
    assert counts(str(tmp_path / "d"), "test") == {"cat": 1, "dog": 1}
    (note,) = data.load(str(tmp_path / "d"), "train", img_size=8).notes
    assert "folders within folders (birds/emu)" in note and "the innermost ones are the classes: cat, dog, emu" in note
    assert data.load(str(tmp_path / "d"), "test", img_size=8).notes == ()  # its pets alone are no question


def test_splits_below_the_classes_are_refused(tmp_path):
    draw(*(tmp_path / "d" / name / split / "0.png" for name in ("cat", "dog") for split in ("train", "test")))
    with pytest.raises(InputError, match="has the classes test, train, which are splits; put them above the classes"):
        data.load(str(tmp_path / "d"), "train")


def test_pictures_beside_the_splits_and_a_split_in_the_place_of_test_are_said(tmp_path):
    draw(*(tmp_path / "d" / split / name / "0.png" for name in ("cat", "dog") for split in ("train", "val", "more")))
    assert data.load(str(tmp_path / "d"), "train", img_size=8).notes == (
        "d: 2 pictures in more/cat, more/dog belong to no split and are left out",
    )
    *_, note = data.load(str(tmp_path / "d"), "test", img_size=8).notes
    assert note == "d has no split 'test': these are the images of its split 'validation'"


def table(root, rows, split="train", kind="csv"):
    """Pictures of these rows and the metadata that says their columns."""
    draw(*(root / split / row["file_name"] for row in rows if row["file_name"]))
    where = root / split / f"metadata.{kind}"
    csv = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    where.write_text("\n".join(csv if kind == "csv" else map(json.dumps, rows)) + "\n")
    return str(root)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_says_the_classes_as_text_or_numbers(tmp_path, kind):
    names = ("emu", "cat", "dog", "cat")
    rows = [{"file_name": f"{i}.png", "label": name, "species": name.upper()} for i, name in enumerate(names)]
    folder = table(tmp_path / "d", rows, kind=kind)
    assert counts(folder, "train") == {"cat": 2, "dog": 1, "emu": 1}
    assert data.load(folder, "train", label_column="species").label_names == ("CAT", "DOG", "EMU")
    numbered = [{"file_name": f"{i}.png", "label": i % 2} for i in range(4)]
    assert counts(table(tmp_path / "n", numbered, kind=kind), "train") == {"0": 2, "1": 2}


def test_metadata_may_describe_one_split_and_folders_the_other(tmp_path):
    rows = [{"file_name": f"{i}.png", "label": name} for i, name in enumerate(("dog", "cat"))]
    folder = table(tmp_path / "d", rows)
    layout(tmp_path / "d", splits=("test",))
    assert counts(folder, "train") == {"cat": 1, "dog": 1} and counts(folder, "test") == {"cat": 2, "dog": 2}


def test_metadata_that_does_not_fit_the_pictures_is_told(tmp_path):
    rows = [{"file_name": f"{i}.png", "label": name} for i, name in enumerate(("dog", "cat"))]
    folder = table(tmp_path / "d", rows)
    draw(tmp_path / "d/train/unlisted.png")
    found = data.load(folder, "train")
    assert len(found) == 2 and found.notes[1] == "d: 1 files are left out of train: unlisted.png"
    (tmp_path / "d/train/1.png").unlink()
    assert re.search(rf"there is no file .*{folder}/train/1.png; correct its name", refused(folder))
    captions = [{"file_name": f"{i}.png", "text": "a picture"} for i in range(2)]
    message = refused(table(tmp_path / "c", captions))
    assert "c has no label column among image, text; name one with --label-column" in message
    empty = [{"file_name": "0.png", "label": "cat"}, {"file_name": "1.png", "label": ""}]
    assert "row 1 has no label in column 'label'" in refused(table(tmp_path / "e", empty))


def test_a_declared_data_set_is_what_it_says(tmp_path):
    """A README.md with `configs`, as a data set fetched from the Hub has: its owner decides, not the folders' names."""
    folder = layout(tmp_path / "d", splits=("a", "b"))
    files = [f"  - split: {split}\n    path: {name}/**\n" for split, name in (("train", "a"), ("test", "b"))]
    text = f"---\nconfigs:\n- config_name: default\n  data_files:\n{''.join(files)}---\n"
    (tmp_path / "d/README.md").write_text(text)
    assert counts(folder, "train") == {"cat": 2, "dog": 2} == counts(folder, "test")
    (tmp_path / "d/README.md").write_text("# My photographs\n")
    assert set(counts(folder, "train")) == {"cat", "dog"}  # of all four folders, since none is called like a split
