"""leaderboard.py: RobustBench's keys and types, its reasons to refuse, its way to load a model."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import once

import piat_hub
from piat_hub import cli
from piat_hub.config import COMMON, LISTED, InputError, ThreatModel
from piat_hub.data import load
from piat_hub.hub.save import save_weights
from piat_hub.leaderboard import claim, submission as leaderboard
from piat_hub.records.corruptions import Corruptions
from piat_hub.records.files import read_json
from piat_hub.records.results import Record, read_record
from piat_hub.records.statistics import proportion

PAPER = leaderboard.Paper("Kun He, Xin Liu", "AdvML-Frontiers 2023", "https://arxiv.org/abs/2303.13955")
KEYS = {
    **dict.fromkeys(("link", "name", "authors", "dataset", "venue", "architecture", "eps"), str),
    **dict.fromkeys(("clean_acc", "reported", "autoattack_acc"), str),
    "additional_data": bool,
    "number_forward_passes": int,
    "unreliable": bool,
}


@pytest.fixture(scope="module")
def evaluated(small_digits, finished):
    """A run on digits, measured clean and by AutoAttack's quickest part under its name."""

    def make(folder):
        shutil.copytree(finished(small_digits(epochs=2)), folder)
        assert cli.main(f"evaluate {folder} --attacks clean apgd-ce --n 40 --threads 1".split()) == 0
        results = read_json(folder / "results.json")
        part = results["attacks"].pop("apgd-ce")
        stage = {"attacked": results["attacks"]["clean"]["correct"], "seconds": 1.0}
        stage["broken"] = stage["attacked"] - part["correct"]
        results["attacks"]["aa"] = part | {"version": "standard", "per_attack": {"apgd-ce": stage}}
        (folder / "results.json").write_text(json.dumps(results))

    return once("leaderboard/run", make)


@pytest.fixture
def run(evaluated, tmp_path):
    return shutil.copytree(evaluated, tmp_path / "run")


@pytest.fixture
def ranked(monkeypatch):
    """As if RobustBench ranked these 40 digits."""
    monkeypatch.setattr(claim, "IMAGES", 40)
    monkeypatch.setattr(claim, "RANKED", {"digits": {"Linf": "0.15", "L2": "0.5", "corruptions": None}})


def test_a_submission(run, ranked, tmp_path):
    paths = leaderboard.submit(run, PAPER, tmp_path / "out", repo_id="org/net")
    name = "He2023PIAT_cifar-resnet8"
    assert [str(p.relative_to(tmp_path / "out")) for p in paths] == [
        f"model_info/digits/Linf/{name}.json",
        "issue.md",
        "he2023piat_cifar_resnet8_digits_linf.py",
        "evaluation.log",
    ]
    written, text, _, log = (p.read_text() for p in paths)
    info, results = json.loads(written), json.loads((run / "results.json").read_text())["attacks"]
    assert {key: type(value) for key, value in info.items()} == KEYS and not info["additional_data"]
    assert float(info["autoattack_acc"]) == round(100 * results["aa"]["accuracy"], 2)
    assert info["clean_acc"] == str(round(100 * results["clean"]["accuracy"], 2)) and info["eps"] == "0.15"
    assert text.startswith(f"[New Model] {name}\n") and "https://huggingface.co/org/net" in text and "DRAFT" not in text
    assert "**Threat Model**: Linf" in text and "**Dataset**: digits" in text
    known = {f"{100 * results[a]['accuracy']:.2f} %" for a in ("clean", "aa")}
    assert set(re.findall(r"[\d.]+ %", text)) == set(re.findall(r"[\d.]+ %", log)) == known


def test_additional_data_are_told(run, ranked, tmp_path):
    config = read_json(run / "config.json")
    (run / "config.json").write_text(json.dumps(config | {"piat": config["piat"] | {"extra_data": "gen.npz"}}))
    info, text, *_ = (path.read_text() for path in leaderboard.submit(run, PAPER, tmp_path / "out"))
    assert json.loads(info)["additional_data"] is True and "**Additional data**: true" in text


def test_a_submission_under_l2(run, ranked, tmp_path):
    """Its eps is written as RobustBench's JSON has it, and its registration looks for L2."""
    results = read_json(run / "results.json")
    results["threat_model"] = {"norm": "L2", "eps": "0.5"}
    (run / "results.json").write_text(json.dumps(results))
    info, text, module, _ = leaderboard.submit(run, PAPER, tmp_path / "out")
    assert info.parent.name == "L2" and json.loads(info.read_text())["eps"] == "0.5"
    assert "**Threat Model**: L2\n- **eps**: 0.5\n" in text.read_text() and module.stem.endswith("_digits_l2")


def test_a_submission_under_corruptions(run, ranked, tmp_path, capsys):
    """The mean over fifteen corruptions at five severities; RobustBench has no eps there, and mCE where it is known."""
    words = (
        f"robustbench {run} --authors Kun --venue ICML-2023 --link https://x.org --corruptions --output {tmp_path}/out"
    )
    assert cli.main(words.split()) == 2
    assert "no clean and corruption accuracy: piat evaluate" in capsys.readouterr().err
    digests = dict.fromkeys(COMMON, "0" * 64)
    found = Corruptions("C", 40, digests)
    rng = np.random.default_rng(0)
    for corruption in COMMON:
        for _ in range(5):
            found.record(corruption, rng.random(40) < 0.6)
    right = np.mean([v.mean() for v in found.verdicts.values()])
    results = read_json(run / "results.json")
    del results["attacks"]["aa"]
    (run / "results.json").write_text(json.dumps(results | {"corruptions": found.to_dict()}))
    assert cli.main(words.split()) == 0
    info, text, module, log = (Path(line) for line in capsys.readouterr().out.splitlines())
    assert str(info.relative_to(tmp_path / "out")) == "model_info/digits/corruptions/Kun2023PIAT_cifar-resnet8.json"
    keys = {key: type(value) for key, value in json.loads(info.read_text()).items()}
    assert keys == {k: v for k, v in KEYS.items() if k != "autoattack_acc"} | {
        "corruptions_acc": str,
        "eps": type(None),
    }
    assert json.loads(info.read_text())["corruptions_acc"] == str(round(100 * right, 2))
    assert "**Threat Model**: Common Corruptions\n- **eps**: N/A\n" in text.read_text()
    assert module.stem.endswith("_digits_corruptions") and log.read_text().count("gaussian_noise: ") == 1
    results["corruptions"] = Corruptions("C", 39, digests, {c: v[:, :39] for c, v in found.verdicts.items()}).to_dict()
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match="39 images were taken of each severity and 40 clean ones, it takes all 40"):
        leaderboard.submit(run, PAPER, tmp_path / "other", corruptions=True)


def test_what_robustbench_would_refuse_needs_draft(run, tmp_path, capsys):
    words = ["robustbench", str(run), "--authors", "Kun He", "--venue", "ICML 2023", "--link", "https://x.org"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert (
        "it ranks cifar10 and cifar100, not digits" in said
        and "40 images of the test split, it takes all 10000" in said
    )
    assert not (run / "robustbench").exists()
    assert cli.main([*words, "--draft"]) == 0
    for line in capsys.readouterr().out.splitlines():
        content = Path(line).read_text()
        assert line.endswith(".json") or "DRAFT, no submission: it ranks" in content


def test_a_draft_of_an_autoattack_of_one_stage(run, tmp_path):
    path = run / "results.json"
    record = json.loads(path.read_text())
    del record["attacks"]["aa"]["per_attack"]
    record["attacks"]["aa"]["version"] = "not standard"
    path.write_text(json.dumps(record))
    paths = leaderboard.submit(run, PAPER, tmp_path / "out", draft=True)
    assert "robust accuracy after" not in paths[3].read_text() and "DRAFT, no submission" in paths[1].read_text()


CLAIMS = {
    "threat model": (
        lambda r: r["threat_model"].update(eps="0.3"),
        "on digits it ranks Linf 0.15 and L2 0.5 and corruptions, not Linf 0.3",
    ),
    "split": (lambda r: r["dataset"].update(split="train"), "40 images of the train split"),
    "version": (lambda r: r["attacks"]["aa"].update(changed="4 classes"), r"not the standard version \(4 classes\)"),
    "clean": (
        lambda r: r["attacks"]["clean"].update(proportion(r["dataset"]["n"], r["dataset"]["n"])),
        r"its clean accuracy is [\d.]+ % here, not the 100\.00 %",
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_checked(run, ranked, tmp_path, name):
    edit, message = CLAIMS[name]
    results = read_json(run / "results.json")
    edit(results)
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=message):
        leaderboard.submit(run, PAPER, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Noisy(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] + torch.rand(len(x), 10)


class Flat(torch.nn.Module):
    def forward(self, x):
        return (x.flatten(1)[:, :10] > 0.5).float() + 0 * x.flatten(1)[:, :10]


class Optimising(torch.nn.Module):
    def forward(self, x):
        with torch.enable_grad():
            moved = x.detach().clone().requires_grad_()
            moved.square().sum().backward()
        return x.flatten(1)[:, :10]


@pytest.mark.parametrize(
    ("model", "message"),
    [(Noisy(), "two passes"), (Flat(), "gradient of exactly zero"), (Optimising(), "optimises inside")],
)
def test_models_are_checked(model, message):
    split = load("digits", "test").first(40)
    results = Record(ThreatModel(), "d", "test", 40, images=split.digest(), attacks={"clean": {"accuracy": 0.5}})
    assert any(message in reason for reason in leaderboard.accepts(model, split, results))


def test_a_good_model_passes(run, ranked):
    results = read_record(run / "results.json")
    model = piat_hub.from_pretrained(run)
    assert list(leaderboard.accepts(model, load("digits", "test").first(40), results)) == []


def test_the_registration_gives_the_model_by_robustbenchs_name(run, ranked, tmp_path):
    paths = leaderboard.submit(run, PAPER, tmp_path / "out")
    module = importlib.util.spec_from_file_location("registration", paths[2])
    module.loader.exec_module(importlib.util.module_from_spec(module))
    name = "he2023piat_cifar_resnet8_digits_linf"
    # as robustbench.utils.load_model calls it, from the folder that the run lies in
    model = timm.create_model(name, num_classes=10, pretrained=True, checkpoint_path="").eval()
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model(x), piat_hub.from_pretrained(run)(x))
    with pytest.raises(InputError, match="10 classes, not 7"):
        timm.create_model(name, num_classes=7, pretrained=True)


@pytest.mark.parametrize(
    ("architecture", "venue", "name"),
    [
        ("cifar_resnet18", "ICML 2023", "He2023PIAT_R18"),
        ("cifar_wrn_32_10", "TIFS 2025", "He2025PIAT_WRN-32-10"),
        ("vit_tiny_patch16_224", "ICML 2023", "He2023PIAT_vit-tiny-patch16-224"),
    ],
)
def test_ids_follow_their_convention(architecture, venue, name):
    paper = leaderboard.Paper("Kun He, Xin Liu", venue, "https://x.org")
    assert leaderboard.identifier(paper, architecture) == name
    found = leaderboard.timm_name(name, "cifar10", "Linf")
    assert found == f"{name.lower().replace('-', '_')}_cifar10_linf"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("Kun He", "ICML", "https://x.org"), "must end with its year"),
        (("Kun He", "ICML 2023", "x.org"), "must be an address"),
        ((", Xin Liu", "ICML 2023", "https://x.org"), "must begin with a name"),
    ],
)
def test_a_paper_is_checked(fields, message):
    with pytest.raises(InputError, match=message):
        leaderboard.Paper(*fields)


def test_the_best_checkpoint_is_submitted_as_the_best(run, ranked, tmp_path):
    for name in ("results.json", "verdicts.npz", "model.safetensors"):
        (run / name).rename(
            run / {"model.safetensors": "model_best.safetensors"}.get(name, name.replace(".", "_best."))
        )
    with torch.no_grad():
        model = piat_hub.from_pretrained(run, checkpoint="best")
        model.fc.bias += 1
    save_weights(model, run / "model.safetensors")
    with pytest.raises(InputError, match="no clean and AutoAttack accuracy"):
        leaderboard.submit(run, PAPER, tmp_path / "out")
    paths = leaderboard.submit(run, PAPER, tmp_path / "out", checkpoint="best")
    leaderboard.register("best_of_run", str(run), "best")
    assert paths[2].read_text().rstrip().splitlines()[-1].startswith('leaderboard.register("he2023piat')
    assert '"run", "best")' in paths[2].read_text()
    x = torch.rand(3, 1, 8, 8)
    logits = timm.create_model("best_of_run", pretrained=True)(x)
    assert torch.equal(logits, piat_hub.from_pretrained(run, checkpoint="best")(x))
    assert not torch.equal(logits, piat_hub.from_pretrained(run)(x))


def test_the_hub_name_is_checked(run, ranked, tmp_path):
    with pytest.raises(InputError, match="'not an id' is no Hub id"):
        leaderboard.submit(run, PAPER, tmp_path / "out", repo_id="not an id")


def test_what_was_measured_in_a_folder_of_the_run_counts_but_not_on_a_list_of_images(run, ranked, tmp_path):
    (run / "aa").mkdir()
    for name in ("results.json", "verdicts.npz"):
        (run / name).rename(run / "aa" / name)
    assert leaderboard.submit(run, PAPER, tmp_path / "out")
    results = read_json(run / "aa/results.json")
    results["notes"] = [f"{LISTED} mine.txt lists, in its order"]
    (run / "aa/results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match="no clean and AutoAttack accuracy"):
        leaderboard.submit(run, PAPER, tmp_path / "listed")


def test_an_unmeasured_run_is_told_what_to_measure(run, tmp_path):
    (run / "results.json").unlink()
    with pytest.raises(InputError, match="no clean and AutoAttack accuracy: piat evaluate"):
        leaderboard.submit(run, PAPER, tmp_path / "out")


@pytest.mark.parametrize("data", ["../../outside", 'x";print(1);"', "a/b/c", "/etc", "..", "a b"])
def test_a_data_sets_name_stays_out_of_paths_and_code(run, tmp_path, data):
    results = read_json(run / "results.json")
    results["dataset"]["name"] = data
    (run / "results.json").write_text(json.dumps(results))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="can be no part of a file's name"):
        leaderboard.submit(run, PAPER, tmp_path / "out" / "deep", draft=True)
    assert sorted(tmp_path.rglob("*")) == before
