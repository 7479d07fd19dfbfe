"""apgd.py: against a slow float64 reference, one image at a time, and the optimum of a linear model; what training does with it."""

import dataclasses
import shutil
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from piat_hub import cli, methods
from piat_hub.attacks import apgd
from piat_hub.attacks.apgd import few_steps
from piat_hub.config import AttackConfig, InputError, RunOptions, ScheduleConfig, schedules
from piat_hub.methods import divergence
from piat_hub.training import run
from piat_hub.training.setup import make_attack, make_method

NEED_PGD = ("fat", "fgsm_rs", "free_at", "gairat", "las_at", "n_fgsm", "stat")


def within(point, image, eps, norm):
    delta = point - image
    if norm == "Linf":
        delta = delta.clamp(-eps, eps)
    elif delta.norm() > eps:
        delta = delta * (eps / delta.norm())
    return image + delta


def slow(objective, image, begin, eps, steps, norm):
    """APGD of one image as the authors' code orders it: objective(point) is the image's own; lists, no masks."""

    def value_and_slope(point):
        point = point.clone().requires_grad_()
        value = objective(point)
        return value.item(), torch.autograd.grad(value, point)[0]

    points = [begin]
    value, slope = value_and_slope(begin)
    values, best = [value], (value, begin, slope)
    checkpoint_best, length, since, halved = value, 2 * eps, 0, True
    interval = max(int(0.22 * steps), 1)
    for k in range(steps):
        unit = slope.sign() if norm == "Linf" else slope / slope.norm()
        z = within(points[-1] + length * unit, image, eps, norm).clamp(0, 1)
        if k > 0:
            z = points[-1] + 0.75 * (z - points[-1]) + 0.25 * (points[-1] - points[-2])
            z = within(z, image, eps, norm).clamp(0, 1)
        value, slope = value_and_slope(z)
        points.append(z)
        values.append(value)
        if value > best[0]:
            best = (value, z, slope)
        since += 1
        if since == interval:
            rises = sum(k - i == 0 or values[k + 1 - i] > values[k - i] for i in range(interval))
            halved = rises <= 0.75 * interval or (not halved and checkpoint_best >= best[0])
            checkpoint_best, since = best[0], 0
            interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            if halved:
                length, slope, points[-1] = length / 2, best[2], best[1]
    return best[1]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 50])
@pytest.mark.parametrize("eps", [0.02, 0.3])
def test_it_is_the_slow_reference(tiny, norm, steps, eps):
    torch.manual_seed(steps)
    model, x, y = tiny().double(), torch.rand(12, 3, 2, 2, dtype=torch.float64), torch.randint(4, (12,))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6)  # curved enough that steps fail
    ours = apgd(model, x, y, eps, steps, norm=norm)
    theirs = [
        slow(lambda p, label=label: cross_entropy(model(p[None]), label[None]), image, image, eps, steps, norm)
        for image, label in zip(x, y, strict=True)
    ]
    assert torch.allclose(ours, torch.stack(theirs), atol=1e-9)


def test_steps_did_fail_in_that_test(tiny):
    """With these weights some images are halved, others are not: their best point is not always the last one."""
    torch.manual_seed(3)
    model, x, y = tiny().double(), torch.rand(40, 3, 2, 2, dtype=torch.float64), torch.randint(4, (40,))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6)
    few, more = (apgd(model, x, y, 0.3, steps) for steps in (2, 3))
    unchanged = (few == more).flatten(1).all(1)
    assert 0 < unchanged.sum() < 40


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_misclassified_point_on_the_way_is_not_lost(tiny, norm):
    """The point of highest cross-entropy may be right where one before was wrong, with three classes or more."""
    torch.manual_seed(1)
    model, x = tiny().double(), torch.rand(400, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6)
    y = model(x).argmax(1)
    eps, seen = 0.1 if norm == "Linf" else 0.3 if norm == "L2" else 0.8, torch.zeros(400, dtype=torch.bool)

    class Seen(torch.nn.Module):
        def forward(self, x):
            logits = model(x)
            seen.logical_or_(logits.argmax(1) != y)
            return logits

    best, left = (apgd(Seen(), x, y, eps, 10, norm=norm, leave=leave) for leave in (False, True))
    wrong = [model(x_adv).argmax(1) != y for x_adv in (best, left)]
    assert torch.equal(wrong[1], seen) and (wrong[0] <= wrong[1]).all()
    assert torch.equal(best[~seen], left[~seen]) and 0 < seen.sum() < 400


def test_objective_and_start_are_taken_as_the_core_does(tiny):
    model, x = tiny().double(), torch.rand(8, 3, 2, 2, dtype=torch.float64)
    y = 0.7 * one_hot(torch.randint(4, (8,)), 4).double() + 0.075
    fixed = model(x).detach()
    torch.manual_seed(5)
    ours = apgd(model, x, y, 0.1, 3, objective=lambda z, _: divergence(fixed, z).sum(), start=0.05)
    torch.manual_seed(5)
    begin = (x + 0.05 * torch.randn_like(x)).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    theirs = [
        slow(lambda p, i=i: divergence(fixed[i : i + 1], model(p[None])).sum(), x[i], begin[i], 0.1, 3, "Linf")
        for i in range(8)
    ]
    assert torch.allclose(ours, torch.stack(theirs), atol=1e-9)
    soft = apgd(model, x, y, 0.1, 3)
    theirs = [
        slow(lambda p, i=i: cross_entropy(model(p[None]), y[i : i + 1]), x[i], x[i], 0.1, 3, "Linf") for i in range(8)
    ]
    assert torch.allclose(soft, torch.stack(theirs), atol=1e-9)
    plain = apgd(model, x, y, 0.1, 3, objective=lambda z, y: cross_entropy(z, y, reduction="sum"))
    assert torch.allclose(soft, plain, atol=1e-12)


def test_a_linear_models_optimum_in_one_step(linear):
    model, x = linear(torch.randn(2, 12)), 0.3 + 0.4 * torch.rand(5, 3, 2, 2)
    y = torch.randint(2, (5,))
    w = (model.weight[1 - y] - model.weight[y]).view(5, 3, 2, 2)
    assert torch.allclose(apgd(model, x, y, 0.1, 1), x + 0.1 * w.sign(), atol=1e-6)


def test_it_stays_in_the_ball_and_the_box_and_leaves_the_model_alone(tiny):
    model, x, y = tiny().train(), torch.rand(6, 3, 2, 2), torch.randint(4, (6,))
    eps = torch.linspace(0.01, 0.3, 6).view(-1, 1, 1, 1)
    x_adv = apgd(model, x, y, eps, 3, start="uniform")
    assert ((x_adv - x).abs() <= eps + 1e-6).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    with pytest.raises(InputError, match="norm 'L3' is unknown"):
        apgd(model, x, y, norm="L3")
    with pytest.raises(InputError, match="eps must be in"):
        apgd(model, x, y, eps=8)


def test_n_steps_cost_one_forward_more_and_as_many_backwards(tiny):
    model, x, y = tiny(), torch.rand(4, 3, 2, 2), torch.randint(4, (4,))
    forwards, backwards = [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    model.net[1].register_full_backward_hook(lambda *_: backwards.append(1))
    apgd(model, x, y, 0.1, 3)
    assert (len(forwards), len(backwards)) == (4, 3)


def test_training_crafts_with_what_is_configured(small_digits):
    attack = make_attack(small_digits(attack=AttackConfig(3, crafting="apgd")))
    assert isinstance(attack, partial) and attack.func is few_steps
    assert attack.keywords == {"eps": 0.15, "norm": "Linf", "steps": 3}
    rising = small_digits(
        attack=AttackConfig(3, crafting="apgd"), clean_epochs=0, schedule=ScheduleConfig(eps_warmup_epochs=1)
    )
    assert schedules.budget(rising, 1, 1, 2) == {"eps": 0.075}


@pytest.mark.parametrize("name", methods.names())
def test_who_looks_into_the_steps_refuses_apgd_in_one_line(small_digits, name):
    config = small_digits(method=name, attack=AttackConfig(2, crafting="apgd"))
    if name not in NEED_PGD:
        make_method(config)
        return
    with pytest.raises(
        InputError, match=f"{name} crafts in its own way, of which apgd is not capable; give --crafting pgd"
    ):
        make_method(config)


def test_the_command_line_names_the_nearest(capsys):
    assert cli.main(["train", "digits", "--crafting", "apgdd"]) == 2
    assert "crafting 'apgdd' is unknown (did you mean 'apgd'?)" in capsys.readouterr().err


ALL = ("model.safetensors", "metrics.jsonl", "config.json", "state/state.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("nmse", dict(awp=0.01, ema=0.9)),
        ("trades", dict(accumulation=2)),
        ("mart", dict(mixed_precision="bf16")),
        ("score", dict(swa=0.5)),
    ],
)
def test_runs_with_apgd_resume_to_the_same_bytes(small_digits, tmp_path, name, changes):
    small = dict(train_size=32, holdout=4, epochs=2, clean_epochs=0, batch_size=16, method=name) | changes
    config = small_digits(**small, attack=AttackConfig(2, crafting="apgd"))
    options = RunOptions(output=str(tmp_path / "whole"))
    for event in run.train(config, options):
        if isinstance(event, run.EpochDone) and event.metrics["epoch"] == 1:
            shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    torch.manual_seed(1234)
    list(run.train(config, dataclasses.replace(options, output=str(tmp_path / "resumed"), resume=True)))
    for file in ALL:
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_what_no_attack_can_be_asked_is_refused():
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    with pytest.raises(InputError, match="steps must be at least 0, got -1"):
        apgd(flat, x, y, steps=-1)
    with pytest.raises(InputError, match="y holds 7, the model has 3 classes"):
        apgd(flat, x, torch.tensor([0, 7]))

    class Detached(torch.nn.Module):
        def forward(self, x):
            return flat(x).detach()

    with pytest.raises(InputError, match="the model gives no gradient"):
        apgd(Detached(), x, y)
