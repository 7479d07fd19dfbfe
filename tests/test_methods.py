"""methods: each loss against a float64 reference written out from its formula, value and gradient."""

import copy
import dataclasses
from functools import partial

import pytest
import torch

from piat_hub import methods
from piat_hub.attacks import pgd
from piat_hub.config import InputError, ThreatModel, TrainConfig
from piat_hub.methods import las_at as las


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


def score(model, x, x_adv, y, beta=4.0, smoothing=0.0):
    p, p_adv = softmax(model(x)), softmax(model(x_adv))
    smooth = torch.full_like(p, smoothing / 3)
    smooth[torch.arange(len(y)), y] = 1 - smoothing
    return ((p - smooth) ** 2).sum(1).mean() + beta * ((p_adv - p) ** 2).sum(1).mean()


def stat(model, x, x_adv, y, beta=6.0):
    """`fixed` gives x_adv for both twins' places; its halves are the twins."""
    z = [model(x), *(model(half) for half in x_adv.chunk(2))]
    losses = []
    for i, label in enumerate(y):
        three = sorted((row[i] for row in z), key=lambda row: softmax(row[None])[0, label].item())
        up, lo = (softmax(row[None]) for row in (three[0], three[-1]))
        losses.append(kl(lo.detach(), up) + kl(up.detach(), lo))
    return cross_entropy(z[0], y) + beta / 2 * torch.cat(losses).mean()


def fat(model, x, x_adv, y):
    return pgd_at(model, x, x_adv, y)


def free_at(model, x, x_adv, y):
    return standard(model, x, x_adv, y)  # delta is 0 before the first replay


def las_at(model, x, x_adv, y, label=0.7):
    soft = torch.full((len(y), 4), (1 - label) / 3, dtype=x.dtype)
    soft[torch.arange(len(y)), y] = label
    return -(soft * softmax(model(x_adv)).log()).sum(1).mean()


def fgsm_rs(model, x, x_adv, y):
    return pgd_at(model, x, x_adv, y)


def n_fgsm(model, x, x_adv, y):
    return pgd_at(model, x, x_adv, y)


LOSSES = (standard, pgd_at, nmse, trades, mart, alp, gairat, score, stat, fat, free_at, las_at, fgsm_rs, n_fgsm)
REFERENCES = {f.__name__: f for f in LOSSES}


def examples(name, x, x_adv):
    """What the method's attack gives back: STAT asks for two twins at once."""
    return torch.cat([x_adv, (2 * x - x_adv).clamp(0, 1)]) if name == "stat" else x_adv


@pytest.mark.parametrize("name", methods.names())
def test_loss_and_gradient_equal_the_reference(tiny, name):
    model, (x, x_adv, y) = tiny().double(), batch()
    x_adv = examples(name, x, x_adv)
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


def test_smoothing_of_score(tiny):
    model, (x, x_adv, y) = tiny().double(), batch()
    loss = methods.get("score")(beta=3.0, smoothing=0.1)(model, x, y, fixed(x_adv), 0.0)
    assert loss.item() == pytest.approx(score(model, x, x_adv, y, 3.0, 0.1).item(), rel=1e-12)


def test_nmse_gradient_flows_through_the_clean_probability(tiny):
    model, (x, x_adv, y) = tiny().double(), batch()
    weight = 1 - model(x).softmax(1).gather(1, y[:, None])
    assert weight.requires_grad
    whole = nmse(model, x, x_adv, y)
    z, z_adv = model(x), model(x_adv)
    gap = (torch.nn.functional.normalize(z) - torch.nn.functional.normalize(z_adv)).square().sum(1, keepdim=True)
    without = cross_entropy(z_adv, y) + 5 * (weight.detach() * gap).mean()
    ours = methods.get("nmse")()(model, x, y, fixed(x_adv), 0.0)
    first = gradients(ours, model)[0]
    assert torch.allclose(first, gradients(whole, model)[0]) and not torch.allclose(first, gradients(without, model)[0])


def test_nmse_at_zero_logits_is_finite(linear):
    model = linear(torch.zeros(4, 12))
    x = torch.rand(3, 3, 2, 2)
    loss = methods.get("nmse")()(model, x, torch.tensor([0, 1, 2]), fixed(x), 0.0)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients(loss, model))


@pytest.mark.parametrize("name", methods.names())
def test_losses_are_fp32_under_bf16_autocast(tiny, name):
    model, (x, x_adv, y) = tiny(), batch(torch.float32)
    x_adv = examples(name, x, x_adv)
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
def test_every_field_is_held_to_its_type_and_its_limits(name):
    for field in dataclasses.fields(methods.get(name)):
        flag = field.name.replace("_", "-")
        with pytest.raises(InputError, match=f"{flag} must be (int|float), got 'many'"):
            methods.get(name)(**{field.name: "many"})
        for rule, bound in field.metadata["limits"].items():
            beyond = bound + {"least": -1, "above": 0, "most": 1, "below": 0}[rule]
            with pytest.raises(InputError, match=f"{flag} must be [<>]=? {bound}, got {beyond}"):
                methods.get(name)(**{field.name: beyond})


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


def test_gairat_weights_from_epoch_60_of_120_on_as_its_authors(tiny):
    model, (x, x_adv, y) = tiny().double(), batch()
    plain, weighted = pgd_at(model, x, x_adv, y).item(), gairat(model, x, x_adv, y).item()
    for epoch, expected in ((59, plain), (60, weighted)):
        loss = methods.get("gairat")()(model, x, y, fixed(x_adv), (epoch - 1) / 120)
        assert loss.item() == pytest.approx(expected, rel=1e-12) and plain != pytest.approx(weighted)


def test_gairat_of_images_that_all_stand_is_their_mean_whatever_the_offset(tiny):
    model, (x, _, y) = tiny(), batch(torch.float32)

    def attack(model, x, y, /, on_step):
        for k in range(10):
            on_step(k, torch.nn.functional.one_hot(y, 4).float())
        return x

    for offset in (-1.0, -4.5, -8.0):
        loss = methods.get("gairat")(offset=offset)(model, x, y, attack, 0.6)
        assert loss.item() == pytest.approx(pgd_at(model, x, x, y).item(), rel=1e-5)


def test_gairat_weighs_over_the_batches_of_all_processes(tiny, monkeypatch):
    """Two processes' mean loss, and so their mean gradient, is that of the whole batch."""
    model, (x, _, y) = tiny().double(), batch()

    def attack(model, x, y, /, on_step):
        for k in range(10):  # the brighter an image, the longer it stands
            on_step(k, torch.nn.functional.one_hot(y, 4) * (10 * x.mean((1, 2, 3)) - k)[:, None])
        return x

    method, halves = methods.get("gairat")(), (slice(0, 3), slice(3, 6))
    whole = method(model, x, y, attack, 0.9)
    means = []
    monkeypatch.setattr("piat_hub.methods.gairat.average", lambda tensors: means.append(tensors[0].clone()))
    for half in halves:
        method(model, x[half], y[half], attack, 0.9)
    mean = sum(means) / 2
    monkeypatch.setattr("piat_hub.methods.gairat.average", lambda tensors: tensors[0].copy_(mean))
    parts = [method(model, x[half], y[half], attack, 0.9) for half in halves]
    assert means[0] != means[1] and (sum(parts) / 2).item() == pytest.approx(whole.item(), rel=1e-12)


def test_gairat_counts_the_attacks_own_steps(tiny):
    from functools import partial

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


def test_score_attack_climbs_the_squared_distance_of_probabilities(tiny):
    model, (x, _, y) = tiny().double(), batch()
    attack, asked = recorded()
    methods.get("score")()(model, x, y, attack, 0.0)
    z = torch.randn(6, 4, dtype=torch.float64)
    (options,) = asked
    assert set(options) == {"objective"}  # a uniform start
    expected = ((softmax(z) - softmax(model(x))) ** 2).sum()
    assert options["objective"](z, y).item() == pytest.approx(expected.item(), rel=1e-9)


def test_stat_twins_drive_their_squeeze_up_and_part(tiny):
    model, (x, _, y) = tiny().double(), batch()
    asked = []

    def attack(model, images, labels, /, **options):
        twins = pgd(model, images, labels, eps=0.3, step_size=0.1, steps=5, **options)
        asked.append((images, labels, options, twins))
        return twins

    methods.get("stat")()(model, x, y, attack, 0.0)
    ((images, labels, options, twins),) = asked
    assert torch.equal(images, torch.cat([x, x])) and torch.equal(labels, torch.cat([y, y]))
    assert options["start"] == 0.001
    z = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    a, b = z[:6], z[6:]
    symmetric = (kl(softmax(a.detach()), softmax(b)) + kl(softmax(b.detach()), softmax(a))).sum() / 2
    ours = options["objective"](z, labels)
    assert ours.item() == pytest.approx(symmetric.item(), rel=1e-9)
    assert torch.allclose(*(torch.autograd.grad(loss, z)[0] for loss in (ours, symmetric)))
    p = [softmax(model(half)).gather(1, y[:, None]).squeeze(1) for half in (x, *twins.chunk(2))]
    assert (torch.minimum(p[1], p[2]) < p[0]).all() and (torch.maximum(p[1], p[2]) > p[0]).all()


def authors_friendly_stop(model, x, y, eps, step_size, steps, tau):
    """FAT's early-stopped PGD, one image at a time: it leaves at a misclassification once its budget tau is used up."""
    friendly = []
    for image, label in zip(x, y, strict=True):
        x_adv, control = image[None].clone(), tau
        for _ in range(steps):
            x_adv.requires_grad_()
            z = model(x_adv)
            if z.argmax() != label:
                if control == 0:
                    break
                control -= 1
            (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, label[None]), x_adv)
            x_adv = (x_adv + step_size * gradient.sign()).detach()
            x_adv = torch.minimum(torch.maximum(x_adv, image - eps), image + eps).clamp(0, 1)
        friendly.append(x_adv.detach()[0])
    return torch.stack(friendly)


@pytest.mark.parametrize(("progress", "tau"), [(0.0, 0), (5 / 12, 1), (0.74, 1), (0.75, 2)])
def test_fat_stops_friendly_and_keeps_the_batch_order(tiny, progress, tau):
    torch.manual_seed(tau)
    model, x = tiny().double(), torch.rand(40, 3, 2, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    got = []

    def attack(model, x, y, /, **options):
        assert options.pop("noise") == 0
        got.append(pgd(model, x, y, eps=0.3, step_size=0.05, steps=6, start=0.0, **options))
        return got[0]

    fat = methods.get("fat")(noise=0.0)
    assert fat.tau(progress) == tau
    loss = fat(model, x, y, attack, progress)
    reference = authors_friendly_stop(model, x, y, 0.3, 0.05, 6, tau)
    assert torch.allclose(got[0], reference, atol=1e-12)
    assert loss.item() == pytest.approx(cross_entropy(model(reference), y).item())
    full = pgd(model, x, y, eps=0.3, step_size=0.05, steps=6, start=0.0)
    moved = (got[0] != full).flatten(1).any(1)
    assert 0 < moved.sum() < len(x)  # some stopped early, others never


def test_fat_knots_are_ordered():
    with pytest.raises(InputError, match="tau-two must be at least tau-one"):
        methods.get("fat")(tau_one=0.8)
    assert methods.get("fat")().noise == 0.001


def run_of(norm, eps, **fields):
    """A configuration with this threat model."""
    return TrainConfig(threat_model=ThreatModel(norm=norm, eps=eps), **fields)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_free_at_climbs_on_the_training_backward_and_keeps_delta(tiny, norm):
    eps, (x, x2, y) = 0.1, batch()
    run = methods.get("free_at")().begin(run_of(norm, eps))
    assert run.replays == 8
    model, delta = tiny().double(), torch.zeros_like(x)
    for images in (x, x, x2, x2):
        loss = run(model, images, y, None, 0.0)
        slow = delta.clone().requires_grad_()
        reference = cross_entropy(model((images + slow).clamp(0, 1)), y)
        assert loss.item() == pytest.approx(reference.item(), rel=1e-12)
        (gradient,) = torch.autograd.grad(reference, slow)
        if norm == "Linf":
            delta = (delta + eps * gradient.sign()).clamp(-eps, eps)
        else:
            length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta = delta + eps * gradient / length
            delta = delta * (eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)
        loss.backward()
        assert torch.allclose(run.state_dict()["delta"], delta, atol=1e-12)
    again = methods.get("free_at")().begin(run_of(norm, eps))
    again.load_state_dict(run.state_dict())
    assert again(model, x, y, None, 0.0).item() == run(model, x, y, None, 0.0).item()
    overflown = run.state_dict()["delta"].clone()
    run._climb(torch.full_like(x, float("nan")))
    assert torch.allclose(run.state_dict()["delta"], overflown, atol=1e-12)  # a step lost to fp16 loses nothing else


def test_free_at_begins_anew_where_the_batch_has_another_size(tiny):
    run = methods.get("free_at")().begin(run_of("Linf", 0.1))
    x, _, y = batch(torch.float32)
    run(tiny(), x, y, None, 0.0).backward()
    run(tiny(), x[:3], y[:3], None, 0.0)
    assert run.state_dict()["delta"].shape == (3, 3, 2, 2) and not run.state_dict()["delta"].any()


@pytest.mark.parametrize(("name", "noise", "step", "clips"), [("fgsm_rs", 1, 1.25, True), ("n_fgsm", 2, 1, False)])
def test_fast_methods_take_one_step_as_their_authors(tiny, name, noise, step, clips):
    eps, model, (x, _, y) = 0.1, tiny().double(), batch()
    crafted = []

    def attack(model, x, y, /, **options):
        crafted.append(pgd(model, x, y, **({"eps": eps, "step_size": eps / 4, "steps": 10} | options)))
        return crafted[-1]

    run = methods.get(name)().begin(run_of("Linf", eps))
    torch.manual_seed(7)
    loss = run(model, x, y, attack, 0.0)
    torch.manual_seed(7)
    start = (x + noise * eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(start), y), start)
    delta = start.detach() + step * eps * gradient.sign() - x
    reference = (x + (delta.clamp(-eps, eps) if clips else delta)).clamp(0, 1)
    assert torch.allclose(crafted[0], reference, atol=1e-12)
    assert ((crafted[0] - x).abs().max() > eps + 1e-9) != clips
    assert loss.item() == pytest.approx(pgd_at(model, x, reference, y).item(), rel=1e-12)


def normed():
    """A small network with BatchNorm, in float64 and train mode."""
    layers = torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 4)
    return torch.nn.Sequential(*layers).double().train()


def one_by_one(model, x, y, start, eps, steps, step_size):
    """LAS-AT's attack, each image by itself with its own budget, from its own start."""
    model, crafted = copy.deepcopy(model).eval(), []
    for image, label, x_adv, e, k, a in zip(x, y, start, eps, steps, step_size, strict=True):
        x_adv = x_adv.clamp(0, 1)
        for _ in range(k):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(model(x_adv[None]), label[None]), x_adv)
            x_adv = torch.minimum(torch.maximum(x_adv + a * gradient.sign(), image - e), image + e)
            x_adv = x_adv.detach().clamp(0, 1)
        crafted.append(x_adv.detach())
    return torch.stack(crafted)


def test_las_at_attacks_each_image_by_its_own_strategy():
    eps, model, (x, _, y) = 0.2, normed(), batch()
    run = methods.get("las_at")(width=8).begin(run_of("Linf", eps))
    choices = [torch.tensor([0, 12, 5, 2, 9, 1]), torch.tensor([0, 11, 3, 6, 1, 9]), torch.tensor([4, 0, 2, 3, 1, 2])]
    asked = []

    def attack(model, x, y, /, **options):
        asked.append(options)
        return pgd(model, x, y, **options)

    x_adv = run._craft(model, x, y, attack, choices)
    (options,) = asked
    beyond = (options["start"] - x).abs().amax((1, 2, 3))
    assert (beyond <= eps).all() and beyond[0] > 3 / 8 * eps  # in the run's ball, not in the image's own
    levels, steps, sizes = (c + least for c, least in zip(choices, (3, 3, 1), strict=True))
    reference = one_by_one(model, x, y, options["start"], levels * eps / 8, steps.tolist(), sizes * eps / 8)
    assert torch.allclose(x_adv, reference, atol=1e-12)
    assert ((x_adv - x).abs().amax((1, 2, 3)) <= levels * eps / 8 + 1e-12).all()


def test_las_at_looks_one_step_ahead_and_leaves_no_trace():
    model, (x, x_adv, y) = normed(), batch()
    model[0].bias.requires_grad_(False)  # frozen by the user
    ahead = copy.deepcopy(model)
    free = [p for p in ahead.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(free, 0.3, momentum=0.9, weight_decay=5e-4)
    las_at(ahead, x, x_adv, y).backward()
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    with las.lookahead(model, lambda: las_at(model, x, x_adv, y), 0.3):
        for name, value in model.state_dict().items():
            assert torch.allclose(value, ahead.state_dict()[name], atol=1e-14), name
    with pytest.raises(KeyboardInterrupt), las.lookahead(model, lambda: las_at(model, x, x_adv, y), 0.3):
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_las_at_rewards_its_strategy_as_the_formula_says(monkeypatch):
    """REINFORCE on one batch: the network moves by lr times the clipped gradient of the sum over heads of -log pi times R."""
    eps, model, (x, _, y) = 0.2, normed(), batch()
    config = run_of("Linf", eps, lr=0.5)
    run = methods.get("las_at")(width=8, policy_lr=0.1, interval=2).begin(config)
    actions = torch.tensor([1, 3, 0, 2, 4, 1])
    monkeypatch.setattr(las, "draw", lambda logits: actions)
    crafted = []

    def attack(model, x, y, /, **options):
        crafted.append(pgd(model, x, y, **options))
        return crafted[-1]

    run.network = run._build(3)
    before = copy.deepcopy(run.network)
    statistics = copy.deepcopy(model.state_dict())
    run(model, x, y, attack, 0.0)
    assert len(crafted) == 4 and all(
        torch.equal(v, model.state_dict()[k]) for k, v in statistics.items() if "weight" in k
    )

    frozen, ahead = normed().eval(), normed()
    frozen.load_state_dict(statistics), ahead.load_state_dict(statistics)
    cost = cross_entropy(frozen(crafted[0]), y)
    las_at(ahead, x, crafted[0], y).backward()
    torch.optim.SGD(ahead.parameters(), config.lr, momentum=0.9, weight_decay=5e-4).step()
    first, second, plain = (ahead.eval()(images).argmax(1) == y for images in (crafted[1], crafted[2], x))
    robust, clean = (right.double().mean() for right in (first & second, plain))
    reward = cost.clamp(0, 10) + 4 * robust + 2 * clean
    heads = before.train()(x.float()).split([13, 12, 5], 1)
    policy = sum(-head.log_softmax(1)[torch.arange(6), actions] * reward for head in heads).mean()
    gradients = torch.autograd.grad(policy, list(before.parameters()))
    length = torch.cat([g.flatten() for g in gradients]).norm()
    for now, was, gradient in zip(run.network.parameters(), before.parameters(), gradients, strict=True):
        assert torch.allclose(now, was - 0.1 * gradient / length.clamp(min=1), atol=1e-6)
    learnt = copy.deepcopy(run.network.state_dict())
    run(model, x, y, attack, 0.0)
    assert len(crafted) == 5 and all(torch.equal(v, run.network.state_dict()[k]) for k, v in learnt.items())
    run(model, x, y, attack, 0.0)
    assert len(crafted) == 9  # the third batch, at interval 2


def test_las_at_draws_from_the_softmax():
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(20_000, 3)
    shares = torch.bincount(las.draw(logits), minlength=3) / 20_000
    assert torch.allclose(shares, torch.tensor([0.1, 0.2, 0.7]), atol=0.015)


def test_las_at_takes_up_its_state(tiny):
    config, (x, _, y) = run_of("Linf", 0.1), batch(torch.float32)
    run, again = (methods.get("las_at")(width=8).begin(config) for _ in range(2))
    assert run.state_dict() == {}
    again.load_state_dict({})  # saved within the clean epochs
    run(tiny(), x, y, partial(pgd, eps=0.1), 0.0)
    again.load_state_dict(run.state_dict())
    assert again.batches == 1 and all(torch.equal(v, again.state_dict()[k]) for k, v in run.state_dict().items())
