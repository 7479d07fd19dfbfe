"""results.py: pairs of models against closed forms, worst case and classes, damaged files moved aside, kills survived."""

import json
import os
import random
import time
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from conftest import die_after, killed
from torch import nn

from piat_hub.config import InputError, ThreatModel
from piat_hub.data import Split
from piat_hub.evaluation.loop import measure
from piat_hub.records.compare import compare
from piat_hub.records.files import read_json
from piat_hub.records.labels import rows
from piat_hub.records.results import Record, Results, read_results
from piat_hub.records.statistics import class_accuracy, paired, proportion

THREAT = ThreatModel("Linf", 0.08)


def noisy():
    """A model and images where PGD's random start decides many verdicts."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 2))
    images = torch.randint(0, 256, (60, 3, 2, 2), dtype=torch.uint8)
    with torch.no_grad():
        model[3].bias[1] += (model(images / 255) @ torch.tensor([1.0, -1.0])).median()
        labels = model(images / 255).argmax(1)
    return model, Split(images, labels, ("a", "b"), "n")


def measured(folder, attacks=("pgd2",), seed=0, threat=THREAT, model=None):
    first, split = noisy()
    results = Results.of(split, threat, seed=seed)
    for _ in measure(model or first, split, attacks, results, batch_size=7, save=lambda r: r.save(folder)):
        pass
    return results


def test_paired_against_the_formulas():
    a = np.array([True] * 40 + [True] * 12 + [False] * 5 + [False] * 43)
    b = np.array([True] * 40 + [False] * 12 + [True] * 5 + [False] * 43)
    found = paired("pgd20", a, b)
    assert (found.n, found.accuracy_a, found.accuracy_b) == (100, 0.52, 0.45)
    assert (found.only_a, found.only_b, found.difference) == (12, 5, -0.07)
    # McNemar, exact: 2 P(X <= 5), X ~ Binomial(17, 1/2)
    assert found.p_value == pytest.approx(2 * sum([1, 17, 136, 680, 2380, 6188]) / 2**17)
    centre, width = -7 / 102, 1.96 * np.sqrt(18 - 49 / 102) / 102  # Agresti & Min 2005, Eq. 2 with 1/2 in each cell
    assert found.ci95 == pytest.approx((centre - width, centre + width), abs=1e-4)
    same = paired("pgd20", a, a)
    assert (same.p_value, same.difference) == (1.0, 0.0) and same.ci95[0] < 0 < same.ci95[1]


def test_the_interval_of_a_pair_covers_95_percent():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(1500):
        u, v = rng.random(150), rng.random(150)
        low, high = paired("x", u < 0.6, (u < 0.5) | (v < 0.1)).ci95
        hits.append(low <= (0.5 + 0.5 * 0.1) - 0.6 <= high)
    assert 0.93 < np.mean(hits) < 0.985


def test_compare_pairs_only_the_same_question(tmp_path):
    model, _ = noisy()
    with torch.no_grad():
        model[3].bias[0] += 0.02
    measured(tmp_path / "a", ("pgd2", "mim2"))
    measured(tmp_path / "b", ("pgd2",), model=model)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [p.attack for p in found] == ["clean", "pgd2"] and found[1].n == 60
    measured(tmp_path / "c", threat=ThreatModel("Linf", 0.1))
    with pytest.raises(InputError, match="threat_model Linf 0.08.*only the same images under the same threat model"):
        compare(tmp_path / "a", tmp_path / "c")
    with pytest.raises(InputError, match="has no results.json; evaluate it first"):
        compare(tmp_path / "a", tmp_path / "none")
    facts = read_json(tmp_path / "b/results.json")
    facts["attacks"]["pgd2"]["steps"] = 3
    (tmp_path / "b/results.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="pgd2 was run with another steps"):
        compare(tmp_path / "a", tmp_path / "b")


def test_worst_case_and_classes(tmp_path):
    results = measured(tmp_path, ("pgd2", "mim2"))
    written = json.loads((tmp_path / "results.json").read_text())
    both = results.verdicts["pgd2"] & results.verdicts["mim2"]
    assert written["worst_case"]["correct"] == int(both.sum())
    assert written["worst_case"]["attacks"] == ["clean", "pgd2", "mim2"]
    labels = noisy()[1].labels.numpy()
    assert written["per_class"]["label_names"] == ["a", "b"]
    for k in (0, 1):
        assert written["per_class"]["pgd2"][k] == results.verdicts["pgd2"][labels == k].mean()
    assert class_accuracy(np.array([True]), np.array([0]), 2) == [1.0, None]


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "another model's"])
def test_a_damaged_partial_state_is_refused_by_name_and_moved_aside(tmp_path, damage):
    model, split = noisy()
    events = measure(model, split, ["pgd2"], Results.of(split, THREAT), batch_size=7, save=lambda r: r.save(tmp_path))
    for _ in range(4):
        next(events)
    path = tmp_path / "verdicts.pgd2.partial.npz"
    if damage == "another model's":
        other = Results.of(split, THREAT, weights="other")
        other.running = Results.of(split, THREAT).running
        events = measure(model, split, ["pgd2"], other, batch_size=7, save=lambda r: r.save(tmp_path / "x"))
        for _ in range(4):
            next(events)
        content = (tmp_path / "x" / path.name).read_bytes()
    else:
        content = {"truncated": path.read_bytes()[:-50], "foreign": b"PK\x03\x04 no state", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pgd2.partial.npz is not a whole state .* moved to .*\.damaged"):
        Results.of(split, THREAT).resume(tmp_path, stopped=True)
    assert not path.exists() and (tmp_path / f"{path.name}.damaged").read_bytes() == content
    again = Results.of(split, THREAT)
    again.resume(tmp_path, stopped=True)  # the same command again begins the attack anew
    assert again.stopped == {} and "clean" in again.verdicts


def test_a_partial_state_left_beside_finished_results_goes(tmp_path):
    model, split = noisy()
    measure_saved = measure(model, split, ["pgd2"], Results.of(split, THREAT), save=lambda r: r.save(tmp_path))
    for _ in range(2):
        next(measure_saved)
    path = tmp_path / "verdicts.pgd2.partial.npz"
    left = path.read_bytes()
    list(measure_saved)
    path.write_bytes(left)  # as if killed between the results and its removal
    again = Results.of(split, THREAT)
    again.resume(tmp_path, stopped=True)
    assert not path.exists() and again.stopped == {} and "pgd2" in again.verdicts


def test_damaged_results_are_moved_aside_never_deleted(tmp_path):
    measured(tmp_path)
    (tmp_path / "results.json").write_text("{")
    (tmp_path / "results.json.damaged").write_text("an earlier one")
    with pytest.raises(InputError, match="they were moved to results.json.damaged1 and verdicts.npz.damaged"):
        Results.of(noisy()[1], THREAT).resume(tmp_path)
    assert (tmp_path / "results.json.damaged1").read_text() == "{"
    assert (tmp_path / "results.json.damaged").read_text() == "an earlier one"
    assert not (tmp_path / "results.json").exists() and (tmp_path / "verdicts.npz.damaged").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_the_verdicts_are_the_same_bytes(tmp_path):
    """Killed again and again, resumed by a new process each time, until it is done: the bytes of one never stopped."""
    rng = random.Random(0)

    def work(folder):
        model, split = noisy()
        results = Results.of(split, THREAT)
        results.resume(folder, stopped=True)
        for _ in measure(model, split, ["pgd9", "mim5"], results, batch_size=4, save=lambda r: r.save(folder)):
            pass

    for name in ("cold", "whole"):
        clock = time.process_time()
        work(tmp_path / name)
    seconds = time.process_time() - clock
    for number in range(4):
        folder = tmp_path / str(number)
        moments = [rng.uniform(0, seconds / 2) for _ in range(5)]
        assert sum(killed(partial(work, folder), partial(die_after, moment)) for moment in moments) > 0
        work(folder)
        verdicts, whole = (np.load(f / "verdicts.npz") for f in (folder, tmp_path / "whole"))
        assert all(np.array_equal(verdicts[k], whole[k]) for k in whole.files) and verdicts.files == whole.files
        assert (folder / "verdicts.npz").read_bytes() == (tmp_path / "whole/verdicts.npz").read_bytes()
        assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == [
            "results.json",
            "verdicts.npz",
        ]


def test_verdicts_that_would_fill_the_memory_are_refused(tmp_path):
    measured(tmp_path)
    with zipfile.ZipFile(tmp_path / "verdicts.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("clean.npy", bytes(2**28 + 1))  # 260 KB on the disk
    with pytest.raises(InputError, match="unpacks to more than 256 MiB"):
        read_results(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros(3, bool))
    huge = (tmp_path / "a.npy").read_bytes().replace(b"(3,)", b"(3" + b"0" * 15 + b",)")[:128]
    with zipfile.ZipFile(tmp_path / "verdicts.npz", "w") as packed:
        packed.writestr("clean.npy", huge)  # promises what it does not hold
    with pytest.raises(InputError, match="cannot be read together"):
        read_results(tmp_path)
    np.savez(tmp_path / "verdicts.npz", clean=np.array([print], dtype=object))
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        read_results(tmp_path)


def test_two_attacks_of_one_name_for_people_have_a_row_each():
    attacks = {name: proportion(count, 10) for name, count in (("clean", 9), ("pgd", 5), ("pgd20", 6))}
    found = Record(ThreatModel(), "d", "test", 10, attacks=attacks)
    assert [row[0] for row in rows(found)] == ["clean", "PGD-20", "PGD-20"]
