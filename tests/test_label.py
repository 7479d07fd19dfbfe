"""label.py: the pictures keep their bytes, the labels are the model's, and the record says how far to believe them."""

import io
import json
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from torch import nn

import piat_hub
from piat_hub import cli, data, from_pretrained
from piat_hub.evaluation import label

RUN = Path(piat_hub.__file__).parent / "demo" / "models" / "robust"  # a model of digits


def says(images):
    """The model's classes and probabilities, in float64."""
    with torch.no_grad():
        probabilities = from_pretrained(RUN).double()(images.double() / 255).softmax(1)
    return probabilities.argmax(1), probabilities.amax(1)


def labelled(model, dataset, *flags):
    """Label into `out`; gives the record."""
    assert cli.main(["label", str(model), str(dataset), "--output", "out", *flags]) == 0
    return json.loads((Path("out") / label.RECORD).read_text())


def coded(picture, form):
    """A picture's bytes in a file of this format."""
    picture.save(out := io.BytesIO(), form)
    return out.getvalue()


def table(folder, columns, features):
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(str(folder / "train.parquet"))


def digits(n, side=8):
    """Pictures of the first test digits, of several classes."""
    return [
        Image.fromarray(levels[0].numpy()).resize((side, side)) for levels in data.load("digits", "test").images[:n]
    ]


def test_digits_get_the_models_labels_and_the_agreement_is_counted(tmp_path, capsys):
    known = labelled(RUN, "digits", "--split", "test")
    test, made = data.load("digits", "test"), data.load("out", "train")
    classes, confidence = says(test.images)
    assert torch.equal(made.images, test.images) and torch.equal(made.labels, classes)
    assert made.label_names == test.label_names and not made.inferred
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [label.RECORD, label.TABLE]
    right = int((classes == test.labels).sum())
    assert 0 < right < 400
    assert (known["n"], known["kept"], known["agreement"]["correct"], known["agreement"]["n"]) == (400, 400, right, 400)
    assert known["confidence"]["mean"] == pytest.approx(float(confidence.mean()), abs=1e-4)
    assert known["confidence"]["least"] == pytest.approx(float(confidence.min()), abs=1e-4)
    assert sum(known["kept_by_class"].values()) == 400 and list(known["kept_by_class"]) == list("0123456789")
    weights = (RUN / "model.safetensors").read_bytes()
    assert known["weights"] == label.files.hashlib.sha256(weights).hexdigest() and known["dataset"] == "digits"
    assert str(tmp_path) not in json.dumps(known)
    out = capsys.readouterr().out
    assert "400 of 400 pictures of digits (test), labelled by robust" in out
    assert f"with the labels they had, all agree in {right / 4:.2f} % of 400 (95 %" in out
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out").rename("before")
    labelled(RUN, "digits", "--split", "test", "--batch-size", "250")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == written


def test_the_surest_of_each_class_are_kept():
    known = labelled(RUN, "digits", "--split", "test", "--keep-confident", ".25")
    test, made = data.load("digits", "test"), data.load("out", "train")
    classes, confidence = says(test.images)
    bright = [image.flatten().tolist() for image in test.images]
    kept = [bright.index(image.flatten().tolist()) for image in made.images]
    assert kept == sorted(set(kept)) and torch.equal(made.labels, classes[kept])
    for k in range(10):
        sure = [confidence[i].item() for i in kept if classes[i] == k]
        rest = [confidence[i].item() for i in range(400) if classes[i] == k and i not in kept]
        assert len(sure) == round(0.25 * (len(sure) + len(rest))) and min(sure) >= max(rest) - 1e-6
    assert (known["kept"], known["keep_confident"]) == (len(kept), 0.25)
    right = int((classes == test.labels)[kept].sum())
    assert (known["agreement_kept"]["correct"], known["agreement_kept"]["n"]) == (right, len(kept))
    assert known["agreement_kept"]["accuracy"] > known["agreement"]["accuracy"]


@pytest.mark.parametrize(
    ("share", "kept"), [(1.0, [0, 1, 2, 3, 4, 5, 6]), (0.5, [1, 2, 4]), (0.4, [1, 2, 4]), (0.01, [1, 4])]
)
def test_of_equals_the_first_is_kept_and_no_class_is_emptied(share, kept):
    classes = torch.tensor([0, 0, 0, 0, 5, 5, 0])
    confidence = torch.tensor([0.5, 0.9, 0.7, 0.5, 0.6, 0.6, 0.7])
    assert label.most_confident(classes, confidence, share).tolist() == kept


def test_a_picture_keeps_its_own_bytes(tmp_path):
    pictures = digits(5)
    bytes_ = [
        coded(picture, form) for picture, form in zip(pictures, ("PNG", "JPEG", "BMP", "PNG", "JPEG"), strict=True)
    ]
    cells = [{"bytes": content, "path": f"/somewhere/{i}.png"} for i, content in enumerate(bytes_)]
    table(
        tmp_path / "bare",
        {"picture": cells, "year": [1] * 5},
        {"picture": datasets.Image(), "year": datasets.Value("int64")},
    )
    known = labelled(RUN, "bare")
    made = data.load_encoded("out", "train")
    assert [cell["bytes"] for cell in made.images.cells[:]] == bytes_
    assert [cell["path"] for cell in made.images.cells[:]] == [f"{i}.png" for i in range(5)]
    assert torch.equal(made.labels, says(data.load_pictures("bare", "train")[0].decoded())[0])
    assert "agreement" not in known


@pytest.mark.parametrize("folders", [("",), ("a", "b")], ids=["in none", "in folders of no class of the model"])
def test_pictures_in_a_folder_need_no_classes(folders, tmp_path, capsys):
    files = [tmp_path / "found" / folder / f"{i}.png" for folder in folders for i in range(2)]
    for file, picture in zip(files, digits(len(files), 11), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    known = labelled(RUN, "found", "--img-size", "8")
    made = data.load_encoded("out", "train").images
    assert [cell["bytes"] for cell in made.cells[:]] == [file.read_bytes() for file in files] and known["n"] == len(
        files
    )
    assert [cell["path"] for cell in made.cells[:]] == [file.name for file in files]
    assert "how many are right is not known: " in capsys.readouterr().out


def test_broken_pictures_are_left_out_where_that_is_asked_for(tmp_path, capsys):
    (tmp_path / "found").mkdir()
    for i, picture in enumerate(digits(5, 11)):
        picture.save(tmp_path / "found" / f"{i}.png")
    (tmp_path / "found" / "2.png").write_bytes(b"no picture")
    words = ["label", str(RUN), "found", "--img-size", "8", "--output", "out"]
    assert (
        cli.main(words) == 2 and "piat train and piat label leave it out with --skip-broken" in capsys.readouterr().err
    )
    assert cli.main([*words, "--skip-broken"]) == 0
    told = capsys.readouterr().out
    assert "found: 1 broken images are left out: " in told and "4 of 4 pictures" in told
    assert [cell["path"] for cell in data.load_encoded("out", "train").images.cells[:]] == [
        f"{i}.png" for i in (0, 1, 3, 4)
    ]


def test_labels_that_are_there_go_by_name_and_are_left_out(tmp_path):
    names = [str(k) for k in range(9, -1, -1)]
    pictures = digits(12)
    true = says(data.to_unit(torch.stack([data.pictures.levels(p) for p in pictures])) * 255)[0]
    given = [names.index(str(int(k))) for k in true]
    given[0] = (given[0] + 1) % 10
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    table(tmp_path / "turned", {"image": pictures, "label": given}, kinds)
    known = labelled(RUN, "turned")
    assert (known["agreement"]["correct"], known["agreement"]["n"]) == (11, 12)
    made = data.load_encoded("out", "train")
    assert torch.equal(made.labels, true) and made.label_names == tuple("0123456789")


@pytest.mark.slow
def test_what_it_writes_trains_a_model(tmp_path):
    labelled(RUN, "digits", "--split", "test")
    line = "digits --train-size 64 --holdout 0 --epochs 2 --clean-epochs 1 --steps 1 --batch-size 32 --extra-data out"
    assert cli.main(["train", *line.split(), "--output", "r"]) == 0
    config = json.loads((tmp_path / "r" / "config.json").read_text())["piat"]
    assert (config["extra_images"], Path(config["extra_data"])) == (400, tmp_path / "out")
    assert (
        "22 of the 32 images of every batch come from extra data: out, 400 images"
        in (tmp_path / "r" / "README.md").read_text()
    )


class Nameless(nn.Module):
    """Dark or bright, or whatever `scale` makes of it."""

    scale, middle = 1.0, 0.3

    def forward(self, x):
        bright = x.mean((1, 2, 3)) - self.middle
        return torch.stack([-bright, bright], 1) * self.scale


def test_a_model_without_names_gives_numbers():
    known = labelled("test_label:Nameless", "digits", "--split", "test")
    made = data.load("out", "train")
    assert made.inferred and made.label_names == ("0", "1") and known["model"] == "test_label-Nameless"
    assert list(known["kept_by_class"]) == ["0", "1"] and "agreement" not in known  # with ten classes


def test_nothing_is_left_where_it_fails(tmp_path, monkeypatch, capsys):
    pictures = [*digits(3), {"bytes": b"no picture", "path": None}]
    table(tmp_path / "broken", {"image": pictures}, {"image": datasets.Image()})
    command = ["label", str(RUN), "broken", "--output", "out"]
    assert cli.main(command) == 2 and "row 3 is no image" in capsys.readouterr().err
    monkeypatch.setattr(label, "_stored", lambda cell: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    command[2:3] = ["digits"]
    assert cli.main(command) == 1 and "train.parquet cannot be written: No space left" in capsys.readouterr().err
    monkeypatch.setattr(Nameless, "scale", float("nan"))
    command[1] = "test_label:Nameless"
    assert cli.main(command) == 2 and "gives NaN or Inf for images of digits" in capsys.readouterr().err
    monkeypatch.setattr(Nameless, "scale", 1.0)
    monkeypatch.setattr(Nameless, "middle", 1.0)
    assert cli.main(command) == 2 and "takes all 1397 pictures for one class" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    assert cli.main(command) == 2 and "out holds notes.txt already; name another --output" in capsys.readouterr().err
