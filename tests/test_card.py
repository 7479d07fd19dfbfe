"""card.py: every number on the card is one of results.json or config.json; the YAML head reads back."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from piat_hub import card, recipes, run
from piat_hub.config import EvalConfig, InputError


@pytest.fixture
def evaluated(small_digits, do_train, tmp_path, quick_autoattack):
    do_train(small_digits(epochs=2), tmp_path / "r")
    list(run.evaluate("r", EvalConfig(attacks=("clean", "pgd3", "aa"), n=30)))
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
    text = (tmp_path / "r/README.md").read_text()
    assert "Nothing has been measured on a test split yet" in text and "model-index" not in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [("pgd20", "PGD-20"), ("pgd", "PGD-20"), ("cw100", "CW-100"), ("aa", "AutoAttack"), ("clean", "clean")],
)
def test_attack_names(name, shown):
    assert card.attack_name(name) == shown


def test_titles_and_commands():
    config = recipes.get("resnet18-cifar10")
    assert card.title(config) == "PIAT+NMSE, cifar_resnet18 on cifar10"
    assert card.command(config).startswith(
        "accelerate launch train.py resnet18-cifar10 --dataset cifar10 --method nmse"
    )


def test_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is no run directory"):
        card.write(tmp_path)
