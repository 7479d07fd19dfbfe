"""A claim measured again: an honest one stands on any sample, a false one does not, and what it is of is said first."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

import piat_hub
from piat_hub import cli
from piat_hub.config import InputError
from piat_hub.hub.save import save_weights
from piat_hub.leaderboard import verification
from piat_hub.records.files import read_json
from piat_hub.records.results import read_results, verdicts_digest
from piat_hub.records.statistics import paired, proportion


def claim(directory, verdicts, **facts):
    """Have a directory claim these verdicts, and these facts of PGD-3."""
    arrays = dict(np.load(directory / "verdicts.npz")) | verdicts
    np.savez(directory / "verdicts.npz", **arrays)
    content = read_json(directory / "results.json")
    for attack, standing in verdicts.items():
        content["attacks"][attack] |= proportion(int(standing.sum()), len(standing))
    content["attacks"]["pgd3"] |= facts
    worst = np.logical_and.reduce([arrays[attack] for attack in content["attacks"]])
    content |= {"worst_case": content["worst_case"] | proportion(int(worst.sum()), len(worst)), "per_class": {}}
    (directory / "results.json").write_text(json.dumps(content))


def verify(line, capsys):
    """Exit status, standard output and error of `piat verify LINE`."""
    status = cli.main(["verify", *line.split()])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("seed", [0, 1])
def test_an_honest_claim_stands(evaluated_once, capsys, seed):
    before = {path.name: path.read_bytes() for path in evaluated_once.iterdir() if path.is_file()}
    status, out, err = verify(f"{evaluated_once} --n 20 --seed {seed} --attacks pgd3", capsys)
    assert (status, err) == (0, "")
    assert f"Linf eps 0.15, last, 20 of the 30 images of digits (test), drawn with seed {seed}" in out
    record, kept = read_results(evaluated_once)
    index = np.sort(np.random.default_rng(seed).choice(30, 20, replace=False))
    digest = verdicts_digest(kept["clean"][index])
    assert f"verdicts sha256 {digest} under clean, as claimed" in out
    assert f"weights  sha256 {record.weights}" in out and f"images   sha256 {record.images}" in out
    # of 20 images at least 6 must differ: 1 - (0.456)-binomial below 6 is .95
    last = "the claim stands; were it 45.6 points too high, 19 of 20 draws of 20 images would refute it, if nothing turned "
    assert out.splitlines()[-1] == last + "by chance"
    few = sum(math.comb(20, k) * 0.456**k * 0.544 ** (20 - k) for k in range(6))
    assert few == pytest.approx(0.05, abs=0.001)
    assert {path.name: path.read_bytes() for path in evaluated_once.iterdir() if path.is_file()} == before


def test_the_figures_are_those_of_the_sampled_images(evaluated_once):
    found = verification.prepare(str(evaluated_once), n=20, seed=3, attacks=["pgd3"])
    list(found.measure())
    record, kept = read_results(evaluated_once)
    assert len(set(found.index)) == 20 and found.attacks == ("clean", "pgd3")
    for pair, attack in zip(found.pairs, found.attacks, strict=True):
        assert pair == paired(attack, kept[attack][found.index], found.results.verdicts[attack])
    assert found.results.attacks["pgd3"]["step_size"] == record.attacks["pgd3"]["step_size"]
    assert np.array_equal(found.results.verdicts["clean"], kept["clean"][found.index])  # it knows no chance


def test_by_default_clean_and_what_leaves_least_but_never_a_strangers_code(evaluated, quick_autoattack):
    _, kept = read_results(evaluated)
    weakest = min(("pgd3", "aa"), key=lambda attack: kept[attack].sum())
    found = verification.prepare(str(evaluated))
    assert found.attacks == ("clean", weakest) and len(found.index) == 30
    content = read_json(evaluated / "results.json")
    content["attacks"]["os:system"] = content["attacks"]["pgd3"] | proportion(0, 30)
    content["worst_case"] = None
    (evaluated / "results.json").write_text(json.dumps(content))
    np.savez(
        evaluated / "verdicts.npz", **dict(np.load(evaluated / "verdicts.npz")), **{"os:system": np.zeros(30, bool)}
    )
    assert verification.prepare(str(evaluated)).attacks == ("clean", weakest)


def test_a_claim_that_is_too_high_does_not_stand(evaluated, capsys):
    _, kept = read_results(evaluated)
    false = np.flatnonzero(~kept["clean"])[:8]
    raised = {attack: kept[attack] | np.isin(np.arange(30), false) for attack in ("clean", "pgd3")}
    claim(evaluated, raised)
    status, out, err = verify("r --n 30 --attacks pgd3", capsys)
    assert status == 1 and "the claim stands" not in out
    for name in ("clean", "PGD-3"):
        assert f"{name}: 8 of 30 images should stand and do not, 0 stand and should not" in err
    assert err.count("\n") == 1


def test_a_false_clean_answer_is_no_chance(evaluated, capsys):
    _, kept = read_results(evaluated)
    clean = kept["clean"].copy()
    clean[np.flatnonzero(~clean)[:1]] = True
    claim(evaluated, {"clean": clean})
    assert verify("r --n 30 --attacks clean", capsys)[0] == 0  # one may be rounding
    clean[np.flatnonzero(~clean)[:1]] = True
    claim(evaluated, {"clean": clean})
    status, _, err = verify("r --n 30 --attacks clean", capsys)
    assert status == 1 and "clean: 2 of 30 images should stand and do not" in err


def test_changed_weights_are_said_first(evaluated, capsys):
    model = piat_hub.from_pretrained(evaluated)
    with torch.no_grad():
        model.fc.bias[0] += 1e-4
    save_weights(model, evaluated / "model.safetensors")
    status, out, err = verify("r --n 20 --attacks pgd3", capsys)
    assert out.startswith("the claim is of other weights: sha256 ") and status == 1
    assert err.startswith("piat verify: error: the claim does not stand: it is of other weights")


def test_an_attack_is_run_as_claimed_and_what_differs_all_the_same_is_said(evaluated):
    _, kept = read_results(evaluated)
    claim(evaluated, {"pgd3": kept["pgd3"]}, step_size="0.01", restarts=2)
    found = verification.prepare("r", n=10, attacks=["pgd3"])
    list(found.measure())
    told = found.results.attacks["pgd3"]
    assert (told["step_size"], told["restarts"]) == ("0.01", 2)
    told["step_size"] = "0.02"  # as if the claim named a way in which the attack cannot be run
    assert "PGD-3 has step_size 0.02 here and 0.01 there" in found.objections()


def test_a_claim_lies_in_a_folder_of_the_model_or_elsewhere(evaluated, tmp_path, capsys):
    (evaluated / "more").mkdir()
    for name in ("results.json", "verdicts.npz"):
        shutil.copy(evaluated / name, evaluated / "more" / name)
        (evaluated / name).unlink()
    assert verification.prepare("r", n=10, attacks=["pgd3"]).claim.n == 30
    shutil.move(evaluated / "more", tmp_path / "elsewhere")
    status, _, err = verify("r --n 10", capsys)
    assert status == 2 and "r claims nothing of its last weights; name the directory of its results with --claim" in err
    assert verify("r --n 10 --attacks pgd3 --claim elsewhere", capsys)[0] == 0


def test_a_claim_of_anyones_model_from_code(tmp_path, capsys, monkeypatch):
    code = (
        "import torch\ntorch.manual_seed(0)\nmodel = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    (tmp_path / "claimed.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = "evaluate claimed:model --dataset digits --eps 0.05 --n 30 --attacks clean pgd3"
    assert cli.main([*asked.split(), "--threads", "1"]) == 0
    assert verify("claimed:model --claim results/claimed-model --n 20", capsys)[2].endswith("name it with --dataset\n")
    status, out, _ = verify("claimed:model --claim results/claimed-model --n 20 --dataset digits", capsys)
    assert status == 0 and "claimed:model: Linf eps 0.05, last, 20 of the 30 images of digits" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("r --n 31", "n=31 must be from 6, since fewer images refute nothing, to the 30 that the claim is of"),
        ("r --n 5", "n=5 must be from 6"),
        ("r --seed -1", "--seed must be at least 0, got -1"),
        ("r --attacks pgd20", "r claims nothing of pgd20, only of clean, pgd3, aa"),
        ("r --checkpoint best", "r claims nothing of its best weights"),
        ("nosuch", "no such directory, and 'nosuch' is no Hub id"),
    ],
)
def test_what_cannot_be_verified_is_refused_in_a_line(evaluated, capsys, line, words):
    status, out, err = verify(line, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1) and words in err


def test_other_images_are_refused(evaluated, capsys):
    content = read_json(evaluated / "results.json") | {"images_sha256": "0" * 64}
    (evaluated / "results.json").write_text(json.dumps(content))
    status, _, err = verify("r --n 10", capsys)
    assert status == 2 and "was measured on images of sha256 0000" in err and "name the data with --dataset" in err


def test_so_many_images_one_way_are_noticed_and_one_fewer_are_not():
    def p_value(differ):
        return paired("pgd20", np.ones(differ, bool), np.zeros(differ, bool)).p_value

    assert p_value(verification.NOTICED) < verification.LEVEL <= p_value(verification.NOTICED - 1)
    assert math.isclose(p_value(6), 2 * 0.5**6)


def test_a_claim_that_names_no_way_to_run_an_attack_is_refused(evaluated):
    _, kept = read_results(evaluated)
    claim(evaluated, {"pgd3": kept["pgd3"]}, restarts="many")
    with pytest.raises(InputError, match="restarts"):
        list(verification.prepare("r", n=10, attacks=["pgd3"]).measure())
