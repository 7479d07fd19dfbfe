"""checks.py: masked models are caught, an honest one passes."""

import pytest
import torch
from torch import nn

from piat_hub import data
from piat_hub.config import ThreatModel
from piat_hub.evaluation.checks import check, more_steps
from piat_hub.evaluation.own_code import Front, past

THREAT = ThreatModel("Linf", 0.1)


@pytest.fixture(scope="module")
def honest():
    """Softmax regression on the digits: its gradients tell the truth. Also another one, as a surrogate."""
    torch.set_num_threads(1)
    train, models = data.load("digits", "train"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(data.to_unit(train.images)), train.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        models.append(model.eval())
    return models


def warned(model, **options):
    split = data.load("digits", "test").first(60)
    results = list(check(model, split, THREAT, **options))
    assert all(isinstance(r["passed"], bool) and r["found"] for r in results)
    return {r["check"] for r in results if not r["passed"]}, {r["check"] for r in results}


def test_an_honest_model_passes(honest):
    failed, run = warned(honest[0], surrogate=honest[1])
    assert failed == set()
    names = {
        "finite",
        "randomness",
        "batch",
        "logits",
        "bf16",
        "zero gradients",
        "steps",
        "more steps",
        "restarts",
        "eps",
        "large eps",
        "targets",
        "black box",
    }
    assert run == names | {"transfer"}
    assert warned(honest[0])[1] == names


class Masked(nn.Module):
    def __init__(self, model, how):
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x):
        return self.how(self.model, x)


MASKS = {
    "logits scaled by 1e4": (lambda m, x: 1e4 * m(x), {"zero gradients", "large eps", "black box"}),
    "a step without derivative": (
        lambda m, x: m((8 * x).round() / 8),
        {"zero gradients", "large eps", "black box", "transfer"},
    ),
    "noise on the input": (lambda m, x: m(x + 0.2 * torch.randn_like(x)), {"randomness"}),
    "probabilities": (lambda m, x: m(x).softmax(1), {"logits"}),
    "the mean of a batch": (lambda m, x: m(x - x.mean(0)), {"batch"}),
    "no batch of one": (lambda m, x: m(x if len(x) > 1 else x[0, 0, 0]), {"batch"}),
    "a gradient that is kept back": (lambda m, x: m(x.detach()), {"zero gradients"}),
}


@pytest.mark.parametrize("mask", MASKS)
def test_a_masked_model_is_caught(honest, mask):
    how, expected = MASKS[mask]
    failed, _ = warned(Masked(honest[0], how), surrogate=honest[1])
    assert failed >= expected


def test_a_model_that_is_always_wrong_ends_the_report(honest):
    failed, run = warned(Masked(honest[0], lambda m, x: -m(x)))
    assert "accuracy" in failed and "steps" not in run


def test_a_model_without_numbers_is_told(honest):
    results = list(
        check(Masked(honest[0], lambda m, x: m(x) * float("nan")), data.load("digits", "test").first(60), THREAT)
    )
    assert results[0]["check"] == "finite" and not results[0]["passed"] and results[0]["counts"] == [60]
    assert "60 of 60 clean images have logits that are NaN or Inf" in results[0]["found"]


def test_everything_is_left_as_it_was(honest):
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), honest[0]).train()
    state, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
    warned(model)
    assert all(map(torch.equal, buffers, model.buffers()))
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(p.requires_grad for p in model.parameters())
    model.eval()


def test_a_model_without_a_gradient_is_spared_the_attacks_that_follow_it(honest):
    failed, run = warned(Masked(honest[0], lambda m, x: m((8 * x.detach()).round() / 8)))
    assert {"zero gradients", "black box"} <= failed and not run & {
        "steps",
        "more steps",
        "restarts",
        "eps",
        "large eps",
    }


@pytest.mark.parametrize(
    "part", [lambda x: (8 * x).round() / 8, lambda x: torch.from_numpy((8 * x.numpy()).round() / 8)]
)
def test_a_gradient_past_the_front_part_finds_what_that_hides(honest, part):
    model = nn.Sequential(Front(part, "mine:part"), honest[0])
    results = {r["check"]: r for r in check(model, data.load("digits", "test").first(60), THREAT)}
    assert not results["zero gradients"]["passed"] and not results["through"]["passed"]
    past, own, beyond = results["through"]["counts"]
    plain = {r["check"]: r for r in check(honest[0], data.load("digits", "test").first(60), THREAT)}
    assert (
        own - past == beyond > 20 and abs(past - plain["steps"]["counts"][-1]) <= 3
    )  # about what no front part leaves
    assert not model[0].straight and not any(p.requires_grad for p in model[0].parameters())


def test_a_front_part_that_hides_nothing_passes_and_one_before_another_is_told(honest):
    split = data.load("digits", "test").first(60)
    smooth = {
        r["check"]: r["passed"]
        for r in check(nn.Sequential(Front(lambda x: 0.9 * x + 0.05, "p"), honest[0]), split, THREAT)
    }
    assert all(smooth.values()) and "through" in smooth
    twice = nn.Sequential(Front(lambda x: x, "p"), Masked(honest[0], lambda m, x: m((8 * x).round() / 8)))
    found = {r["check"]: r for r in check(twice, split, THREAT)}["through"]
    assert not found["passed"] and found["found"].startswith("behind the front part 5")
    half = Front(lambda x: x[..., ::2, ::2], "mine:half")
    with past([half]), pytest.raises(ValueError, match=r"mine:half makes \(2, 1, 4, 4\) of .*; no gradient gets past"):
        half(torch.rand(2, 1, 8, 8))


def test_more_steps_find_what_long_steps_jump_over():
    """Class 1 holds in a band narrower than a step of eps/4: only shorter steps come to rest in it."""

    class Band(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            bump = self.scale * (0.002 - (x.flatten(1)[:, 0] - 0.55).abs())
            return torch.stack([torch.zeros_like(bump), bump], 1)

    x = torch.linspace(0.46, 0.5, 40).view(40, 1, 1, 1)
    y = torch.zeros(40, dtype=torch.long)
    found = more_steps(Band(), x, y, ThreatModel("Linf", 0.1), 20, slack=1, seed=0)
    assert not found["passed"] and "that PGD-20 leaves closest to the edge, PGD-100 breaks" in found["found"]
    assert found["counts"][1] > found["counts"][0] / 2 > 2
    far = more_steps(Band(), x - 0.4, y, ThreatModel("Linf", 0.1), 20, slack=1, seed=0)
    assert far["passed"] and far["counts"] == [10, 0]


class Decoy(nn.Module):
    """The likeliest other class lies uphill and never wins; the one that does lies downhill, and its share of the loss is nothing.

    With s the mean of (x - 1/2) / eps, in [-1, 1] within the budget, class 2 beats class 0 where s < -20/21.
    """

    def forward(self, x):
        s = (x.flatten(1).mean(1) - 0.5) / THREAT.eps
        return torch.stack([0 * s, 0.9 * s.tanh() - 1, -20 - 21 * s, 0 * s - 30], 1)


def test_a_decoy_hides_from_pgd_and_not_from_an_attack_that_aims():
    grey = data.Split(torch.full((20, 1, 8, 8), 0.5), torch.zeros(20, dtype=torch.long), tuple("abcd"), "grey")
    found = {result["check"]: result for result in check(Decoy(), grey, THREAT)}
    assert found["steps"]["passed"] and found["steps"]["counts"] == [20, 20, 20]
    assert not found["targets"]["passed"] and found["targets"]["counts"] == [0, 20, 20]
    assert (
        "PGD-100, then MALT, leaves 0.00 %, PGD-100 100.00 %; it breaks 20 that PGD-100 does not"
        in found["targets"]["found"]
    )
