"""L1: the projection against its closed form, APGD against a slow float64 reference and the optimum of a linear model."""

import dataclasses
import itertools
import json
import math
import re
from fractions import Fraction

import pyautoattack
import pytest
import torch
from pyautoattack.autopgd_base import L1_projection
from torch.nn.functional import cross_entropy

from piat_hub import cli
from piat_hub.attacks import apgd, autoattack, cw, l1, mim, pgd
from piat_hub.attacks.autoattack import changes, components
from piat_hub.attacks.core import distances
from piat_hub.config import EvalConfig, InputError, ThreatModel, from_dict, pixels, recipes, to_dict
from piat_hub.data import Split
from piat_hub.evaluation.loop import evaluate
from piat_hub.evaluation.suites import suite
from piat_hub.records.results import Record, read_record


def nearest(point, image, eps):
    """The projection of one image, float64: between two neighbouring kinks the length left is linear in the cut."""
    delta = point - image
    moved, room = delta.abs(), torch.where(delta > 0, 1 - image, image)

    def left(cut):
        return (moved - cut).clamp(min=0).minimum(room)

    kinks = torch.cat([torch.zeros(1, dtype=point.dtype), moved, (moved - room).clamp(min=0)]).unique()
    if left(kinks[0]).sum() <= eps:
        return image + delta.sign() * left(kinks[0])
    for low, high in itertools.pairwise(kinks):
        above, below = left(low).sum(), left(high).sum()
        if below <= eps < above:
            return image + delta.sign() * left(low + (high - low) * (above - eps) / (above - below))
    raise AssertionError


@pytest.mark.parametrize("eps", [0.05, 0.7, 3.0, 50.0])
def test_the_projection_is_its_closed_form(eps):
    x = torch.rand(30, 3, 2, 2, dtype=torch.float64)
    x[:5], x[5:10] = x[:5].round(), 0.5
    x_adv = x + torch.randn_like(x) * torch.logspace(-2, 1, 30).view(-1, 1, 1, 1)
    found = l1.project(x_adv, x, eps)
    expected = [nearest(p.flatten(), i.flatten(), eps).view(i.shape) for p, i in zip(x_adv, x, strict=True)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-9)
    assert (distances(found - x, "L1") <= eps * (1 + 1e-12)).all() and found.min() >= 0 and found.max() <= 1
    for _ in range(20):  # no other point of ball and box is nearer
        other = x + (torch.rand_like(x) - 0.5)
        other = l1.project(other, x, eps * torch.rand(()).item())
        assert ((found - x_adv).flatten(1).norm(dim=1) <= (other - x_adv).flatten(1).norm(dim=1) + 1e-12).all()
    theirs = x_adv.float() + L1_projection(x.float(), (x_adv - x).float(), eps)
    assert torch.allclose(found.float(), theirs, atol=1e-4)


def test_a_budget_per_image_and_what_moved_nothing():
    x = torch.rand(3, 2, 4, 4)
    eps = torch.tensor([0.1, 1.0, 100.0]).view(3, 1, 1, 1)
    moved = distances(l1.project(x + 1, x, eps) - x, "L1")
    assert torch.allclose(moved[:2], eps.flatten()[:2], rtol=1e-5) and moved[2] < 32
    assert torch.equal(l1.project(x, x, 0.5), x)


def test_draws_fill_the_ball_alike():
    sizes = (draws := l1.uniform(torch.rand(4000, 3, 2, 2), 2.0)).abs().flatten(1).sum(1) / 2
    assert sizes.max() <= 1 and sizes.pow(12).mean() == pytest.approx(0.5, abs=0.02)  # the share within r is r^12
    assert (draws > 0).float().mean() == pytest.approx(0.5, abs=0.01)
    first = draws[:, 0, 0, 0].abs() / 2  # of Dirichlet's 13 shares one: mean 1/13
    assert first.mean() == pytest.approx(1 / 13, rel=0.05)


def slow(objective, image, begin, eps, steps, given):
    """APGD under L1 of one image as Croce & Hein's code orders it, in lists; the projection is the closed form."""

    def value_and_slope(point):
        point = point.clone().requires_grad_()
        value = objective(point)
        return value.item(), torch.autograd.grad(value, point)[0]

    entries = image.numel()
    point, (value, slope) = begin, value_and_slope(begin)
    best, length = (value, begin, slope), eps
    moved = int((begin != image).sum()) if given else entries
    most, every = math.ceil(Fraction(2 * moved, 3) if given else Fraction(entries, 5)), max(int(0.04 * steps), 1)
    for k in range(steps):
        kept = slope.abs().flatten().sort(descending=True).values[max(most, 1) - 1]
        sign = torch.where(slope.abs() >= kept, slope, 0).sign()
        stepped = point + length * sign / sign.abs().sum()
        point = nearest(stepped.flatten(), image.flatten(), eps).view(image.shape)
        value, slope = value_and_slope(point)
        if value > best[0]:
            best = (value, point, slope)
        if (k + 1) % every == 0:
            before, moved = moved, int((best[1] != image).sum())
            most = math.ceil(Fraction(2 * moved, 3))
            if moved < 0.95 * before:
                length, (_, point, slope) = eps, best
            else:
                length = max(length / 1.5, eps / 10)
    return best[1]


@pytest.mark.parametrize("given", [False, True], ids=["from the image", "from a start"])
@pytest.mark.parametrize("steps", [1, 3, 10, 50])
@pytest.mark.parametrize("eps", [0.5, 2.0])
def test_apgd_is_the_slow_reference(tiny, steps, eps, given):
    torch.manual_seed(steps)
    model, x, y = tiny(48).double(), torch.rand(8, 3, 4, 4, dtype=torch.float64), torch.randint(4, (8,))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6)  # curved enough that steps fail
    start = l1.project(x + torch.randn_like(x), x, eps) if given else x
    ours = apgd(model, x, y, eps, steps, norm="L1", start=start if given else 0.0)
    theirs = [
        slow(lambda p, label=label: cross_entropy(model(p[None]), label[None]), image, begin, eps, steps, given)
        for image, begin, label in zip(x, start, y, strict=True)
    ]
    alike = ((ours - torch.stack(theirs)).abs() < 1e-7).flatten(1).all(1)
    assert alike.sum() >= 6  # at a corner reached twice, rounding says which point is the better


def reach(weight, image, gap, eps):
    """Greatest rise of weight . x under L1 and the box, and the least budget by which it rises by gap: largest entries first."""
    room = torch.where(weight > 0, 1 - image, image)
    order = weight.abs().argsort(descending=True)
    spent = room[order].cumsum(0).clamp(max=eps)
    steps = torch.diff(spent, prepend=torch.zeros(1, dtype=spent.dtype))
    rise, needed, total = (steps * weight.abs()[order]).sum(), 0.0, 0.0
    for k in order.tolist():
        most = room[k] * weight[k].abs()
        if total + most >= gap:
            return rise, needed + (gap - total) / weight[k].abs()
        total, needed = total + most, needed + room[k]
    return rise, torch.tensor(torch.inf)


def test_apgd_reaches_the_optimum_of_a_linear_model(linear):
    weight = torch.randn(2, 48, dtype=torch.float64)
    model, x = linear(weight), torch.rand(10, 3, 4, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    toward = (weight[1 - y] - weight[y]).detach()
    x_adv = apgd(model, x, y, 3.0, 100, norm="L1")
    assert (distances(x_adv - x, "L1") <= 3.0 + 1e-9).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    rise = (toward * (x_adv - x).flatten(1)).sum(1)
    best = torch.stack([reach(w, i, 0.0, 3.0)[0] for w, i in zip(toward, x.flatten(1), strict=True)])
    assert (rise > 0.95 * best).all() and (rise > 0.999 * best).float().mean() >= 0.9 and (rise <= best + 1e-9).all()


def test_autoattack_breaks_a_linear_model_where_the_closed_form_says(linear, quick_autoattack):
    weight = torch.randn(4, 108) / 10
    model, x = linear(weight), torch.rand(24, 3, 6, 6)
    logits = model(x).detach()
    y = logits.argmax(1)

    def least(image):
        others = [k for k in range(4) if k != y[image]]
        gaps = [(weight[k] - weight[y[image]], logits[image, y[image]] - logits[image, k]) for k in others]
        return min(float(reach(w, x[image].flatten(), gap, 1.0)[1]) for w, gap in gaps)

    needed = torch.tensor([least(i) for i in range(24)])
    eps = float(needed.median())
    x_adv = autoattack(model, x, y, eps, norm="L1")
    broken = model(x_adv).argmax(1) != y
    clear = (needed - eps).abs() > 0.03 * eps
    assert torch.equal(broken[clear], (needed < eps)[clear]) and 0 < broken.sum() < 24
    assert (distances(x_adv - x, "L1") <= eps * 1.0001).all() and x_adv.min() >= 0 and x_adv.max() <= 1


def test_autoattack_is_the_packages_own(linear, quick_autoattack):
    model = linear(torch.randn(10, 108) / 5).eval()
    x = torch.rand(16, 3, 6, 6)
    y = model(x).argmax(1)
    theirs, _ = quick_autoattack(model, eps=0.6, norm="L1", seed=0).run_standard_evaluation(x, y, batch_size=16)
    standing = model(autoattack(model, x, y, 0.6, norm="L1")).argmax(1) == y
    assert torch.equal(standing, model(theirs).argmax(1) == y) and 0 < standing.sum() < 16
    whole = suite("aa", ThreatModel("L1", 12), 10)
    assert list(whole.stages) == ["apgd-ce", "apgd-t", "fab-t", "square"] and whole.facts == {"version": "standard"}


def test_autoattacks_setting_under_l1(linear, monkeypatch):
    seen = []

    class Recorded(pyautoattack.AutoAttack):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(self)
            for part in (self.apgd, self.apgd_targeted):
                part.perturb = lambda x, y: x

    monkeypatch.setattr("pyautoattack.AutoAttack", Recorded)
    parts = components(12.0, "L1", 10, 0)
    x = torch.rand(2, 3, 6, 6)
    for name in ("apgd-ce", "apgd-t"):
        parts[name](linear(torch.randn(10, 108)), x, torch.tensor([0, 1]))
    ce, targeted = seen[0].apgd, seen[1].apgd_targeted
    assert (ce.n_restarts, ce.use_largereps, ce.n_iter_orig, ce.loss) == (5, True, 100, "ce")
    assert (targeted.n_restarts, targeted.use_largereps, targeted.n_target_classes) == (1, True, 5)
    assert seen[0].fab.n_target_classes == 9 and changes(10, "L1") is None
    assert changes(8, "L1") == "fab-t aims at 7 classes in place of 9"
    assert changes(5, "L1") == "targeted attacks aim at 4 classes in place of 5 (apgd-t) and 9 (fab-t)"


@pytest.mark.parametrize("attack", [pgd, mim, cw])
def test_who_steps_by_pgd_refuses_l1_in_one_line(tiny, attack):
    with pytest.raises(InputError, match="under L1 ask for aa, one of its parts, or apgd100") as refused:
        attack(tiny(), torch.rand(2, 3, 2, 2), torch.tensor([0, 1]), 1.0, 0.2, 3, norm="L1")
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(InputError, match=f"{attack.__name__}20 has no L1: .* apgd100"):
        suite(f"{attack.__name__}20", ThreatModel("L1", 12), 10)


def test_verdicts_are_the_closed_form():
    """Class 1 where the mean pixel exceeds .5: L1 moves the mean of 12 pixels by eps / 12."""

    class Threshold(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            z = self.weight * 20 * (x.flatten(1).mean(1) - 0.5)
            return torch.stack([-z, z], 1)

    levels = (10, 100, 120, 126, 129, 135, 155, 245)
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    split = Split(images, torch.tensor([int(level > 127) for level in levels]), ("a", "b"), "bright")
    results = evaluate(Threshold(), split, ["apgd50"], threat_model=ThreatModel("L1", 0.9))
    assert results.verdicts["apgd50"].tolist() == [abs(level - 127.5) > 0.9 / 12 * 255 for level in levels]
    assert results.attacks["apgd50"]["steps"] == 50 and "step_size" not in results.attacks["apgd50"]


def test_budgets_are_written_as_levels_for_linf_alone(tmp_path):
    assert [pixels(1.0), pixels(1.0, "L2"), pixels(12, "L1"), pixels(8 / 255, "L2")] == [
        "255/255",
        "1.0",
        "12.0",
        repr(8 / 255),
    ]
    for threat, text in ((ThreatModel("L1", 12), "12.0"), (ThreatModel("L2", 1), "1.0"), (ThreatModel(), "8/255")):
        assert (
            to_dict(threat)["eps"] == text and from_dict(ThreatModel, to_dict(threat)) == threat and text in str(threat)
        )
    run = dataclasses.replace(
        recipes.get("digits"),
        threat_model=ThreatModel("L2", 1.0),
        attack=dataclasses.replace(recipes.get("digits").attack, step_size=51 / 255),
    )
    written = to_dict(run)
    assert (written["threat_model"]["eps"], written["attack"]["step_size"]) == ("1.0", "0.2")
    assert [w for w in recipes.words(run) if "/" in w] == []
    old = Record(ThreatModel("L2", 1.0), "digits", "test", 10).to_dict() | {
        "threat_model": {"norm": "L2", "eps": "255/255"},
        "attacks": {
            "pgd20": {"accuracy": 0.0, "correct": 0, "n": 10, "ci95": [0.0, 0.2775327998628899], "step_size": "51/255"}
        },
        "sweep": [{"eps": "255/255", "attacks": {}}],
    }  # as they were written before
    (tmp_path / "results.json").write_text(json.dumps(old))
    found = read_record(tmp_path / "results.json")
    assert (found.attacks["pgd20"]["step_size"], found.sweep[0]["eps"], str(found.threat_model)) == (
        "0.2",
        "1.0",
        "L2 eps 1.0",
    )


REFUSED = {
    "train digits --norm L1 --eps 12": "training attacks under Linf or L2, .* piat_hub.attacks.apgd",
    "evaluate digits:model --norm L1 --eps 12 --attacks clean pgd20": "pgd20 has no L1: .* ask for aa",
    "evaluate digits:model --norm L1 --eps 12 --attacks clean --checks": "--checks compares runs of PGD, which has no L1",
    "evaluate digits:model --threat-models L1:12 L1:12.0": "L1 eps 12.0 is twice among --threat-models",
    "evaluate digits:model --threat-models L1": "threat model 'L1' must be NORM:EPS, such as Linf:8/255",
    "evaluate digits:model --threat-models l1:12": "norm 'l1' is unknown; choose Linf, L2, L1",
    "evaluate digits:model --threat-models Linf:8": "8 levels is 8/255",
    "evaluate digits:model --threat-models L1:12 --eps 3": "--eps is of one threat model",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(words, tmp_path, capsys, monkeypatch):
    (tmp_path / "ten.py").write_text("from torch import nn\nmodel = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    monkeypatch.syspath_prepend(tmp_path)
    command, *rest = words.replace("digits:model", "ten:model --dataset digits --n 4").split()
    assert cli.main([command, *rest]) == 2
    said = capsys.readouterr().err
    assert re.search(REFUSED[words], said), said
    assert len(said.splitlines()) == 1 and sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".py") in (
        [],
        ["__pycache__"],
    )


def test_a_training_under_l1_can_be_asked_for_by_no_configuration():
    with pytest.raises(InputError, match="not under L1"):
        dataclasses.replace(recipes.get("digits"), threat_model=ThreatModel("L1", 12))
    assert EvalConfig(norm="L1", eps=12).threat_model() == ThreatModel("L1", 12)
