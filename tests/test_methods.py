"""methods: each loss against a float64 reference written out from its formula, value and gradient."""

import dataclasses

import pytest
import torch

from piat_hub import methods
from piat_hub.config import InputError


def fixed(x_adv):
    """An attack that gives the same examples whatever it is asked, after ten steps at which image i is right i times."""

    def attack(model, x, y, /, on_step=None, **options):
        for k in range(10):
            if on_step:
                wrong = torch.nn.functional.one_hot((y + 1) % 4, 4).double()
                right = torch.nn.functional.one_hot(y, 4).double()
                on_step(k, torch.where(torch.arange(len(y))[:, None] > k, right, wrong))
        return x_adv

    return attack


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


def softmax(z):
    return z.exp() / z.exp().sum(1, keepdim=True)


def kl(p, q):
    return (p * (p.log() - q.log())).sum(1)


def trades(model, x, x_adv, y, beta=6.0):
    z, z_adv = model(x), model(x_adv)
    return cross_entropy(z, y) + beta * kl(softmax(z), softmax(z_adv)).sum() / len(y)


def mart(model, x, x_adv, y, beta=5.0):
    p, p_adv, rows = softmax(model(x)), softmax(model(x_adv)), torch.arange(len(y))
    wrong = torch.stack([max(q for k, q in enumerate(row) if k != label) for row, label in zip(p_adv, y, strict=True)])
    bce = -p_adv[rows, y].log() - (1.0001 - wrong + 1e-12).log()
    return bce.mean() + beta * (kl(p, p_adv) * (1.0000001 - p[rows, y])).sum() / len(y)


def alp(model, x, x_adv, y, w=0.5):
    z, z_adv = model(x), model(x_adv)
    both = cross_entropy(torch.cat([z, z_adv]), torch.cat([y, y]))
    return both + w * ((z - z_adv) ** 2).sum() / z.numel()


def gairat(model, x, x_adv, y):
    kappa = torch.arange(len(y)).double()
    w = (1 + torch.tanh(-1 + 5 * (1 - 2 * kappa / 10))) / 2
    z = model(x_adv)
    ce = -(z - z.exp().sum(1, keepdim=True).log())[torch.arange(len(y)), y]
    return (w * len(y) / w.sum() * ce).sum() / len(y)


REFERENCES = {f.__name__: f for f in (standard, pgd_at, nmse, trades, mart, alp, gairat)}


@pytest.mark.parametrize("name", methods.names())
def test_loss_and_gradient_equal_the_reference(tiny, name):
    model, (x, x_adv, y) = tiny().double(), batch()
    loss = methods.get(name)()(model, x, y, fixed(x_adv), 0.5)
    reference = REFERENCES[name](model, x, x_adv, y)  # a method without a reference fails here
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


def recorded():
    """An attack that notes what it is asked and gives the images back."""
    asked = []

    def attack(model, x, y, /, **options):
        asked.append(options)
        return x

    return attack, asked


def test_trades_attack_maximises_the_divergence_from_the_eval_mode_output():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.BatchNorm1d(4)).double().train()
    x, _, y = batch()
    attack, asked = recorded()
    methods.get("trades")()(model, x, y, attack, 0.0)
    model[2].reset_running_stats()
    attack, asked = recorded()
    methods.get("trades")()(model, x, y, attack, 0.0)
    z_adv = torch.randn(6, 4, dtype=torch.float64)
    model[2].reset_running_stats()  # the loss's own forwards moved them
    with torch.no_grad():
        p = softmax(model.eval()(x))
    (options,) = asked
    assert options["objective"](z_adv, y).item() == pytest.approx(kl(p, softmax(z_adv)).sum().item(), rel=1e-9)
    assert options["start"] == 0.001


def test_starts_and_objectives_of_the_others(tiny):
    model, (x, _, y) = tiny().double(), batch()
    for name, expected in {"mart": {"start": 0.001}, "alp": {}, "pgd_at": {}, "nmse": {}}.items():
        attack, asked = recorded()
        methods.get(name)()(model, x, y, attack, 0.0)
        assert asked == [expected], name


def test_gairat_weights_are_the_listed_ones():
    weights = methods.get("gairat")().weights(torch.arange(7.0), 10).tolist()
    assert weights == pytest.approx([0.9997, 0.9975, 0.982, 0.881, 0.5, 0.119, 0.018], abs=5e-4)


def test_gairat_is_plain_before_its_start(tiny):
    model, (x, x_adv, y) = tiny().double(), batch()
    early = methods.get("gairat")()(model, x, y, fixed(x_adv), 0.49)
    assert early.item() == pytest.approx(pgd_at(model, x, x_adv, y).item(), rel=1e-12)


def test_gairat_counts_the_attacks_own_steps(tiny):
    from functools import partial

    from piat_hub.attacks import pgd

    model, (x, _, y) = tiny().double(), batch()
    counts = []

    def attack(model, x, y, /, on_step):
        def both(k, logits):
            counts.append(logits.argmax(1) == y)
            on_step(k, logits)

        return pgd(model, x, y, eps=0.3, step_size=0.1, steps=7, on_step=both)

    loss = methods.get("gairat")()(model, x, y, partial(attack), 0.5)
    assert len(counts) == 7 and loss.isfinite()


def test_divergence_where_a_probability_underflows():
    z = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    z_adv = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    loss = methods.divergence(z, z_adv).mean()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (z, z_adv)))
    assert methods.divergence(z, z).item() == 0


def test_mart_at_certainty_is_finite_under_bf16_autocast(linear):
    model = linear(50 * torch.eye(4, 12))
    x = torch.eye(4, 12).view(4, 3, 2, 2)  # each image certainly its own class
    for y in (torch.arange(4), (torch.arange(4) + 1) % 4):  # right, and wrong with p_wrong = 1
        with torch.autocast("cpu", torch.bfloat16):
            loss = methods.get("mart")()(model, x, y, fixed(x), 0.0)
        assert loss.isfinite() and all(g.isfinite().all() for g in gradients(loss, model))
