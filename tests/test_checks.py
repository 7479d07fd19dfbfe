"""checks.py: masked models are caught, an honest one passes."""

import pytest
import torch
from torch import nn

from piat_hub import data
from piat_hub.config import ThreatModel
from piat_hub.evaluation.checks import check

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
        "logits",
        "bf16",
        "zero gradients",
        "steps",
        "restarts",
        "eps",
        "large eps",
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
    model = honest[0].train()
    state = torch.get_rng_state()
    warned(model)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(p.requires_grad for p in model.parameters())
    model.eval()
