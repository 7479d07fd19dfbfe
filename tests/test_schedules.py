"""schedules.py: step by step the rates of torch's one-cycle and timm's cosine; the paper's knots; a budget that rises."""

import dataclasses
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from piat_hub import data, methods
from piat_hub.attacks import pgd
from piat_hub.config import InputError, ScheduleConfig, TrainConfig, recipes
from piat_hub.config.schedules import budget, lr_at
from piat_hub.training import engine

STEPS = 7  # of an epoch


def scheduled(sched, *, epochs=12, lr=0.2, clean_epochs=0, **fields):
    return TrainConfig(epochs=epochs, lr=lr, clean_epochs=clean_epochs, schedule=ScheduleConfig(sched=sched, **fields))


def rates(config, steps=STEPS):
    return [lr_at(config, epoch, step, steps) for epoch in range(1, config.epochs + 1) for step in range(1, steps + 1)]


def an_optimizer(lr):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("warmup", [1, 3, 9])
@pytest.mark.parametrize(("div", "final"), [(25, 1e4), (10, 100)])
def test_onecycle_is_torchs_step_by_step(warmup, div, final):
    config = scheduled("onecycle", warmup_epochs=warmup, warmup_lr=0.2 / div, min_lr=0.2 / div / final)
    optimizer, theirs = an_optimizer(0.2), []
    shape = {"pct_start": warmup / 12, "div_factor": div, "final_div_factor": final, "cycle_momentum": False}
    scheduler = OneCycleLR(optimizer, max_lr=0.2, total_steps=12 * STEPS, **shape)
    for _ in range(12 * STEPS):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(theirs) < 12 * STEPS:
            scheduler.step()
    ours = rates(config)
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-15)
    assert (
        ours[0] == pytest.approx(0.2 / div)
        and max(ours) == 0.2
        and ours[-1] == pytest.approx(0.2 / div / final, rel=1e-12)
    )


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("first", [1e-5, 0.05])
@pytest.mark.parametrize("last", [0.0, 0.01])
def test_cosine_is_timms_update_by_update(warmup, first, last):
    config = scheduled("cosine", warmup_epochs=warmup, warmup_lr=first, min_lr=last)
    optimizer, theirs = an_optimizer(0.2), []
    scheduler = CosineLRScheduler(
        optimizer, t_initial=12 * STEPS, lr_min=last, warmup_t=warmup * STEPS, warmup_lr_init=first, t_in_epochs=False
    )
    for update in range(12 * STEPS):
        scheduler.step_update(update)
        theirs.append(optimizer.param_groups[0]["lr"])
    assert rates(config) == pytest.approx(theirs, rel=1e-12)


def test_constant_is_constant_after_its_rise():
    ours = rates(scheduled("constant", epochs=4, warmup_epochs=1, warmup_lr=0.06), steps=2)
    assert ours == pytest.approx([0.06, 0.13, *[0.2] * 6])


def test_the_papers_knots_are_piecewise_linear():
    config = TrainConfig()  # ResNet-18: 120 epochs
    at = {1: 0.01, 60: 0.01, 75: 0.0055, 90: 0.001, 105: 0.00055, 120: 0.0001}
    for epoch, lr in at.items():
        assert lr_at(config, epoch, 9, 9) == pytest.approx(lr, rel=1e-12)
    assert lr_at(config, 76, 1, 2) == pytest.approx(0.0055 - 0.0045 / 30, rel=1e-12)


@pytest.mark.parametrize("sched", ["cosine", "onecycle", "constant", "knots"])
def test_a_shorter_run_keeps_its_recipes_shape(sched):
    long = scheduled(sched, epochs=100, warmup_share=0.05)
    short = dataclasses.replace(long, epochs=20)
    assert rates(short, 5 * STEPS) == pytest.approx(rates(long), rel=1e-9)


def test_the_budget_rises_linearly_after_the_clean_epochs_and_its_step_with_it():
    config = scheduled("knots", epochs=8, clean_epochs=2, eps_warmup_epochs=2)
    assert budget(config, 2, 4, 4) == {}  # clean
    rising = [budget(config, epoch, step, 4) for epoch in (3, 4) for step in (1, 2, 3, 4)]
    assert [b["eps"] * 255 for b in rising[:-1]] == pytest.approx(range(1, 8))
    assert [b["step_size"] * 255 for b in rising[:-1]] == pytest.approx([k / 4 for k in range(1, 8)])
    assert rising[-1] == {} and budget(config, 8, 4, 4) == {}
    assert budget(TrainConfig(), 60, 1, 4) == {}


def test_training_steps_along_the_schedule_and_attacks_within_the_budget(small_digits):
    schedule = ScheduleConfig(sched="onecycle", warmup_epochs=1, warmup_lr=0.01, eps_warmup_epochs=1)
    config = small_digits(epochs=3, clean_epochs=1, train_size=128, schedule=schedule)
    asked, used = [], []

    def attack(*args, **options):
        asked.append(options)
        return pgd(*args, **options)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    accelerator = Accelerator()
    model, optimizer = engine.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0), accelerator)
    split = data.hold_out(data.load("digits", "train"), 0, 128)[0]
    crafting = partial(attack, eps=0.15, step_size=0.0375, steps=1)
    parts = engine.Parts(config, accelerator, model, optimizer, methods.get("pgd_at")(), crafting, split)
    for event in engine.train(parts):
        used.append(optimizer.param_groups[0]["lr"])
        if isinstance(event, engine.Epoch):
            assert event.lr == used.pop()
    assert used == rates(config, steps=2)
    assert [o["eps"] for o in asked] == pytest.approx([0.075, 0.15, 0.15, 0.15])
    assert [o["step_size"] for o in asked] == pytest.approx([0.01875, 0.0375, 0.0375, 0.0375])


def test_the_rate_never_lies_above_its_highest():
    for fields, name in (({"warmup_epochs": 2}, "warmup-lr"), ({"sched": "cosine", "min_lr": 0.5}, "min-lr")):
        with pytest.raises(InputError, match=f"{name} .* is above lr 1e-06, the highest of the schedule; lower it"):
            TrainConfig(lr=1e-6, schedule=ScheduleConfig(**fields))


@pytest.mark.parametrize(
    "fields", [{"warmup_epochs": 12}, {"eps_warmup_epochs": 12}, {"eps_warmup_epochs": 8, "clean_epochs": 4}]
)
def test_warm_up_that_leaves_no_epoch_is_refused(fields):
    with pytest.raises(InputError, match="12 epochs leave none after (12|0) of --warmup-epochs, or after (0|4) of"):
        scheduled("cosine", **fields)


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(InputError, match="sched 'cosin' is unknown .did you mean 'cosine'"):
        ScheduleConfig(sched="cosin")


def test_a_method_with_a_budget_of_its_own_refuses_that_it_rises(small_digits, do_train, tmp_path):
    with pytest.raises(InputError, match="free_at keeps a budget of its own, which cannot rise; give --eps"):
        do_train(small_digits(method="free_at", schedule=ScheduleConfig(eps_warmup_epochs=1)), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_recipes_before_schedules_keep_theirs():
    assert {recipes.get(name).schedule for name in ("digits", "resnet18-cifar10")} == {ScheduleConfig()}
