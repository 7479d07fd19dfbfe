"""awp.py: the perturbation against its formula, restored exactly; one crafting shared by two losses."""

import pytest
import torch
import torch.nn.functional as F
from conftest import begun

from piat_hub import methods
from piat_hub.attacks import pgd
from piat_hub.config import InputError, ThreatModel, TrainConfig
from piat_hub.training.awp import once, perturbed


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 4)
    return torch.nn.Sequential(*layers).to(dtype)


def batch(dtype=torch.float64):
    x = torch.rand(6, 3, 2, 2, dtype=dtype)
    return x, (x + 0.1).clamp(max=1), torch.randint(4, (6,))


def test_weights_inside_are_the_formulas_and_after_the_same_bytes():
    model, (x, x_adv, y) = network(), batch()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gamma, calls = 0.01, []

    def craft(*_, **__):
        calls.append(1)
        return x_adv

    def loss(craft):
        return F.cross_entropy(model(craft(model, x, y)), y)

    reference = network()
    gradients = torch.autograd.grad(F.cross_entropy(reference(x_adv), y), list(reference.parameters()))
    with perturbed(model, gamma, craft, loss) as again:
        for (name, w), old, d in zip(model.named_parameters(), reference.parameters(), gradients, strict=True):
            v = gamma * old.norm() / d.norm() * d if w.dim() > 1 else torch.zeros_like(w)
            assert torch.allclose(w, old + v, atol=1e-12), name
        assert (model[0].weight - before["0.weight"]).norm().item() == pytest.approx(
            gamma * before["0.weight"].norm().item()
        )
        assert torch.equal(model[1].running_mean, before["1.running_mean"])  # the loss at w left no trace
        loss(again).backward()
    assert calls == [1]
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is not None for p in model.parameters())  # the gradient at w + v
    assert model[1].num_batches_tracked == 1


def test_restored_after_an_exception_and_nothing_without_gamma():
    model, (x, _, y) = network(), batch()
    before = [w.detach().clone() for w in model.parameters()]
    with (
        pytest.raises(KeyboardInterrupt),
        perturbed(model, 0.1, lambda *_, **__: x, lambda c: model(c(model, x, y)).sum()),
    ):
        raise KeyboardInterrupt
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    craft = object()
    with perturbed(model, None, craft, None) as same:
        assert same is craft and all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_gradient_that_is_zero_or_not_finite_moves_nothing():
    model, (x, _, y) = network(), batch()
    before = [w.detach().clone() for w in model.parameters()]
    for factor in (0.0, float("inf")):
        with perturbed(model, 0.1, lambda *_, **__: x, lambda c, f=factor: model(c(model, x, y)).square().sum() * f):
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", sorted({*methods.names()} - {"las_at"}))
def test_every_method_has_one_loss_on_one_crafting(name):
    """A method called again on the same weights gives the same loss, its hooks included, from one attack."""
    model, (x, _, y) = network().eval(), batch()
    calls = []

    def attack(model, x, y, /, **options):
        calls.append(1)
        return pgd(model, x, y, **({"eps": 0.3, "step_size": 0.1, "steps": 4} | options))

    method = begun(name, TrainConfig(threat_model=ThreatModel(eps=0.3)))
    make = once(attack)
    first, second = (method(model, x, y, make(), 0.6).item() for _ in range(2))
    assert first == second and len(calls) == (0 if name in ("standard", "free_at") else 1)


def test_las_at_refuses_awp():
    with pytest.raises(
        InputError, match="las_at learns from each loss, and awp 0.01 takes each twice; leave out --awp"
    ):
        methods.get("las_at")().begin(TrainConfig(awp=0.01))


def test_free_at_climbs_once_under_awp():
    model, (x, _, y) = network(), batch()
    run = methods.get("free_at")().begin(TrainConfig(threat_model=ThreatModel(eps=0.1)))
    climbs = []
    run._climb = lambda gradient: climbs.append(gradient)
    with perturbed(model, 0.01, None, lambda craft: run(model, x, y, craft, 0.0)) as craft:
        run(model, x, y, craft, 0.0).backward()
    assert len(climbs) == 1


def test_mean_over_processes_is_asked_for_once():
    model, (x, _, y) = network(), batch()
    seen = []

    def mean(flat):
        seen.append(flat.shape)
        return torch.ones_like(flat)

    before = model[3].weight.detach().clone()
    with perturbed(model, 0.5, lambda *_, **__: x, lambda c: model(c(model, x, y)).sum(), mean):
        ones = torch.ones_like(before)
        assert torch.allclose(model[3].weight, before + 0.5 * before.norm() / ones.norm() * ones)
    assert seen == [(48 + 16,)]
