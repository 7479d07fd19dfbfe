"""union.json: the worst over threat models image by image, its files, resume, shares, card, comparison."""

import itertools
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, killed, python

from piat_hub import cli
from piat_hub.config import EvalConfig, InputError, ThreatModel
from piat_hub.evaluation import request
from piat_hub.figures import breadth
from piat_hub.hub import card
from piat_hub.hub.push import publication
from piat_hub.records import compare
from piat_hub.records.files import read_json
from piat_hub.records.results import Results, read_results
from piat_hub.records.rundir import RunDirectory
from piat_hub.records.statistics import proportion
from piat_hub.records.union import Union

MODEL = """
import torch
from piat_hub.data import load, to_unit
train = load("digits", "train")
x = to_unit(train.images).flatten(1)
means = torch.stack([x[train.labels == k].mean(0) for k in range(10)])
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))  # the nearest class mean
model[1].weight.data, model[1].bias.data = 20 * means, -10 * means.square().sum(1)
"""
THREATS = ("Linf:0.1", "L2:0.5", "L1:2")
FOLDERS = ("Linf-0.1", "L2-0.5", "L1-2.0")
ASKED = ["--attacks", "clean", "apgd3", "--n", "30", "--batch-size", "8", "--threat-models", *THREATS]
OWN = ["means:model", "--dataset", "digits", *ASKED]


@pytest.fixture(autouse=True)
def own_code(tmp_path, monkeypatch):
    (tmp_path / "means.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The union of a model of anyone's, by the command; for reading only."""
    place = tmp_path_factory.mktemp("union")
    (place / "means.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        assert cli.main(["evaluate", *OWN, "--output", "u"]) == 0
    return place / "u"


@pytest.fixture
def united(measured, tmp_path):
    """A copy of it, u in the current directory."""
    return Path(shutil.copytree(measured, tmp_path / "u"))


def test_a_row_each_and_the_union_image_by_image(united):
    told = read_json(united / "union.json")
    assert [(row["norm"], row["eps"], row["folder"]) for row in told["threat_models"]] == [
        ("Linf", "0.1", "Linf-0.1"), ("L2", "0.5", "L2-0.5"), ("L1", "2.0", "L1-2.0"),
    ]  # fmt: skip
    found = [read_results(united / folder)[1] for folder in FOLDERS]
    standing = [np.logical_and.reduce(list(verdicts.values())) for verdicts in found]
    for row, verdicts in zip(told["threat_models"], standing, strict=True):
        assert {k: row[k] for k in ("accuracy", "correct", "n", "ci95")} == proportion(int(verdicts.sum()), 30)
        assert row["attacks"] == ["clean", "apgd3"]
    worst = standing[0] & standing[1] & standing[2]
    assert {k: told["union"][k] for k in ("accuracy", "correct", "n", "ci95")} == proportion(int(worst.sum()), 30)
    assert 0 < worst.sum() < found[0]["clean"].sum() and told["dataset"]["n"] == 30
    assert Union.read(united).figures == proportion(int(worst.sum()), 30)


def test_a_union_may_be_smaller_than_each_of_its_parts(tmp_path):
    """Images that different threat models break: the union counts every one of them."""
    from piat_hub.data import Split

    split = Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), ("a", "b"), "four")
    parts = []
    for threat, stand in ((ThreatModel(), [1, 1, 0, 1]), (ThreatModel("L1", 12), [0, 1, 1, 1])):
        part = Results.of(split, threat, weights="w")
        part.record("clean", np.ones(4, bool), {})
        part.record("aa", np.array(stand, bool), {})
        part.save(tmp_path / threat.folder)
        parts.append(part)
    union = Union.of(parts)
    union.save(tmp_path)
    assert union.worst.tolist() == [False, True, False, True] and union.figures["correct"] == 2
    assert np.array_equal(Union.read(tmp_path).worst, union.worst)
    again = Results.of(split, ThreatModel(), weights="w")
    again.resume(tmp_path / "Linf-8-255")
    again.record("square", np.zeros(4, bool), {})
    again.save(tmp_path / "Linf-8-255")
    with pytest.raises(InputError, match="union.json does not tell what its folders hold by now"):
        Union.read(tmp_path)
    for damage in (
        '{"threat_models": [{"folder": "../x"}]}',
        "[]",
        '{"threat_models": []}',
        '{"threat_models": [{"folder": 3}]}',
    ):
        (tmp_path / "union.json").write_text(damage)
        with pytest.raises(InputError, match="union.json is damaged"):
            Union.read(tmp_path)


def test_killed_anywhere_it_goes_on_to_the_same_union(united):
    """SIGKILL after some batches, in the second threat model and in the third: the same verdicts, and the same union."""
    whole, asked = Union.read(united), dict(attacks=("clean", "apgd3"), n=30, batch_size=8, resume=True)
    config = EvalConfig(dataset="digits", threat_models=THREATS, output="k", **asked)

    def work(most):
        batches = itertools.count()
        for one in request.prepare("means:model", config):
            with one.writing():
                for _ in one.measure():
                    if next(batches) == most:
                        os.kill(os.getpid(), signal.SIGKILL)

    assert killed(lambda: work(6), lambda: None) and killed(lambda: work(4), lambda: None)
    assert not Path("k/union.json").exists()
    assert cli.main(["evaluate", *OWN, "--output", "k", "--resume"]) == 0
    found = Union.read(Path("k"))
    assert found.standing.keys() == whole.standing.keys()
    assert all(np.array_equal(found.standing[folder], whole.standing[folder]) for folder in FOLDERS)
    assert sorted(path.name for path in Path("k").iterdir()) == sorted([*FOLDERS, "union.json"])


@pytest.mark.slow
def test_two_processes_share_it_to_the_same_verdicts(united):
    flags = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    asked = [ROOT / "evaluate.py", *OWN, "--output", "two"]
    python("-m", "accelerate.commands.launch", *flags.split(), *asked, check=True)
    one, two = Union.read(united), Union.read(Path("two"))
    assert all(np.array_equal(one.standing[folder], two.standing[folder]) for folder in FOLDERS)


def test_compare_pairs_every_threat_model_and_the_union(united, capsys):
    shutil.copytree(united, "s")
    capsys.readouterr()
    assert cli.main(["compare", "u", "s"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if line[:2] in ("Li", "L2", "L1", "un")] == [
        "Linf eps 0.1", "L2 eps 0.5", "L1 eps 2.0", "union",
    ]  # fmt: skip
    more = ["--dataset", "digits", "--attacks", "apgd2", "--n", "30", "--norm", "L1", "--eps", "2"]
    assert cli.main(["evaluate", "means:model", *more, "--output", "s/L1-2.0"]) == 0
    with pytest.raises(InputError, match="s/union.json does not tell what its folders hold"):
        compare.unions(Path("u"), Path("s"))
    other = [*OWN[:-3], *THREATS[1:], "--output", "t"]
    assert cli.main(["evaluate", *other]) == 0
    with pytest.raises(InputError, match="u is the union of Linf-0.1, L2-0.5, L1-2.0, t that of L2-0.5, L1-2.0"):
        compare.unions(Path("u"), Path("t"))


def test_a_union_is_measured_further_where_the_run_lies_and_a_stale_one_stands_on_no_card(evaluated, capsys):
    assert cli.main(["evaluate", "r", *ASKED]) == 0
    more = ["--attacks", "clean", "apgd3", "apgd5", *ASKED[3:]]
    (one, *_) = request.prepare(
        "r", EvalConfig(attacks=("apgd5",), n=30, batch_size=8, norm="Linf", eps=0.1, output="r/Linf-0.1")
    )
    list(one.measure())  # the first of the folders alone, as a call does that is stopped then
    assert RunDirectory.read("r").unions == {} and "The union of" not in card.render(RunDirectory.read("r"))
    assert (
        cli.main(["compare", "r", "r"]) == 2 and "does not tell what its folders hold by now" in capsys.readouterr().err
    )
    assert cli.main(["evaluate", "r", *more]) == 0
    assert "APGD-5" in (evaluated / "README.md").read_text() and RunDirectory.read("r").unions
    (evaluated / "L1-2.0/results.json").rename("moved.json")
    assert RunDirectory.read("r").unions == {} and cli.main(["card", "r"]) == 0


def test_it_needs_every_attack_to_its_end(monkeypatch, capsys):
    monkeypatch.setattr("time.monotonic", itertools.count(0, 40).__next__)
    assert cli.main(["evaluate", *OWN, "--output", "u", "--time-budget", "1m"]) == 0
    assert "go on with --resume" in capsys.readouterr().out and not Path("u/union.json").exists()


def test_the_card_of_a_run_has_a_row_each_while_its_weights_are_those(evaluated):
    assert cli.main(["evaluate", "r", *ASKED]) == 0
    text = (evaluated / "README.md").read_text()
    correct = read_json(evaluated / "union.json")["union"]["correct"]
    assert "The union of these threat models, last checkpoint" in text and "| L1 eps 2.0 " in text
    assert re.search(rf"\| union .*\| {correct} of 30 ", text)
    assert "union.json" in publication(RunDirectory.read("r"), "org/name")
    figure = breadth.union([RunDirectory.read("r")])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][-1] == "union"
    assert "30 images of digits: the worst of clean, APGD-3" in figure.get_label()
    shutil.copy(evaluated / "model_best.safetensors", evaluated / "model.safetensors")
    found = RunDirectory.read(evaluated)
    with pytest.raises(InputError, match="no run was measured under several threat models"):
        breadth.union([found])
    assert found.unions == {} and "The union of" not in card.render(found)
    assert "union.json" not in publication(found, "org/name")
