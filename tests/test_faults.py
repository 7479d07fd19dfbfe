"""Nothing lost: runs killed, stopped and damaged end as runs never touched, or say plainly why they cannot."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PYTHON, ROOT, die_after, killed
from torch.nn.functional import cross_entropy

from piat_hub import cli, data
from piat_hub.config import Broken, Diverged, InputError, RunOptions
from piat_hub.records import files, tensors
from piat_hub.training import engine, run, state
from piat_hub.training.averages import EMA
from piat_hub.training.guards import advise, collapsed, underflowing

FOR_EVER = {"--epochs": 10**6, "--train-size": 64, "--holdout": 16, "--threads": 1, "--output": "r"}
ENDLESS = ["piat_hub", "train", "digits", *(str(word) for pair in FOR_EVER.items() for word in pair)]
SAME = ("model.safetensors", "model_best.safetensors", "metrics.jsonl", "state/state.safetensors")


def same_run(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in SAME)


def begun(*words):
    """`python WORDS…`, a warm one, under way."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([PYTHON, *words], env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)


def until(process, words):
    """Wait for a line on its output that begins so; gives the epochs' lines up to that one."""
    lines = []
    for line in process.stdout:
        lines += [line] * line.startswith("epoch ")
        if line.startswith(words):
            return lines
    raise AssertionError(process.communicate()[1])


def stopped_after(config, output, steps, **options):
    """Train until so many steps of this call are done, then ask to stop; gives the last event."""
    seen = []
    for event in run.train(config, RunOptions(output=str(output), **options), lambda: len(seen) >= steps):
        if isinstance(event, run.engine.Step):
            seen.append(event)
    return event


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, {"method": "free_at", "ema": 0.9}, {"accumulation": 2, "swa": 0.3, "awp": 0.01}])
def test_stopped_at_any_step_it_ends_with_the_same_bytes(small_digits, finished, tmp_path, extra):
    """Three steps at a time, so within epochs, at their ends and at the very end, each in a new call."""
    config = small_digits(train_size=192, **extra)
    event, calls = stopped_after(config, tmp_path / "r", 3), 1
    while isinstance(event, run.Stopped):
        event, calls = stopped_after(config, tmp_path / "r", 3, resume=True), calls + 1
    assert calls > 3 and same_run(tmp_path / "r", finished(config))


@pytest.mark.slow
def test_save_every_steps_bounds_what_a_kill_costs(small_digits, finished, tmp_path):
    config = small_digits(train_size=256)  # four steps an epoch
    events = run.train(config, RunOptions(output=str(tmp_path / "r"), save_every_steps=2))
    for event in events:
        if isinstance(event, run.engine.Step) and (event.epoch, event.step) == (2, 4):
            break
    events.close()  # two steps after the state was saved
    again = [e for e in run.train(config, RunOptions(output=str(tmp_path / "r"), resume=True)) if hasattr(e, "step")]
    assert (again[0].epoch, again[0].step) == (2, 3)
    assert same_run(tmp_path / "r", finished(config))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_it_ends_with_the_same_bytes(small_digits, finished, do_train, tmp_path):
    config, rng = small_digits(train_size=128), random.Random(0)

    def work(folder):
        do_train(config, folder, resume=(folder / "config.json").exists(), save_every_steps=1)

    for name in ("cold", "warm"):  # the second is as fast as a forked process
        clock = time.process_time()
        work(tmp_path / name)
    seconds = time.process_time() - clock
    for number in range(2):
        folder = tmp_path / str(number)
        moments = [rng.uniform(0, seconds / 2) for _ in range(4)]
        assert sum(killed(partial(work, folder), partial(die_after, moment)) for moment in moments) > 0
        work(folder)
        assert same_run(folder, finished(config))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(number):
    """A training that comes to no end by itself, stopped twice."""
    done = 0
    for resume, last in (([], 2), (["--resume"], 4)):
        process = begun("-u", "-m", *ENDLESS, *resume)
        epochs = until(process, f"epoch {last}/")
        assert epochs[0].startswith(f"epoch {done + 1}/")
        process.send_signal(number)
        _, err = process.communicate()
        (line,) = [line for line in err.splitlines() if "error" in line]
        program, *words = shlex.split(line.partition("saved: go on with ")[2])
        assert process.returncode == 130 and words == ["-m", *ENDLESS, "--resume"], err
        assert Path(shutil.which(program) or program).samefile(PYTHON)
        done = state_of("r").epochs
        assert done >= last - 1


def spoil(monkeypatch, at, harm):
    """Every step trains as it should, but `harm(model)` changes the loss or the model once, in call number `at`."""
    calls = []

    def method(model, x, y, attack, progress):
        calls.append(1)
        logits = model(x)
        loss = cross_entropy(logits, y)
        return harm(model, logits, loss) if len(calls) == at else loss

    monkeypatch.setattr("piat_hub.training.setup.make_method", lambda config: method)


def infinite_gradient(model, logits, loss):
    return loss + (logits - logits.detach()).abs().sqrt().sum()  # the root's slope at 0, of a loss that stays as it was


def broken_weight(model, logits, loss):
    model.conv1.weight.register_post_accumulate_grad_hook(lambda _: spoiled(model.layer2[0].conv1.weight, "inf"))
    return loss  # the first layer's gradient comes last


def broken_buffer(model, logits, loss):
    model.conv1.weight.register_post_accumulate_grad_hook(lambda _: spoiled(model.bn1.running_var, "nan"))
    return loss


def spoiled(tensor, value):
    tensor.data.fill_(float(value))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            infinite_gradient,
            r"the loss or its gradient is nan at epoch 2, step 4 of 4: the gradient of 'conv1\.weight'",
        ),
        (broken_weight, r"'layer2\.0\.conv1\.weight' holds NaN or Inf at the end of epoch 2"),
        (broken_buffer, r"'bn1\.running_var' holds NaN or Inf at the end of epoch 2"),
    ],
)
def test_what_is_not_finite_is_named_and_never_saved(small_digits, tmp_path, monkeypatch, harm, said):
    """In the last step of an epoch: a moment later it would be in the state."""
    spoil(monkeypatch, 8, harm)
    with pytest.raises(Diverged, match=rf"{said}.*; the last good state is .*, of epoch 1\. The training diverged"):
        list(run.train(small_digits(clean_epochs=0), RunOptions(output="r")))
    for name in ("model", "model_best", "state/state"):
        weights = tensors.load(Path(f"r/{name}.safetensors"))[0].values()
        assert all(t.isfinite().all() for t in weights if t.is_floating_point())
    assert len(files.read_metrics(Path("r"))) == 1


def test_a_step_that_is_to_be_saved_is_looked_at_first(small_digits, monkeypatch):
    spoil(monkeypatch, 2, broken_weight)
    options = RunOptions(output="r", save_every_steps=2)
    with pytest.raises(Diverged, match=r"'layer2\.0\.conv1\.weight' holds NaN or Inf at epoch 1, step 2"):
        list(run.train(small_digits(clean_epochs=0), options))
    assert not Path("r/state").exists()


def test_overflow_in_half_precision_is_told_from_divergence():
    """Logits of 2e5: beyond fp16's 65,504, within bf16's and fp32's range."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    x = torch.ones(2, 1, 8, 8)
    with torch.no_grad():
        model[1].weight.fill_(3e3)
    with torch.autocast("cpu", torch.float16):
        assert not model(x).isfinite().all()
    assert "fp16 overflowed: start again without it" in advise(model, x, "fp16")
    assert advise(model, x, "no") == "The training diverged: lower --lr, then start again"
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    assert advise(model, x, "no") == "The training diverged: lower --lr, then start again"
    both = "Either fp16 overflowed or the training diverged: start again without it, or with a lower --lr"
    assert advise(model, x, "fp16") == both  # a GPU has spoilt the weights by when the loss is read


def test_several_processes_are_asked_to_stop_in_short_epochs_too():
    asked = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda t: t)
    at = [engine.Step(1, step, 7, 64, 0.0, None) for step in range(1, 8)]
    assert [run.agreed(lambda: True, step, asked) for step in at] == [False] * 6 + [True]
    long = [engine.Step(1, step, 25, 64, 0.0, None) for step in (9, 10, 20, 24, 25)]
    assert [run.agreed(lambda: True, step, asked) for step in long] == [False, True, True, False, True]
    assert not run.agreed(lambda: False, long[1], asked)


def test_memory_that_is_used_up_is_told_in_one_line(capsys, monkeypatch):
    def crowded(*_):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"
        )

    monkeypatch.setattr("piat_hub.training.run.train", crowded)
    assert cli.main(["train", "digits", "--output", "r"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the device's memory is used up (CUDA out of memory); --gradient-checkpointing" in said


@pytest.mark.parametrize(("scale", "warns"), [(65536.0, False), (1.0, False), (0.5, True), (None, False)])
def test_fp16_that_leaves_out_update_after_update_is_told(scale, warns):
    scaler = scale and SimpleNamespace(get_scale=lambda: scale)
    assert ("overflows again and again" in underflowing(SimpleNamespace(scaler=scaler))) == warns


@pytest.mark.parametrize(
    ("held", "train", "warns"),
    [
        ([0.3, 0.35, 0.02], [0.4, 0.4, 0.4], "from 35.0% to 2.0% in epoch 3"),
        ([0.3, 0.35, 0.2], [0.4, 0.4, 0.01], ""),
        ([0.12, 0.04], [0.1, 0.1], ""),
        ([0.02], [0.02], ""),
        ([None, None], [0.6, 0.1], "from 60.0% to 10.0% in epoch 2"),
    ],
)
def test_collapse_is_told_within_the_epoch(held, train, warns):
    pairs = enumerate(zip(held, train, strict=True), 1)
    metrics = [{"epoch": e, "holdout_pgd10_acc": h, "train_pgd10_acc": t} for e, (h, t) in pairs]
    said = collapsed(metrics)
    assert ("catastrophic overfitting" in said and warns in said) if warns else said == ""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [300, 100_000])
def test_a_full_disk_is_one_line_and_costs_nothing_that_was_saved(small_digits, finished, do_train, limit):
    """As by a quota: no file may grow beyond `limit` bytes, so that metrics, or the state, cannot be written."""
    config, state = small_digits(), Path("r/state/state.safetensors")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    named = {300: "(metrics.jsonl|model_best.safetensors)", 100_000: "new.safetensors"}[limit]
    try:
        with pytest.raises(Broken, match=rf"{named} cannot be written: .*File too large.*before is whole: make room"):
            for event in run.train(config, RunOptions(output="r")):
                if isinstance(event, run.EpochDone) and event.metrics["epoch"] == 1:
                    kept = state.read_bytes()
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert state.read_bytes() == kept and not list(Path("r").glob("**/.*"))
    do_train(config, "r", resume=True)
    assert same_run(Path("r"), finished(config))


@pytest.mark.slow
def test_a_folder_that_turns_read_only_is_one_line(small_digits, finished, do_train, monkeypatch):
    config = small_digits()
    real = os.replace

    def refused(a, b):
        if b == Path("r/state/state.safetensors") and a.with_name("before.safetensors").exists():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(a, b)

    with monkeypatch.context() as changed:  # as root may write everywhere
        changed.setattr(os, "replace", refused)
        with pytest.raises(Broken, match=r"state\.safetensors cannot be written: Read-only file system"):
            do_train(config, "r")
    do_train(config, "r", resume=True)
    assert same_run(Path("r"), finished(config))


def process_of_rank(rank):
    """The id of the process in this folder that works as this rank."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (process / "environ").read_bytes().split(b"\0")
            if (process / "cwd").samefile(".") and f"RANK={rank}".encode() in told:
                return int(process.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_dies_and_the_others_say_so_and_stop(rank):
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", *ENDLESS]
    launcher = begun(*words)
    until(launcher, "epoch 2/")
    os.kill(process_of_rank(rank), signal.SIGKILL)
    _, err = launcher.communicate()
    assert launcher.returncode == 1
    (line,) = [line for line in err.splitlines() if "another process has ended" in line]
    advised = shlex.join(["-m", *ENDLESS, "--resume"])
    assert f"what is finished is saved: go on with the same launcher and {advised}" in line and len(line) < 400
    if rank == 0:
        done = state_of("r")
        again = begun(*words, "--resume")
        assert until(again, "epoch ")[0].startswith(f"epoch {done.epochs + 1}/")
        again.terminate()
        again.communicate()


def state_of(folder):
    return state._read(Path(folder) / "state/state.safetensors")[0]


def test_a_damaged_metric_is_named_and_written_again(small_digits, trained, do_train):
    path = trained(small_digits()) / "metrics.jsonl"
    whole = path.read_text()
    assert files.read_metrics(Path("r")) == [json.loads(line) for line in whole.splitlines()]
    path.write_text(whole.replace('"epoch": 2, "lam": 0.25', '"epoch": 2, "lam": 0.26'))
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged in line 2 .*--resume writes it again"):
        files.read_metrics(Path("r"))
    do_train(small_digits(), "r", resume=True)
    assert path.read_text() == whole


def test_the_weights_behind_an_average_are_looked_at_too(small_digits, monkeypatch):
    """The average may be finite still where the weights, which the state holds as well, are not."""
    spoil(monkeypatch, 8, broken_buffer)
    monkeypatch.setattr(EMA, "step", lambda self, averaging=True: None)
    with pytest.raises(Diverged, match=r"'bn1\.running_var' holds NaN or Inf at the end of epoch 2"):
        list(run.train(small_digits(clean_epochs=0, ema=0.9), RunOptions(output="r")))
    assert all(t.isfinite().all() for t in tensors.load(Path("r/state/state.safetensors"))[0].values())


def test_class_names_that_cannot_be_printed_are_told_before_the_first_step(small_digits, monkeypatch):
    whole = data.load("digits", "train")
    names = ("a\x1b[31m", *whole.label_names[1:])
    monkeypatch.setattr(data, "load_encoded", lambda *_: dataclasses.replace(whole, label_names=names))
    with pytest.raises(InputError, match="has a class .*, which cannot be printed on one line; rename it"):
        list(run.train(small_digits(), RunOptions(output="r")))
    assert not Path("r").exists()


def test_without_its_config_a_run_goes_on_from_its_state(small_digits, trained, finished, do_train):
    trained(small_digits())
    whole = Path("r/config.json").read_bytes()
    Path("r/config.json").unlink()
    do_train(small_digits(), "r", resume=True)
    assert Path("r/config.json").read_bytes() == whole and same_run(Path("r"), finished(small_digits()))
