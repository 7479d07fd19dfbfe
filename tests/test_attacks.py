"""attacks: the optimum of a linear model in closed form, budget and box, restored modes, hooks, AutoAttack's parts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from piat_hub.attacks import apgd, attack_mode, autoattack, core, cross_entropy, cw, fmn, malt, margin, mim, pgd
from piat_hub.attacks.autoattack import changes, components
from piat_hub.config import InputError

ATTACKS = {"pgd": pgd, "mim": mim, "cw": cw}
SHAPES = [(1, 1, 2, 4), (3, 3, 4, 4), (8, 2, 5, 7)]


def two_classes(linear, shape, dtype=torch.float64):
    """A linear model of two classes, and images so far inside the box that it never binds."""
    weight = torch.randn(2, math.prod(shape[1:]), dtype=dtype)
    x = 0.4 + 0.2 * torch.rand(shape, dtype=dtype)
    model = linear(weight)
    return model, x, model(x).argmax(1)


def gradient_direction(model, y, x):
    """d CE / dx of a two-class linear model points along w_other - w_true, whatever x."""
    return (model.weight[1 - y] - model.weight[y]).view(x.shape).detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_linf_reaches_the_closed_form_optimum(linear, attack, shape):
    model, x, y = two_classes(linear, shape)
    x_adv = attack(model, x, y, 0.1, 0.05, 10)
    optimum = x + 0.1 * gradient_direction(model, y, x).sign()
    assert torch.allclose(x_adv, optimum, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attack", [pgd, cw], ids=["pgd", "cw"])
def test_l2_reaches_the_closed_form_optimum(linear, attack, shape):
    model, x, y = two_classes(linear, shape)
    x_adv = attack(model, x, y, 0.2, 0.1, 40, norm="L2")
    direction = gradient_direction(model, y, x).flatten(1)
    optimum = x.flatten(1) + 0.2 * direction / direction.norm(dim=1, keepdim=True)
    assert torch.allclose(x_adv.flatten(1), optimum, atol=1e-4)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_budget_and_box_hold_at_the_edge(tiny, attack, norm):
    x = torch.cat([torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2), torch.rand(4, 3, 2, 2)])
    x_adv = attack(tiny(), x, torch.randint(4, (8,)), 0.3, 0.2, 5, norm=norm)
    delta = (x_adv - x).flatten(1)
    size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    assert (size <= 0.3 * (1 + 1e-5)).all() and (size > 0.05).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert not x_adv.requires_grad


def test_pgd_is_eq_2_spelled_out(tiny):
    model, x, y = tiny().double(), torch.rand(5, 3, 2, 2).double(), torch.randint(4, (5,))
    expected = x.clone()
    for _ in range(7):
        expected.requires_grad_()
        loss = F.cross_entropy(model(expected), y, reduction="sum")
        step = expected + 0.02 * torch.autograd.grad(loss, expected)[0].sign()
        expected = torch.min(torch.max(step, x - 0.05), x + 0.05).clamp(0, 1).detach()
    assert torch.equal(pgd(model, x, y, 0.05, 0.02, 7, start=0.0), expected)


def test_mim_is_dong_et_al_spelled_out(tiny):
    model, x, y = tiny().double(), torch.rand(5, 3, 2, 2).double(), torch.randint(4, (5,))
    expected, velocity = x.clone(), torch.zeros_like(x)
    for _ in range(7):
        expected.requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(model(expected), y, reduction="sum"), expected)[0]
        velocity = velocity + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        step = expected + 0.02 * velocity.sign()
        expected = torch.min(torch.max(step, x - 0.05), x + 0.05).clamp(0, 1).detach()
    assert torch.equal(mim(model, x, y, 0.05, 0.02, 7, start=0.0), expected)


def test_margin_is_the_formula():
    z = torch.tensor([[3.0, 1.0, 2.0], [0.0, 60.0, 1.0]])
    y = torch.tensor([0, 0])
    assert margin(z, y).item() == -((3 - 2 + 50) + 0)


def test_momentum_survives_a_zero_gradient(linear):
    model = linear(torch.zeros(2, 4))
    x = torch.rand(3, 1, 2, 2)
    assert mim(model, x, torch.zeros(3, dtype=torch.long), 0.1, 0.05, 4).isfinite().all()


def test_uniform_start_fills_the_ball_and_noise_has_its_scale(tiny):
    x, y = torch.full((4000, 3, 2, 2), 0.5), torch.zeros(4000, dtype=torch.long)
    uniform = pgd(tiny(), x, y, 0.1, 0.05, 0) - x
    assert uniform.abs().max() <= 0.1 and uniform.std() == pytest.approx(0.2 / math.sqrt(12), rel=0.02)
    noise = pgd(tiny(), x, y, 0.1, 0.05, 0, start=0.001) - x
    assert noise.std() == pytest.approx(0.001, rel=0.02)
    ball = (pgd(tiny(), x, y, 0.1, 0.05, 0, norm="L2") - x).flatten(1).norm(dim=1)
    assert ball.max() <= 0.1 * 1.0001
    assert (ball / 0.1).pow(12).mean() == pytest.approx(0.5, abs=0.02)  # uniform in volume: r^d is uniform


def test_modes_and_flags_come_back_also_after_an_error(tiny):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model.train()
    model[2].eval()  # a module the user has frozen
    model[1].bias.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    before = model[2].running_mean.clone()
    x, y = torch.rand(6, 3, 2, 2), torch.zeros(6, dtype=torch.long)

    def inside():
        return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]

    pgd(model, x, y, 0.1, 0.05, 2)
    with pytest.raises(KeyError), attack_mode(model):
        assert not any(inside()[0]) and not any(inside()[1])
        raise KeyError("anything")
    with pytest.raises(ZeroDivisionError):
        pgd(model, x, y, 0.1, 0.05, 2, objective=lambda z, y: 1 / 0)
    assert inside() == (modes, [True, False, True, True])
    assert torch.equal(model[2].running_mean, before)
    assert all(p.grad is None for p in model.parameters())


GOOD = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 3])
REFUSED = {
    "normalised": ((GOOD[0] - 0.5) / 0.25, GOOD[1], r"x lies in \[-.*\]; attacks take images in \[0, 1\]"),
    "levels": (255 * GOOD[0], GOOD[1], r"x lies in \[.*\]; .* scale the images"),
    "NaN": (GOOD[0] * torch.nan, GOOD[1], "x holds NaN"),
    "uint8": ((255 * GOOD[0]).byte(), GOOD[1], r"x is torch.uint8; .* piat_hub.data.to_unit\(images\)"),
    "array": (GOOD[0].numpy(), GOOD[1], "x is a ndarray"),
    "one image": (GOOD[0][0], GOOD[1][:1], r"x has shape \(3, 2, 2\), not \(B, C, H, W\)"),
    "too few labels": (GOOD[0], GOOD[1][:3], r"y is torch.int64 of shape \(3,\); .* int64 of shape \(4,\)"),
    "one-hot": (GOOD[0], torch.eye(4), r"y is torch.float32 of shape \(4, 4\)"),
    "int32": (GOOD[0], GOOD[1].int(), r"y is torch.int32 of shape \(4,\)"),
    "list": (GOOD[0], [0, 1, 2, 3], "y is a list"),
    "labels from 1": (GOOD[0], GOOD[1] + 1, "y holds 4, the model has 4 classes, from 0"),
    "negative": (GOOD[0], GOOD[1] - 1, "y holds -1; class numbers begin at 0"),
    "elsewhere": (GOOD[0].to("meta"), GOOD[1], "the model is on cpu, x on meta, y on cpu; put all on one device"),
}


@pytest.mark.parametrize("given", REFUSED)
@pytest.mark.parametrize(
    "attack", [*ATTACKS.values(), autoattack, malt, fmn], ids=[*ATTACKS, "autoattack", "malt", "fmn"]
)
def test_what_no_attack_can_be_asked_is_refused_in_one_line(tiny, attack, given):
    x, y, message = REFUSED[given]
    if given == "one-hot" and attack in (pgd, mim):  # cross-entropy takes probabilities
        model, found = tiny(), []
        for label in (y, y.argmax(1)):
            torch.manual_seed(0)
            found.append(attack(model, x, label))
        assert torch.equal(*found)
        return
    with pytest.raises(ValueError, match=message) as refused:
        attack(tiny(), x, y)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("attack", [*ATTACKS.values(), autoattack, malt], ids=[*ATTACKS, "autoattack", "malt"])
def test_contexts_models_and_budgets_that_cannot_be(tiny, attack):
    x, y = GOOD
    assert attack(tiny(), x[:0], y[:0]).shape == (0, 3, 2, 2)
    assert not torch.equal(pgd(tiny(), 1.0000005 * x.clamp(0.9), y, 0.1, 0.1, 1), x)  # rounding of a resize
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        attack(tiny(), x, y)
    with pytest.raises(ValueError, match="the model is a function, not an nn.Module"):
        attack(lambda x: x, x, y)
    with pytest.raises(ValueError, match="8 levels is 8/255"):
        attack(tiny(), x, y, 8)
    with pytest.raises(ValueError, match="the model gives no gradient"):
        attack(nn.Sequential(nn.Flatten(), Cut(), nn.Linear(12, 4)), x, y)
    with pytest.raises(ValueError, match=r"returns a tensor of shape \(.*, 3, 2, 2\)"):
        attack(nn.Sequential(nn.Conv2d(3, 3, 1)), x, y)


class Cut(nn.Module):
    def forward(self, x):
        return x.detach()


def test_training_crafts_without_the_look_that_would_make_a_gpu_wait(tiny):
    from piat_hub.config import recipes
    from piat_hub.training.setup import make_attack

    x, y = GOOD
    assert make_attack(recipes.get("digits"))(tiny(), x - 1, y).min() >= 0


def test_every_attack_of_the_room_is_handed_out_as_a_function():
    import piat_hub.attacks as room

    for name, attack in room.ATTACKS.items():
        assert callable(getattr(room, name)) and getattr(room, name) is attack


def test_works_inside_no_grad(tiny):
    x = torch.rand(2, 3, 2, 2)
    with torch.no_grad():
        assert not torch.equal(pgd(tiny(), x, torch.tensor([0, 1]), 0.1, 0.05, 3), x)
        assert not torch.is_grad_enabled()


def test_objective_is_what_is_maximised(tiny):
    model, x, y = tiny(), torch.rand(6, 3, 2, 2), torch.randint(4, (6,))
    with torch.no_grad():
        p = model(x).softmax(1)
    kl = lambda z, y: F.kl_div(z.log_softmax(1), p, reduction="sum")  # noqa: E731
    x_adv = pgd(model, x, y, 0.2, 0.05, 10, objective=kl, start=0.001)
    with torch.no_grad():
        assert kl(model(x_adv), y) > 10 * kl(model(x + 0.001 * torch.randn_like(x)), y)


def test_on_step_sees_every_step_and_stops_examples(tiny):
    model, x, y = tiny(), torch.rand(4, 3, 2, 2), torch.randint(4, (4,))
    seen = []

    def hook(k, logits):
        seen.append((k, logits.shape, logits.requires_grad))
        return torch.tensor([k < 0, k < 1, k < 2, True])

    x_adv = pgd(model, x, y, 0.2, 0.05, 5, start=0.0, on_step=hook)
    assert seen == [(k, (4, 4), False) for k in range(5)]
    assert torch.equal(x_adv[0], x[0])
    for image, steps in ((1, 1), (2, 2), (3, 5)):  # alone, with as many steps: the same to rounding
        alone = pgd(model, x[image : image + 1], y[image : image + 1], 0.2, 0.05, steps, start=0.0)
        assert torch.allclose(x_adv[image], alone[0], atol=1e-6)


def test_budget_and_step_per_image(tiny):
    model, x, y = tiny(), torch.rand(3, 3, 2, 2), torch.randint(4, (3,))
    eps = torch.tensor([0.01, 0.05, 0.1]).view(3, 1, 1, 1)
    together = pgd(model, x, y, eps, eps / 4, 6, start=0.0)
    for i in range(3):
        alone = pgd(model, x[i : i + 1], y[i : i + 1], eps[i].item(), eps[i].item() / 4, 6, start=0.0)
        assert torch.allclose(together[i], alone[0], atol=1e-6)


@pytest.mark.parametrize("attack", [pgd, mim, cw])
def test_a_step_is_a_quarter_of_eps_and_none_outside_its_bounds(tiny, attack):
    model, (x, y), found = tiny(), GOOD, []
    for step in ({}, {"step_size": 0.05}):
        torch.manual_seed(0)
        found.append(attack(model, x, y, 0.2, **step))
    assert torch.equal(*found)
    for step in (0.0, -0.01, 0.41, float("nan")):
        with pytest.raises(ValueError, match=r"step-size must be in \(0, 2 eps\]"):
            attack(model, x, y, 0.2, step)


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_a_budget_for_each_image_is_not_read_as_one_for_each_column(tiny, attack):
    model, x, y = tiny(), torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
    with pytest.raises(
        ValueError, match=r"eps is of shape \(2,\); give one number, or one for each image, \(2, 1, 1, 1\)"
    ):
        attack(model, x, y, torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="8 levels is 8/255"):
        attack(model, x, y, torch.tensor(8.0))
    assert (attack(model, x, y, torch.tensor(0.1)) - x).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("options", [{"norm": "L1"}, {"objective": margin}])
def test_apgd_of_no_images_is_none(tiny, options):
    x, y = GOOD
    assert apgd(tiny(), x[:0], y[:0], 1.0, 5, **options).shape == (0, 3, 2, 2)


def test_a_start_that_is_given_is_taken_as_it_is_and_projected_by_the_steps(tiny):
    x, y = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])
    start = x + torch.tensor([0.3, -0.7]).view(2, 1, 1, 1)
    assert torch.equal(pgd(tiny(), x, y, 0.1, 0.05, 0, start=start), start.clamp(0, 1))
    assert ((pgd(tiny(), x, y, 0.1, 0.05, 1, start=start) - x).abs() <= 0.1 + 1e-6).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_without_clipping_only_the_box_holds_the_steps(linear, norm):
    model = linear(torch.stack([torch.ones(4), -torch.ones(4)]))
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    away = -1.0 if norm == "Linf" else -0.5  # the gradient's direction, of which a step is so long in each pixel
    x_adv = pgd(model, x, y, 0.1, 0.08, 3, norm=norm, start=0.0, clip=False)
    assert torch.allclose(x_adv, x + 3 * 0.08 * away, atol=1e-6)
    assert pgd(model, x, y, 0.1, 0.2, 3, start=0.0, clip=False).max() == 0


def test_restarts_keep_the_first_that_misleads():
    class Peaks(nn.Module):
        """Class 1 in a narrow band of x only: a start decides whether the attack finds it."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            bump = self.scale * (8 * (0.02 - (x.flatten(1)[:, 0] - 0.55).abs()))
            return torch.stack([torch.zeros_like(bump), bump], 1)

    model, x, y = Peaks(), torch.full((400, 1, 1, 1), 0.5), torch.zeros(400, dtype=torch.long)

    def broken(restarts):
        torch.manual_seed(1)
        return model(pgd(model, x, y, 0.1, 0.001, 1, restarts=restarts)).argmax(1) != y

    one, ten = broken(1), broken(10)
    assert 0.05 < one.float().mean() < 0.4
    assert (one <= ten).all() and ten.float().mean() > 0.7
    with pytest.raises(ValueError, match="restarts"):
        pgd(model, x, y, restarts=0)


def test_unknown_norm():
    with pytest.raises(ValueError, match="L2"):
        pgd(nn.Flatten(), torch.rand(1, 1, 1, 2), torch.tensor([0]), norm="L1")


@pytest.mark.parametrize(
    ("eps", "said"), [(8, "8 levels is 8/255"), (-0.1, "eps must be > 0"), (0.0, "eps must be > 0")]
)
def test_an_eps_that_is_none_is_refused(eps, said):
    with pytest.raises(ValueError, match=said):
        pgd(nn.Flatten(), torch.rand(1, 1, 1, 2), torch.tensor([0]), eps, 2 / 255, 3)


def test_half_precision_logits_are_attacked_in_fp32(tiny):
    class Half(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x).bfloat16()

    seen = []

    def objective(z, y):
        seen.append(z.dtype)
        return cross_entropy(z, y)

    pgd(Half(tiny()), torch.rand(2, 3, 2, 2), torch.tensor([0, 1]), 0.1, 0.05, 1, objective=objective)
    assert seen == [torch.float32]


def test_autoattack_breaks_a_linear_model_where_the_closed_form_says(linear, quick_autoattack):
    weight = torch.randn(4, 27) / 5
    model = linear(weight)
    x = 0.3 + 0.4 * torch.rand(24, 3, 3, 3)
    y = model(x).argmax(1)
    gaps = weight[y][:, None] - weight[None]  # (24, 4, 27)
    reach = (model(x).gather(1, y[:, None]) - model(x)) / gaps.abs().sum(2).clamp_min(1e-9)
    needed = reach.scatter(1, y[:, None], torch.inf).amin(1).detach()  # the exact Linf distance to the boundary
    eps = float(needed.median())
    x_adv = autoattack(model, x, y, eps)
    broken = model(x_adv).argmax(1) != y
    clear = (needed - eps).abs() > 0.02 * eps
    assert torch.equal(broken[clear], (needed < eps)[clear])
    assert (x_adv - x).abs().max() <= eps * 1.0001
    assert torch.equal(x_adv[~broken], x[~broken])


def test_autoattack_leaves_generators_and_model_alone(tiny, quick_autoattack):
    model, x = tiny().train(), torch.rand(2, 3, 2, 2)
    state = torch.get_rng_state()
    autoattack(model, x, model(x).argmax(1), 0.05)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_autoattack_with_few_classes_says_what_changed():
    assert list(components(0.1, "Linf", 10, 0)) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(components(0.1, "Linf", 3, 0)) == ["apgd-ce", "fab-t", "square"]
    assert changes(10) is None and changes(100) is None
    assert "3 classes in place of 9" in changes(4)
    assert "apgd-t left out" in changes(2)
    assert changes(10, "L2", (32, 32)) is changes(10, "Linf", (12, 12)) is None
    assert changes(10, "L2", (12, 20)) == "square searches in a frame of 13x21 around the images"
    with pytest.raises(ValueError, match="norm"):
        components(0.1, "L3", 10, 0)


def test_autoattack_matches_the_package_run_whole(linear, quick_autoattack):
    model = linear(torch.randn(10, 48) / 5).eval()
    x = torch.rand(16, 3, 4, 4)
    y = model(x).argmax(1)
    theirs, _ = quick_autoattack(model, eps=0.02, norm="Linf", seed=0).run_standard_evaluation(x, y, batch_size=16)
    ours = autoattack(model, x, y, 0.02, seed=0)
    standing = model(ours).argmax(1) == y
    assert torch.equal(standing, model(theirs).argmax(1) == y)
    assert 0 < standing.sum() < 16


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("size", [(12, 12), (9, 14), (16, 24), (24, 16), (5, 2), (3, 31), (32, 48)])
def test_l2_and_l1_square_take_images_of_any_size(linear, size, norm):
    x = torch.rand(3, 2, *size)
    model = linear(torch.randn(4, x[0].numel()))
    y = model(x).argmax(1)
    x_adv = components(1.0, norm, 4, 0, queries=40)["square"](model, x, y)
    broken = model(x_adv).argmax(1) != y
    moved = (x_adv - x).flatten(1).norm(int(norm[1]), dim=1)
    assert x_adv.shape == x.shape and (moved <= 1.0001).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    assert (moved[broken] > 0).all()


def test_l2_square_is_pyautoattacks_own_where_that_takes_the_size(linear, quick_autoattack):
    x, model = torch.rand(6, 1, 16, 16), linear(torch.randn(4, 256) / 8)
    y = model(x).argmax(1)
    theirs = quick_autoattack(model, eps=0.5, norm="L2", seed=0).square.perturb(x, y)
    assert torch.equal(components(0.5, "L2", 4, 0)["square"](model, x, y), theirs)


@pytest.mark.parametrize(
    ("name", "said"),
    [("step2", "cannot be asked for"), ("fast", "cannot be asked for"), ("pgd", "is piat_hub.attacks.pgd's already")],
)
def test_a_name_that_would_hide_another_is_not_registered(name, said):
    def attack(model, x, y, eps, step_size, steps, *, norm):
        return x

    attack.__name__ = name
    with pytest.raises(InputError, match=said):
        core.register(attack)
    assert core.ATTACKS["pgd"] is pgd and not {"step2", "fast"} & set(core.ATTACKS)
