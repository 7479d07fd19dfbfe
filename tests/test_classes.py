"""Labels go by name: data/classes.py by its definition, and what evaluation, figures and a training from weights make of it."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import piat_hub
from piat_hub import data
from piat_hub.config import EvalConfig, InputError, TrainConfig, numbers_of
from piat_hub.data import Split, numbered_as
from piat_hub.evaluation import request
from piat_hub.hub.save import save_pretrained

NAMES = ("cat", "dog", "emu")


def split_of(names, labels, **fields):
    """An image of one bright pixel for each of these labels, at its class's number in NAMES."""
    images = torch.zeros(len(labels), 1, 1, 4, dtype=torch.uint8)
    for i, label in enumerate(labels):
        name = names[label].strip().casefold()
        images[i, 0, 0, NAMES.index(name) if name in NAMES else 3] = 255
    return Split(images, torch.tensor(labels), names, "theirs", **fields)


class Bright(nn.Module):
    """The class is the number of the bright pixel, of three."""

    def __init__(self, names=NAMES):
        super().__init__()
        self.label_names = names
        self.weight = nn.Parameter(torch.eye(4)[:3])

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def measured(split, model=None):
    """(clean accuracy, what was warned of)."""
    with pytest.warns() if split.label_names != NAMES else np.errstate() as caught:
        results = piat_hub.evaluate(model or Bright(), split, ["clean"])
    return results, [str(w.message) for w in caught or ()]


def test_the_same_names_in_another_order():
    results, said = measured(split_of(("emu", "dog", "cat"), [0, 1, 2, 0]))
    assert results.attacks["clean"]["accuracy"] == 1 and results.label_names == NAMES
    assert results.labels.tolist() == [2, 1, 0, 2]  # what verdicts.npz holds: numbers of the model's classes
    assert said == ["the classes of theirs stand in another order than those of the model; labels go by name"]


def test_the_same_names_in_the_same_order_need_no_word():
    split = split_of(NAMES, [0, 1, 2])
    assert numbered_as(split, NAMES) is split and numbered_as(split, ()) is split
    assert measured(split)[0].attacks["clean"]["accuracy"] == 1


def test_a_subset_is_evaluated_as_one_and_any_answer_of_the_model_counts():
    results, said = measured(split_of(("dog", "cat"), [0, 1, 1]))
    assert results.attacks["clean"]["accuracy"] == 1 and results.per_class["clean"] == [1.0, 1.0, None]
    assert said[1] == "theirs has 2 of the 3 classes of the model: an answer outside of them counts as wrong"
    outside = Bright()
    outside.weight.data[2] += 2  # it sees an emu in every picture
    assert measured(split_of(("dog", "cat"), [0, 1, 1]), outside)[0].attacks["clean"]["accuracy"] == 0


def test_a_class_that_no_image_has_is_no_obstacle():
    results, said = measured(split_of(("dog", "unknown", "cat"), [0, 2, 2]))
    assert results.attacks["clean"]["accuracy"] == 1 and "2 of the 3 classes" in said[1]


@pytest.mark.parametrize("names", [("Dog", " CAT", "emu"), ("dog", "cat", "Emu ")])
def test_names_that_are_only_written_otherwise_are_the_same(names):
    results, said = measured(split_of(names, [0, 1, 2]))
    assert results.attacks["clean"]["accuracy"] == 1 and "of theirs is taken for" in said[-1]


def test_ways_to_write_a_name():
    assert numbers_of(["T_Shirt", "long sleeve", "café"], ["long-sleeve", "caf\u0065\u0301", "t shirt"]) == [2, 0, 1]
    assert numbers_of(["A", "a"], ["a", "A"]) == [1, 0]  # where both are there, they are two
    assert numbers_of(["A", "a"], ["a", "b"]) is None and numbers_of(["a"], ["a", "a"]) is None


@pytest.mark.parametrize(
    "names",
    [("ant", "bee", "cow"), ("cat", "dog", "cow"), ("0", "1", "2"), ("cat", "Cat", "dog"), ("cat", "cats", "dog")],
)
def test_other_names_are_refused_with_both_lists(names):
    with pytest.raises(InputError) as caught:
        piat_hub.evaluate(Bright(), split_of(names, [0, 1, 2]), ["clean"])
    said = str(caught.value)
    assert said.startswith(
        "the model has 3 classes and theirs has 3; name the data it was trained for with --dataset, or"
    )
    assert said.endswith(f"since labels go by name: {', '.join(names)} against cat, dog, emu") and "\n" not in said


def test_long_lists_are_shortened():
    names = tuple(f"class {k}" for k in range(1000))
    with pytest.raises(
        InputError, match="cat, dog, emu against class 0, class 1, class 2, class 3, class 4 and 995 more"
    ):
        numbered_as(split_of(NAMES, [0, 1, 2]), names)


def test_data_without_names_go_by_their_numbers_and_it_is_said():
    split = dataclasses.replace(split_of(NAMES, [0, 1, 2]), label_names=())
    results, said = measured(split)
    assert results.attacks["clean"]["accuracy"] == 1 and results.label_names == NAMES
    assert said == ["theirs has no names for its classes: its label k is taken for class k of the model, 'cat' for 0"]
    four = Split(torch.zeros(4, 1, 1, 4, dtype=torch.uint8), torch.arange(4), (), "theirs")
    with pytest.raises(
        InputError, match="the model has 3 classes and theirs has 4; .*: 0, 1, 2, 3 against cat, dog, emu"
    ):
        piat_hub.evaluate(Bright(), four, ["clean"])


def test_numbers_as_names_go_by_the_number_and_not_by_its_place():
    """Folders "0" to "11" are sorted as text: class 2 of a model trained on them is "10"."""
    names = tuple(sorted(map(str, range(12))))
    split = Split(torch.zeros(12, 1, 1, 1, dtype=torch.uint8), torch.arange(12), (), "numbers")
    assert [names[k] for k in numbered_as(split, names).labels] == list(map(str, range(12)))


@pytest.mark.parametrize(
    ("names", "labels", "numbers"),
    [
        (sorted(map(str, range(12))), range(12), [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
        (sorted(map(str, range(1, 13))), range(12), [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8]),
        (["0", "1", "10", "3", "4", "5"], range(6), [0, 1, 10, 3, 4, 5]),  # folders without pictures are not there
        (["1", "0"], [0, 1], None),  # an order that somebody chose
        (["00", "01", "02"], [2, 1, 0], None),
        (["10001", "2"], [0, 1], None),  # codes
        (["1b", "2"], [0, 1], None),
    ],
)
def test_folders_called_by_numbers_go_by_them_where_the_model_has_no_names(names, labels, numbers):
    split = Split(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), torch.tensor([*labels]), tuple(names), "d")
    found = numbered_as(split, ())
    if numbers is None:
        assert found is split
    else:
        assert found.labels.tolist() == numbers and "called by numbers" in found.notes[0]
        assert [found.label_names[k] for k in found.labels] == [names[k] for k in labels]


@pytest.mark.parametrize("names", [(), None, 3, "cat", nn.Identity()])
def test_a_model_without_names_goes_by_numbers(names):
    model = Bright()
    model.label_names = names
    split = split_of(("emu", "dog", "cat"), [0, 1, 2])
    results = piat_hub.evaluate(model, split, ["clean"])
    assert results.attacks["clean"]["accuracy"] == pytest.approx(1 / 3) and results.label_names == split.label_names
    with pytest.raises(InputError, match="the model has 3 classes and theirs has 2"):
        piat_hub.evaluate(model, split_of(("cat", "dog"), [0, 1]), ["clean"])


@pytest.fixture
def saved(tmp_path):
    """A model of three classes, saved; and a folder of its images whose classes are called otherwise ordered."""
    model = piat_hub.create_model("cifar_resnet8", num_classes=3, in_chans=1)
    with torch.no_grad():
        model.fc.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    save_pretrained(model, tmp_path / "m", config=TrainConfig(dataset="d"), label_names=NAMES, input_size=(1, 8, 8))
    for name in ("dog", "emu"):
        for i in range(2):
            (tmp_path / f"d/test/{name}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / f"d/test/{name}/{i}.png")
    return tmp_path


def test_a_command_says_it_and_verdicts_keep_the_models_numbers(saved, capsys):
    from piat_hub import cli

    assert cli.main(["evaluate", "m", "--dataset", "d", "--attacks", "clean", "--output", "r", "--threads", "1"]) == 0
    assert (
        "note: d has 2 of the 3 classes of the model: an answer outside of them counts as wrong"
        in capsys.readouterr().out
    )
    assert json.loads((saved / "r/results.json").read_text())["per_class"]["label_names"] == list(NAMES)
    with np.load("r/verdicts.npz") as verdicts:
        assert verdicts["label"].tolist() == [1, 1, 2, 2] and verdicts["clean"].tolist() == [True, True, False, False]
        changed = dict(verdicts) | {"label": np.array([0, 0, 1, 1])}
    np.savez_compressed("r/verdicts.npz", **changed)  # as a version that went by numbers wrote them
    with pytest.raises(InputError, match="r/results.json was measured with other labels of these images"):
        request.prepare_evaluation("m", EvalConfig(dataset="d", output="r"))


def test_a_surrogate_of_other_classes_is_refused(saved):
    model = piat_hub.from_pretrained("m")
    save_pretrained(model, saved / "s", label_names=NAMES[::-1], input_size=(1, 8, 8))
    with pytest.raises(InputError, match="s has other classes than m, or in another order; name another --surrogate"):
        request.prepare_evaluation("m", EvalConfig(dataset="d", surrogate="s"))


@pytest.mark.parametrize(
    ("names", "rows"),
    [(NAMES, [0, 1, 2]), (("emu", "cat", "dog"), [2, 0, 1]), (("ant", "bee", "cow"), None), ((), [0, 1, 2])],
)
def test_a_head_goes_with_its_classes(saved, names, rows):
    """Weights that a training begins with: a class has its own row, wherever it stands; another has a new one."""
    from piat_hub.training.setup import make_backbone

    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    config = TrainConfig(backbone="cifar_resnet8", init_from="m")
    model = make_backbone(config, Split(images, torch.arange(3), names, "mine"))
    source = piat_hub.from_pretrained("m")
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    if rows:
        assert torch.equal(model.fc.weight, source.fc.weight[rows]) and torch.equal(model.fc.bias, source.fc.bias[rows])
    else:
        assert model.fc.bias.abs().max() < 5 and not torch.equal(model.fc.weight, source.fc.weight)


def test_tracked_test_images_are_numbered_as_the_training_split(monkeypatch):
    from accelerate import Accelerator

    from piat_hub.config import RunOptions
    from piat_hub.training.setup import load_images

    parts = {"train": split_of(NAMES, [0, 1, 2]), "test": split_of(("emu", "dog"), [0, 1, 0])}
    monkeypatch.setattr(data, "load_encoded", lambda dataset, split, *_: parts[split])
    *_, tracked, _ = load_images(TrainConfig(), RunOptions(track_test=True), Accelerator())
    assert tracked.labels.tolist() == [2, 1, 2] and tracked.label_names == NAMES
