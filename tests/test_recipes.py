"""recipes.py: the paper's rows hold the paper's numbers; a shorter run keeps its recipe's shape."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from piat_hub import create_model
from piat_hub.config import InputError, InterpolationConfig, recipes
from piat_hub.config.schedules import lr_at, lr_between
from piat_hub.training.optimizers import make_optimizer


@pytest.mark.parametrize("name", ["resnet18-cifar10", "resnet18-cifar100", "resnet18-svhn"])
def test_resnet18_rows_are_appendix_a(name):
    c = recipes.get(name)
    assert (c.backbone, c.epochs, c.warmup, c.batch_size) == ("cifar_resnet18", 120, 10, 128)
    assert (c.lr, c.weight_decay, c.momentum) == (0.01, 3.5e-3, 0.9)
    for epoch, lr in {60: 0.01, 90: 0.001, 120: 0.0001}.items():
        assert lr_at(c, epoch, 1, 1) == pytest.approx(lr)
    assert (c.threat_model.norm, c.threat_model.eps) == ("Linf", 8 / 255)
    assert (c.attack.steps, c.step_size) == (10, 2 / 255)
    assert (c.method, dict(c.method_args), c.interpolation.kind) == ("nmse", {}, "piat")
    assert c.dataset == name.split("-")[1]
    assert c.crop_pad == 4
    assert c.flip is (name != "resnet18-svhn")


@pytest.mark.parametrize("name", ["wrn-32-10-cifar10", "wrn-32-10-cifar100"])
def test_wrn_rows_are_appendix_a(name):
    c = recipes.get(name)
    assert (c.backbone, c.epochs, c.warmup, c.lr, c.weight_decay) == ("cifar_wrn_32_10", 180, 10, 0.1, 7e-4)
    for epoch, lr in {90: 0.1, 135: 0.01, 180: 0.001}.items():
        assert lr_at(c, epoch, 1, 1) == pytest.approx(lr)


def test_the_fast_recipe_is_its_authors_cycle():
    c = recipes.get("preact-resnet18-cifar10-fast")
    assert (c.backbone, c.method, c.epochs, c.warmup) == ("cifar_preact_resnet18", "n_fgsm", 30, 0)
    assert (c.batch_size, c.weight_decay, c.interpolation.kind) == (128, 5e-4, "none")
    parameter, steps = torch.nn.Parameter(torch.zeros(())), 60
    sgd = torch.optim.SGD([parameter], 0.2)
    cycle = torch.optim.lr_scheduler.CyclicLR(sgd, 0.0, 0.2, steps / 2, steps / 2, cycle_momentum=False)
    for step in range(1, steps + 1):  # as their code calls it
        sgd.step(), cycle.step()
        assert lr_between(c, step / steps, step / steps) == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-12)


def test_the_vit_recipe_sees_64_patches_of_4_pixels():
    c = recipes.get("vit-tiny-cifar10")
    assert (c.method, c.interpolation.kind, c.epochs, c.optimizer.opt) == ("nmse", "piat", 40, "adamw")
    model = create_model(c.backbone, num_classes=10, img_size=32)
    assert model.patch_embed.patch_size == (4, 4) and model.patch_embed.num_patches == 64
    assert lr_at(c, 1, 1, 10) < 1e-4 < 0.95e-3 < lr_at(c, 6, 1, 10) <= c.lr and lr_at(c, 40, 10, 10) < 1e-5


@pytest.mark.parametrize("name", ["convnext-tiny-cvst-imagenet", "vit-small-cvst-imagenet"])
def test_cvst_rows_are_singh_et_al(name):
    c = recipes.get(name)
    assert c.backbone == name.removesuffix("-imagenet").replace("-", "_")
    assert (c.optimizer.opt, c.optimizer.opt_betas, c.weight_decay, c.epochs) == ("adamw", (0.9, 0.95), 0.05, 300)
    for epoch, lr in {1: 1e-7, 11: 5e-4 + 0.5e-7, 300: 5.03e-6}.items():
        assert lr_at(c, epoch, 1, 10) == pytest.approx(lr, rel=0.01)
    assert max(lr_at(c, epoch, 1, 1) for epoch in range(1, 301)) == pytest.approx(1e-3, rel=0.02)
    assert (c.attack.crafting, c.attack.steps, c.threat_model.eps) == ("apgd", 2, 4 / 255)
    assert (c.mixing.smoothing, c.mixing.mixup, c.mixing.cutmix, c.ema) == (0.1, 0.8, 1.0, 0.9999)
    assert (c.method, c.interpolation.kind, c.warmup, c.img_size) == ("pgd_at", "none", 0, 224)


EDM = ["wrn-28-10-cifar10-edm", "wrn-70-16-cifar10-edm", "preact-resnet18-cifar10-edm"]


@pytest.mark.parametrize("name", EDM)
def test_edm_rows_are_wang_et_al(name):
    """Their code's numbers, and the rates that torch's OneCycleLR gives with what their code passes, step by step."""
    c = recipes.get(name)
    assert c.backbone == f"cifar_{name.removesuffix('-cifar10-edm').replace('-', '_')}_silu"
    assert (c.method, dict(c.method_args), c.interpolation.kind, c.mixing.smoothing) == (
        "trades",
        {"beta": 5.0},
        "none",
        0.1,
    )
    assert (c.epochs, c.batch_size, c.weight_decay, c.momentum, c.warmup) == (400, 512, 5e-4, 0.9, 0)
    assert (c.optimizer.opt, c.optimizer.undecayed, c.bn_momentum) == ("sgd", "norms", 0.01)
    assert (c.ema, c.ema_start, c.ema_bn) == (0.995, 0.025, "copy")
    assert (c.extra_data, c.extra_fraction, c.extra_share) == ("", 0.7, 358)
    assert (c.threat_model.eps, c.attack.steps, c.step_size) == (8 / 255, 10, 2 / 255)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], 0.2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.2, total_steps=400, pct_start=0.025)
    for step in range(1, 401):
        assert lr_between(c, (step - 1) / 400, step / 400) == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-12)
        sgd.step(), step < 400 and cycle.step()


def test_an_edm_row_decays_all_but_batchnorm():
    c = recipes.get("preact-resnet18-cifar10-edm")
    model = create_model(c.backbone, layers=[1, 1, 1, 1], channels=[8, 8, 8, 8], stem_chs=8)
    decays = {id(p): group["weight_decay"] for group in make_optimizer(c, model).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if "norm" in name else 5e-4), name


@pytest.mark.parametrize("name", [*EDM, "resnet18-cifar10-awp"])
def test_the_rows_with_piat_differ_in_the_method_alone(name):
    c = recipes.get(f"{name}-piat")
    assert (c.method, dict(c.method_args), c.interpolation.kind) == ("nmse", {}, "piat")
    beta = {"beta": 5.0} if name in EDM else {}
    method = {"method": "trades", "method_args": beta, "interpolation": InterpolationConfig(kind="none")}
    assert dataclasses.replace(c, recipe=name, **method) == recipes.get(name)


def test_the_awp_row_is_wu_et_al():
    c = recipes.get("resnet18-cifar10-awp")
    assert (c.backbone, c.method, dict(c.method_args), c.awp) == ("cifar_resnet18", "trades", {}, 0.005)
    assert (c.epochs, c.batch_size, c.weight_decay, c.warmup, c.ema) == (200, 128, 5e-4, 0, None)
    for epoch, lr in {1: 0.1, 100: 0.1, 101: 0.01, 150: 0.01, 151: 0.001, 200: 0.001}.items():
        assert [lr_at(c, epoch, step, 9) for step in (1, 5, 9)] == pytest.approx([lr] * 3)


@pytest.mark.parametrize("name", [f"{name}{end}" for name in (*EDM, "resnet18-cifar10-awp") for end in ("", "-piat")])
def test_the_hours_are_those_of_the_scaling_page(name):
    """Multiply-adds by torch's formulas, updates by the table of docs/scaling.md, 6 F for each forward that AWP adds."""
    c = recipes.get(name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        create_model(c.backbone).eval()(torch.empty(1, 3, 32, 32))
    forwards = {"trades": 4 * c.attack.steps + 14, "nmse": 4 * c.attack.steps + 12}[c.method] + (12 if c.awp else 0)
    steps = (50_000 - (c.holdout or 1000)) // c.batch_size * c.epochs
    hours = steps * c.batch_size * forwards * counter.get_total_flops() / 2 / (0.4 * 989e12) / 3600
    assert f"Cost: {hours:.1f} GPU hours, computed" in recipes.RECIPES[name].__doc__


def test_without_its_extra_data_a_run_is_refused_in_one_line(do_train, tmp_path, small_digits):
    c = dataclasses.replace(small_digits(), recipe="wrn-28-10-cifar10-edm", extra_data="")
    with pytest.raises(
        InputError, match="^wrn-28-10-cifar10-edm mixes other images into every batch; .*--extra-data"
    ) as caught:
        do_train(c, tmp_path / "r")
    assert "huggingface.co/datasets/P2333/DM-Improves-AT" in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_a_shorter_run_keeps_the_shape():
    c = dataclasses.replace(recipes.get("resnet18-cifar10"), epochs=24)
    assert c.warmup == 2
    assert [lr_at(c, epoch, 1, 1) for epoch in (12, 18, 24)] == pytest.approx([0.01, 0.001, 0.0001])
    assert dataclasses.replace(c, clean_epochs=5).warmup == 5


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'resnet18-cifar10'"):
        recipes.get("resnet18-cifar1")


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_command_source_and_hardware(name):
    text = recipes.RECIPES[name].__doc__
    assert all(word in text for word in ("Command:", "Source:", "Hardware:"))
    assert f"train.py {name}" in text or name == "digits"
    assert recipes.get(name).recipe == name
