"""What weights show when they are looked into: the loss around them, and the adversarial examples of single images."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.attacks import attack_mode, pgd
from piat_hub.config import ThreatModel
from piat_hub.data import derived_seed


@dataclass(frozen=True)
class Surface:
    """The loss over a square of weights, and how it was measured.

    Attributes:
        at: positions along either direction.
        losses: losses[i][j] at theta + at[i] d1 + at[j] d2.
        filterwise: each filter of the directions is as long as the model's own.
        n: images.
        steps: of PGD, 0 for the clean loss.
        threat_model: in words, "Linf eps 8/255".
        seed: of both directions and of the attack.
    """

    at: list[float]
    losses: list[list[float]]
    filterwise: bool
    n: int
    steps: int
    threat_model: str
    seed: int


@dataclass(frozen=True)
class Examples:
    """Images before and after an attack, on the CPU.

    Attributes:
        x: clean images, (B, C, H, W) in [0, 1].
        x_adv: adversarial examples, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        predicted: (B, 2), the model's class for x and for x_adv.
        attack: in words, "PGD-20, Linf eps 8/255".
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor
    predicted: Tensor
    attack: str


def direction(model: nn.Module, generator: torch.Generator, filterwise: bool) -> list[Tensor]:
    """A random Gaussian direction in weight space, one tensor a parameter, as long as the weights themselves.

    Args:
        model: whose weights they are.
        generator: on the CPU.
        filterwise: each filter as long as the model's own filter, biases and BatchNorm's weights left out (Li et al.
            2018, Sec. 4), which takes out that a network computes the same with rescaled filters.
    """
    drawn = [torch.randn(p.shape, generator=generator).to(p) for p in model.parameters()]
    if filterwise:
        return [
            d * (p.detach().flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1)).view(-1, *[1] * (p.dim() - 1))
            if p.dim() > 1
            else torch.zeros_like(d)
            for p, d in zip(model.parameters(), drawn, strict=True)
        ]
    length = torch.cat([p.detach().flatten() for p in model.parameters()]).norm()
    scale = length / torch.cat([d.flatten() for d in drawn]).norm()
    return [d * scale for d in drawn]


def surface(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    filterwise: bool = False,
    points: int = 17,
    span: float = 0.5,
    steps: int = 10,
    seed: int = 0,
    on_point: Callable[[], Any] = lambda: None,
) -> Surface:
    """The adversarial loss CE(f_{theta + a d1 + b d2}(x'), y) around the weights, a, b in [-span, span].

    He et al. 2023, Eq. 7. x' is crafted anew at every point by PGD (step eps/4), since an example crafted at theta says
    little about other weights (Wu et al. 2020). BatchNorm's statistics stay as they are. The model is left as it was.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: clean images, (B, C, H, W) in [0, 1], on the model's device.
        y: class numbers, (B,).
        threat_model: norm and eps of the attack.
        filterwise: scale the directions filter by filter, see `direction`.
        points: an odd number a side, at least 3, so that theta itself is one.
        span: how far to go either way, in lengths of the directions.
        steps: of PGD; 0 takes the clean loss.
        seed: of both directions and of the attack, so that two models of one architecture are looked at along the same.
        on_point: called after each point.

    Raises:
        ValueError: for points that are even or fewer than 3.
    """
    if points < 3 or points % 2 == 0:
        raise ValueError(
            f"points must be odd and at least 3, so that the trained weights are one of them, got {points}"
        )
    generator, eps = torch.Generator().manual_seed(seed), threat_model.eps
    one, two = direction(model, generator, filterwise), direction(model, generator, filterwise)
    moved, at = copy.deepcopy(model).eval(), torch.linspace(-span, span, points).tolist()

    def loss(a: float, b: float) -> float:
        with torch.no_grad():
            for p, start, d1, d2 in zip(moved.parameters(), model.parameters(), one, two, strict=True):
                p.copy_(start + a * d1 + b * d2)
        torch.manual_seed(derived_seed(seed, 1))
        x_adv = pgd(moved, x, y, eps, eps / 4, steps, norm=threat_model.norm) if steps else x
        with attack_mode(moved), torch.no_grad():
            value = float(F.cross_entropy(moved(x_adv), y))
        on_point()
        return value

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        losses = [[loss(a, b) for b in at] for a in at]
    return Surface(at, losses, filterwise, len(x), steps, str(threat_model), seed)


def examples(
    model: nn.Module, x: Tensor, y: Tensor, threat_model: ThreatModel, steps: int = 20, seed: int = 0
) -> Examples:
    """The images, what PGD makes of them (step eps/4), and what the model sees in each; the model is left as it was.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: clean images, (B, C, H, W) in [0, 1], on the model's device.
        y: class numbers, (B,).
        threat_model: norm and eps of the attack.
        steps: of PGD.
        seed: of its random start.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        x_adv = pgd(model, x, y, threat_model.eps, threat_model.eps / 4, steps, norm=threat_model.norm)
    with attack_mode(model), torch.no_grad():
        predicted = torch.stack([model(x).argmax(1), model(x_adv).argmax(1)], dim=1)
    attack = f"PGD-{steps}, {threat_model}"
    return Examples(x.cpu(), x_adv.cpu(), y.cpu(), predicted.cpu(), attack)
