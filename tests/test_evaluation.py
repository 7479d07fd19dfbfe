"""evaluation.py: verdicts of a model whose robust images are known, intervals, resume to the same bytes."""

import functools
import itertools
import json
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import python
from torch import nn

from piat_hub.attacks import ATTACKS
from piat_hub.cli import entry
from piat_hub.config import Alone, InputError, ThreatModel
from piat_hub.data import Split, derived_seed, to_unit
from piat_hub.evaluation.loop import Processes, Progress, evaluate, measure
from piat_hub.evaluation.suites import suite
from piat_hub.evaluation.verdict import accuracy, class_count, correct, stands, survives, twin_of
from piat_hub.records.compare import compare
from piat_hub.records.labels import rows
from piat_hub.records.results import Results
from piat_hub.records.statistics import wilson


class Threshold(nn.Module):
    """Class 1 where the mean pixel exceeds .5: an Linf attack of eps moves the mean by eps at most."""

    def __init__(self, classes=2):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.classes = classes

    def forward(self, x):
        z = self.weight * 20 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z, *[torch.full_like(z, -50.0)] * (self.classes - 2)], 1)


LEVELS = (10, 100, 120, 126, 129, 135, 155, 245)


def bright(classes=2, wrong=0):
    """Constant images of known levels; distance to the boundary in levels is |level - 127.5|."""
    images = torch.tensor(LEVELS, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    labels = torch.tensor([int(level > 127) for level in LEVELS])
    labels[:wrong] = 1 - labels[:wrong]
    return Split(images, labels, tuple("abcdefghij"[:classes]), "bright")


def standing(eps, wrong=0):
    return [i >= wrong and abs(level - 127.5) > 255 * eps for i, level in enumerate(LEVELS)]


@pytest.mark.parametrize("attack", ["pgd20", "pgd", "mim20", "cw20", "pgd8"])
@pytest.mark.parametrize("eps", [8 / 255, 30 / 255])
def test_verdicts_are_the_closed_form(attack, eps):
    results = evaluate(Threshold(), bright(wrong=1), ["clean", attack], threat_model=ThreatModel("Linf", eps))
    assert results.verdicts["clean"].tolist() == [False, *[True] * 7]
    assert results.verdicts[attack].tolist() == standing(eps, wrong=1)
    figures = results.attacks[attack]
    assert figures["correct"] == sum(standing(eps, wrong=1)) and figures["n"] == 8
    assert figures["accuracy"] == figures["correct"] / 8
    assert figures["ci95"] == list(wilson(figures["correct"], 8))
    assert figures["steps"] == int(attack.lstrip("pgdmicw") or 20)


def test_l2_verdicts():
    """With 12 equal pixels the mean moves by eps / sqrt(12) under an L2 budget of eps."""
    eps = 0.3
    results = evaluate(Threshold(), bright(), ["pgd50"], threat_model=ThreatModel("L2", eps))
    assert results.verdicts["pgd50"].tolist() == standing(eps / np.sqrt(12))


def test_autoattack_verdicts_and_shares(quick_autoattack):
    results = evaluate(Threshold(4), bright(4), ["aa"], threat_model=ThreatModel("Linf", 8 / 255))
    figures = results.attacks["aa"]
    assert results.verdicts["aa"].tolist() == standing(8 / 255)
    assert figures["version"] == "standard" and "3 classes" in figures["changed"]
    assert list(figures["per_attack"]) == ["pgd10", "apgd-ce", "apgd-t", "fab-t", "square"]
    shares = figures["per_attack"].values()
    assert sum(s["broken"] for s in shares) == 8 - figures["correct"]
    attacked = 8
    for share in shares:
        assert share["attacked"] == attacked
        attacked -= share["broken"]


def test_wilson_against_known_values():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_wilson_covers_95_percent():
    rng = np.random.default_rng(0)
    hits = [lo <= 0.3 <= hi for lo, hi in (wilson(int(k), 200) for k in rng.binomial(200, 0.3, 4000))]
    assert 0.93 < np.mean(hits) < 0.97


def test_infinite_logits_are_never_correct():
    class Broken(Threshold):
        def forward(self, x):
            return super().forward(x) + torch.tensor([0.0, torch.nan])

    assert evaluate(Broken(), bright(), ["clean"]).attacks["clean"]["correct"] == 0


def test_half_precision_models_are_judged_in_fp32():
    model = Threshold().bfloat16()
    results = evaluate(model, bright(), ["clean", "pgd20"], threat_model=ThreatModel("Linf", 8 / 255))
    assert results.verdicts["pgd20"].tolist() == standing(8 / 255)
    assert model.weight.dtype == torch.bfloat16


def test_model_and_generators_are_left_alone():
    model = Threshold().train()
    state = torch.get_rng_state()
    evaluate(model, bright(), ["pgd5"])
    assert model.training and model.weight.requires_grad and torch.equal(torch.get_rng_state(), state)


def test_same_seed_same_verdicts_other_seed_other_starts():
    model, split, _ = noisy()
    threat = ThreatModel("Linf", 0.08)
    three, again, four = (
        evaluate(model, split, ["pgd1"], seed=s, threat_model=threat, step_size=0.01).verdicts["pgd1"]
        for s in (3, 3, 4)
    )
    assert np.array_equal(three, again) and not np.array_equal(three, four)


@pytest.mark.parametrize(("name", "guess"), [("pgd-20", "pgd20"), ("autoattack", ""), ("pgd0", "pgd"), ("PGD20", "")])
def test_unknown_attacks(name, guess):
    with pytest.raises(InputError, match=f"unknown attack {name!r}.*{guess}.*known: clean, pgdN, apgdN"):
        suite(name, ThreatModel(), 10)


def test_step_size_is_held_to_the_budget():
    assert suite("pgd20", ThreatModel(), 10).facts["step_size"] == "2/255"
    with pytest.raises(InputError, match="step-size"):
        suite("pgd20", ThreatModel(), 10, step_size=0.2)


def test_class_counts_and_shapes_must_fit():
    with pytest.raises(InputError, match="the model has 2 classes and bright has 3"):
        evaluate(Threshold(), bright(3), ["clean"])
    with pytest.raises(InputError, match="cannot take the 3x2x2 images of bright"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), bright(), ["clean"])


def fresh(n=8):
    return Results.of(bright().first(n), ThreatModel("Linf", 8 / 255), weights="w")


def test_saved_results_and_verdicts(tmp_path):
    results = fresh()
    for _ in measure(Threshold(), bright(), ["pgd20"], results, save=lambda r: r.save(tmp_path)):
        pass
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["schema"] == 1
    assert written["threat_model"] == {"norm": "Linf", "eps": "8/255"}
    assert written["dataset"] == {"name": "bright", "split": "test", "n": 8}
    assert set(written) >= {"seed", "checkpoint", "attacks", "versions", "git", "device", "seconds"}
    assert set(written["attacks"]["pgd20"]) >= {"accuracy", "correct", "n", "ci95", "steps", "step_size", "restarts"}
    with np.load(tmp_path / "verdicts.npz", allow_pickle=False) as arrays:
        assert arrays["index"].tolist() == list(range(8))
        assert arrays["label"].tolist() == bright().labels.tolist()
        assert arrays["pgd20"].dtype == bool and arrays["pgd20"].tolist() == standing(8 / 255)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "verdicts.npz"]


def noisy():
    """A model and images where PGD's random start decides many verdicts."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 2))
    split = Split(
        torch.randint(0, 256, (60, 3, 2, 2), dtype=torch.uint8), torch.zeros(60, dtype=torch.long), ("a", "b"), "n"
    )
    with torch.no_grad():  # put the boundary amid the images
        gap = model(split.images / 255) @ torch.tensor([1.0, -1.0])
        model[3].bias[1] += gap.median()
        split.labels.copy_(model(split.images / 255).argmax(1))
    return model, split, Results.of(split, ThreatModel("Linf", 0.08))


def saver(folder):
    return lambda results: results.save(folder)


@pytest.mark.slow
def test_stopped_anywhere_the_verdicts_are_the_same(tmp_path):
    model, split, whole = noisy()
    events = list(measure(model, split, ["pgd2", "mim2"], whole, batch_size=7))
    assert 0 < whole.attacks["pgd2"]["correct"] < 60
    for stop in range(1, len(events) + 1):
        save = saver(tmp_path / str(stop))
        partial = measure(model, split, ["pgd2", "mim2"], noisy()[2], batch_size=7, save=save)
        list(itertools.islice(partial, stop))
        resumed = noisy()[2]
        resumed.resume(tmp_path / str(stop), stopped=True)
        rest = list(measure(model, split, ["pgd2", "mim2"], resumed, batch_size=7, save=save))
        assert len(rest) <= len(events) - stop + 1  # no finished batch is run again but the one not yet saved
        for attack in whole.verdicts:
            assert np.array_equal(resumed.verdicts[attack], whole.verdicts[attack])
        assert sorted(p.name for p in (tmp_path / str(stop)).iterdir()) == ["results.json", "verdicts.npz"]


def test_a_second_call_adds_and_refuses_another_question(tmp_path):
    first = fresh()
    list(measure(Threshold(), bright(), ["pgd5"], first, save=lambda r: r.save(tmp_path)))
    second = fresh()
    second.resume(tmp_path)
    progress = list(measure(Threshold(), bright(), ["pgd5", "cw5"], second, save=lambda r: r.save(tmp_path)))
    assert {p.attack for p in progress} == {"cw5"} and set(second.verdicts) == {"clean", "pgd5", "cw5"}
    changes = (
        dict(threat_model=ThreatModel("Linf", 0.5)),
        dict(n=7),
        dict(weights="v"),
        dict(seed=1),
        dict(images="other"),
    )
    for change in changes:
        other = fresh()
        vars(other).update(change)
        with pytest.raises(InputError, match="--output"):
            other.resume(tmp_path)
    third = fresh()
    third.resume(tmp_path)
    with pytest.raises(InputError, match="pgd5 was measured with step_size 2/255"):
        list(measure(Threshold(), bright(), ["pgd5"], third, step_size=1 / 255))


@pytest.mark.parametrize("damage", ["{", "[]", '{"attacks": {"pgd5": {}}}'])
def test_damaged_results_are_named(tmp_path, damage):
    fresh_results = fresh()
    list(measure(Threshold(), bright(), ["clean"], fresh_results, save=lambda r: r.save(tmp_path)))
    (tmp_path / "results.json").write_text(damage)
    with pytest.raises(InputError, match="results.json and verdicts.npz cannot be read together"):
        fresh().resume(tmp_path)


def test_progress_is_an_upper_bound():
    model, split, results = noisy()
    events = [e for e in measure(model, split, ["pgd2"], results, batch_size=7) if e.attack == "pgd2"]
    bounds = [e.standing for e in events]
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] == results.attacks["pgd2"]["correct"]
    assert events[-1] == Progress("pgd2", 60, 60, bounds[-1], 60, 7)


def test_quick_check_counts_like_evaluate():
    model, split, results = noisy()
    list(measure(model, split, ["clean"], results))
    assert accuracy(model, split, batch_size=7, seed=0) == results.attacks["clean"]["correct"] == 60
    attack = suite("pgd10", ThreatModel("Linf", 0.08), 2).stages["pgd10"]
    whole = accuracy(model, split, attack, batch_size=7, seed=0)
    shares = [accuracy(model, split, attack, batch_size=7, seed=0, rank=r, world=3) for r in range(3)]
    assert 0 < whole < 60 and sum(shares) == whole


def test_a_registered_attack_is_found_by_name_and_given_what_it_takes(monkeypatch):
    from piat_hub.attacks import ATTACKS, register

    monkeypatch.setattr("piat_hub.attacks.core.ATTACKS", ATTACKS)
    for name in ("darken", "dim"):
        monkeypatch.setitem(ATTACKS, name, None)  # taken away again after the test

    @register
    def darken(model, x, y, eps, step_size, steps, *, norm):
        return (x - min(steps * step_size, eps)).clamp(0, 1)

    @register
    def dim(model, x, y, eps):
        return (x - eps).clamp(0, 1)

    threat = ThreatModel("Linf", 8 / 255)
    results = evaluate(Threshold(), bright(), ["darken4", "dim", "darken"], threat_model=threat)
    for name in results.verdicts.keys() - {"clean"}:
        assert results.verdicts[name].tolist() == [True, True, True, True, False, False, True, True]
    assert {k for k in results.attacks["dim"] if k in ("steps", "step_size", "restarts")} == set()
    assert [results.attacks[a]["steps"] for a in ("darken4", "darken")] == [4, 20]
    with pytest.raises(InputError, match="dim20 takes no steps; leave out the number"):
        suite("dim20", threat, 2)
    with pytest.raises(InputError, match="darken takes no restarts, this call asks for 2; leave out --restarts"):
        suite("darken", threat, 2, restarts=2)


OWN = """
import torch
def random(model, x, y, eps, steps=7):
    for _ in range(steps):
        x_adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    return x_adv
def beyond(model, x, y, eps):
    return (x - 1.5 * eps).clamp(0, 1)
def outside(model, x, y, eps):
    return x - eps
def lost(model, x, y):
    return x * torch.nan
def shape(model, x, y):
    return x[:1]
def wrong(model, x, y):
    return x.undefined
def lazy(model, x, y, eps, depth):
    return x
def in_place(model, x, y, eps):
    return x.sub_(eps).clamp_(0, 1)
def sees_the_model(model, x, y, eps):
    assert type(model).__name__ == "Threshold" and not model.training and not model.weight.requires_grad
    (gradient,) = torch.autograd.grad(model(x.requires_grad_())[range(len(y)), y].sum(), x)
    return (x - eps * gradient.sign()).clamp(0, 1).detach()
VALUE = 3
"""
LEAVES = {
    "beyond": r"own_attacks:beyond left its budget: it moved an image by 0.04706, the threat model is Linf eps 8/255; .* project",
    "outside": r"own_attacks:outside gave pixels in \[-.*\]; .* clamp",
    "lost": "own_attacks:lost gave pixels that are not finite; an attack gives images in .0, 1., so mend them",
    "shape": r"gave torch.float32 of shape \(1, 3, 2, 2\); an attack gives images like x, floats of shape \(8, 3, 2, 2\)",
    "wrong": r"raised AttributeError: 'Tensor' object has no attribute 'undefined' \(own_attacks.py, line \d+\)",
    "lazy": "lazy cannot be called as .model, x, y, eps.: missing a required argument: 'depth'",
    "VALUE": "own_attacks:VALUE is a int; an attack is a function",
    "missing": "no attack 'own_attacks:missing'.*importable from here",
}


@pytest.fixture
def own_attacks(tmp_path):
    (tmp_path / "own_attacks.py").write_text(OWN)
    yield
    sys.modules.pop("own_attacks", None)


@pytest.mark.parametrize("name", LEAVES)
def test_an_attack_of_ones_own_that_leaves_the_budget_never_counts(own_attacks, name):
    dark = Split(bright().images, bright().labels, ("a", "b"), "dark")
    dark.images[0] = 2
    with pytest.raises(InputError, match=LEAVES[name]):
        evaluate(Threshold(), dark, [f"own_attacks:{name}"])


def test_what_one_of_several_processes_refuses_it_tells_itself(own_attacks, monkeypatch, capsys):
    """Its share of the images is its own: the first process may meet nothing of it."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    results = Results.of(bright(), ThreatModel("Linf", 8 / 255))
    with pytest.raises(Alone, match="left its budget") as refusal:
        list(measure(Threshold(), bright(), ["own_attacks:beyond"], results, batch_size=4, processes=Processes(1, 2)))
    assert entry._fail("piat evaluate", refusal.value, 2) == 2
    assert "piat evaluate: error (process 1): own_attacks:beyond left its budget" in capsys.readouterr().err
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    entry._fail("piat evaluate", InputError("what all of them meet"), 2)
    assert capsys.readouterr().err == "" and waited == [3], "the first process tells it, and ends before this one"


def test_an_attack_of_ones_own_gives_verdicts_as_ours_do(own_attacks, tmp_path):
    attacks = ["own_attacks:in_place", "own_attacks:sees_the_model"]
    results = evaluate(Threshold().train(), bright(), attacks, threat_model=ThreatModel("Linf", 8 / 255))
    assert results.verdicts[attacks[0]].tolist() == [True, True, True, True, False, False, True, True]
    assert results.verdicts[attacks[1]].tolist() == standing(8 / 255)
    assert rows(results)[1][0] == "own_attacks:in_place"
    results.save(tmp_path / "a")
    results.save(tmp_path / "b")
    assert [p.attack for p in compare(tmp_path / "a", tmp_path / "b")] == ["clean", *attacks]


def test_an_attack_of_ones_own_goes_on_and_is_shared_to_the_same_verdicts(own_attacks, tmp_path):
    model, split, whole = noisy()
    name = "own_attacks:random3"
    events = list(measure(model, split, [name], whole, batch_size=7))
    assert whole.attacks[name]["steps"] == 3 and 0 < whole.attacks[name]["correct"] < 60
    list(itertools.islice(measure(model, split, [name], noisy()[2], batch_size=7, save=saver(tmp_path)), 5))
    resumed = noisy()[2]
    resumed.resume(tmp_path, stopped=True)
    rest = list(measure(model, split, [name], resumed, batch_size=7, save=saver(tmp_path)))
    assert len(rest) == len(events) - 5 and np.array_equal(resumed.verdicts[name], whole.verdicts[name])
    shares = []
    for rank in (0, 1):  # each alone: what the other would have taken stays as it was
        share = noisy()[2]
        list(measure(model, split, [name], share, batch_size=7, processes=Processes(rank, 2)))
        shares.append(share.verdicts[name])
    assert np.array_equal(shares[0] & shares[1], whole.verdicts[name])


def test_a_stopped_attack_goes_on_as_it_was_asked_for_or_not_at_all(tmp_path):
    model, split, results = noisy()
    list(itertools.islice(measure(model, split, ["pgd3"], results, batch_size=7, save=saver(tmp_path)), 3))
    for question in (dict(step_size=0.01, batch_size=7), dict(batch_size=8)):
        again = noisy()[2]
        again.resume(tmp_path, stopped=True)
        with pytest.raises(InputError, match="pgd3 was stopped with .* leave out --resume"):
            list(measure(model, split, ["pgd3"], again, **question))
    anew = noisy()[2]
    anew.resume(tmp_path)  # another attack first: what was stopped stays
    list(measure(model, split, ["mim2"], anew, batch_size=7, save=saver(tmp_path)))
    assert (tmp_path / "verdicts.pgd3.partial.npz").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Flatten(0), "returns a tensor of shape"),
        (nn.LSTM(2, 2), "cannot take|returns a tuple"),
        (nn.Flatten(), "the model has 12 classes and bright has 2"),
    ],
)
def test_what_is_no_classifier(model, message):
    with pytest.raises(InputError, match=message):
        evaluate(model, bright(), ["clean"])


def test_classes_inferred_from_numbers_may_be_fewer_than_the_models():
    import dataclasses

    split = dataclasses.replace(bright(2), inferred=True)
    assert class_count(Threshold(4), split) == 4
    with pytest.raises(InputError, match="has 1 classes"):
        class_count(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), split)


def test_a_loaded_models_own_threat_model_is_the_default():
    from piat_hub.config import TrainConfig, to_dict

    model = Threshold()
    assert evaluate(model, bright(), ["clean"]).threat_model == ThreatModel("Linf", 8 / 255)
    model.piat = to_dict(TrainConfig(threat_model=ThreatModel("Linf", 0.15)))
    assert evaluate(model, bright(), ["clean"]).threat_model == ThreatModel("Linf", 0.15)
    assert evaluate(model, bright(), ["clean"], threat_model=ThreatModel("L2", 1)).threat_model.norm == "L2"


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_autoattacks_components_by_name(quick_autoattack, name):
    results = evaluate(Threshold(4), bright(4), [name], threat_model=ThreatModel("Linf", 8 / 255))
    assert results.attacks[name]["version"] == "standard"
    truth = np.array(standing(8 / 255))
    assert results.verdicts[name][truth].all() and not results.verdicts[name][~truth].all()
    with pytest.raises(InputError, match="apgd-t is undefined for 2 classes"):
        evaluate(Threshold(), bright(), ["apgd-t"])


def test_restarts_break_more_and_are_part_of_the_question(tmp_path):
    model, split, results = noisy()
    list(measure(model, split, ["pgd1"], results, step_size=0.01, save=saver(tmp_path)))
    more = noisy()[2]
    list(measure(model, split, ["pgd1"], more, step_size=0.01, restarts=8))
    assert more.attacks["pgd1"]["restarts"] == 8 and results.attacks["pgd1"]["restarts"] == 1
    assert more.attacks["pgd1"]["correct"] < results.attacks["pgd1"]["correct"]
    again = noisy()[2]
    again.resume(tmp_path)
    with pytest.raises(InputError, match="pgd1 was measured with restarts 1, this call asks for 8"):
        list(measure(model, split, ["pgd1"], again, step_size=0.01, restarts=8))


def any_iterate(model, split, attack, seed):
    """The slow twin of leaving: the whole batch runs to the end, and no iterate may have misled the model."""
    torch.manual_seed(derived_seed(seed, *b"pgd9", 0, 0))
    x, y = to_unit(split.images), split.labels
    always = torch.ones(len(split), dtype=torch.bool)

    def watch(k, logits):
        always.logical_and_(logits.argmax(1) == y)

    x_adv = attack(model, x, y, on_step=watch)
    return always & correct(model, x_adv, y)


@pytest.mark.parametrize("name", ["pgd", "mim", "cw"])
def test_images_that_leave_are_those_that_any_iterate_misleads(name):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 2)).double()
    _, split, _ = noisy()
    split = Split(split.images, model(to_unit(split.images).double()).argmax(1), ("a", "b"), "self")
    options = {"eps": 0.1, "step_size": 0.09, "steps": 9}  # long steps: some come back to their class
    attack = functools.partial(ATTACKS[name], **options)
    watched = any_iterate(model.float(), split, attack, 0)
    torch.manual_seed(derived_seed(0, *b"pgd9", 0, 0))
    x_adv = attack(model, to_unit(split.images), split.labels, leave=True)
    left = correct(model, x_adv, split.labels)
    assert torch.equal(left, watched) and 0 < left.sum() < len(split)
    assert (x_adv - to_unit(split.images)).abs().max() <= 0.1 + 1e-6


def test_leaving_needs_one_budget_and_no_hook():
    x, y = torch.rand(2, 3, 2, 2), torch.zeros(2, dtype=torch.long)
    for options in ({"on_step": lambda k, z: None}, {"eps": torch.full((2, 1, 1, 1), 0.1)}):
        with pytest.raises(InputError, match="cannot leave"):
            ATTACKS["pgd"](Threshold(), x, y, leave=True, **options)


class Cramped(Threshold):
    """A device whose memory takes five images at a time."""

    seen: ClassVar[list[int]] = []

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(x)


def test_a_batch_that_does_not_fit_is_halved_and_said():
    _, split, results = noisy()
    split = Split(split.images, split.labels, ("a", "b"), "noisy")
    Cramped.seen.clear()
    events = list(measure(Cramped(), split, ["pgd3"], results, batch_size=32))
    assert [e.at_a_time for e in events] == [4, 5] and Cramped.seen[4:8] == [32, 16, 8, 4]  # 2, and 8 in halves, before
    roomy = evaluate(Threshold(), split, ["pgd3"], batch_size=32)
    assert (results.verdicts["clean"] == roomy.verdicts["clean"]).all()
    assert results.attacks["pgd3"]["n"] == len(split)

    pgd = suite("pgd3", results.threat_model, 2).stages["pgd3"]
    counts = [accuracy(m, split, pgd, batch_size=32, seed=0) for m in (Cramped(), Threshold())]
    assert counts[0] == counts[1] > 0  # the check within training

    class Never(Threshold):
        def forward(self, x):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        survives(Never(), Never(), lambda model, x, y: x, torch.rand(3, 3, 2, 2), torch.zeros(3), 3, 0)


NEWER = """
import sys
import torch
from piat_hub.evaluation.verdict import verdict_mode
backends = torch.backends
cudnn, onednn = backends.cudnn, backends.mkldnn
parts = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, onednn.matmul, onednn.conv, onednn.rnn)
read = lambda: [part.fp32_precision.replace("none", "ieee") for part in parts]  # they mean the same
owner, value = {"all": (backends, "tf32"), "cudnn": (cudnn.conv, "tf32"), "matmul": (onednn.matmul, "bf16"),
                "conv": (onednn.conv, "bf16"), "rnn": (onednn.rnn, "bf16"), "onednn": (onednn, "bf16")}[sys.argv[1]]
owner.fp32_precision = value
before = read()
assert value in before
with verdict_mode(torch.nn.Linear(2, 2)):
    assert not {"tf32", "bf16"} & set(read()) and cudnn.deterministic, read()
assert read() == before and not cudnn.deterministic
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["all", "cudnn", "matmul", "conv", "rnn", "onednn"])
def test_verdicts_are_fp32_also_where_the_model_sets_torchs_newer_flags(which):
    python("-c", NEWER, which, check=True)  # from then on torch refuses the older names, but for "conv" and "rnn"


def test_images_or_attacks_of_another_kind_are_refused():
    _, split, _ = noisy()
    with pytest.raises(InputError, match=r"dataset must be a name or a piat_hub.data.Split, got a tuple"):
        evaluate(Threshold(), (split.images, split.labels))
    for attacks in ("clean", None):
        with pytest.raises(InputError, match=rf"attacks must be a list of names, got {attacks!r}; write \['pgd20'\]"):
            evaluate(Threshold(), split, attacks)
    with pytest.raises(InputError, match=r"the model is a function, not an nn.Module; wrap it in one"):
        evaluate(lambda x: x, split)
    with pytest.raises(InputError, match=r"threat model '8/255' must be NORM:EPS"):
        evaluate(Threshold(), split, threat_model="8/255")
    assert evaluate(Threshold(), split, ["clean"], threat_model="L2:1/2").threat_model == ThreatModel("L2", 0.5)


def test_what_cannot_be_copied_is_attacked_as_it_is():
    class Locked(Threshold):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    model = Locked()
    assert twin_of(model, torch.rand(2, 3, 2, 2)) is model
    assert evaluate(model, bright(), ["pgd20"]).verdicts["pgd20"].tolist() == standing(8 / 255)


def test_where_only_the_twin_is_misled_the_model_itself_is_attacked():
    """A twin that calls everything wrong lets all images leave at once, unharmed: the stage goes on with the model."""
    split = bright()
    attack = functools.partial(ATTACKS["pgd"], eps=8 / 255, step_size=2 / 255, steps=20, leave=True)

    class Opposite(Threshold):
        def forward(self, x):
            return -super().forward(x)

    x, y = to_unit(split.images), split.labels
    found = stands(Threshold(), Opposite(), attack, x, y)
    assert found.tolist() == standing(8 / 255)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"search_precision": "bf61"}, "search-precision 'bf61' is unknown"),
        ({"n": -1}, "n must be >= 1, got -1"),
        ({"restarts": 0}, "restarts must be >= 1"),
        ({"batch_size": 0}, "batch-size must be >= 1"),
        ({"step_size": 0.0}, "step-size must be > 0"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_an_option_out_of_its_bounds_is_refused_before_anything_runs(option, said):
    with pytest.raises(InputError, match=said):
        evaluate(nn.Flatten(), "digits", ["clean"], **option)
