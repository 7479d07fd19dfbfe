"""mixing.py and soft targets: timm's Mixup from a step's own seed; every method's loss with probabilities for labels."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from torch.nn.functional import kl_div, one_hot

from piat_hub import cli, methods
from piat_hub.attacks import pgd
from piat_hub.config import AttackConfig, InputError, MixingConfig, RunOptions
from piat_hub.methods import likeliest, probability_of
from piat_hub.training import run
from piat_hub.training.mixing import mixed
from piat_hub.training.setup import make_method

NEED_CLASS = ("fat", "gairat", "las_at", "mart")
LINEAR = ("standard", "pgd_at", "nmse", "trades", "alp", "free_at")  # in the label


def images(n=6, classes=4):
    return torch.rand(n, 3, 8, 8), torch.randint(classes, (n,))


def test_nothing_asked_for_changes_nothing():
    x, y = images()
    same_x, same_y = mixed(x, y, MixingConfig(), 4)
    assert same_x is x and same_y is y


def test_smoothing_is_timms_and_leaves_the_images():
    x, y = images()
    before = x.clone()
    same, soft = mixed(x, y, MixingConfig(smoothing=0.1), 4)
    assert torch.equal(same, before)
    assert torch.allclose(soft, 0.9 * one_hot(y, 4) + 0.1 / 4)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_a_batch_is_timms_mixup_from_the_seed_of_its_step(mixup, cutmix):
    x, y = images()
    config, blended = MixingConfig(smoothing=0.1, mixup=mixup, cutmix=cutmix), set()
    for step in range(6):
        torch.manual_seed(step)
        seed = int(torch.randint(2**32, ()))
        np.random.seed(seed)
        theirs, targets = Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=4)(x.clone(), y)
        np.random.seed(99)
        following = np.random.get_state()[1].copy()
        torch.manual_seed(step)
        ours, soft = mixed(x.clone(), y, config, 4)
        assert torch.equal(ours, theirs) and torch.equal(soft, targets)
        assert (np.random.get_state()[1] == following).all()  # numpy's generator goes on as if nothing had been drawn
        assert torch.allclose(soft.sum(1), torch.ones(6)) and ours.min() >= 0 and ours.max() <= 1
        blended.add(float(soft[0].max()))
    assert len(blended) > 3  # every step draws its own share


def test_numpys_generator_is_put_back_after_an_error():
    x, y = images(n=5)
    before = np.random.get_state()[1].copy()
    with pytest.raises(AssertionError, match="even"):
        mixed(x, y, MixingConfig(mixup=1.0), 4)
    assert (np.random.get_state()[1] == before).all()


def crafted(x_adv):
    """An attack that gives these examples, after three steps at which nobody is right but the first."""

    def attack(model, x, y, /, on_step=None, **options):
        for k in range(3):
            if on_step:
                on_step(k, one_hot((likeliest(y) + (torch.arange(len(y)) > 0)) % 4, 4).double())
        return x_adv

    return attack


def loss_and_gradient(model, name, x, x_adv, y):
    x_adv = torch.cat([x_adv, (2 * x - x_adv).clamp(0, 1)]) if name == "stat" else x_adv
    loss = methods.get(name)()(model, x, y, crafted(x_adv), 0.6)
    return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def batch(n=5):
    x = torch.rand(n, 3, 2, 2, dtype=torch.float64)
    return x, (x + 0.1 * torch.randn_like(x)).clamp(0, 1), torch.randint(4, (n,))


@pytest.mark.parametrize("name", methods.names())
def test_a_soft_target_with_one_class_is_that_class(tiny, name):
    model, (x, x_adv, y) = tiny().double(), batch()
    hard, slope = loss_and_gradient(model, name, x, x_adv, y)
    soft, soft_slope = loss_and_gradient(model, name, x, x_adv, one_hot(y, 4).double())
    assert soft.item() == pytest.approx(hard.item(), rel=1e-12) and torch.allclose(slope, soft_slope, atol=1e-12)


@pytest.mark.parametrize("name", LINEAR)
def test_a_soft_target_is_the_mean_over_classes_drawn_from_it(tiny, name):
    model, (x, x_adv, _) = tiny().double(), batch(1)
    y = torch.rand(1, 4, dtype=torch.float64).softmax(1)
    loss, slope = loss_and_gradient(model, name, x, x_adv, y)
    each = [loss_and_gradient(model, name, x, x_adv, torch.tensor([k])) for k in range(4)]
    assert loss.item() == pytest.approx(sum(y[0, k] * each[k][0] for k in range(4)).item(), rel=1e-12)
    assert torch.allclose(slope, sum(y[0, k] * each[k][1] for k in range(4)), atol=1e-12)


def cross_entropy(z, y):
    return -(y * z.log_softmax(1)).sum(1)


def test_score_and_stat_take_the_target_where_they_took_the_class(tiny):
    model, (x, x_adv, _) = tiny().double(), batch()
    y = torch.rand(5, 4, dtype=torch.float64).softmax(1)
    p, p_adv = model(x).softmax(1), model(x_adv).softmax(1)
    expected = ((p - y) ** 2).sum(1).mean() + 4 * ((p_adv - p) ** 2).sum(1).mean()
    assert loss_and_gradient(model, "score", x, x_adv, y)[0].item() == pytest.approx(expected.item(), rel=1e-12)
    z = [model(x), model(x_adv), model((2 * x - x_adv).clamp(0, 1))]
    apart = []
    for i in range(5):
        rows = sorted((row[i] for row in z), key=lambda row: (y[i] @ row.softmax(0)).item())
        lo, up = rows[0].log_softmax(0), rows[-1].log_softmax(0)
        pair = {"reduction": "sum", "log_target": True}
        apart.append(kl_div(up, lo, **pair) + kl_div(lo, up, **pair))
    expected = cross_entropy(z[0], y).mean() + 3 * torch.stack(apart).mean()
    assert loss_and_gradient(model, "stat", x, x_adv, y)[0].item() == pytest.approx(expected.item(), rel=1e-12)


def test_methods_that_need_the_class_find_it_in_a_smoothed_label(tiny):
    model, (x, x_adv, y) = tiny().double(), batch()
    soft = 0.8 * one_hot(y, 4).double() + 0.05
    p, p_adv, rows = model(x).softmax(1), model(x_adv).softmax(1), torch.arange(5)
    entropy = cross_entropy(model(x_adv), soft)
    assert loss_and_gradient(model, "fat", x, x_adv, soft)[0].item() == pytest.approx(entropy.mean().item(), rel=1e-12)
    wrong = torch.where(one_hot(y, 4).bool(), 0, p_adv).amax(1)
    kl = (p * (p.log() - p_adv.log())).sum(1)
    mart = (entropy - (1.0001 - wrong + 1e-12).log() + 5 * kl * (1.0000001 - (soft * p).sum(1))).mean()
    assert loss_and_gradient(model, "mart", x, x_adv, soft)[0].item() == pytest.approx(mart.item(), rel=1e-12)
    kappa = torch.where(rows == 0, 3.0, 0.0).double()  # only the first image was right, at all three steps
    w = (1 + torch.tanh(-1 + 5 * (1 - 2 * kappa / 3))) / 2
    expected = ((w * entropy).sum() / w.sum()).item()
    assert loss_and_gradient(model, "gairat", x, x_adv, soft)[0].item() == pytest.approx(expected, rel=1e-9)


def test_the_inner_attack_climbs_the_cross_entropy_of_the_soft_target(tiny):
    model, (x, _, y) = tiny().double(), batch()
    soft = 0.6 * one_hot(y, 4).double() + 0.4 * one_hot((y + 1) % 4, 4).double()
    x_adv = pgd(model, x, soft, eps=0.1, step_size=0.1, steps=1, start=0.0)
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model(point), soft).sum(), point)
    assert torch.allclose(x_adv, (x + 0.1 * slope.sign()).clamp(0, 1))


def test_helpers_read_both_kinds_of_label():
    y, p = torch.tensor([2, 0]), torch.rand(2, 3).softmax(1)
    assert torch.equal(probability_of(y, p), torch.stack([p[0, 2], p[1, 0]]))
    assert torch.equal(likeliest(y), y) and torch.equal(likeliest(0.9 * one_hot(y, 3) + 0.03), y)


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("fields", [{"mixup": 0.8}, {"cutmix": 1.0}, {"smoothing": 0.1}])
def test_who_needs_the_class_refuses_blended_images_in_one_line(small_digits, name, fields):
    config = small_digits(method=name, mixing=MixingConfig(**fields))
    if name == "las_at" and "smoothing" in fields:
        with pytest.raises(InputError, match="las_at smooths labels itself, to 0.7; set --method.label in place of"):
            make_method(config)
        return
    if name not in NEED_CLASS or "smoothing" in fields:
        make_method(config)
        return
    with pytest.raises(
        InputError, match=f"{name} needs the class of each image, and mixup and cutmix give it two; give --mixup 0"
    ):
        make_method(config)


def test_the_command_line_refuses_and_leaves_nothing(capsys, tmp_path):
    wrong = {
        "33 images at a time are odd": ["--mixup", "1", "--batch-size", "66", "--accumulation", "2"],
        "mart needs the class of each image": ["--mixup", "1", "--method", "mart"],
        "smoothing must be < 1": ["--smoothing", "1"],
    }
    for said, flags in wrong.items():
        assert cli.main(["train", "digits", *flags, "--output", str(tmp_path / "r")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()


ALL = ("model.safetensors", "metrics.jsonl", "config.json", "state/state.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("nmse", dict(awp=0.01, ema=0.9, swa=0.5)),
        ("trades", dict(accumulation=2, mixed_precision="bf16")),
        ("free_at", dict(clean_epochs=0)),
        ("stat", {}),
    ],
)
def test_a_run_on_soft_targets_resumes_to_the_same_bytes(small_digits, tmp_path, name, changes):
    base = dict(train_size=32, holdout=4, epochs=3, clean_epochs=1, batch_size=16, method=name) | changes
    mixing = MixingConfig(smoothing=0.1, mixup=0.8, cutmix=1.0)
    config = small_digits(**base, mixing=mixing, attack=AttackConfig(steps=2, step_size=0.1))
    options = RunOptions(output=str(tmp_path / "whole"))
    for event in run.train(config, options):
        if isinstance(event, run.EpochDone) and event.metrics["epoch"] == 2:
            shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    torch.manual_seed(1234), np.random.seed(7)
    list(run.train(config, dataclasses.replace(options, output=str(tmp_path / "resumed"), resume=True)))
    for file in ALL:
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
