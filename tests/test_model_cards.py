"""model_cards/: what lies there loads, is what its checksums and results say, and its cards are as generated."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from conftest import python

import piat_hub
from piat_hub import data
from piat_hub.hub import card
from piat_hub.hub.save import save_pretrained
from piat_hub.records import files, results
from piat_hub.records.files import WEIGHTS, file_digest
from piat_hub.records.rundir import RunDirectory

ROOT = Path(__file__).parent.parent
MODELS = sorted(path.parent.name for path in (ROOT / "model_cards").glob("*/config.json"))


def kept(folder):
    """(checkpoint, file of its weights) of those that lie there."""
    return [(checkpoint, file) for checkpoint, file in WEIGHTS.items() if (folder / file).exists()]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_there_are_models():
    assert {"resnet20-cifar10-jpeg", "resnet20-cifar10-jpeg-pgd_at", "resnet20-cifar10-jpeg-trades"} <= set(MODELS)


@pytest.mark.slow
def test_a_run_is_put_beside_them_as_it_would_be_pushed(evaluated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python(ROOT / "model_cards/collect.py", evaluated, check=True)
    there = {path.name for path in (tmp_path / "model_cards/r").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "results.json", "verdicts.npz", "metrics.jsonl"} <= there
    assert "state" not in there


def test_a_network_twice_as_wide_computes_the_same_and_can_be_trained_on(tmp_path, monkeypatch):
    torch.manual_seed(0)
    narrow = piat_hub.create_model("cifar_resnet20", num_classes=3, in_chans=1)
    for norm in (m for m in narrow.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5), torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    save_pretrained(narrow, tmp_path / "narrow", label_names=("a", "b", "c"), input_size=(1, 8, 8))
    monkeypatch.syspath_prepend(ROOT / "model_cards")
    importlib.import_module("widen").widen(tmp_path / "narrow", tmp_path / "wide")
    wide, x = piat_hub.from_pretrained(tmp_path / "wide"), torch.rand(8, 1, 8, 8)
    assert wide.label_names == ("a", "b", "c") and wide.pretrained_cfg["input_size"][-1] == 8
    with torch.no_grad():
        expected = narrow.eval()(x)
        assert expected.std() > 0.01 and torch.allclose(wide.eval()(x), expected, atol=1e-5)
    wide.train()(x).square().sum().backward()
    grads = [c.weight.grad for name, c in wide.named_modules() if isinstance(c, torch.nn.Conv2d) and name != "conv1"]
    assert all(not torch.allclose(*g.chunk(2), rtol=0.1) for g in grads)  # two copies that learn alike would stay one


@pytest.mark.parametrize("name", MODELS)
def test_a_model_loads_and_is_what_its_card_says(name):
    folder = Path("model_cards") / name
    model = piat_hub.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.rand(3, *model.pretrained_cfg["input_size"]))
    assert logits.shape == (3, 10) and logits.isfinite().all() and len(model.label_names) == 10
    text = (folder / "README.md").read_text()
    for checkpoint, file in kept(folder):
        assert file_digest(folder / file) in text
        piat_hub.from_pretrained(folder, checkpoint=checkpoint)
    assert card.render(RunDirectory.read(folder)) == text, f"stale: run piat card {folder}"


@pytest.mark.parametrize("name", MODELS)
def test_results_are_of_these_weights_and_of_their_verdicts(name):
    folder = ROOT / "model_cards" / name
    run = RunDirectory.read(folder)
    measured, checkpoints = run.measured, {checkpoint for checkpoint, _ in kept(folder)}
    assert "last" in checkpoints <= {m.name for m in measured} and any("aa" in m.record.attacks for m in measured)
    assert len(measured) == len(list(folder.glob("**/results*.json")))  # none is of other weights
    for found in measured:
        record, verdicts = results.read_results(folder / found.folder, found.checkpoint)
        assert record.dataset == run.config.dataset and record.threat_model == run.config.threat_model
        assert all(len(v) == record.n for v in verdicts.values())
    assert len(files.read_metrics(folder)) == run.config.epochs and run.config.dataset in name


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_the_machine_is_in_it(name):
    for file in (ROOT / "model_cards" / name).rglob("*"):
        if file.suffix in (".json", ".jsonl", ".md"):
            assert not re.search(r"/(work|home|root|tmp|Users)/", file.read_text()), file


def test_held_out_images_are_those_that_training_left_out(evaluated, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "model_cards")
    importlib.import_module("held_out").measure(str(evaluated), tmp_path / "out", 20, ["clean"])
    record, _ = results.read_results(tmp_path / "out")
    run = RunDirectory.read(evaluated)
    last = files.read_metrics(evaluated)[-1]
    assert (record.split, record.n) == ("held-out", 20) and run.config.holdout >= 20
    _, held = data.hold_out(data.load("digits", "train"), run.config.holdout)
    whole = piat_hub.evaluate(piat_hub.from_pretrained(evaluated), held, ["clean"])
    assert whole.attacks["clean"]["accuracy"] == pytest.approx(last["holdout_clean_acc"])  # as training itself saw it
