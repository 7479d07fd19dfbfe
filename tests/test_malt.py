"""malt.py: its targets against brute force in float64, the optimum of a linear model, and the suites made of it."""

from functools import partial

import pytest
import torch
from test_fmn import centred

from piat_hub.attacks import autoattack, malt, nearest_classes
from piat_hub.attacks.autoattack import components
from piat_hub.config import InputError, ThreatModel
from piat_hub.evaluation.suites import suite
from piat_hub.records.labels import attack_name


def slow_targets(model, image, label, norm, count, candidates):
    """Each class's distance in the linear model, one after the other, from the whole Jacobian."""
    jacobian = torch.autograd.functional.jacobian(lambda point: model(point[None])[0], image)
    z = model(image[None])[0].detach()

    def away(k):
        slope = jacobian[label] - jacobian[k]
        size = slope.abs().sum() if norm == "Linf" else slope.square().sum().sqrt()
        return float((z[label] - z[k]) / size)

    likeliest = sorted((k for k in range(len(z)) if k != label), key=lambda k: -float(z[k]))[:candidates]
    return sorted(likeliest, key=away)[:count]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(("count", "candidates"), [(9, 100), (3, 6), (1, 2), (40, 40)])
def test_targets_are_those_of_brute_force(tiny, norm, count, candidates):
    model, x = tiny(classes=13).double(), torch.rand(16, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # so curved that slopes differ from image to image
    y = model(x).argmax(1)
    ours = nearest_classes(model, x, y, norm, count, candidates)
    theirs = [
        slow_targets(model, image, int(label), norm, count, candidates) for image, label in zip(x, y, strict=True)
    ]
    assert ours.tolist() == theirs
    likeliest = model(x).scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    assert not torch.equal(ours, likeliest[:, : ours.shape[1]])  # or the test could not tell it from confidence


def test_targets_cost_a_backward_each(tiny):
    model, x, backwards = tiny(classes=20), torch.rand(3, 3, 2, 2), []
    model.net[1].register_full_backward_hook(lambda *_: backwards.append(1))
    nearest_classes(model, x, model(x).argmax(1), count=3, candidates=7)
    assert len(backwards) == 7


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_one_target_is_enough_for_a_linear_model(linear, norm):
    """Its nearest class is the one to aim at; the likeliest other class often is not."""
    model = linear(centred(torch.randn(12, 27) / 5))
    x = 0.3 + 0.4 * torch.rand(40, 3, 3, 3)
    z = model(x).detach()
    y, likeliest = z.topk(2).indices.T
    slopes = (model.weight[y][:, None] - model.weight[None]).norm(1 if norm == "Linf" else 2, dim=2).detach()
    needed = ((z.gather(1, y[:, None]) - z) / slopes).scatter(1, y[:, None], torch.inf)
    nearest, aim = needed.min(1)
    by_likeliest = needed.gather(1, likeliest[:, None])[:, 0]
    gains = int((by_likeliest - nearest).argmax())
    eps = float(by_likeliest[gains] + nearest[gains]) / 2  # between the two
    assert nearest[gains] < 0.98 * eps and 1.02 * eps < by_likeliest[gains]
    assert torch.equal(nearest_classes(model, x, y, norm, 1)[:, 0], aim)
    state = torch.get_rng_state()
    x_adv = malt(model.train(), x, y, eps, norm=norm, targets=1, steps=20)
    broken, clear = model(x_adv).argmax(1) != y, (nearest - eps).abs() > 0.02 * eps
    assert torch.equal(broken[clear], (nearest < eps)[clear]) and broken[gains] and not broken.all()
    moved = (x_adv - x).flatten(1).norm(torch.inf if norm == "Linf" else 2, dim=1)
    assert (moved <= eps * 1.0001).all() and torch.equal(x_adv[~broken], x[~broken])
    assert torch.equal(torch.get_rng_state(), state) and model.training and model.weight.requires_grad


def test_every_target_is_tried_on_what_stands(linear, quick_autoattack):
    """With nine of ten classes it is AutoAttack's apgd-t in another order, and breaks what that does."""
    model = linear(torch.randn(10, 48) / 5).eval()
    x = torch.rand(12, 3, 4, 4)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10  # wrong when clean: left as it is
    x_adv = malt(model, x, y, 0.02, steps=10)
    by_all = components(0.02, "Linf", 10, 0)["apgd-t"](model, x, y)
    broken = model(x_adv).argmax(1) != y
    assert torch.equal(broken, model(by_all).argmax(1) != y) and 1 < broken.sum() < 12
    assert torch.equal(x_adv[0], x[0])


def test_what_cannot_be_had_is_refused_in_one_line(tiny):
    x, y = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
    for ask in (partial(malt, tiny(classes=3), x, y), partial(suite, "malt", ThreatModel(), 3)):
        with pytest.raises(InputError, match="malt is undefined for 3 classes: its loss needs 4"):
            ask()
    for name in ("malt", "fast"):
        with pytest.raises(
            InputError, match=f"{name} aims at the classes that are near under Linf or L2; under L1 ask for"
        ):
            suite(name, ThreatModel("L1", 12), 10)
    with pytest.raises(InputError, match="malt aims at .* under Linf or L2"):
        malt(tiny(), x, y, 12, norm="L1")
    with pytest.raises(InputError, match="norm 'L3' is unknown"):
        malt(tiny(), x, y, norm="L3")
    with pytest.raises(InputError, match=r"unknown attack 'mal' \(did you mean 'malt'\?\)"):
        suite("mal", ThreatModel(), 10)


def test_the_suites_say_what_they_are():
    threat = ThreatModel("L2", 0.5)
    alone, fast, few = (suite(*asked) for asked in (("malt", threat, 1000), ("fast", threat, 10), ("fast", threat, 3)))
    assert list(alone.stages) == ["malt"] and alone.facts == {"targets": 9} and alone.follows
    assert suite("malt", threat, 5).facts == {"targets": 4}
    assert list(fast.stages) == ["pgd10", "malt", "apgd-ce"] and fast.facts == {"targets": 3} and fast.follows
    assert list(few.stages) == ["pgd10", "apgd-ce"] and "malt left out" in few.facts["changed"]
    assert list(suite("fast", threat, 10, whole=True).stages) == ["fast"]
    assert [attack_name(name) for name in ("malt", "fast", "fmn100")] == ["MALT", "fast", "FMN-100"]


def test_fast_breaks_a_linear_model_as_autoattack_does(linear, quick_autoattack, monkeypatch):
    monkeypatch.setattr("piat_hub.evaluation.suites.malt", partial(malt, steps=10))
    model = linear(torch.randn(10, 48) / 5).eval()
    x = torch.rand(16, 3, 4, 4)
    y = model(x).argmax(1)
    standing = torch.ones(16, dtype=torch.bool)
    for stage in suite("fast", ThreatModel("Linf", 0.02), 10).stages.values():
        standing &= model(stage(model, x, y)).argmax(1) == y
    assert torch.equal(standing, model(autoattack(model, x, y, 0.02)).argmax(1) == y) and 0 < standing.sum() < 16
