"""run.py: the run directory as users find it, resume to the same bytes, refusals that cost nothing."""

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
from conftest import FIELDS, python
from PIL import Image
from safetensors.torch import load_file, save_file

from piat_hub import backbones, data, methods
from piat_hub.attacks import pgd
from piat_hub.attacks.core import ascend
from piat_hub.config import (
    AttackConfig,
    Diverged,
    EvalConfig,
    InputError,
    InterpolationConfig,
    PictureConfig,
    RunOptions,
    ThreatModel,
    TrainConfig,
    from_dict,
    recipes,
)
from piat_hub.evaluation.model import load_model, weights_digest
from piat_hub.evaluation.verdict import accuracy
from piat_hub.hub import card
from piat_hub.hub.load import from_pretrained
from piat_hub.hub.save import save_config
from piat_hub.records.rundir import RunDirectory
from piat_hub.training import engine, images, run
from piat_hub.training.interpolation import g
from piat_hub.training.setup import make_backbone, make_method

FILES = {"config.json", "model.safetensors", "model_best.safetensors", "metrics.jsonl", "timing.jsonl"}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_directory_holds_what_it_should(small_digits, do_train, tmp_path):
    config = small_digits()
    metrics = do_train(config, tmp_path / "r")
    directory = tmp_path / "r"
    assert {p.name for p in directory.iterdir()} == FILES | {"state"}
    assert lines(directory / "metrics.jsonl") == metrics
    keys = {"epoch", "lam", "lr", "train_loss", "train_pgd10_acc", "holdout_clean_acc", "holdout_pgd10_acc"}
    assert [m["epoch"] for m in metrics] == [1, 2, 3] and all(set(m) == keys for m in metrics)
    assert [m["lam"] for m in metrics] == [g(1), g(2), g(3)]
    timing = lines(directory / "timing.jsonl")
    assert timing[0]["threads"] == torch.get_num_threads() and timing[0]["images_per_second"] > 0
    written = json.loads((directory / "config.json").read_text())
    assert written["architecture"] == "cifar_resnet8" and written["num_classes"] == 10
    assert written["pretrained_cfg"]["input_size"] == [1, 8, 8]
    assert (written["pretrained_cfg"]["mean"], written["pretrained_cfg"]["std"]) == ([0.0], [1.0])
    assert from_dict(type(config), written["piat"]) == dataclasses.replace(
        config, attack=AttackConfig(step_size=0.0375)
    )


def test_best_is_the_held_out_best_and_last_the_last(small_digits, do_train, tmp_path, monkeypatch):
    scores = iter([0.2, 0.6, 0.4])

    def check(model, epoch):
        return {"train_pgd10_acc": 0.0, "holdout_clean_acc": 0.9, "holdout_pgd10_acc": next(scores)}

    monkeypatch.setattr("piat_hub.training.run.make_check", lambda *_: check)
    seen = {}
    for event in run.train(small_digits(), RunOptions(output="r")):
        if isinstance(event, run.EpochDone):
            seen[event.metrics["epoch"]] = load_file("r/model.safetensors")
    best, last = load_file("r/model_best.safetensors"), load_file("r/model.safetensors")
    assert all(torch.equal(best[k], seen[2][k]) for k in best) and all(torch.equal(last[k], seen[3][k]) for k in last)
    assert any(not torch.equal(best[k], last[k]) for k in best)


def test_without_held_out_images_there_is_no_best(small_digits, do_train, tmp_path):
    metrics = do_train(small_digits(holdout=0, train_size=64, epochs=2), tmp_path / "r")
    assert metrics[0]["holdout_pgd10_acc"] is None and metrics[0]["train_pgd10_acc"] is not None
    assert not (tmp_path / "r" / "model_best.safetensors").exists()


ALL = ("model.safetensors", "model_best.safetensors", "metrics.jsonl", "config.json", "state/state.safetensors")


def train_and_resume(config, tmp_path, *after):
    """Train to the end, and once more from copies of the run as it stood after these epochs; all end with the same bytes."""
    for event in run.train(config, RunOptions(output=str(tmp_path / "whole"))):
        if isinstance(event, run.EpochDone) and event.metrics["epoch"] in after:
            shutil.copytree(tmp_path / "whole", tmp_path / f"{event.metrics['epoch']}")
    for epoch in after:
        torch.manual_seed(1234)
        list(run.train(config, RunOptions(output=str(tmp_path / f"{epoch}"), resume=True)))
        for name in ALL:
            assert (tmp_path / f"{epoch}" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    return tmp_path / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(
    "law", [dict(), dict(kind="none"), dict(bn="recalibrate"), dict(kind="constant", constant=0.7)]
)
def test_resumed_at_any_epoch_ends_with_the_same_bytes(small_digits, tmp_path, law):
    train_and_resume(small_digits(train_size=192, interpolation=InterpolationConfig(**law)), tmp_path, 1, 2)


def pgd10_acc(directory):
    attack = partial(pgd, eps=0.15, step_size=0.0375, steps=10)
    test = data.load("digits", "test")[torch.arange(200)]
    model = from_pretrained(directory)
    return float(accuracy(model, test, attack, batch_size=250, seed=0, rank=0, world=1)) / len(test)


@pytest.fixture(scope="module")
def trained_clean(tmp_path_factory):
    """PGD-10 accuracy of standard training, in the same number of epochs."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("clean") / "r"
    list(run.train(dataclasses.replace(MEDIUM, method="standard"), RunOptions(output=str(output))))
    return pgd10_acc(output)


MEDIUM = dataclasses.replace(
    recipes.get("digits"),
    **dict(train_size=768, holdout=16, epochs=4, clean_epochs=1, batch_size=64),
    attack=AttackConfig(steps=3, step_size=0.0625),
    interpolation=InterpolationConfig(kind="none"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind"),
    [(m, "none") for m in sorted(set(methods.names()) - {"standard"})]
    + [(m, "piat") for m in ("nmse", "fat", "free_at", "las_at")],
)
def test_every_method_beats_standard_training_and_resumes_bit_for_bit(method, kind, trained_clean, tmp_path):
    law = InterpolationConfig(kind=kind)
    config = dataclasses.replace(MEDIUM, method=method, method_args=FIELDS.get(method, {}), interpolation=law)
    assert trained_clean < 0.08
    assert pgd10_acc(train_and_resume(config, tmp_path, 3)) > trained_clean + 0.08


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), [*((m, "piat") for m in methods.names()), ("standard", "none")])
def test_every_method_resumes_bit_for_bit_under_piat(small_digits, tmp_path, method, kind):
    """Without PIAT the test above does it."""
    law, attack = InterpolationConfig(kind=kind), AttackConfig(steps=2, step_size=0.0375)
    config = small_digits(train_size=64, holdout=16, epochs=2, clean_epochs=0, batch_size=32, method=method)
    config = dataclasses.replace(config, method_args=FIELDS.get(method, {}), interpolation=law, attack=attack)
    metrics = lines(train_and_resume(config, tmp_path, 1) / "metrics.jsonl")
    assert [m["lam"] for m in metrics] == ([g(1), g(2)] if kind == "piat" else [0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_piat_ema_swa_and_awp_compose_and_resume_bit_for_bit(small_digits, tmp_path, norm):
    threat = ThreatModel(norm=norm, eps=0.1 if norm == "Linf" else 0.5)
    everything = dict(ema=0.9, swa=0.4, awp=0.01, method="trades", threat_model=threat)
    directory = train_and_resume(small_digits(train_size=128, epochs=5, **everything), tmp_path, 3)
    weights = {k: t for k, t in load_file(directory / "state/state.safetensors").items() if not k.startswith("optim")}
    saved = load_file(directory / "model.safetensors")
    for part in ("model", "ema/copy", "swa/copy"):
        same = all(torch.equal(saved[k], weights[f"{part}/{k}"]) for k in saved if k.endswith("weight"))
        assert same == (part == "swa/copy")  # the copy that is evaluated is the one that is saved
    metrics = lines(directory / "metrics.jsonl")
    assert [m["lam"] for m in metrics] == [g(n) for n in range(1, 6)]


@pytest.mark.slow
@pytest.mark.parametrize(("field", "part"), [("ema", "ema/copy"), ("swa", "swa/copy")])
def test_the_side_copy_is_what_is_saved_and_measured(small_digits, do_train, tmp_path, field, part):
    do_train(small_digits(train_size=128, **{field: 0.5}), tmp_path / "r")
    state, saved = load_file(tmp_path / "r/state/state.safetensors"), load_file(tmp_path / "r/model.safetensors")
    assert all(torch.equal(saved[k], state[f"{part}/{k}"]) for k in saved)
    assert any(not torch.equal(saved[k], state[f"model/{k}"]) for k in saved)


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.names())
def test_every_method_trains_in_l2(small_digits, do_train, tmp_path, method):
    threat = ThreatModel(norm="L2", eps=0.5)
    config = small_digits(train_size=64, epochs=2, clean_epochs=0, holdout=16, method=method, threat_model=threat)
    config = dataclasses.replace(config, method_args=FIELDS.get(method, {}))
    asked = []
    with mock.patch("piat_hub.training.setup.ascend", lambda *a, **k: asked.append(k["norm"]) or ascend(*a, **k)):
        metrics = do_train(config, tmp_path / "r")
    assert metrics[-1]["train_loss"] < 3 and set(asked) == (set() if method in ("standard", "free_at") else {"L2"})


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_a_timm_backbone_trains_on_resized_images_and_is_measured_on_them(
    small_digits, do_train, do_evaluate, tmp_path, backbone
):
    config = small_digits(backbone=backbone, img_size=16, train_size=16, holdout=4, epochs=1, clean_epochs=0)
    config = dataclasses.replace(config, batch_size=16, attack=dataclasses.replace(config.attack, steps=1))
    do_train(config, tmp_path / "r")
    assert json.loads((tmp_path / "r/config.json").read_text())["pretrained_cfg"]["input_size"] == [1, 16, 16]
    done = do_evaluate(tmp_path / "r", "clean", n=20)
    assert done.split.shape == (1, 16, 16) and done.results.n == 20
    assert done.batch_size == 250 and dataclasses.replace(done, config=EvalConfig(batch_size=7)).batch_size == 7
    given = do_evaluate(tmp_path / "r", "clean", n=20, dataset="digits", output=str(tmp_path / "other"))
    assert given.split.shape == (1, 16, 16) and given.results.attacks["clean"] == done.results.attacks["clean"]


def test_timms_backbones_want_square_images(small_digits, do_train, tmp_path, monkeypatch):
    split = data.load("digits", "train")
    monkeypatch.setattr(
        "piat_hub.data.load_encoded", lambda *_: dataclasses.replace(split, images=split.images[:, :, :6])
    )
    with pytest.raises(InputError, match="resnet18 needs square images, digits has 6x8; resize them with --img-size"):
        do_train(small_digits(backbone="resnet18"), tmp_path / "r")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "free_at", "accumulation": 2}, "free_at replays each batch whole; leave out --accumulation 2"),
        ({"method": "gairat", "accumulation": 2}, "gairat weighs the images of a batch by each other; leave out --acc"),
        ({"method": "n_fgsm", "threat_model": ThreatModel(eps=0.6)}, "method.noise 2 x eps 0.6 is 1.2, more than"),
        ({"mixed_precision": "fp16"}, "mixed-precision fp16 is for GPUs, and this run's device is cpu; leave it out"),
        ({"cutout": 16}, "cutout 16 covers an image of 8x8 pixels wherever it falls; lower it"),
    ],
)
def test_what_would_spoil_a_run_is_refused_before_it_begins(small_digits, do_train, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        do_train(small_digits(**changes), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_averages_of_one_epoch_and_crops_of_nothing_are_told_when_a_run_begins(small_digits):
    config = small_digits(swa=0.9, epochs=2, crop_pad=8, pictures=PictureConfig(scale=(0.3, 1.0)))
    said = []
    for event in run.train(config, RunOptions(output="r")):
        if not isinstance(event, run.Notice):
            break
        said.append(event.text)
    assert "warning: --swa 0.9 averages the last of 2 epochs alone; lower it, 0.75 is usual" in said
    assert "warning: --crop-pad 8 leaves nothing of some images of 8x8 pixels; lower it" in said
    assert "warning: --scale does nothing for images of one size; it goes with --augment rrc" in said


@pytest.mark.parametrize(("clean_epochs", "told"), [(None, True), (0, False), (2, False)])
def test_clean_epochs_that_nobody_asked_for_are_told_to_who_tunes_a_model_on(
    small_digits, finished, clean_epochs, told
):
    begun = finished(small_digits())
    config = small_digits(epochs=24, clean_epochs=clean_epochs, init_from=str(begun))
    events = run.train(config, RunOptions(output="r"))
    said = [event.text for event in itertools.takewhile(lambda event: isinstance(event, run.Notice), events)]
    line = f"warning: 2 clean epochs come first, and undo what robustness {begun} has; --clean-epochs 0 leaves them out"
    assert (line in said) == told


@pytest.mark.parametrize("size", [None, 16, 256])
@pytest.mark.parametrize("holdout", [32, 64, 100, 900])
def test_held_out_images_that_the_model_of_the_beginning_was_trained_on_are_counted(holdout, size):
    made = {"dataset": "/elsewhere/digits", "holdout": 64, "train_size": size}
    digits = data.load("digits", "train")
    numbered = digits.images.clone()
    numbered[:, 0, 0, 0], numbered[:, 0, 0, 1] = torch.arange(len(digits)) // 256, torch.arange(len(digits)) % 256
    numbered = dataclasses.replace(digits, images=numbered)
    then, now = data.hold_out(numbered, 64, size)[0], data.hold_out(numbered, holdout)[1]
    seen = len({image.numpy().tobytes() for image in then.images} & {image.numpy().tobytes() for image in now.images})
    config = TrainConfig(dataset="digits", init_from="m")
    said = images.seen_before(config, holdout, made)
    assert len(said) == bool(seen) and all(
        f"was trained on {seen:,} of the {holdout:,} held-out images" in line and "give --holdout 64" in line
        for line in said
    )
    assert not images.seen_before(TrainConfig(dataset="cifar10", init_from="m"), holdout, made)
    for damage in ({"dataset": None}, {"holdout": "64"}, {"holdout": -5}, {"holdout": True}, {"stream": True}):
        assert not images.seen_before(config, holdout, made | damage)
    assert not images.seen_before(config, holdout, {})
    (line,) = images.seen_before(config, holdout, made | {"holdout": 0})
    assert f"on {min(holdout, size or holdout):,} of the {holdout:,}" in line and line.endswith("the test images alone")


def test_who_tunes_a_model_on_is_told_of_them(small_digits, finished):
    begun = finished(small_digits())
    config = small_digits(init_from=str(begun), holdout=200, clean_epochs=0)
    events = run.train(config, RunOptions(output="r"))
    said = [event.text for event in itertools.takewhile(lambda event: isinstance(event, run.Notice), events)]
    line = f"warning: {begun} was trained on 136 of the 200 held-out images, if its digits is this one: "
    assert line + "held-out accuracy flatters, and with it the best epoch; give --holdout 64" in said


@pytest.mark.slow
def test_stopped_within_an_epoch_resumes_from_the_last_whole_one(small_digits, finished, do_train, tmp_path):
    config = small_digits()
    for event in run.train(config, RunOptions(output="cut")):
        if isinstance(event, engine.Step) and (event.epoch, event.step) == (3, 2):
            break
    with (tmp_path / "cut/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "half": "written by a run that was killed"')
    do_train(config, tmp_path / "cut", resume=True)
    assert bytes_of(tmp_path / "cut") == bytes_of(finished(config))


@pytest.mark.slow
def test_killed_between_the_files_of_an_epoch_nothing_is_lost(small_digits, finished, do_train, tmp_path, monkeypatch):
    """The run as a kill just before or after each file that an epoch's end writes would leave it, resumed from there."""
    config, left = small_digits(train_size=128), []

    def watched(real, name):
        def write(*args):
            left.append(shutil.copytree("r", tmp_path / f"{len(left)} before {name}"))
            done = real(*args)
            left.append(shutil.copytree("r", tmp_path / f"{len(left)} after {name}"))
            return done

        return write

    with monkeypatch.context() as patch:
        for owner, name in ((run, "save_weights"), (run, "append"), (run.State, "save")):
            patch.setattr(owner, name, watched(getattr(owner, name), name))
        do_train(config, "r")
    assert len(left) >= 2 * 3 * config.epochs
    seen = set()
    for folder in left:
        content = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())).digest()
        if content not in seen:  # after one file is before the next
            seen.add(content)
            do_train(config, folder, resume=True)
            for file in ("model.safetensors", "model_best.safetensors", "metrics.jsonl", "state/state.safetensors"):
                assert (folder / file).read_bytes() == (finished(config) / file).read_bytes(), (folder, file)


def test_a_run_that_lost_its_state_is_not_begun_again(small_digits, trained, do_train, tmp_path):
    for state in (trained(small_digits()) / "state").iterdir():
        state.unlink()
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="has weights but no .*state.safetensors"):
        do_train(small_digits(seed=5), tmp_path / "r", resume=True)
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "results.json"])
def test_files_that_are_no_runs_are_not_overwritten(small_digits, do_train, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"already holds a {name}, which a run would overwrite"):
        do_train(small_digits(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_unusable_outputs_and_backbones_leave_nothing(small_digits, do_train, tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="file is a file; name another --output"):
        do_train(small_digits(), tmp_path / "file" / "sub")
    with pytest.raises(InputError, match="no small-image rule for the family of 'levit_128'"):
        do_train(small_digits(backbone="levit_128"), tmp_path / "r")
    with pytest.raises(InputError, match="a batch of 1 images cannot be divided"):
        do_train(small_digits(train_size=1, batch_size=2, accumulation=2), tmp_path / "r")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_resuming_a_finished_run_changes_nothing(small_digits, trained, do_train, tmp_path):
    trained(small_digits())
    before = {n: (tmp_path / "r" / n).read_bytes() for n in sorted(FILES)}
    (tmp_path / "r" / "model.safetensors").unlink()  # killed between state and weights
    assert do_train(small_digits(), tmp_path / "r", resume=True) == []
    assert {n: (tmp_path / "r" / n).read_bytes() for n in sorted(FILES)} == before


def test_an_existing_run_is_not_overwritten(small_digits, trained, do_train, tmp_path):
    trained(small_digits())
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="already holds a run; add --resume .* or name another --output"):
        do_train(small_digits(seed=1), tmp_path / "r")
    with pytest.raises(InputError, match="has seed=0, this command 1"):
        do_train(small_digits(seed=1), tmp_path / "r", resume=True)
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_nothing_to_resume_and_damaged_state(small_digits, trained, do_train, tmp_path):
    with pytest.raises(InputError, match="holds no run to resume"):
        do_train(small_digits(), tmp_path / "none", resume=True)
    trained(small_digits())
    state, before = (tmp_path / "r/state" / f"{name}.safetensors" for name in ("state", "before"))
    whole = state.read_bytes()
    state.write_bytes(whole[:-100])
    events = list(run.train(small_digits(), RunOptions(output=str(tmp_path / "r"), resume=True)))
    assert events[0].text.startswith("warning: ") and "going on from the one before, of epoch 2" in events[0].text
    assert state.read_bytes() == whole  # the last epoch, run again
    for path in (state, before):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"state.safetensors is not a whole state.*; there is no whole state"):
        do_train(small_digits(), tmp_path / "r", resume=True)


def test_divergence_names_epoch_step_and_last_good_state(small_digits, tmp_path, monkeypatch):
    calls = []

    def method(model, x, y, attack, progress):
        calls.append(1)
        return model(x).sum() * (float("nan") if len(calls) == 6 else 1e-6)

    monkeypatch.setattr("piat_hub.training.setup.make_method", lambda config: method)
    said = r"gradient is nan at epoch 3, step 2 of 4: .*'conv1.weight' holds NaN or Inf; "
    said += r"the last good state is .*state\.safetensors, of epoch 2"
    with pytest.raises(Diverged, match=said):
        list(run.train(small_digits(), RunOptions(output="r")))
    assert all(t.isfinite().all() for t in load_file("r/model.safetensors").values())


@pytest.mark.slow
def test_bf16_trains_and_is_checked_in_fp32(small_digits, do_train, do_evaluate, tmp_path):
    config = small_digits(mixed_precision="bf16", train_size=128, attack=AttackConfig(steps=3, step_size=0.0375))
    metrics = do_train(config, tmp_path / "r")
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"] + 0.5
    assert all(t.dtype in (torch.float32, torch.int64) for t in load_file(tmp_path / "r/model.safetensors").values())
    assert do_evaluate("r", "clean").results.attacks["clean"]["n"] == 400


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_weights_are_refused(small_digits, monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")  # what `accelerate launch --use_…` sets
    with pytest.raises(InputError, match=f"{kind} shards the weights .* plain DDP"):
        list(run.train(small_digits(), RunOptions(output="r")))


def test_sharded_weights_are_refused_also_where_accelerate_says_so(small_digits, monkeypatch):
    class Launched:
        distributed_type, num_processes = "TP", 2

        def __init__(self, **_):
            pass

    monkeypatch.setattr("piat_hub.training.setup.Accelerator", Launched)
    with pytest.raises(InputError, match="TP shards the weights"):
        list(run.train(small_digits(), RunOptions(output="r")))


@pytest.mark.slow
def test_a_compiled_launch_trains_and_saves_plain_names(small_digits, do_train, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    do_train(small_digits(epochs=2, train_size=64), tmp_path / "r")
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "r/model.safetensors"))


def test_batch_must_divide(small_digits):
    with pytest.raises(InputError, match="batch-size 64 cannot be divided by 1 processes x 3 accumulation"):
        list(run.train(small_digits(accumulation=3), RunOptions(output="r")))


def test_tensorboard_gets_the_metrics(small_digits, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    list(run.train(small_digits(epochs=2, train_size=64), RunOptions(output="r", tracker="tensorboard")))
    log = next(tmp_path.glob("r/**/events.out.tfevents*")).parent
    events = event_accumulator.EventAccumulator(str(log)).Reload()
    logged = [e.value for e in events.Scalars("holdout_pgd10_acc")]
    assert logged == pytest.approx([m["holdout_pgd10_acc"] for m in lines(tmp_path / "r/metrics.jsonl")])


def test_method_fields(small_digits):
    config = dataclasses.replace(small_digits(), method_args={"mu": 2.0})
    assert make_method(config).mu == 2.0
    with pytest.raises(InputError, match="method nmse has no field 'nu'; it has mu"):
        make_method(dataclasses.replace(config, method_args={"nu": 1}))
    with pytest.raises(InputError, match="it has none"):
        make_method(dataclasses.replace(config, method="pgd_at", method_args={"mu": 1}))


@pytest.mark.slow
def test_evaluate_writes_into_the_run_and_the_card_follows(small_digits, trained, do_evaluate, tmp_path):
    trained(small_digits())
    done = do_evaluate("r", "clean", "pgd2", n=50)
    assert done.directory.resolve() == tmp_path / "r"
    written = json.loads((tmp_path / "r/results.json").read_text())
    assert written["threat_model"] == {"norm": "Linf", "eps": "0.15"}
    assert written["dataset"] == {"name": "digits", "split": "test", "n": 50}
    assert f"{100 * written['attacks']['pgd2']['accuracy']:.2f} %" in (tmp_path / "r/README.md").read_text()
    do_evaluate("r", "cw2", n=50)
    assert set(json.loads((tmp_path / "r/results.json").read_text())["attacks"]) == {"clean", "pgd2", "cw2"}
    do_evaluate("r", "clean", n=50, checkpoint="best")
    assert json.loads((tmp_path / "r/results_best.json").read_text())["checkpoint"] == "best"
    with pytest.raises(InputError, match="results.json holds results for dataset .*--output"):
        do_evaluate("r", "clean", n=60)
    do_evaluate("r", "clean", n=60, output="elsewhere")
    assert json.loads((tmp_path / "elsewhere/results.json").read_text())["dataset"]["n"] == 60


def test_results_never_land_beside_another_model(small_digits, trained, do_evaluate, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        trained(small_digits(epochs=2, seed=seed), name)
    before = sorted(p.name for p in (tmp_path / "b").iterdir())
    with pytest.raises(InputError, match="b holds another model; name another --output"):
        do_evaluate("a", "clean", output="b")
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == before


def test_weights_digest_is_the_files_own_and_sees_every_tensor(small_digits, trained, tmp_path):
    trained(small_digits())
    file = hashlib.sha256((tmp_path / "r/model.safetensors").read_bytes()).hexdigest()
    assert weights_digest(load_model("r")[0]) == file
    net = torch.nn.Linear(2, 2)
    net.tied = net.weight
    one = weights_digest(net)
    with torch.no_grad():
        net.bias[1] += 1
    assert weights_digest(net) != one


@pytest.mark.slow
def test_a_model_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, k=10):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(64, k)\n"
        "    def forward(self, x):\n"
        "        return self.fc(x.flatten(1))\n"
        "net = Net()\n"
        "not_a_model = 3\n"
        "def number():\n"
        "    return 3\n"
    )
    program = (
        "import json, sys; from piat_hub.cli import main\n"
        "codes = [main(['evaluate', m, '--dataset', 'digits', '--n', '20', '--attacks', 'clean']) "
        "for m in ('mine:Net', 'mine:net', 'mine:number', 'mine:absent', 'absent:x', 'math:pi', 'json:loads')]\n"
        "print(json.dumps(codes))"
    )
    done = python("-c", program, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0, 2, 2, 2, 2, 2]
    assert (tmp_path / "results/mine-Net/results.json").exists()
    errors = done.stderr.strip().splitlines()
    assert len(errors) == 5 and "gives a int, not an nn.Module" in errors[0] and "absent" in errors[2]
    assert all("cannot be called without arguments" in e for e in errors[3:])


def bytes_of(directory):
    return {name: (directory / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl")}


@pytest.mark.slow
def test_a_streamed_run_is_the_run_from_memory(small_digits, tmp_path):
    """A PNG folder, decoded whole or read by a DataLoader: the same bytes at the end, and one line that says which."""
    digits = data.load("digits", "train")
    for i in range(200):
        place = tmp_path / "d" / "train" / str(int(digits.labels[i])) / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[i, 0].numpy()).save(place)
    config = small_digits(dataset=str(tmp_path / "d"), train_size=128, holdout=32, epochs=2)
    said = {}
    for name, limit in (("whole", 4.0), ("streamed", 0.0)):
        events = list(run.train(config, RunOptions(output=name, device_data_limit=limit)))
        said[name] = events[0].text
    assert bytes_of(Path("whole")) == bytes_of(Path("streamed"))
    assert said["whole"] == "data: 128 images on cpu, 0.0 MiB decoded"
    assert said["streamed"] == "data: 128 images are streamed; decoded, d takes 0.0 MiB, the limit is 0 GiB"


@pytest.mark.slow
def test_checkpointed_gradients_and_compile_on_a_cpu_change_nothing(small_digits, tmp_path):
    config = small_digits(epochs=2)
    said = []
    for name, options in (("plain", {}), ("both", {"gradient_checkpointing": True, "compile": True})):
        said.append(next(run.train(config, RunOptions(output=f"{name}-first", **options))).text)
        list(run.train(config, RunOptions(output=name, **options)))
    assert bytes_of(Path("plain")) == bytes_of(Path("both"))
    assert said[1] == said[0] + "; not compiled: on a CPU it does not pay"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept():
    """Large tensors are made anew again and again, as an attack's activations are: their pages come from the system once.

    Of 64 MiB: by default glibc maps and unmaps whatever is above 32 MiB; below, the heap's layout decides.
    """
    pages = []
    for setting in ("", "set_threads(1)"):
        script = f"""if True:
            import resource, torch
            from piat_hub.machine import set_threads
            {setting}
            before = 0
            for i in range(24):
                if i == 12:
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                tensor = torch.ones(2**24)
                del tensor
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""
        pages.append(int(python("-c", script, check=True).stdout))
    assert pages[0] > 5 * pages[1], pages


@pytest.mark.slow
def test_a_run_starts_from_a_trained_model_with_another_head(small_digits, trained, do_train, tmp_path):
    """Five classes of digits from a model of ten: the same weights but for the head, before the first step."""
    trained(small_digits(epochs=2), "ten")
    digits = data.load("digits", "train")
    for i in digits.labels.less(5).nonzero().flatten()[:150].tolist():
        place = tmp_path / "d" / "train" / str(int(digits.labels[i])) / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[i, 0].numpy()).save(place)
    config = small_digits(
        dataset=str(tmp_path / "d"), init_from=str(tmp_path / "ten"), train_size=64, holdout=32, epochs=2
    )
    model = make_backbone(config, data.load(config.dataset, "train"))
    source = load_file(tmp_path / "ten/model.safetensors")
    assert model.num_classes == 5 and model.fc.weight.shape == (5, 64)
    for name, tensor in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(tensor, source[name]), name
    do_train(config, tmp_path / "five")
    assert json.loads((tmp_path / "five/config.json").read_text())["piat"]["init_from"] == str(tmp_path / "ten")
    same = small_digits(init_from=str(tmp_path / "ten"))
    whole = make_backbone(same, digits)
    assert torch.equal(whole.fc.weight, source["fc.weight"])  # as many classes: the head comes too
    source_config = tmp_path / "ten/config.json"
    facts = json.loads(source_config.read_text())
    facts["pretrained_cfg"]["license"] = "cc-by-nc-4.0"
    source_config.write_text(json.dumps({k: v for k, v in facts.items() if k != "checksum"}))
    do_train(config, tmp_path / "bound")  # what is derived from it keeps its licence
    assert "\nlicense: cc-by-nc-4.0\n" in card.render(RunDirectory.read(tmp_path / "bound"))
    shutil.rmtree(tmp_path / "ten")
    assert json.loads((tmp_path / "five/config.json").read_text())["pretrained_cfg"]["license"] == "unknown"
    do_train(config, tmp_path / "bound", resume=True)
    assert json.loads((tmp_path / "bound/config.json").read_text())["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    do_train(config, tmp_path / "five", resume=True)  # a resumed run does not need where it came from
    shutil.rmtree(tmp_path / "bound/state")
    (tmp_path / "bound/state").mkdir()  # killed before its first state was whole: without the source it cannot begin
    (tmp_path / "bound/model.safetensors").unlink()
    with pytest.raises(InputError, match="ten"):
        do_train(config, tmp_path / "bound", resume=True)


def test_weights_that_do_not_fit_are_refused(small_digits, trained, do_train, tmp_path):
    trained(small_digits(epochs=2))
    for changes, message in (
        ({"backbone": "cifar_resnet20"}, "cifar_resnet8. do not fit this backbone at"),
        ({"init_from": "imagenet"}, "cifar_resnet8 is ours and has no ImageNet weights"),
        ({"init_from": "nowhere"}, "'nowhere' is no Hub id"),
        (
            {"init_from": "imagenet", "backbone": "resnet18", "img_size": 32},
            "^HF_HUB_OFFLINE is set.*: the pretrained weights of resnet18 cannot be had",
        ),
    ):
        config = small_digits(**({"init_from": str(tmp_path / "r")} | changes))
        with pytest.raises(InputError, match=message):
            do_train(config, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_a_directory_of_timms_own_begins_with_its_normalisation_inside(small_digits, tmp_path):
    source = timm.create_model("mobilenetv3_small_050", num_classes=12).eval()
    for norm in (m for m in source.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    timm.models.save_for_hf(source, tmp_path / "m", safe_serialization=True)
    config = small_digits(init_from=str(tmp_path / "m"), backbone="mobilenetv3_small_050")
    x, names = torch.rand(4, 3, 80, 80), tuple(map(str, range(12)))
    split = data.Split((255 * x).to(torch.uint8), torch.arange(4), names, "d")
    model = make_backbone(config, split).eval()
    mean, std = (torch.tensor(source.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(model(x), source((x - mean) / std), atol=1e-5)
    fewer = make_backbone(config, dataclasses.replace(split, label_names=names[:5]))
    assert fewer.num_classes == 5 and torch.equal(fewer.conv_head.weight, source.conv_head.weight)
    save_config(model, tmp_path, config=config, label_names=names, input_size=(3, 80, 80))
    assert str(tmp_path) not in json.dumps(json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"])
    with pytest.raises(
        InputError, match="is mobilenetv3_small_050, not resnet18; choose --backbone mobilenetv3_small_050"
    ):
        make_backbone(dataclasses.replace(config, backbone="resnet18"), split)
    other = {f"model.{name}": tensor for name, tensor in source.state_dict().items()}
    save_file(other, tmp_path / "m/model.safetensors")  # timm would begin with random numbers, and say nothing
    with pytest.raises(InputError, match="lacks tensor 'blocks"):
        make_backbone(config, dataclasses.replace(split, label_names=names[:5]))
    facts = json.loads((tmp_path / "m/config.json").read_text())
    facts["pretrained_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (tmp_path / "m/config.json").write_text(json.dumps(facts))
    with pytest.raises(
        InputError, match="normalises by mean .0.1, 0.1, 0.1., mobilenetv3_small_050 by .*choose its tag"
    ):
        make_backbone(config, split)


def test_imagenets_weights_are_timms(small_digits, monkeypatch):
    """A file as timm would download it: where shapes fit, the run begins with it."""
    source = timm.create_model("mobilenetv3_small_050", num_classes=1000)
    save_file(source.state_dict(), "imagenet.safetensors")
    overlay = {"file": "imagenet.safetensors", "hf_hub_id": None, "url": ""}
    build = functools.partial(backbones.create_model, pretrained_cfg_overlay=overlay)
    monkeypatch.setattr("piat_hub.backbones.create_model", build)
    config = small_digits(init_from="imagenet", backbone="mobilenetv3_small_050", img_size=32)
    split = data.load("digits", "train")
    model = make_backbone(config, dataclasses.replace(split[:4], images=split.images[:4].expand(-1, 3, -1, -1)))
    block = "blocks.1.0.conv_pw.weight"
    assert torch.equal(model.state_dict()[block], source.state_dict()[block]) and model.num_classes == 10

    licences = {}
    for began in (
        None,
        "imagenet",
    ):  # with timm's weights goes their licence; without, nothing of theirs is in the file
        began_with = dataclasses.replace(config, init_from=began)
        save_config(model, Path(), config=began_with, label_names=split.label_names, input_size=(3, 32, 32))
        licences[began] = json.loads(Path("config.json").read_text())["pretrained_cfg"].get("license")
        text = card.render(RunDirectory.read("."))
        assert "license: apache-2.0\n" in text if began else "license" not in text.split("---")[1]
    assert licences == {None: None, "imagenet": "apache-2.0"}


@pytest.mark.slow
def test_tracked_test_images_are_recorded_and_change_nothing(small_digits, finished, do_train, do_evaluate):
    config = small_digits(epochs=2)
    plain_run, metrics = finished(config), do_train(config, "tracked", track_test=True)
    for plain, tracked in zip(lines(plain_run / "metrics.jsonl"), metrics, strict=True):
        assert set(tracked) - set(plain) == {"test_clean_acc", "test_pgd10_acc"}
        assert {key: tracked[key] for key in plain} == plain
    for name in ("model.safetensors", "model_best.safetensors"):
        assert (plain_run / name).read_bytes() == (Path("tracked") / name).read_bytes()
    clean = do_evaluate("tracked", "clean").results.attacks["clean"]
    assert clean["n"] == 400 and metrics[-1]["test_clean_acc"] == clean["accuracy"]
    assert metrics[-1]["test_pgd10_acc"] < clean["accuracy"]


CRASHES = """
import os
from piat_hub.config import RunOptions, recipes
from piat_hub.training import run
import dataclasses
base = dict(train_size=128, holdout=16, epochs=2, clean_epochs=1, batch_size=64)
config = dataclasses.replace(recipes.get("digits"), **base)
for event in run.train(config, RunOptions(output="r", threads=1)):
    if isinstance(event, run.EpochDone) and event.metrics["epoch"] == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os._exit(1)
"""


@pytest.mark.slow
def test_what_torchrun_starts_again_goes_on_from_its_state(small_digits, do_train):
    """An elastic launch: the process dies after the first epoch, and the same command, without --resume, ends the run."""
    Path("job.py").write_text(CRASHES)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1, "--max_restarts", 1)
    done = python(*launch, "job.py")
    assert done.returncode == 0, done.stderr[-2000:]
    whole = do_train(small_digits(train_size=128, holdout=16, epochs=2), "whole", threads=1)
    assert [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()] == whole
    assert Path("r/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
