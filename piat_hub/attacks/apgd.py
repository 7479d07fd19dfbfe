"""APGD from the image on: an inner attack of training in few steps (Singh, Croce & Hein 2023), and an attack under L1."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.attacks import l1
from piat_hub.attacks.core import (
    Budget,
    Objective,
    Start,
    at_least_fp32,
    attack_mode,
    ball,
    choose,
    climb,
    cross_entropy,
    look,
    register,
    start_at,
    usable,
)
from piat_hub.attacks.pgd import budgets
from piat_hub.config import InputError

MOMENTUM = 0.75  # share of a new step; the rest repeats the step before
RISES = 0.75  # share of the steps up to a checkpoint at which the objective is to rise
SHORTER = 1.5  # by which L1 steps are shortened


@register
def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Budget = 8 / 255,
    steps: int = 2,
    *,
    norm: str = "Linf",
    objective: Objective = cross_entropy,
    start: Start = 0.0,
    leave: bool = False,
) -> Tensor:
    """Adversarial examples by ascent that chooses its own steps, each image's best kept (Croce & Hein 2020, Alg. 1).

    Steps begin at 2 eps. At checkpoints, with ten steps or fewer after each one, an image whose objective rose too rarely, or
    not at all at an unchanged step size, goes on from its best point with half the step. As in the authors' code the first
    step counts as a rise, and the last point's gradient is never computed: n steps cost n + 1 forwards and n backwards.

    Under L1 (Croce & Hein 2021, Alg. 1) a step of eps moves few entries: a fifth, then two thirds as many as the best point
    has moved. At checkpoints, a 25th of the steps apart, an image whose best point has moved fewer than before goes on
    from it with steps of eps; for the others they are shortened, down to eps/10.

    Args:
        model: maps images in [0, 1] to logits (B, K); attacked in eval mode with frozen weights, restored after.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers (B,), or probabilities (B, K) for an objective that takes them.
        eps: perturbation budget in pixel units, 8/255 for eight levels; or per image, (B, 1, 1, 1).
        steps: iterations; Singh et al. 2023 train with 2.
        norm: "Linf", "L2" or "L1".
        objective: objective(logits (B, K), y), a sum over the batch of what each image has of its own.
        start: "uniform" in the ball, or the scale in pixel units of Gaussian noise on x; 0 is x itself, as they train.
        leave: for an image that was misclassified on the way, the last such point in place of that of the highest objective.

    Returns:
        x_adv, (B, C, H, W), within eps of x and in [0, 1].

    Raises:
        InputError: a ValueError, for images outside [0, 1] and whatever else `core.look` refuses, an unknown norm or an
            eps that is none for it, steps < 0, or a model without a gradient.
    """
    if steps < 0:
        raise InputError(f"steps must be at least 0, got {steps}")
    largest = look(model, x, y, soft=not leave)
    eps, _ = budgets(x, norm, eps)
    if not len(x):
        return x.clone()
    options: dict[str, Any] = {"norm": norm, "objective": objective, "start": start}
    return few_steps(model, x, y, eps, steps, **options, leave=leave, largest=largest)


def few_steps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Budget,
    steps: int,
    *,
    norm: str = "Linf",
    objective: Objective = cross_entropy,
    start: Start = 0.0,
    leave: bool = False,
    largest: int = -1,
) -> Tensor:
    """`apgd` without a look at what it is given, which would make a GPU wait; what training calls.

    Args:
        model: see `apgd` for this and all that follows.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers (B,), or probabilities (B, K).
        eps: budget in pixel units, one number or (B, 1, 1, 1).
        steps: iterations.
        norm: "Linf", "L2" or "L1".
        objective: (logits (B, K), y) -> a sum over the batch, which is maximised.
        start: "uniform", the scale of Gaussian noise in pixel units, or the starting points.
        leave: give a misclassified point where there was one.
        largest: the largest number in y, if it is known; it is held against the logits.
    """
    if norm == "L1":
        return _sparse_steps(model, x, y, eps, steps, objective, start, leave, largest)
    (_, _, project), x = ball(norm), x.detach()
    now = before = best = start_at(x, eps, norm, start)
    step_size = 2 * eps * torch.ones_like(x[:, :1, :1, :1])  # (B, 1, 1, 1)
    waiting = interval = max(int(0.22 * steps), 1)  # steps to the next checkpoint, and between the last two
    shrink, least = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    with attack_mode(model) as frozen, torch.enable_grad():
        first, gradient = ask(frozen, now, y, objective, largest=largest)
        value = highest = at_checkpoint = of_each(objective, first, first, y)  # (B,)
        best_gradient = gradient
        rises, halved = torch.ones_like(value), torch.ones_like(value, dtype=torch.bool)
        misled = Misled(first, now, y) if leave else None
        for k in range(steps):
            stepped = climb(now, gradient, x, eps, step_size, norm).clamp(0, 1)
            share = MOMENTUM if k else 1.0
            moved = project(now + share * (stepped - now) + (1 - share) * (now - before), x, eps).clamp(0, 1)
            before, now, last = now, moved, value
            logits, gradient = ask(frozen, now, y, objective, more=k + 1 < steps)
            value = of_each(objective, logits, first, y)
            if misled:
                misled.note(logits, now, y)
            rises = rises + (value > last) if k else rises
            better = value > highest
            highest = torch.where(better, value, highest)
            best, best_gradient = choose(better, now, best), choose(better, gradient, best_gradient)
            waiting -= 1
            if not waiting:
                halved = (rises <= RISES * interval) | (~halved & (at_checkpoint >= highest))
                at_checkpoint, rises = highest, torch.zeros_like(rises)
                step_size = choose(halved, step_size / 2, step_size)
                now, gradient = choose(halved, best, now), choose(halved, best_gradient, gradient)
                waiting = interval = max(interval - shrink, least)
    return misled.or_else(best) if misled else best


def _sparse_steps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Budget,
    steps: int,
    objective: Objective,
    start: Start,
    leave: bool,
    largest: int,
) -> Tensor:
    """`few_steps` under L1."""
    x, entries = x.detach(), x[0].numel()
    now = best = start_at(x, eps, "L1", start)
    longest = eps * torch.ones_like(x[:, :1, :1, :1])  # (B, 1, 1, 1)
    step_size, checkpoint = longest, max(int(0.04 * steps), 1)
    given = (now != x).flatten(1).sum(1)
    moved = given if isinstance(start, Tensor) else torch.full_like(given, entries)  # (B,) entries of the best point
    most = _two_thirds(moved) if isinstance(start, Tensor) else torch.full_like(given, -(-entries // 5))
    with attack_mode(model) as frozen, torch.enable_grad():
        first, gradient = ask(frozen, now, y, objective, largest=largest)
        highest, best_gradient = of_each(objective, first, first, y), gradient
        misled = Misled(first, now, y) if leave else None
        for k in range(steps):
            now = climb(now, l1.thinned(gradient, most), x, eps, step_size, "L1")
            logits, gradient = ask(frozen, now, y, objective, more=k + 1 < steps)
            value = of_each(objective, logits, first, y)
            if misled:
                misled.note(logits, now, y)
            better = value > highest
            highest = torch.where(better, value, highest)
            best, best_gradient = choose(better, now, best), choose(better, gradient, best_gradient)
            if (k + 1) % checkpoint == 0:
                before, moved = moved, (best != x).flatten(1).sum(1)
                fewer, most = moved < 0.95 * before, _two_thirds(moved)
                step_size = choose(fewer, longest, (step_size / SHORTER).maximum(longest / 10))
                now, gradient = choose(fewer, best, now), choose(fewer, best_gradient, gradient)
    return misled.or_else(best) if misled else best


class Misled:
    """Of each image the last point at which it was misclassified.

    Args:
        logits: at the first points, (B, K).
        x_adv: the first points, (B, C, H, W).
        y: class numbers, (B,).
    """

    def __init__(self, logits: Tensor, x_adv: Tensor, y: Tensor) -> None:
        self.known, self.x_adv = logits.argmax(1) != y, x_adv

    def note(self, logits: Tensor, x_adv: Tensor, y: Tensor) -> None:
        """Look at the next points.

        Args:
            logits: at them, (B, K).
            x_adv: the points, (B, C, H, W).
            y: class numbers, (B,).
        """
        wrong = logits.argmax(1) != y
        self.known, self.x_adv = self.known | wrong, choose(wrong, x_adv, self.x_adv)

    def or_else(self, best: Tensor) -> Tensor:
        """These points, and of images without one those in `best`, (B, C, H, W)."""
        return choose(self.known, self.x_adv, best)


def _two_thirds(counts: Tensor) -> Tensor:
    """Two thirds of each, rounded up, at least one."""
    return ((2 * counts + 2) // 3).clamp_min(1)


def ask(
    model: nn.Module, x_adv: Tensor, y: Tensor, objective: Objective, more: bool = True, largest: int = -1
) -> tuple[Tensor, Tensor]:
    """(logits (B, K) in at least fp32, the objective's gradient) at x_adv; zeros for it where no step follows.

    Args:
        model: frozen, in eval mode.
        x_adv: (B, C, H, W) in [0, 1].
        y: class numbers (B,), or probabilities (B, K).
        objective: a sum over the batch.
        more: whether the gradient is needed.
        largest: the largest number in y, if it is known; it is held against the logits.

    Raises:
        InputError: for what `core.usable` refuses.
    """
    with torch.set_grad_enabled(more):
        x_adv = x_adv.detach().requires_grad_(more)
        logits = at_least_fp32(usable(model(x_adv), x_adv, largest))
        gradient = torch.autograd.grad(objective(logits, y), x_adv)[0] if more else torch.zeros_like(x_adv)
    return logits.detach(), gradient


def of_each(objective: Objective, logits: Tensor, first: Tensor, y: Tensor) -> Tensor:
    """What each image adds to the objective, (B,), less what it added at its first logits.

    An objective gives a sum and nothing else: it is asked once for each image, with that image's logits among the first ones
    of all others. Cross-entropy is asked at once.

    Args:
        objective: a sum over the batch of what each image has of its own.
        logits: (B, K), where the images are now.
        first: (B, K), where they began.
        y: class numbers (B,), or probabilities (B, K).
    """
    if objective is cross_entropy:
        return F.cross_entropy(logits, y, reduction="none") - F.cross_entropy(first, y, reduction="none")
    row = torch.arange(len(logits), device=logits.device)[:, None]
    asked = [objective(torch.where(row == i, logits, first), y) for i in range(len(logits))]
    return torch.stack(asked) - objective(first, y)
