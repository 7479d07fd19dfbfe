"""interpolation.py against Eq. 3 spelled out, the closed-form weights, and batch statistics computed by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from piat_hub import ParameterInterpolation
from piat_hub.training.averages import EMA, SWA, recalibrate
from piat_hub.training.interpolation import g


def test_g_has_the_papers_values():
    values = {1: 0.182, 10: 0.55, 60: 0.871, 120: 0.931, 180: 0.953}
    assert {n: round(g(n), 3) for n in values} == values


def closed_form_weights(n):
    """w_0..w_N of theta'_N = sum_j w_j theta_j for lam = (n+1)/(n+10)."""
    below = math.prod(n + i for i in range(2, 11))
    later = [9 * math.prod(j + i for i in range(2, 10)) / below for j in range(1, n + 1)]
    return [1 - sum(later), *later]


@pytest.mark.parametrize("epochs", [1, 7, 120])
def test_result_is_the_closed_form_sum(epochs):
    model = nn.Linear(3, 2).double()
    thetas = [model.weight.detach().clone()]
    interpolation = ParameterInterpolation(model)
    for _ in range(epochs):
        with torch.no_grad():
            model.weight.normal_()
        thetas.append(model.weight.detach().clone())
        interpolation.step()
    expected = sum(w * theta for w, theta in zip(closed_form_weights(epochs), thetas, strict=True))
    assert torch.allclose(model.weight, expected, rtol=0, atol=1e-14)


def test_newest_epoch_weighs_7_percent_after_120():
    assert closed_form_weights(120)[-1] == pytest.approx(0.069, abs=5e-4)
    assert sum(closed_form_weights(120)[-30:]) == pytest.approx(0.91, abs=5e-3)


class Reference:
    """Eq. 3 as the paper writes it, tensor by tensor, out of place."""

    def __init__(self, model):
        self.previous = copy.deepcopy(model.state_dict())
        self.n = 0

    def step(self, model):
        self.n += 1
        lam = (self.n + 1) / (self.n + 10)
        state = model.state_dict()
        out = {}
        for name, now in state.items():
            out[name] = lam * self.previous[name] + (1 - lam) * now if now.is_floating_point() else now.clone()
        model.load_state_dict(out)
        self.previous = out


def norm_model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3)).double()


def disturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
            else:
                tensor.add_(3)


def test_equals_the_slow_reference_over_many_epochs():
    fast = norm_model()
    slow = copy.deepcopy(fast)
    interpolation, reference = ParameterInterpolation(fast), Reference(slow)
    for seed in range(20):
        disturb(fast, seed)
        disturb(slow, seed)
        interpolation.step()
        reference.step(slow)
        for name, tensor in fast.state_dict().items():
            assert torch.allclose(tensor, slow.state_dict()[name], rtol=1e-12), name
    assert fast[1].num_batches_tracked == 60  # integers are the model's own


def test_bn_copy_leaves_all_buffers_alone():
    model = norm_model()
    interpolation = ParameterInterpolation(model, bn="copy")
    disturb(model, 0)
    before = {name: b.clone() for name, b in model.named_buffers()}
    weight = model[0].weight.detach().clone()
    interpolation.step()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert not torch.equal(model[0].weight, weight)


def test_bn_recalibrate_measures_the_plain_average():
    model = norm_model()
    interpolation = ParameterInterpolation(model, bn="recalibrate")
    disturb(model, 0)
    model.eval()
    batches = [torch.rand(5, 1, 8, 8).double() for _ in range(4)]
    with pytest.raises(ValueError, match="recalibrate"):
        interpolation.step()
    interpolation.step(batches)
    features = [model[0](x) for x in batches]
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    var = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
    assert torch.allclose(model[1].running_mean, mean) and torch.allclose(model[1].running_var, var)
    assert not any(m.training for m in model.modules())
    assert model[1].momentum == 0.1


def test_recalibrate_restores_modes_after_an_error():
    model = norm_model().eval()

    def broken():
        yield torch.rand(2, 1, 8, 8).double()
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        recalibrate(model, broken())
    assert model[1].momentum == 0.1 and not model[1].training


def test_recalibrate_drops_nothing_and_draws_nothing():
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train(), [torch.rand(20, 3)]
    recalibrate(model, batches)
    assert torch.allclose(model[1].running_mean, batches[0].mean(0)) and all(m.training for m in model.modules())
    assert torch.equal(torch.rand(2), (torch.manual_seed(0), torch.rand(20, 3), torch.rand(2))[2])


def test_without_batch_norm_nothing_is_computed():
    def never():
        raise AssertionError("a batch was asked for")
        yield

    recalibrate(nn.Linear(2, 2), never())


def test_bn_is_not_measured_again_where_nothing_is_interpolated():
    model = norm_model()
    interpolation = ParameterInterpolation(model, bn="recalibrate", start_epoch=2)
    disturb(model, 0)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert interpolation.step([torch.rand(5, 1, 8, 8).double()]) == 0
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_start_epoch_counts_from_there():
    model = nn.Linear(2, 2)
    interpolation = ParameterInterpolation(model, start_epoch=3)
    lams = []
    for _ in range(4):
        with torch.no_grad():
            model.weight.normal_()
        before = model.weight.detach().clone()
        lams.append(interpolation.step())
        assert torch.equal(model.weight, before) is (lams[-1] == 0)
    assert lams == [0.0, 0.0, g(1), g(2)]


def test_constant():
    model = nn.Linear(2, 2, bias=False).double()
    first = model.weight.detach().clone()
    interpolation = ParameterInterpolation(model, constant=0.25)
    with torch.no_grad():
        model.weight.fill_(1.0)
    assert interpolation.step() == 0.25
    assert torch.allclose(model.weight, 0.25 * first + 0.75)


@pytest.mark.parametrize(
    "bad",
    [dict(a=2), dict(d=0.5), dict(b=-1), dict(constant=1), dict(constant=-0.1), dict(start_epoch=0), dict(bn="none")],
)
def test_bad_arguments(bad):
    with pytest.raises(ValueError):
        ParameterInterpolation(nn.Linear(1, 1), **bad)


def test_state_dict_goes_on_exactly():
    model = norm_model()
    interpolation = ParameterInterpolation(model)
    disturb(model, 0)
    interpolation.step()
    twin = copy.deepcopy(model)
    other = ParameterInterpolation(twin)
    other.load_state_dict(copy.deepcopy(interpolation.state_dict()))
    for m, i in ((model, interpolation), (twin, other)):
        disturb(m, 1)
        assert i.step() == g(2)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


def test_foreign_state_is_refused():
    state = ParameterInterpolation(nn.Linear(2, 3)).state_dict()
    with pytest.raises(ValueError, match="does not fit the model at .bias"):
        ParameterInterpolation(nn.Linear(2, 2)).load_state_dict(state)
    with pytest.raises(ValueError, match="does not fit"):
        ParameterInterpolation(nn.Linear(2, 3, bias=False)).load_state_dict(state)


def test_in_a_users_own_loop():
    model, x, y = nn.Linear(4, 2), torch.rand(32, 4), torch.randint(2, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    interpolation = ParameterInterpolation(model)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        interpolation.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert interpolation.epoch == 30


def test_the_law_may_be_constant_or_zero():
    flat = ParameterInterpolation(nn.Linear(1, 1), a=0, b=9, c=0, d=10)
    assert [flat.lam(n) for n in (1, 50)] == [0.9, 0.9]
    assert ParameterInterpolation(nn.Linear(1, 1), a=0, b=0).lam(3) == 0


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def shake(model):
    """As training would: other weights, other statistics."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    model.train()(torch.randn(8, 3))


def test_ema_equals_the_slow_average_with_its_warm_up():
    model = small_model()
    ema = EMA(model, 0.5)
    slow = {k: v.clone() for k, v in model.state_dict().items()}
    for t in range(19):
        shake(model)
        d = min(0.5, (t + 1) / (t + 10))  # the first is 1/10, as in SEAT's code
        assert ema.step() == pytest.approx(d)
        for name, value in model.state_dict().items():
            slow[name] = d * slow[name] + (1 - d) * value if value.is_floating_point() else value
    assert d == 0.5
    for name, value in ema.copy.state_dict().items():
        assert torch.allclose(value, slow[name], atol=1e-6), name
    assert not ema.copy.training and not any(p.requires_grad for p in ema.copy.parameters())


def test_swa_is_the_model_before_its_start_then_the_mean_with_statistics_measured_again():
    model, images = small_model(), torch.randn(32, 3)
    swa, ends = SWA(model, start_epoch=3), []
    for epoch in range(1, 6):
        shake(model)
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
        swa.step(iter(images.split(8)))
        if epoch <= 3:
            assert all(torch.equal(v, ends[-1][k]) for k, v in swa.copy.state_dict().items())
    for name in dict(model.named_parameters()):
        assert torch.allclose(swa.copy.state_dict()[name], torch.stack([e[name] for e in ends[2:]]).mean(0), atol=1e-6)
    features = swa.copy[0](images).detach()
    assert torch.allclose(swa.copy[1].running_mean, features.mean(0), atol=1e-5)
    variance = torch.stack([part.var(0) for part in features.split(8)]).mean(0)
    assert torch.allclose(swa.copy[1].running_var, variance, atol=1e-5)
    assert not swa.copy.training


@pytest.mark.parametrize("kind", [lambda m: EMA(m, 0.9), lambda m: SWA(m, 2)])
def test_side_copies_go_on_exactly_from_their_state(kind):
    def steps(side, numbers):
        for number in numbers:
            torch.manual_seed(number)
            shake(side.model)
            side.step() if isinstance(side, EMA) else side.step([torch.randn(4, 3)])

    whole, first, model = kind(small_model()), kind(small_model()), small_model()
    steps(whole, range(1, 6))
    steps(first, range(1, 4))
    model.load_state_dict(first.model.state_dict())
    second = kind(model)
    second.load_state_dict(first.state_dict())
    steps(second, range(4, 6))
    for a, b in zip(whole.copy.state_dict().values(), second.copy.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_bad_decay():
    with pytest.raises(ValueError, match=r"ema must lie in \[0, 1\), got 1"):
        EMA(small_model(), 1.0)
