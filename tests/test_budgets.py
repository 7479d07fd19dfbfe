"""budgets.py: one run of a minimum-norm attack gives a curve, which is the closed form's, goes on, is shared and shown."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from conftest import killed
from test_fmn import centred, nearest_of

from piat_hub.attacks import malt
from piat_hub.config import InputError, ThreatModel, number
from piat_hub.data import Split
from piat_hub.evaluation.loop import Processes, evaluate, measure
from piat_hub.records.budgets import add_point, read_off
from piat_hub.records.compare import compare
from piat_hub.records.results import Results, read_results

THREAT = ThreatModel("Linf", 8 / 255)


def images(model, n=40, classes=6):
    """Images far inside the box with what the model calls them as labels, but for the first, which is wrong."""
    x = 0.4 + 0.2 * torch.rand(n, 3, 2, 2)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % classes
    return Split(x, y, tuple("abcdefgh"[:classes]), "n")


@pytest.fixture
def far(linear):
    """A linear model, images, and how far each is from its boundary."""
    model = linear(centred(torch.randn(2, 12)))
    split = images(model, classes=2)
    away = nearest_of(model, split.images, split.labels, "Linf")
    away[0] = 0
    return model, split, away.numpy()


def test_one_run_gives_the_closed_forms_curve(far, tmp_path):
    model, split, away = far
    results = evaluate(model, split, ["fmn100"], threat_model=THREAT)
    assert results.reach["fmn100"].dtype == np.float32 and results.reach["fmn100"] == pytest.approx(away, rel=0.02)
    assert results.attacks["fmn100"]["steps"] == 100 and "step_size" not in results.attacks["fmn100"]
    assert [point["eps"] for point in results.sweep] == [f"{k}/255" for k in range(1, 17)]
    for point in results.sweep:
        eps, figures = number(point["eps"]), point["attacks"]["fmn100"]
        assert (away > 1.02 * eps).sum() <= figures["correct"] <= (away > eps / 1.02).sum()
        assert figures["steps"] == 100 and "seconds" not in figures
    counts = [point["attacks"]["fmn100"]["correct"] for point in results.sweep]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[7] > counts[15]
    assert counts[7] == results.attacks["fmn100"]["correct"]
    assert np.array_equal(results.verdicts["fmn100"], results.reach["fmn100"] > np.float32(THREAT.eps))
    results.save(tmp_path / "a")
    results.save(tmp_path / "b")
    record, kept = read_results(tmp_path / "a")  # holds what it claims
    assert record.sweep == results.sweep and set(kept) == {"clean", "fmn100"}
    assert [p.attack for p in compare(tmp_path / "a", tmp_path / "b")] == ["clean", "fmn100"]


def test_a_later_call_takes_the_distances_over(far, tmp_path):
    model, split, _ = far
    results = evaluate(model, split, ["fmn10"], threat_model=THREAT)
    results.save(tmp_path)
    again = Results.of(split, THREAT)
    again.resume(tmp_path)
    assert np.array_equal(again.reach["fmn10"], results.reach["fmn10"])
    with np.load(tmp_path / "verdicts.npz") as arrays:
        kept = dict(arrays)
    np.savez(tmp_path / "verdicts.npz", **kept | {"fmn10.reach": kept["fmn10.reach"][:3]})
    other = Results.of(split, THREAT)
    other.resume(tmp_path)
    assert not other.reach and "fmn10" in other.verdicts  # of no use, so not taken over
    point = add_point(again, 3 / 255, {"pgd2": read_off(again, "fmn10", 0.02)})
    assert set(point["attacks"]) == {"fmn10", "pgd2"} and len(again.sweep) == 16
    assert [p["eps"] for p in again.sweep] == [p["eps"] for p in results.sweep]


def test_budgets_that_are_no_levels_are_written_short(far):
    model, split, _ = far
    results = evaluate(model, split, ["fmn3"], threat_model=ThreatModel("L2", 0.3))
    assert [point["eps"] for point in results.sweep][:4] == ["0.0375", "0.075", "0.1125", "0.15"]


ATTACKS = ["malt", "fast", "fmn5"]


@pytest.fixture
def noisy(tiny, monkeypatch):
    """measure() of a few images that are not all broken, by every attack of the frontier at a few steps."""
    monkeypatch.setattr("piat_hub.evaluation.suites.malt", lambda *given, **options: malt(*given, **options, steps=2))
    model = tiny(classes=6)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    split = images(model, 20)

    def run(results, **options):
        return measure(model, split, ATTACKS, results, batch_size=7, **options)

    return run, lambda: Results.of(split, ThreatModel("Linf", 0.06))


def same(a, b):
    return all(np.array_equal(a.verdicts[k], b.verdicts[k]) for k in ("clean", *ATTACKS)) and np.array_equal(
        a.reach["fmn5"], b.reach["fmn5"]
    )


@pytest.mark.slow
def test_killed_anywhere_they_go_on_to_the_same_verdicts(noisy, tmp_path):
    run, fresh = noisy
    whole, saves = fresh(), []
    list(run(whole, save=lambda results: saves.append(results.running and results.running.attack)))
    assert 0 < whole.attacks["malt"]["correct"] < 20 and 0 < whole.attacks["fmn5"]["correct"] < 20
    last = [max(k for k, name in enumerate(saves) if name == attack) for attack in ATTACKS]  # its last batch
    for stop in {2, *last}:
        folder, done = tmp_path / str(stop), []

        def save(results, folder=folder, done=done, stop=stop):
            results.save(folder)
            done.append(1)
            if len(done) > stop:
                os.kill(os.getpid(), signal.SIGKILL)

        assert killed(lambda save=save: list(run(fresh(), save=save)), lambda: None)
        resumed = fresh()
        resumed.resume(folder, stopped=True)
        rest = list(run(resumed, save=lambda results, folder=folder: results.save(folder)))
        assert len(rest) < len(saves) and same(resumed, whole) and resumed.sweep == whole.sweep
        assert sorted(p.name for p in folder.iterdir()) == ["results.json", "verdicts.npz"]


def test_two_that_share_find_what_one_finds(noisy):
    run, fresh = noisy
    whole, shares = fresh(), [fresh(), fresh()]
    list(run(whole))
    for rank, share in enumerate(shares):  # each alone: what the other would have taken stays as it was
        list(run(share, processes=Processes(rank, 2)))
    for attack in ("malt", "fmn5"):
        assert np.array_equal(np.logical_and(*(s.verdicts[attack] for s in shares)), whole.verdicts[attack])
    assert np.array_equal(np.minimum(*(s.reach["fmn5"] for s in shares)), whole.reach["fmn5"])


def test_a_damaged_state_of_one_is_moved_aside(noisy, tmp_path):
    run, fresh = noisy
    for event in run(fresh(), save=lambda results: results.save(tmp_path)):
        if event.attack == "fmn5":
            break
    state = tmp_path / "verdicts.fmn5.partial.npz"
    with np.load(state) as arrays:
        kept = dict(arrays)
    np.savez(state, **kept | {"reach": kept["reach"][:3]})
    with pytest.raises(InputError, match=r"fmn5.partial.npz is not a whole state .* begins that attack anew"):
        fresh().resume(tmp_path, stopped=True)


def test_the_command_prints_draws_and_keeps_the_curve(evaluated, capsys):
    from piat_hub import cli

    asked = "evaluate r --n 30 --attacks fmn3 pgd1 --sweep-eps 0.1 0.15"
    assert cli.main(asked.split()) == 0
    shown = capsys.readouterr().out
    written = json.loads((evaluated / "results.json").read_text())
    points = {point["eps"]: point["attacks"] for point in written["sweep"]}
    assert len(points) == 17 and set(points["0.1"]) == {"clean", "fmn3", "pgd1"} and set(points["0.3"]) == {"fmn3"}
    assert points["0.15"]["fmn3"]["correct"] == written["attacks"]["fmn3"]["correct"]
    card = (evaluated / "README.md").read_text()
    for text in (shown, card):
        assert f"{100 * points['0.3']['fmn3']['accuracy']:.2f} %" in text and "FMN-3" in text and "0.01875" in text
    assert "Accuracy by perturbation budget" in card and (evaluated / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert (
        cli.main(["evaluate", "r", "--n", "30", "--attacks", "pgd3"]) == 0
    )  # a call without it does not show it again
    assert "0.01875" not in capsys.readouterr().out
