"""methods: each loss against a float64 reference written out from its formula, value and gradient."""

import dataclasses

import pytest
import torch

from piat_hub import methods
from piat_hub.config import InputError


def fixed(x_adv):
    """An attack that gives the same examples whatever it is asked."""
    return lambda model, x, y, /, **options: x_adv


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


def batch(dtype=torch.float64):
    x = torch.rand(6, 3, 2, 2, dtype=dtype)
    return x, (x + 0.1 * torch.randn_like(x)).clamp(0, 1), torch.randint(4, (6,))


def cross_entropy(z, y):
    return -(z - z.exp().sum(1, keepdim=True).log())[torch.arange(len(y)), y].mean()


def standard(model, x, x_adv, y):
    return cross_entropy(model(x), y)


def pgd_at(model, x, x_adv, y):
    return cross_entropy(model(x_adv), y)


def nmse(model, x, x_adv, y, mu=5.0):
    z, z_adv = model(x), model(x_adv)
    p_y = (z.exp() / z.exp().sum(1, keepdim=True))[torch.arange(len(y)), y]
    unit = z / (z * z).sum(1, keepdim=True).sqrt()
    unit_adv = z_adv / (z_adv * z_adv).sum(1, keepdim=True).sqrt()
    return cross_entropy(z_adv, y) + mu * ((1 - p_y) * ((unit - unit_adv) ** 2).sum(1)).mean()


REFERENCES = {"standard": standard, "pgd_at": pgd_at, "nmse": nmse}


@pytest.mark.parametrize("name", methods.names())
def test_loss_and_gradient_equal_the_reference(tiny, name):
    model, (x, x_adv, y) = tiny().double(), batch()
    loss = methods.get(name)()(model, x, y, fixed(x_adv), 0.5)
    reference = REFERENCES[name](model, x, x_adv, y)
    assert loss.dtype == torch.float64 and loss.shape == ()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-12)
    for ours, theirs in zip(gradients(loss, model), gradients(reference, model), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("mu", [0.0, 3.0])
def test_mu_weighs_the_regulariser(tiny, mu):
    model, (x, x_adv, y) = tiny().double(), batch()
    loss = methods.get("nmse")(mu=mu)(model, x, y, fixed(x_adv), 0.0)
    assert loss.item() == pytest.approx(nmse(model, x, x_adv, y, mu).item(), rel=1e-12)


def test_nmse_gradient_flows_through_the_clean_probability(tiny):
    model, (x, x_adv, y) = tiny().double(), batch()
    weight = 1 - model(x).softmax(1).gather(1, y[:, None])
    assert weight.requires_grad
    detached = nmse(model, x, x_adv, y)
    z, z_adv = model(x), model(x_adv)
    gap = (torch.nn.functional.normalize(z) - torch.nn.functional.normalize(z_adv)).square().sum(1, keepdim=True)
    without = cross_entropy(z_adv, y) + 5 * (weight.detach() * gap).mean()
    ours = methods.get("nmse")()(model, x, y, fixed(x_adv), 0.0)
    first = gradients(ours, model)[0]
    assert torch.allclose(first, gradients(detached, model)[0]) and not torch.allclose(
        first, gradients(without, model)[0]
    )


def test_nmse_at_zero_logits_is_finite(linear):
    model = linear(torch.zeros(4, 12))
    x = torch.rand(3, 3, 2, 2)
    loss = methods.get("nmse")()(model, x, torch.tensor([0, 1, 2]), fixed(x), 0.0)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients(loss, model))


@pytest.mark.parametrize("name", methods.names())
def test_losses_are_fp32_under_bf16_autocast(tiny, name):
    model, (x, x_adv, y) = tiny(), batch(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        loss = methods.get(name)()(model, x, y, fixed(x_adv), 0.0)
    assert loss.dtype == torch.float32
    plain = methods.get(name)()(model, x, y, fixed(x_adv), 0.0)
    assert loss.item() == pytest.approx(plain.item(), rel=0.05)


def test_the_attack_is_called_with_images_and_labels(tiny):
    model, (x, x_adv, y) = tiny().double(), batch()
    calls = []

    def attack(*given, **options):
        calls.append((given, options))
        return x_adv

    methods.get("nmse")()(model, x, y, attack, 0.0)
    (given, options) = calls[0]
    assert given[0] is model and given[1] is x and given[2] is y and options == {}
    methods.get("standard")()(model, x, y, attack, 0.0)
    assert len(calls) == 1


def test_methods_are_frozen_and_validated():
    method = methods.get("nmse")(mu=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.mu = 3
    with pytest.raises(InputError, match="mu must be >= 0"):
        methods.get("nmse")(mu=-1.0)
    with pytest.raises(InputError, match="did you mean 'nmse'"):
        methods.get("nmes")


@pytest.mark.parametrize("name", methods.names())
def test_line_one_of_the_docstring_cites(name):
    assert methods.get(name).__doc__.split("\n")[0]
    assert name in ("standard", *[n for n in methods.names() if "et al." in methods.get(n).__doc__.split("\n")[0]])
