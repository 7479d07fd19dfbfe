"""engine.py: the loop learns, warms up, stops at NaN, accumulates; two real processes agree with one."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from conftest import begun, once, python
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from piat_hub import data, methods
from piat_hub.attacks import Twin, pgd
from piat_hub.backbones import create_model
from piat_hub.config import Diverged, recipes
from piat_hub.training import engine
from piat_hub.training.interpolation import ParameterInterpolation

HERE, DIGITS = Path(__file__).parent, recipes.get("digits")


def start(config, model=None, method="pgd_at", interpolation=None, lr=0.1, accumulation=1):
    plugin = GradientAccumulationPlugin(accumulation, sync_with_dataloader=False)
    accelerator = Accelerator(gradient_accumulation_plugin=plugin)
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model, optimizer = engine.prepare(model, torch.optim.SGD(model.parameters(), lr=lr), accelerator)
    split = data.hold_out(data.load("digits", "train"), 0, config.train_size)[0]
    attack = partial(pgd, eps=0.15, step_size=0.0375, steps=2)
    outer = begun(method, config) if isinstance(method, str) else method
    events = engine.train(
        engine.Parts(config, accelerator, model, optimizer, outer, attack, split, interpolation=interpolation)
    )
    return model, split, optimizer, events


def test_events_learning_rate_and_progress(small_digits):
    config = small_digits(epochs=4, clean_epochs=1, train_size=200)
    calls = []

    def method(model, x, y, attack, progress):
        calls.append((progress, x.shape, x.dtype, float(x.min()) >= 0, float(x.max()) <= 1))
        return methods.get("standard")()(model, x, y, attack, progress)

    _, _, optimizer, events = start(config, method=method)
    events = list(events)
    steps = [e for e in events if isinstance(e, engine.Step)]
    epochs = [e for e in events if isinstance(e, engine.Epoch)]
    assert [(s.epoch, s.step, s.steps) for s in steps] == [(e, s, 3) for e in (1, 2, 3, 4) for s in (1, 2, 3)]
    assert [e.epoch for e in epochs] == [1, 2, 3, 4] and all(e.lam == 0 for e in epochs)
    assert [c[0] for c in calls] == [0.25] * 3 + [0.5] * 3 + [0.75] * 3  # the first epoch was clean
    assert all(c[1:] == ((64, 1, 8, 8), torch.float32, True, True) for c in calls)
    assert [e.lr for e in epochs] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    for e in epochs:
        assert e.train_loss == pytest.approx(sum(s.loss for s in steps if s.epoch == e.epoch) / 3)


@pytest.mark.parametrize("method", methods.names())
def test_every_method_learns(small_digits, method):
    model, split, _, events = start(small_digits(epochs=8, clean_epochs=0), method=method)

    def loss():
        with torch.no_grad():
            return nn.functional.cross_entropy(model(data.to_unit(split.images)), split.labels).item()

    before = loss()
    list(events)
    assert loss() < before - 0.02


def test_interpolation_is_stepped_once_an_epoch_and_written_back(small_digits):
    config = small_digits(epochs=2, clean_epochs=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    theta0 = model[1].weight.detach().clone()
    interpolation = ParameterInterpolation(model, constant=0.5)
    prepared, _, _, events = start(config, model, interpolation=interpolation)
    theta = []
    for event in events:
        theta.append(prepared[1].weight.detach().clone())
        if isinstance(event, engine.Epoch):
            assert event.lam == 0.5
            assert torch.allclose(theta[-1], 0.5 * theta0 + 0.5 * theta[-2], atol=1e-7)
            theta0 = theta[-1]
    assert interpolation.epoch == 2


def test_recalibrating_interpolation_gets_the_epochs_images(small_digits):
    config = small_digits(epochs=1, clean_epochs=0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))
    interpolation = ParameterInterpolation(model, bn="recalibrate")
    prepared, split, _, events = start(config, model, interpolation=interpolation)
    list(events)
    with torch.no_grad():
        features = [prepared[0](data.to_unit(split.images[i])) for i in data.batches(len(split), 64, config.seed, 1)]
    assert torch.allclose(
        prepared[1].running_mean, torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0), atol=1e-6
    )


def test_accumulated_micro_batches_are_one_step(small_digits):
    weights = []
    for accumulation in (1, 4):
        torch.manual_seed(0)
        config = small_digits(epochs=1, clean_epochs=0, accumulation=accumulation, crop_pad=0)
        model, *_, events = start(config, method="standard", accumulation=accumulation)
        assert sum(isinstance(e, engine.Step) for e in events) == 4
        weights.append(model[1].weight.detach().clone())
    assert torch.allclose(*weights, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(small_digits, bad):
    config = small_digits(epochs=3, clean_epochs=0)
    steps = []

    def method(model, x, y, attack, progress):
        steps.append(1)
        return model(x).sum() * (bad if len(steps) == 6 else 1e-6)

    model, *_, events = start(config, method=method)
    what = "the loss" if bad == float("inf") else "the loss or its gradient"
    with pytest.raises(Diverged, match=f"{what} is -?{bad} at epoch 2, step 2 of 4"):
        for _ in events:
            before = model[1].weight.detach().clone()
    assert torch.equal(model[1].weight, before) and before.isfinite().all()


def test_same_seed_same_weights_other_seed_other_weights(small_digits):
    ends = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model, *_, events = start(small_digits(epochs=2, clean_epochs=0, seed=seed))
        torch.manual_seed(99 + len(ends))  # whatever state the global generator is in
        list(events)
        ends.append(model[1].weight.detach().clone())
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


@pytest.fixture(scope="module")
def processes():
    """two_processes.py run by one and by two processes: {count: (report, gradients)}."""

    def make(folder):
        folder.mkdir()
        for launch in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]):
            python(*launch, HERE / "two_processes.py", folder, check=True)

    folder = once("processes", make)
    reports = [json.loads((folder / f"report-{count}.json").read_text()) for count in (1, 2)]
    gradients = [torch.load(folder / f"gradients-{count}.pt", weights_only=True) for count in (1, 2)]
    return dict(zip((1, 2), zip(reports, gradients, strict=True), strict=True))


@pytest.mark.slow
def test_two_processes_were_started(processes):
    assert {count: report["processes"] for count, (report, _) in processes.items()} == {1: 1, 2: 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", [*methods.names(), "trades + AWP", "trades + extra"])
def test_first_gradient_of_two_processes_is_that_of_one(processes, method):
    one, two = processes[1][1][method], processes[2][1][method]
    assert any(g.abs().max() > 1e-3 for g in one)
    for a, b in zip(one, two, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["ranks", "ranks_awp"])
def test_ranks_with_batchnorm_stay_bit_equal(processes, what):
    events = processes[2][0][what]
    assert [name for name, *_ in events] == ["Step", "Step", "Epoch"] * 2
    assert all(equal for _, equal, _ in events)
    assert all(moved for *_, moved in events)


@pytest.mark.slow
def test_two_processes_see_each_image_of_a_stream_once_an_epoch(processes):
    """Three shards for two processes: 36 images an epoch in three steps, in another order each time; none held out."""
    first, second = processes[2][0]["stream"]
    assert [len(batch) for batch in first + second] == [6] * 12
    for epoch in (0, 1):
        seen = [k for rank in (first, second) for batch in rank[3 * epoch : 3 * epoch + 3] for k in batch]
        assert sorted(seen) == list(range(4, 40))
    assert first[:3] != first[3:]


def test_two_processes_find_the_verdicts_of_one(processes):
    one, two = (processes[count][0]["verdicts"] for count in (1, 2))
    assert one == two and 0 < sum(one["fast"]) <= sum(one["mim3"]) < 40


@pytest.mark.slow
def test_a_methods_state_is_saved_for_every_rank(processes):
    shape, equal, own = processes[2][0]["state"]
    assert shape == [2, 32, 1, 8, 8] and not equal and own == [True, True]


@pytest.mark.slow
def test_las_at_has_one_strategy_on_all_ranks(processes):
    equal, learnt, stay = processes[2][0]["strategy"]
    assert equal and learnt and all(same for _, same, _ in stay)


@pytest.mark.slow
def test_a_nan_on_one_rank_stops_all_before_the_weights_change(processes):
    said, equal, finite = processes[2][0]["nan"]
    assert said == ["the loss or its gradient is nan at epoch 1, step 2 of 2"] * 2 and equal and finite


class Waits(TorchDispatchMode):
    """Names the operations that make the host wait for a GPU: a number read, or a shape that depends on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        by_mask = "index" in name and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in (args[1] if len(args) > 1 else [])
        )
        if name.startswith(self.NAMES) or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_the_detector_of_waits_sees_them():
    x = torch.tensor([1.0, -1.0])
    with Waits() as waits:
        float(x[0]), x[x > 0], x[torch.tensor([0])], x.nonzero()
    assert waits.found == ["_local_scalar_dense", "index", "nonzero"]


def one_update(method, *, folded, dtype=torch.float64, precision="no", gamma=None):
    """(loss, gradients, names of the operations that wait) of an update of a small ResNet on digits."""
    torch.manual_seed(3)
    accelerator = Accelerator(mixed_precision=precision)
    model = create_model("cifar_resnet8", in_chans=1).to(dtype)
    split = data.load("digits", "train")[:16]
    x, y = data.to_unit(split.images).to(dtype), split.labels
    for _ in range(20):
        model(x)  # statistics that are not 0 and 1
    if folded:
        model = model.to(memory_format=torch.channels_last)
    twin = Twin(model, x[:2], torch.bfloat16 if precision == "bf16" else None) if folded else None
    prepared, optimizer = engine.prepare(model, torch.optim.SGD(model.parameters(), 0.1, foreach=True), accelerator)
    outer = begun(method, DIGITS)
    attack = partial(pgd, eps=0.15, step_size=0.0375, steps=3)
    torch.manual_seed(4)
    with Waits() as waits:
        loss = engine.backward(prepared, partial(outer, x=x, y=y, progress=0.6), attack, gamma, accelerator, twin)
        gradients = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    return loss, gradients, waits.found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "gamma"),
    [(m, gamma) for m in methods.names() for gamma in (None, 0.01) if (m, gamma) != ("las_at", 0.01)],
)
def test_an_update_on_the_twin_is_the_plain_one_and_never_waits(method, gamma):
    loss, gradients, _ = one_update(method, folded=False, gamma=gamma)
    folded_loss, folded_gradients, waits = one_update(method, folded=True, gamma=gamma)
    assert waits == []
    assert float(folded_loss) == pytest.approx(float(loss), rel=1e-9)
    for a, b in zip(gradients, folded_gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.names())
def test_an_update_in_fp32_and_in_bf16_deviates_by_rounding(method):
    """bf16 turns the sign of a few per cent of the attack's steps; the loss moves by less than 5 %."""
    exact, *_ = one_update(method, folded=False, dtype=torch.float32)
    single, *_ = one_update(method, folded=True, dtype=torch.float32)
    AcceleratorState._reset_state(reset_partial_state=True)
    half, _, waits = one_update(method, folded=True, dtype=torch.float32, precision="bf16")
    assert float(single) == pytest.approx(float(exact), rel=1e-3)
    assert float(half) == pytest.approx(float(exact), rel=0.1) and waits == []


def test_on_a_gpu_a_loss_is_read_when_the_next_is_under_way(monkeypatch):
    read = []
    monkeypatch.setattr(engine, "arrival", lambda loss: lambda: read.append(loss.value) or loss.value)
    losses = engine.Losses(2, 5)
    losses.add(1, SimpleNamespace(is_cuda=True, value=1.0))
    assert read == [] and losses.latest(1) == 1.0  # but the first, which is waited for
    losses.add(2, SimpleNamespace(is_cuda=True, value=3.0))
    assert read == [1.0] and losses.latest(1) == 1.0
    losses.add(3, SimpleNamespace(is_cuda=True, value=float("nan")))
    assert read == [1.0, 3.0] and losses.latest(2) == 2.0
    with pytest.raises(Diverged, match="the loss or its gradient is nan at epoch 2, step 3 of 5"):
        losses.mean()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "twin"])
def test_model_and_twin_compile_as_one_graph(part):
    model = create_model("cifar_resnet8", in_chans=1)
    x = torch.rand(4, 1, 8, 8)
    one = Twin(model, x) if part == "twin" else model.eval()
    plain = one(x)
    one.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    images = x.clone().requires_grad_()
    logits = one(images)
    assert torch.allclose(logits, plain, atol=1e-5)
    assert torch.autograd.grad(logits.sum(), images)[0].abs().sum() > 0
