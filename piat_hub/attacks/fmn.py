"""FMN, the fast minimum-norm attack (Pintor et al. 2021, arXiv:2102.12827): the nearest example of each image that it finds."""

import math

import torch
from torch import Tensor, nn

from piat_hub.attacks.core import (
    at_least_fp32,
    attack_mode,
    ball,
    choose,
    distances,
    gap,
    look,
    powers,
    register,
    usable,
)
from piat_hub.config import InputError

STEP_SIZE = (1.0, 0.01)  # L2 length of the first step and of the last, falling as a cosine
GAMMA = (0.05, 0.001)  # share by which the radius changes, likewise


@register
def fmn(model: nn.Module, x: Tensor, y: Tensor, steps: int = 100, *, norm: str = "Linf") -> Tensor:
    """Each image's nearest adversarial example, by descent of z_y - max z_k inside a radius that is moved to the boundary.

    Pintor et al. 2021, Alg. 1: an image that is misled takes a smaller radius than its best example's, one that is not a
    larger one; before the first example the radius is a little beyond where a linear model would be misled (theirs is there
    itself, and rounding may keep an image on this side of it for ever).

    Args:
        model: maps images in [0, 1] to logits z (B, K); attacked in eval mode with frozen weights, restored after.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        steps: iterations.
        norm: "Linf", "L2" or "L1", in which nearness is meant.

    Returns:
        x_adv, (B, C, H, W) in [0, 1], at any distance of x; x itself where no example was found.

    Raises:
        InputError: as `pgd` does.
    """
    if steps < 0:
        raise InputError(f"steps must be at least 0, got {steps}")
    (_, dual), (_, _, project) = powers(norm), ball(norm)
    largest = look(model, x, y)
    now = best = x.detach()
    nearest = radius = torch.full_like(y, torch.inf, dtype=x.dtype)  # (B,), of the best example, and of the ball
    least = torch.finfo(x.dtype).tiny
    with attack_mode(model) as frozen, torch.enable_grad():
        for k in range(steps if len(x) else 0):
            fallen = (1 + math.cos(math.pi * k / steps)) / 2
            step_size, gamma = (last + (first - last) * fallen for first, last in (STEP_SIZE, GAMMA))
            now = now.detach().requires_grad_()
            logits = at_least_fp32(usable(frozen(now), now, largest))
            height = gap(logits, y)
            (gradient,) = torch.autograd.grad(height.sum(), now)
            now, misled = now.detach(), logits.argmax(1) != y
            moved = distances(now - x, norm)
            better = misled & (moved < nearest)
            nearest = torch.where(better, moved, nearest)
            best = choose(better, now, best)
            linear = moved + height.detach() / gradient.flatten(1).norm(dual, dim=1).clamp_min(least)
            outwards = torch.where(nearest.isfinite(), radius, linear) * (1 + gamma)
            radius = torch.where(misled, torch.minimum(radius * (1 - gamma), nearest), outwards)
            step = step_size / gradient.flatten(1).norm(dim=1).clamp_min(least)
            stepped = now - step[:, None, None, None] * gradient
            now = project(stepped, x, radius[:, None, None, None]).clamp(0, 1)
    return best
