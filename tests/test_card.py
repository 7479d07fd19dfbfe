"""card.py: every number on the card is one of results.json or config.json; the YAML head reads back."""

import dataclasses
import json
import re

import pytest
from huggingface_hub import ModelCard

from piat_hub import card, cli, recipes
from piat_hub.config import InputError, InterpolationConfig


@pytest.fixture
def evaluated(small_digits, do_train, do_evaluate, tmp_path, quick_autoattack):
    do_train(small_digits(epochs=2), tmp_path / "r")
    do_evaluate("r", "clean", "pgd3", "aa", n=30)
    return tmp_path / "r"


def test_every_percentage_is_in_results(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    body = ModelCard.load(evaluated / "README.md").content.split("---", 2)[2]
    shown = re.findall(r"[\d.]+ %", body)
    known = {card.percent(v) for f in results["attacks"].values() for v in (f["accuracy"], *f["ci95"])} | {"95 %"}
    assert len(shown) > 9 and set(shown) <= known


def test_metadata_has_an_entry_per_attack(evaluated):
    data = ModelCard.load(evaluated / "README.md").data
    results = json.loads((evaluated / "results.json").read_text())
    assert data.library_name == "timm" and data.license == "mit" and "adversarial-robustness" in data.tags
    assert {(e.metric_args["attack"], e.metric_value) for e in data.eval_results} == {
        (name, figures["accuracy"]) for name, figures in results["attacks"].items()
    }
    for entry in data.eval_results:
        assert (entry.metric_args["norm"], entry.metric_args["eps"], entry.metric_args["n"]) == ("Linf", "0.15", 30)


def test_an_unmeasured_run_says_so(small_digits, do_train, tmp_path):
    do_train(small_digits(epochs=2), tmp_path / "r")
    text = card.write(tmp_path / "r").read_text()
    assert "Nothing has been measured on a test split yet" in text and "model-index" not in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [("pgd20", "PGD-20"), ("pgd", "PGD-20"), ("cw100", "CW-100"), ("aa", "AutoAttack"), ("clean", "clean")],
)
def test_attack_names(name, shown):
    assert card.attack_name(name) == shown


def test_titles():
    config = recipes.get("resnet18-cifar10")
    assert card.title(config) == "PIAT+NMSE, cifar_resnet18 on cifar10"
    names = {("pgd_at", "none"): "PGD-AT", ("pgd_at", "piat"): "PIAT", ("nmse", "constant"): "lam=0.9+NMSE"}
    for (method, kind), name in names.items():
        law = InterpolationConfig(kind=kind)
        assert card.method_name(dataclasses.replace(config, method=method, interpolation=law)) == name


@pytest.mark.parametrize(
    "line",
    [
        "digits",
        "resnet18-cifar100 --dataset uoft-cs/cifar100 --epochs 7 --lr 0.2 --eps 4/255 --step-size 1/255 --holdout 0 --no-flip",
        "resnet20-cifar10 --method pgd_at --interpolation constant --interpolation.constant 0.5 --train-size 5000 --seed 3",
        "digits --method.mu 2.0 --mixed-precision bf16 --clean-epochs 0 --norm L2 --eps 0.5 --crop-pad 0",
    ],
)
def test_the_command_on_the_card_gives_the_same_configuration(line, monkeypatch):
    got = []
    monkeypatch.setattr(cli, "run_training", lambda config, options: got.append(config))
    assert cli.main(["train", *line.split()]) == 0
    words = card.command(got[0]).split()
    assert words[:3] == ["accelerate", "launch", "train.py"]
    assert cli.main(["train", *words[3:]]) == 0
    assert got[0] == got[1]


def test_results_of_other_weights_are_left_out(evaluated):
    assert "AutoAttack" in (evaluated / "README.md").read_text()
    weights = evaluated / "model.safetensors"
    weights.write_bytes((evaluated / "model_best.safetensors").read_bytes() + b"x")
    assert "Nothing has been measured" in card.write(evaluated).read_text()
    weights.unlink()
    assert "Nothing has been measured" in card.write(evaluated).read_text()


def test_damaged_results_are_named(evaluated):
    (evaluated / "results.json").write_text("{")
    with pytest.raises(InputError, match="results.json is damaged"):
        card.write(evaluated)


def test_a_standard_model_is_not_called_adversarially_trained(small_digits, do_train, tmp_path):
    config = small_digits(epochs=2, method="standard", interpolation=InterpolationConfig(kind="none"))
    do_train(config, tmp_path / "r")
    path = card.write(tmp_path / "r")
    assert "without adversarial training" in path.read_text()
    assert not {"adversarial-training", "piat"} & set(ModelCard.load(path).data.tags)


def test_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is no run directory"):
        card.write(tmp_path)


def test_the_card_names_what_the_weights_are(small_digits, do_train, tmp_path):
    do_train(small_digits(method="free_at", ema=0.9, awp=0.01, epochs=2, train_size=128), tmp_path / "r")
    text = card.write(tmp_path / "r").read_text()
    assert "# PIAT+FREE_AT+AWP with EMA, cifar_resnet8 on digits" in text
    assert "are an average over training" in text and "adversarial examples by" not in text
    assert "--method free_at" in text and "--ema 0.9" in text and "--awp 0.01" in text
