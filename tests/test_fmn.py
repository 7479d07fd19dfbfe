"""fmn.py: the nearest example of a linear model in closed form; where there is none; what is left as it was."""

import pytest
import torch
from torch import nn

from piat_hub.attacks import fmn
from piat_hub.config import InputError


def centred(weight):
    """Weights of a linear model whose boundary runs amid images around 0.5, far inside the box."""
    return weight - weight.mean(1, keepdim=True)


def nearest_of(model, x, y, norm):
    """How far each image is from the boundary of a linear model, (B,)."""
    z = model(x)
    slopes = (model.weight[y][:, None] - model.weight[None]).norm({"Linf": 1, "L2": 2, "L1": torch.inf}[norm], dim=2)
    return ((z.gather(1, y[:, None]) - z) / slopes).scatter(1, y[:, None], torch.inf).amin(1).detach()


def distances(x_adv, x, norm):
    return (x_adv - x).flatten(1).norm({"Linf": torch.inf, "L2": 2, "L1": 1}[norm], dim=1)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("shape", [(1, 1, 2, 4), (3, 3, 4, 4), (8, 2, 5, 7)])
def test_a_linear_models_nearest_example(linear, norm, shape):
    model = linear(centred(torch.randn(2, shape[1] * shape[2] * shape[3], dtype=torch.float64)))
    x = 0.4 + 0.2 * torch.rand(shape, dtype=torch.float64)
    y = model(x).argmax(1)
    x_adv = fmn(model, x, y, 200, norm=norm)
    found, least = distances(x_adv, x, norm), nearest_of(model, x, y, norm)
    assert (model(x_adv).argmax(1) != y).all() and not x_adv.requires_grad
    assert (found >= least * (1 - 1e-9)).all() and (found <= least * 1.001).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_more_steps_come_nearer_and_stay_in_the_box(tiny, norm):
    model = tiny()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6)  # or every image is of one class, wherever it goes
    x = torch.cat([torch.zeros(4, 3, 2, 2), torch.ones(4, 3, 2, 2), torch.rand(24, 3, 2, 2)])
    y = model(x).argmax(1)
    found = [fmn(model, x, y, steps, norm=norm) for steps in (10, 300)]
    few, many = (distances(x_adv, x, norm).masked_fill(model(x_adv).argmax(1) == y, torch.inf) for x_adv in found)
    assert (few.isfinite() <= many.isfinite()).all() and many.isfinite().sum() > 16
    both = few.isfinite()
    assert many[both].mean() < few[both].mean() and (many[both] <= 1.02 * few[both]).all()
    assert min(x_adv.min() for x_adv in found) >= 0 and max(x_adv.max() for x_adv in found) <= 1


def test_what_is_wrong_already_or_cannot_be_misled_stays(linear, tiny):
    x, y = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.long)
    constant = linear(torch.zeros(3, 12))
    assert torch.equal(fmn(constant, x, y, 5), x)  # without a slope
    wrong = tiny()
    assert torch.equal(fmn(wrong, x, (wrong(x).argmax(1) + 1) % 4, 5), x)
    assert fmn(wrong, x[:0], y[:0]).shape == (0, 3, 2, 2)


def test_the_model_is_left_alone_and_what_is_none_refused(tiny):
    model, x, y = tiny().train(), torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 3])
    fmn(model, x, y, 3)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    with pytest.raises(InputError, match="norm 'L3' is unknown"):
        fmn(model, x, y, norm="L3")
    with pytest.raises(InputError, match="not logits of shape"):
        fmn(nn.Conv2d(3, 3, 1), x, y)
