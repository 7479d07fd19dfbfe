"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083, Eq. 1; He et al. 2023, Eq. 2)."""

from typing import Any

import torch
from torch import Tensor, nn

from piat_hub.attacks.core import (
    Budget,
    Objective,
    OnStep,
    Start,
    ascend,
    attack_mode,
    choose,
    cross_entropy,
    look,
    register,
)
from piat_hub.config import InputError, ThreatModel


@register
def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Budget = 8 / 255,
    step_size: Budget | None = None,
    steps: int = 10,
    *,
    norm: str = "Linf",
    objective: Objective = cross_entropy,
    start: Start = "uniform",
    restarts: int = 1,
    on_step: OnStep | None = None,
    momentum: float | None = None,
    noise: float = 0.0,
    leave: bool = False,
    clip: bool = True,
) -> Tensor:
    """Adversarial examples by projected gradient ascent (Madry et al. 2018, Eq. 1; He et al. 2023, Eq. 2).

    Args:
        model: maps images in [0, 1] to logits (B, K); attacked in eval mode with frozen weights, restored after.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers (B,), or probabilities (B, K) for an objective that takes them, with one restart and no leaving.
        eps: perturbation budget in pixel units, 8/255 for eight levels; or per image, (B, 1, 1, 1).
        step_size: length of a step in pixel units, at most 2 eps; or per image, (B, 1, 1, 1); eps/4 if None.
        steps: iterations.
        norm: "Linf" (sign steps) or "L2" (steps along the gradient, of length step_size).
        objective: objective(logits (B, K), y), summed over the batch, is maximised.
        start: "uniform" in the ball, or the scale in pixel units of Gaussian noise on x (0: x itself), projected; or the
            starting points (B, C, H, W), which only the steps after them project.
        restarts: independent tries; an image keeps the first that misleads the model, or else the last.
        on_step: called as on_step(k, logits) before update k = 0..steps-1; may return (B,) bool, true where still
            moving.
        momentum: see `mim`; None for none.
        noise: scale in pixel units of Gaussian noise added at every step.
        leave: an image leaves, and costs no more, at the first step at which it is misclassified.
        clip: project onto the ball after every step; without, eps is the start's alone, and x_adv may lie outside.

    Returns:
        x_adv, (B, C, H, W), in [0, 1] and, clipped, within eps of x.

    Raises:
        InputError: a ValueError, for images outside [0, 1] and whatever else `core.look` refuses, an unknown norm, an
            eps or step that is none for it (see `budgets`), steps < 0, restarts < 1, `leave` together with on_step or a
            budget per image, or a model without a gradient.
    """
    if restarts < 1 or steps < 0:
        raise InputError(f"restarts must be at least 1 and steps at least 0, got {restarts} and {steps}")
    largest = look(model, x, y, soft=restarts == 1 and not leave)
    eps, step_size = budgets(x, norm, eps, step_size)
    if not len(x):
        return x.clone()
    inner: dict[str, Any] = {"norm": norm, "objective": objective, "start": start, "noise": noise}
    inner |= {"on_step": on_step, "momentum": momentum, "leave": leave, "largest": largest, "clip": clip}
    x_adv = ascend(model, x, y, eps, step_size, steps, **inner)
    for _ in range(restarts - 1):
        with attack_mode(model) as frozen, torch.no_grad():
            standing = frozen(x_adv).argmax(1) == y
        again = ascend(model, x, y, eps, step_size, steps, **inner)
        x_adv = choose(standing, again, x_adv)
    return x_adv


def budgets(x: Tensor, norm: str, eps: Budget, step_size: Budget | None = None) -> tuple[Budget, Budget]:
    """(eps, step size), once they are such: numbers within their bounds, or one for each image.

    Args:
        x: clean images, (B, C, H, W).
        norm: "Linf", "L2" or "L1".
        eps: budget in pixel units; or per image, (B, 1, 1, 1), whose values are not looked at.
        step_size: length of a step, likewise; eps/4 if None.

    Raises:
        InputError: for an unknown norm, an eps that is none for it (Linf: 0 < eps <= 1), a step outside (0, 2 eps], or a
            tensor of another shape, which would be read as a budget per row or column.
    """
    eps = _budget(x, "eps", eps)
    step_size = eps / 4 if step_size is None else _budget(x, "step_size", step_size)
    if not isinstance(eps, Tensor):
        threat_model = ThreatModel(norm, eps)  # type: ignore[arg-type]  # or InputError: 8 levels is 8/255
        if not isinstance(step_size, Tensor):
            threat_model.check_step(step_size)
    return eps, step_size


def _budget(x: Tensor, name: str, value: Budget) -> Budget:
    if not isinstance(value, Tensor) or not value.dim():
        return float(value)
    each = (len(x), *[1] * (x.dim() - 1))
    if value.shape != each:
        raise InputError(f"{name} is of shape {tuple(value.shape)}; give one number, or one for each image, {each}")
    return value
