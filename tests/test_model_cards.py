"""model_cards/: what lies there loads, is what its checksums and results say, and its cards are as generated."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import python

import piat_hub
from piat_hub.config import ThreatModel
from piat_hub.hub import card
from piat_hub.records import files, results
from piat_hub.records.files import WEIGHTS, file_digest
from piat_hub.records.rundir import RunDirectory

ROOT = Path(__file__).parent.parent
MODELS = sorted(path.parent.name for path in (ROOT / "model_cards").glob("*/config.json"))


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


@pytest.mark.parametrize("name", MODELS)
def test_a_model_loads_and_is_what_its_card_says(name):
    folder = Path("model_cards") / name
    model = piat_hub.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.rand(3, 3, 32, 32))
    assert logits.shape == (3, 10) and logits.isfinite().all() and len(model.label_names) == 10
    text = (folder / "README.md").read_text()
    for checkpoint, file in WEIGHTS.items():
        assert file_digest(folder / file) in text
        piat_hub.from_pretrained(folder, checkpoint=checkpoint)
    assert card.render(RunDirectory.read(folder)) == text, f"stale: run piat card {folder}"


@pytest.mark.parametrize("name", MODELS)
def test_results_are_of_these_weights_and_of_their_verdicts(name):
    folder = ROOT / "model_cards" / name
    measured = RunDirectory.read(folder).measured
    assert {"last", "best"} <= {m.name for m in measured} and any("aa" in m.record.attacks for m in measured)
    assert len(measured) == len(list(folder.glob("**/results*.json")))  # none is of other weights
    for found in measured:
        record, verdicts = results.read_results(folder / found.folder, found.checkpoint)
        assert record.dataset == "cifar10-jpeg" and record.threat_model == ThreatModel("Linf", 8 / 255)
        assert all(len(v) == record.n for v in verdicts.values())
    config = json.loads((folder / "config.json").read_text())["piat"]
    assert len(files.read_metrics(folder)) == config["epochs"] and "jpeg" in name


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_the_machine_is_in_it(name):
    for file in (ROOT / "model_cards" / name).rglob("*"):
        if file.suffix in (".json", ".jsonl", ".md"):
            assert not re.search(r"/(work|home|root|tmp|Users)/", file.read_text()), file
