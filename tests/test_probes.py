"""probes.py: the loss around the weights against slow twins, and the examples against the attack's own rules."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from piat_hub.attacks import pgd
from piat_hub.config import ThreatModel
from piat_hub.data import derived_seed
from piat_hub.figures import probes

THREAT = ThreatModel(eps=0.1)


def net(classes=3):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)).eval()


def images(n=6):
    return torch.rand(n, 1, 4, 4), torch.arange(n) % 3


def test_the_middle_is_the_loss_of_the_weights_themselves():
    model, (x, y) = net(), images()
    found = probes.surface(model, x, y, THREAT, points=3, seed=5)
    torch.manual_seed(derived_seed(5, 1))
    x_adv = pgd(model, x, y, eps=0.1, step_size=0.025, steps=10)
    assert found.losses[1][1] == pytest.approx(cross_entropy(model(x_adv), y).item(), rel=1e-6)
    assert found.at == [-0.5, 0.0, 0.5] and (found.n, found.steps, found.threat_model) == (6, 10, "Linf eps 0.1")


def test_every_point_against_a_slow_twin():
    model, (x, y) = net(), images()
    found = probes.surface(model, x, y, THREAT, points=5, span=0.3, steps=0, seed=2)
    generator = torch.Generator().manual_seed(2)
    one, two = (probes.direction(model, generator, False) for _ in range(2))
    for i, a in enumerate(found.at):
        for j, b in enumerate(found.at):
            moved = copy.deepcopy(model)
            for k, p in enumerate(moved.parameters()):
                p.data += a * one[k] + b * two[k]
            assert found.losses[i][j] == pytest.approx(cross_entropy(moved(x), y).item(), rel=1e-5)


def test_the_attack_is_made_anew_at_every_point():
    model, (x, y) = net(), images()
    clean = probes.surface(model, x, y, THREAT, points=3, steps=0)
    attacked = probes.surface(model, x, y, THREAT, points=3)
    assert (torch.tensor(attacked.losses) > torch.tensor(clean.losses)).all()


def test_directions_are_as_long_as_the_weights_or_as_each_filter():
    model, generator = net(), torch.Generator().manual_seed(0)
    plain = probes.direction(model, generator, False)
    whole = torch.cat([p.flatten() for p in model.parameters()]).norm()
    torch.testing.assert_close(torch.cat([d.flatten() for d in plain]).norm(), whole.detach())
    for d, p in zip(probes.direction(model, generator, True), model.parameters(), strict=True):
        if p.dim() > 1:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), p.flatten(1).norm(dim=1))
        else:
            assert not d.any()


def test_rescaled_filters_change_the_plain_landscape_and_not_the_filterwise_one():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, bias=False)).eval()
    rescaled = copy.deepcopy(model)  # the same function
    rescaled[0].weight.data *= 4
    rescaled[3].weight.data /= 4
    x, y = images()
    for filterwise in (False, True):
        a, b = (
            torch.tensor(probes.surface(m, x, y, THREAT, points=3, steps=0, filterwise=filterwise).losses)
            for m in (model, rescaled)
        )
        assert torch.allclose(a, b, rtol=1e-4) == filterwise


def test_nothing_of_the_model_or_the_generators_is_left_changed():
    model, (x, y) = net().train(), images()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    counted = []
    probes.surface(model, x, y, THREAT, points=3, steps=1, on_point=lambda: counted.append(1))
    probes.examples(model, x, y, THREAT, steps=2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    assert torch.equal(torch.get_rng_state(), state) and len(counted) == 9


def test_an_even_number_of_points_has_no_middle():
    with pytest.raises(ValueError, match="odd and at least 3.*got 4"):
        probes.surface(net(), *images(), THREAT, points=4)


def test_examples_stay_in_the_budget_and_say_what_the_model_sees():
    model, (x, y) = net(), images()
    shown = probes.examples(model, x, y, THREAT, steps=5)
    assert float((shown.x_adv - x).abs().max()) <= 0.1 + 1e-6 and shown.x_adv.min() >= 0 and shown.x_adv.max() <= 1
    assert torch.equal(shown.predicted[:, 0], model(x).argmax(1)) and torch.equal(
        shown.predicted[:, 1], model(shown.x_adv).argmax(1)
    )
    assert shown.attack == "PGD-5, Linf eps 0.1"
