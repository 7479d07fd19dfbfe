"""optimizers.py: timm's optimizers by name, what they leave undecayed, rates from layer to layer; resumed to the same bytes."""

import contextlib
import dataclasses
import json
import shutil

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn

from piat_hub import cli, data, methods
from piat_hub.attacks import pgd
from piat_hub.backbones import create_model
from piat_hub.config import AttackConfig, InputError, OptimizerConfig, RunOptions, ScheduleConfig, TrainConfig, to_dict
from piat_hub.records import tensors
from piat_hub.training import engine, run
from piat_hub.training.averages import EMA
from piat_hub.training.optimizers import UNSAVED, align_state, make_optimizer, set_lr
from piat_hub.training.state import with_tensors, without_tensors


def settings(weight_decay=0.05, lr=1e-3, **fields):
    return TrainConfig(lr=lr, weight_decay=weight_decay, optimizer=OptimizerConfig(**fields))


def convolutional():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def steps(model, optimizer, numbers):
    for number in numbers:
        torch.manual_seed(number)
        x, y = torch.randn(8, 3, 8, 8), torch.randint(5, (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_the_default_is_the_papers_sgd_bit_for_bit():
    model, plain = convolutional(), convolutional()
    ours = make_optimizer(TrainConfig(), model)
    theirs = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9, weight_decay=3.5e-3, foreach=True)
    assert ours.state_dict() == theirs.state_dict()  # so that a state of before goes on
    steps(model, ours, range(5)), steps(plain, theirs, range(5))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.05)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)),
    ],
)
def test_names_mean_what_timm_says(name, reference):
    model, plain = convolutional(), convolutional()
    betas = (0.9, 0.95) if name == "adamw" else ()
    steps(model, make_optimizer(settings(opt=name, opt_betas=betas), model), range(5))
    steps(plain, reference(plain.parameters()), range(5))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def decayed(model, **fields):
    """The names of the parameters that have weight decay, and of those that have none."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = make_optimizer(settings(opt="adamw", **fields), model).param_groups
    found = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert set(found) == set(names.values()) and set(found.values()) <= {0.0, 0.05}
    return {name for name, decay in found.items() if decay}, {name for name, decay in found.items() if not decay}


@pytest.mark.parametrize("layer_decay", [None, 0.9])
def test_weight_decay_leaves_out_what_is_asked(layer_decay):
    model = create_model("cifar_resnet8")
    _, none = decayed(model, layer_decay=layer_decay)
    assert none == set()
    _, none = decayed(model, undecayed="norms", layer_decay=layer_decay)
    assert none == {name for name, _ in model.named_parameters() if "bn" in name or "downsample.1" in name}
    _, none = decayed(model, undecayed="1d", layer_decay=layer_decay)
    assert none == {name for name, p in model.named_parameters() if p.ndim == 1} and "fc.bias" in none


def test_position_embeddings_are_undecayed_as_in_timm():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1)
    _, none = decayed(vit, undecayed="1d")
    assert {"pos_embed", "cls_token", "blocks.0.norm1.weight"} <= none
    some, none = decayed(vit, undecayed="norms")
    assert none == {name for name, _ in vit.named_parameters() if "norm" in name} and "pos_embed" in some


def test_layer_decay_outlives_the_schedule():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3)
    optimizer = make_optimizer(settings(opt="adamw", layer_decay=0.5), model)
    for lr in (1e-3, 4e-4):
        set_lr(optimizer, lr)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        depth = [rates[id(block.attn.qkv.weight)] for block in model.blocks]
        assert depth == pytest.approx([lr / 8, lr / 4, lr / 2]) and rates[id(model.head.weight)] == lr
        assert rates[id(model.patch_embed.proj.weight)] == pytest.approx(lr / 16)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"opt": "adamv"}, "unknown opt 'adamv' .did you mean 'adam"),
        ({"opt": "adahessian"}, "'adahessian' wants second derivatives"),
        ({"opt": "kron"}, "'kron' keeps a state that cannot be saved without pickle"),
        ({"opt": "sgd", "opt_betas": (0.9, 0.99)}, "'sgd' has 0 betas"),
        ({"opt": "adan", "opt_betas": (0.9, 0.99)}, "'adan' has 3 betas"),
        ({"opt": "bnbadamw"}, "'bnbadamw' cannot be had"),
    ],
)
def test_what_cannot_be_had_is_one_line_with_the_next_step(fields, said):
    with pytest.raises(InputError, match=said) as error:
        make_optimizer(settings(**fields), convolutional())
    assert "\n" not in str(error.value)


def test_values_out_of_bounds_are_refused():
    for fields in ({"opt_betas": (0.9, 1.0)}, {"clip_grad": 0.0}, {"layer_decay": 1.5}, {"undecayed": "bias"}):
        with pytest.raises(InputError):
            OptimizerConfig(**fields)
    with pytest.raises(InputError, match="--ema-start and --ema-bn go with --ema"):
        TrainConfig(ema_start=0.1)


def test_the_command_line_names_the_nearest_and_leaves_nothing(capsys, tmp_path):
    assert cli.main(["train", "digits", "--opt", "adamww", "--output", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert "unknown opt 'adamww' (did you mean 'adamw'" in said and said.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "name", ["adan", "adopt", "lars", "madgrad", "muon", "nadamw", "novograd", "radam", "rmsproptf"]
)
def test_the_states_of_others_go_through_json_and_tensors_exactly(name, tmp_path):
    config, model = settings(opt=name), convolutional()
    optimizer, found = make_optimizer(config, model), {}
    steps(model, optimizer, range(3))
    text = json.dumps(without_tensors({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, found))
    tensors.save(found, tmp_path / "state.safetensors", text)
    found, text = tensors.load(tmp_path / "state.safetensors")
    state, again = with_tensors(json.loads(text), found), convolutional()
    resumed = make_optimizer(config, again)
    again.load_state_dict(state["model"]), resumed.load_state_dict(state["optimizer"]), align_state(resumed)
    steps(model, optimizer, range(3, 6)), steps(again, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_what_is_said_to_be_unsaved_is_in_timm():
    assert set(UNSAVED) <= set(timm.optim.list_optimizers())


ALL = ("model.safetensors", "metrics.jsonl", "config.json", "state/state.safetensors")
PLUS = dict(clip_grad=0.5, undecayed="1d", layer_decay=0.8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "changes"),
    [({"opt": opt}, {}) for opt in ("momentum", "sgd", "adamw", "lamb", "lion")]
    + [
        (
            {"opt": "adamw", **PLUS},
            dict(ema=0.9, ema_start=0.5, ema_bn="copy", swa=0.5, awp=0.01, accumulation=2, drop_path=0.2),
        )
    ]
    + [({"opt": "lamb", **PLUS}, dict(mixed_precision="bf16", bn_momentum=0.01, method="free_at"))],
)
def test_a_run_stopped_within_an_epoch_ends_with_the_same_bytes(small_digits, tmp_path, fields, changes):
    lr = 0.1 if fields["opt"] in ("momentum", "sgd") else 1e-3
    small = dict(train_size=64, holdout=8, epochs=2, clean_epochs=0, batch_size=16, lr=lr) | changes
    config = small_digits(**small, optimizer=OptimizerConfig(**fields), attack=AttackConfig(steps=2, step_size=0.1))
    options = RunOptions(output=str(tmp_path / "whole"), save_every_steps=1)
    for event in run.train(config, options):
        if isinstance(event, engine.Step) and (event.epoch, event.step) == (2, 3):  # saved after step 2
            shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    torch.manual_seed(1234)
    list(run.train(config, dataclasses.replace(options, output=str(tmp_path / "resumed"), resume=True)))
    for name in ALL:
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def without_new_fields(config):
    """What a config of before optimizers had names held."""
    new = ("optimizer", "schedule", "ema_start", "ema_bn", "drop_path", "bn_momentum")
    return {key: value for key, value in to_dict(config).items() if key not in new}


def test_a_state_of_before_these_fields_goes_on(small_digits, do_train, tmp_path):
    config = small_digits(train_size=64, holdout=8, epochs=2, clean_epochs=0, attack=AttackConfig(step_size=0.0375))
    with contextlib.closing(run.train(config, RunOptions(output=str(tmp_path / "r")))) as events:
        next(event for event in events if isinstance(event, run.EpochDone))
    path = tmp_path / "r/state/state.safetensors"
    found, text = tensors.load(path)
    tensors.save(found, path, json.dumps(json.loads(text) | {"config": without_new_fields(config)}))
    assert [line["epoch"] for line in do_train(config, tmp_path / "r", resume=True)] == [2]
    changed = dataclasses.replace(config, optimizer=OptimizerConfig(opt="adamw"))
    with pytest.raises(InputError, match="has optimizer.opt=momentum, this command adamw"):
        do_train(changed, tmp_path / "r", resume=True)


def one_step(config, model=None, **parts):
    """The model before and after one step of training on digits."""
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = [p.detach().clone() for p in model.parameters()]
    accelerator = Accelerator()
    wrapped, optimizer = engine.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0), accelerator)
    split = data.hold_out(data.load("digits", "train"), 0, 64)[0]
    next(
        engine.train(
            engine.Parts(config, accelerator, wrapped, optimizer, methods.get("standard")(), pgd, split, **parts)
        )
    )
    return before, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(("limit", "length"), [(0.01, 0.01), (1e6, None)])
def test_a_gradient_longer_than_the_limit_is_scaled_down_to_it(small_digits, limit, length):
    config = small_digits(epochs=1, clean_epochs=0, train_size=64, lr=1.0, schedule=ScheduleConfig(sched="constant"))
    moved = {}
    for clip in (None, limit):
        torch.manual_seed(0)
        before, after = one_step(dataclasses.replace(config, optimizer=OptimizerConfig(clip_grad=clip)))
        moved[clip] = torch.cat([(b - a).flatten() for b, a in zip(before, after, strict=True)])
    expected = moved[None] * (length / moved[None].norm() if length else 1)
    assert torch.allclose(moved[limit], expected, rtol=1e-3, atol=1e-7)


def test_an_average_that_begins_later_is_the_model_until_then():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = EMA(model, 0.9, bn="copy")

    def moved():
        with torch.no_grad():
            for t in (*model.parameters(), model[1].running_mean):
                t.add_(1)
        return [t.clone() for t in model.state_dict().values()]

    for _ in range(3):
        model_now = moved()
        assert ema.step(averaging=False) == 0 and ema.steps == 0
        assert all(torch.equal(a, b) for a, b in zip(model_now, ema.copy.state_dict().values(), strict=True))
    before, now = ema.copy[0].weight.clone(), moved()
    assert ema.step() == 1 / 10 and torch.allclose(ema.copy[0].weight, before + 9 / 10)
    assert torch.equal(ema.copy[1].running_mean, model[1].running_mean) and len(now) == 7


def test_ema_start_is_a_share_of_the_run(small_digits):
    calls = []

    class Noted(EMA):
        def step(self, averaging=True):
            calls.append(averaging)
            return super().step(averaging)

    config = small_digits(epochs=2, clean_epochs=0, train_size=128, ema=0.9, ema_start=0.25, method="standard")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    accelerator = Accelerator()
    wrapped, optimizer = engine.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0), accelerator)
    split = data.hold_out(data.load("digits", "train"), 0, 128)[0]
    parts = engine.Parts(
        config, accelerator, wrapped, optimizer, methods.get("standard")(), pgd, split, ema=Noted(model)
    )
    list(engine.train(parts))
    assert calls == [False, True, True, True]


def test_bn_momentum_and_drop_path_reach_the_backbone(small_digits, do_train, tmp_path):
    from piat_hub.training.setup import make_setup

    config = small_digits(train_size=64, holdout=8, bn_momentum=0.01, drop_path=0.3)
    setup = make_setup(config, RunOptions(), tmp_path, Accelerator())
    assert {m.momentum for m in setup.bare.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}
    rates = [m.drop_prob for m in setup.bare.modules() if type(m).__name__ == "DropPath"]
    assert rates and max(rates) == pytest.approx(0.3)
    config = dataclasses.replace(config, backbone="vit_tiny_patch16_224", drop_path=0.0)
    with pytest.raises(InputError, match="vit_tiny_patch16_224 has no BatchNorm; give --bn-momentum none"):
        make_setup(config, RunOptions(), tmp_path, Accelerator())
