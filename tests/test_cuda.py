"""What only a GPU can show. Skipped where there is none; DEVICE=cpu rehearses all of it there, but for what is said below."""

import dataclasses
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import piat_hub
from piat_hub import data
from piat_hub.attacks import Twin, pgd
from piat_hub.config import EvalConfig, RunOptions
from piat_hub.evaluation.request import prepare_evaluation
from piat_hub.evaluation.verdict import verdict_mode
from piat_hub.training import engine, run

DEVICE = os.environ.get("DEVICE", "cuda")
REPOSITORY = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.slow,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(autouse=True)
def _on_the_device(monkeypatch):
    if DEVICE != "cpu":
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)


@pytest.fixture
def small(small_digits):
    """A configuration of seconds whose backbone has BatchNorm, as what is trained on GPUs has."""
    return small_digits(backbone="cifar_resnet8", epochs=2, method="nmse")


def trained(config, output, **options):
    """The metrics of the epochs of a run that goes to its end."""
    events = run.train(config, RunOptions(output=output, **options))
    return [event.metrics for event in events if isinstance(event, run.EpochDone)]


def verdicts(directory):
    with np.load(Path(directory) / "verdicts.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_its_model_is_measured_in_fp32(small, precision):
    if DEVICE == "cpu" and precision == "fp16":
        pytest.skip("Accelerate takes fp16 on GPUs alone")
    metrics = trained(dataclasses.replace(small, epochs=6, mixed_precision=precision), "r")
    assert metrics[-1]["train_loss"] < metrics[1]["train_loss"] and metrics[-1]["holdout_clean_acc"] > 0.3
    timing = json.loads(Path("r/timing.jsonl").read_text().splitlines()[-1])
    assert timing["device"].startswith("CPU") == (DEVICE == "cpu")
    assert {t.dtype for t in piat_hub.from_pretrained("r").parameters()} == {torch.float32}


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_stopped_within_an_epoch_goes_on_from_the_same_weights(small, compiled):
    whole = trained(small, "whole", compile=compiled)
    asked = iter([False, False, True])  # after the third step of four
    events = list(run.train(small, RunOptions(output="r", compile=compiled), stopping=lambda: next(asked)))
    assert isinstance(events[-1], run.Stopped) and events[-1].steps == 3
    assert trained(small, "r", compile=compiled, resume=True)[-1] == pytest.approx(whole[-1], abs=0.1)
    ours, theirs = (
        torch.cat([tensor.double().flatten() for tensor in load_file(Path(d) / "model.safetensors").values()])
        for d in ("r", "whole")
    )
    far = float((ours - theirs).norm() / theirs.norm())
    assert far < (1e-6 if DEVICE == "cpu" else 0.05)  # a GPU adds up in another order each time


def test_the_twin_has_the_models_logits_and_input_gradients():
    model = piat_hub.create_model("cifar_resnet18").to(DEVICE).eval()
    x, y = torch.rand(64, 3, 32, 32, device=DEVICE), torch.arange(64, device=DEVICE) % 10
    twin, found = Twin(model, x), []
    with verdict_mode(model):  # without TF32, which moves input gradients by 6 % here
        for one in (model, twin):
            images = x.clone().requires_grad_()
            logits = one(images)
            loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
            found.append((logits.detach(), torch.autograd.grad(loss, images)[0]))
    for a, b in zip(*found, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-2  # a wrong fold is of order 1


def test_verdicts_are_the_same_twice_and_the_cpus(small, monkeypatch):
    trained(small, "r")
    for output in ("a", "b"):
        list(prepare_evaluation("r", EvalConfig(attacks=("clean", "pgd20"), n=200, output=output)).measure())
    a, b = verdicts("a"), verdicts("b")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    model = piat_hub.from_pretrained("r").eval()
    test = data.load("digits", "test").first(200)
    with torch.no_grad():
        assert (model(data.to_unit(test.images)).argmax(1) == test.labels).sum() == pytest.approx(
            a["clean"].sum(), abs=1
        )


def test_a_compiled_attack_is_the_attack():
    model = piat_hub.create_model("cifar_resnet8").to(DEVICE).eval()
    x, y = torch.rand(32, 3, 32, 32, device=DEVICE), torch.arange(32, device=DEVICE) % 10
    plain, fast = Twin(model, x), Twin(model, x)
    fast.compile(dynamic=False)
    ours, theirs = (pgd(twin, x, y, eps=8 / 255, step_size=2 / 255, steps=1, start=0.0) for twin in (fast, plain))
    assert float((ours != theirs).float().mean()) < 0.02  # a sign flips where the gradient is rounding


def test_the_host_never_waits_within_a_step(small):
    """A CPU is never waited for, so there it only rehearses."""
    events = run.train(dataclasses.replace(small, clean_epochs=0), RunOptions(output="r"))
    list(islice((e for e in events if isinstance(e, engine.Step)), 2))  # what is built at the first steps may wait
    if DEVICE != "cpu":
        torch.cuda.set_sync_debug_mode("error")
    try:
        assert isinstance(next(events), engine.Step)
    finally:
        if DEVICE != "cpu":
            torch.cuda.set_sync_debug_mode("default")


def test_one_process_under_nccl_is_the_run_without(small):
    """The CPU's rehearsal goes through gloo."""
    words = ["--epochs", "2", "--clean-epochs", "1", "--train-size", "256", "--holdout", "64", "--batch-size", "64"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    for output, before in (("plain", []), ("ddp", launch)):
        command = [sys.executable, *before, str(REPOSITORY / "train.py"), "digits", *words, "--output", output]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    plain, ddp = (json.loads(Path(o, "metrics.jsonl").read_text().splitlines()[-1]) for o in ("plain", "ddp"))
    assert ddp == pytest.approx(plain, abs=0.1)
