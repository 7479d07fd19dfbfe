"""Nothing lost: runs killed, stopped and damaged end as runs never touched, or say plainly why they cannot."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import piat_hub
from piat_hub import run
from piat_hub.config import RunOptions

SAME = ("model.safetensors", "model_best.safetensors", "metrics.jsonl", "state/state.safetensors")


def same_run(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in SAME)


def stopped_after(config, output, steps, **options):
    """Train until so many steps of this call are done, then ask to stop; gives the last event."""
    seen = []
    for event in run.train(config, RunOptions(output=str(output), **options), lambda: len(seen) >= steps):
        if isinstance(event, run.engine.Step):
            seen.append(event)
    return event


@pytest.mark.parametrize("extra", [{}, {"method": "free_at", "ema": 0.9}, {"accumulation": 2, "swa": 0.3, "awp": 0.01}])
def test_stopped_at_any_step_it_ends_with_the_same_bytes(small_digits, do_train, tmp_path, extra):
    """Three steps at a time, so within epochs, at their ends and at the very end, each in a new call."""
    config = small_digits(train_size=192, **extra)
    do_train(config, tmp_path / "whole")
    event, calls = stopped_after(config, tmp_path / "r", 3), 1
    while isinstance(event, run.Stopped):
        event, calls = stopped_after(config, tmp_path / "r", 3, resume=True), calls + 1
    assert calls > 3 and same_run(tmp_path / "r", tmp_path / "whole")


def test_save_every_steps_bounds_what_a_kill_costs(small_digits, do_train, tmp_path):
    config = small_digits(train_size=256)  # four steps an epoch
    do_train(config, tmp_path / "whole")
    events = run.train(config, RunOptions(output=str(tmp_path / "r"), save_every_steps=2))
    for event in events:
        if isinstance(event, run.engine.Step) and (event.epoch, event.step) == (2, 4):
            break
    events.close()  # two steps after the state was saved
    again = [e for e in run.train(config, RunOptions(output=str(tmp_path / "r"), resume=True)) if hasattr(e, "step")]
    assert (again[0].epoch, again[0].step) == (2, 3)
    assert same_run(tmp_path / "r", tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_it_ends_with_the_same_bytes(small_digits, do_train, killed, tmp_path):
    config = small_digits(train_size=192, epochs=4)
    do_train(config, tmp_path / "whole")

    def work(folder):
        do_train(config, folder, resume=folder.exists(), save_every_steps=2)

    rng, kills, rounds = random.Random(0), 0, 0
    while kills < 10:
        rounds += 1
        folder = tmp_path / str(rounds)
        while killed(partial(work, folder), rng.uniform(0.02, 0.8)):
            kills += 1
        assert same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number):
    flags = "--epochs 40 --train-size 256 --holdout 32 --steps 2 --threads 1 --output r"
    command = [sys.executable, "-m", "piat_hub", "train", "digits", *flags.split()]
    environment = os.environ | {"PYTHONPATH": str(Path(piat_hub.__file__).parent.parent)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not (tmp_path / "r/state/state.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert process.returncode == 130 and "saved: go on with the same command and --resume" in line, (out, err)
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment, timeout=200)
    assert again.returncode == 0, again.stderr
    assert torch.isfinite(piat_hub.from_pretrained("r").fc.weight).all()
    assert len(run.read_metrics(Path("r"))) == 40
