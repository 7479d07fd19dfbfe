"""What every gradient attack shares: the frozen model, the starting point, the steepest step, the projection."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piat_hub.attacks import l1
from piat_hub.config import InputError, ThreatModel
from piat_hub.machine import device_of

Objective: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (logits (B, K), y (B,) or (B, K)) -> a sum over the batch
OnStep: TypeAlias = Callable[[int, Tensor], Tensor | None]  # (k, logits) -> (B,) bool, true where still moving
Start: TypeAlias = Literal["uniform"] | float | Tensor  # a tensor: the starting points, (B, C, H, W)
Budget: TypeAlias = float | Tensor  # one number, or (B, 1, 1, 1)
Ball: TypeAlias = tuple[Callable[..., Tensor], Callable[[Tensor], Tensor], Callable[..., Tensor]]

A = TypeVar("A", bound=Callable[..., Tensor])
ROUNDING = 1e-6  # what resizing adds to the range of images
INFERENCE = "attacks follow gradients, which torch.inference_mode() forbids; torch.no_grad() around the call is fine"
NO_MODULE = "the model is a {}, not an nn.Module; wrap it in one"
NO_GRADIENT = (
    "the model gives no gradient of its logits for the image (no_grad, detach, argmax or numpy in its forward?); "
    "take that out, or ask for an attack without gradients: square"
)
NO_L1 = "pgd, mim and cw step under Linf and L2 alone; under L1 ask for aa, one of its parts, or apgd100"
SUITES = ("clean", "aa", "fast", "malt", "square")  # what else an evaluation knows by name
ATTACKS: dict[str, Callable[..., Tensor]] = {}  # what an evaluation may ask for by name, with a step count as suffix


def register(attack: A) -> A:
    """Decorator: an evaluation finds (model, x, y, eps, step_size, steps, *, norm) -> x_adv by its function's name.

    Args:
        attack: takes images (B, C, H, W) in [0, 1], class numbers (B,), eps and step_size in pixel units, and gives
            x_adv of the shape of x. It is passed only what its signature has, all for any keyword: also `leave=True`,
            and `restarts` where an evaluation asks for more than one. One that has no eps seeks the nearest example of each
            image, at any distance, of which an evaluation makes a curve.

    Raises:
        InputError: for a name that an evaluation could not ask for: of other letters than a-z and _, of a suite, or of an
            attack of another module.
    """
    name = attack.__name__
    if not re.fullmatch("[a-z_]+", name) or name in SUITES:
        raise InputError(f"an attack called {name!r} cannot be asked for; use letters a-z and _, and none of {SUITES}")
    if (known := ATTACKS.get(name) or attack).__module__ != attack.__module__:
        raise InputError(f"attack {name!r} is {known.__module__}'s already; give yours another name")
    ATTACKS[name] = attack
    return attack


def look(model: nn.Module, x: Tensor, y: Tensor, *, soft: bool = False) -> int:
    """Refuse what no attack can be asked, in one line; what a public attack does first.

    It waits for the device once. Training and evaluation, whose images are in [0, 1] as they are made, call `ascend`.

    Args:
        model: an nn.Module.
        x: images, (B, C, H, W), floats in [0, 1].
        y: class numbers, (B,) int64, on the device of x and of the model.
        soft: y may be probabilities, (B, K), too.

    Returns:
        The largest class number in y, -1 where there is none.

    Raises:
        InputError: a ValueError, for anything else, and under torch.inference_mode().
    """
    if torch.is_inference_mode_enabled():
        raise InputError(INFERENCE)
    if not isinstance(model, nn.Module):
        raise InputError(NO_MODULE.format(type(model).__name__))
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(f"x is {kind}; attacks take floats in [0, 1]: piat_hub.data.to_unit(images)")
    if x.dim() != 4:
        raise InputError(f"x has shape {tuple(x.shape)}, not (B, C, H, W); give a batch, of one image x[None]")
    soft = soft and isinstance(y, Tensor) and y.is_floating_point() and y.dim() == 2 and len(y) == len(x)
    if not soft and (not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]):
        kind = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise InputError(f"y is {kind}; give the class number of each image, int64 of shape ({len(x)},)")
    places = {t.device for t in (x, y, *model.parameters())}
    if x.device != y.device or (len(places) == 2 and x.device not in {p.device for p in model.parameters()}):
        raise InputError(f"the model is on {device_of(model)}, x on {x.device}, y on {y.device}; put all on one device")
    if not len(x):
        return -1
    low, high, least, largest = torch.stack([t.float() for t in (*x.aminmax(), *y.aminmax())]).tolist()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        found = "holds NaN" if low != low else f"lies in [{low:.4g}, {high:.4g}]"
        raise InputError(
            f"x {found}; attacks take images in [0, 1] and eps in the same units: "
            "scale the images, and put the normalisation inside the model"
        )
    if least < 0:
        raise InputError(f"y holds {least:g}; class numbers begin at 0, and so do probabilities")
    return -1 if soft else int(largest)


def usable(logits: Any, x: Tensor, largest: int = -1) -> Tensor:
    """The logits that a model gave for x, refused in one line if no attack can do with them.

    Args:
        logits: what the model returned for x.
        x: images, (B, C, H, W); where they require a gradient the logits must have one.
        largest: the largest class number asked about, as far as it is known.

    Raises:
        InputError: unless they are a tensor (B, K), K is above `largest`, and a gradient leads back to x.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        shape = (
            f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        )
        own = "return its .logits" if hasattr(logits, "logits") else "return that"
        raise InputError(
            f"the model returns {shape} for {len(x)} images, not logits of shape (B, classes); let it {own}"
        )
    if largest >= logits.shape[1]:
        raise InputError(
            f"y holds {largest}, the model has {logits.shape[1]} classes, from 0; give the model's own numbers"
        )
    if x.requires_grad and not logits.requires_grad:
        raise InputError(NO_GRADIENT)
    return logits


def at_least_fp32(logits: Tensor) -> Tensor:
    """The logits in fp32, or wider where they are: losses are never computed in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def gap(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{k != y} z_k of each image, (B,): above 0 where it is classified correctly.

    Args:
        logits: z, (B, K).
        y: class numbers, (B,).
    """
    return logits.gather(1, y[:, None]).squeeze(1) - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def choose(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Images of one where a condition holds, else of the other.

    Args:
        condition: (B,) bool.
        yes: (B, …).
        no: (B, …).
    """
    return torch.where(_per_image(condition, yes), yes, no)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy summed over the batch; a mean would shrink the gradients of low precision.

    Args:
        logits: (B, K).
        y: class numbers (B,), or probabilities (B, K).
    """
    return F.cross_entropy(logits, y, reduction="sum")


@contextmanager
def attack_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Every module in eval mode and every weight frozen; each module's own mode and each flag are put back after.

    They are put back also after an exception.

    Args:
        model: changed in place for the block.

    Yields:
        The same model.
    """
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.eval()
        for p, _ in flags:
            p.requires_grad_(False)
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for p, flag in flags:
            p.requires_grad_(flag)


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Budget,
    step_size: Budget,
    steps: int,
    *,
    norm: str = "Linf",
    objective: Objective = cross_entropy,
    start: Start = "uniform",
    on_step: OnStep | None = None,
    momentum: float | None = None,
    noise: float = 0.0,
    leave: bool = False,
    largest: int = -1,
    clip: bool = True,
) -> Tensor:
    """The one attack loop: `steps` steepest-ascent steps on `objective` inside the ball and the box [0, 1].

    He et al. 2023, Eq. 2; with momentum Dong et al. 2018, Eqs. 6-7.

    Args:
        model: see `pgd` for this and all that follows but momentum.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        eps: budget in pixel units, one number or (B, 1, 1, 1).
        step_size: length of a step in pixel units, one number or (B, 1, 1, 1).
        steps: iterations; 0 gives the starting points.
        norm: "Linf" or "L2".
        objective: (logits (B, K), y) -> a sum over the batch, which is maximised.
        start: "uniform", the scale of Gaussian noise in pixel units, or the starting points.
        on_step: (k, logits) -> None or (B,) bool, true where still moving.
        momentum: None for PGD; a number accumulates gradients of unit mean size, as MIM does.
        noise: scale of the Gaussian noise added at every step, in pixel units.
        leave: images stop at the first step at which they are misclassified.
        largest: the largest number in y, if it is known; it is held against the logits.
        clip: project onto the ball after every step; without, eps is the start's alone.

    Returns:
        x_adv, (B, C, H, W), in [0, 1] and, clipped, within eps of x.

    Raises:
        InputError: for an unknown norm, an eps (as one number) that is none for it, `leave` together with on_step or a
            budget per image, or a model without a gradient.
    """
    if norm == "L1":
        raise InputError(NO_L1)
    if leave and (on_step or isinstance(eps, Tensor) or isinstance(step_size, Tensor)):
        raise InputError("images cannot leave an attack that has on_step or a budget per image; leave out one of them")
    x, velocity = x.detach(), torch.zeros_like(x)
    x_adv = start_at(x, eps, norm, start)
    final = x_adv.clone() if leave else x_adv
    place = torch.arange(len(x), device=x.device)  # where each image stands in the batch
    with attack_mode(model) as frozen, torch.enable_grad():
        for k in range(steps):
            x_adv.requires_grad_()
            logits = at_least_fp32(usable(frozen(x_adv), x_adv, largest))
            (gradient,) = torch.autograd.grad(objective(logits, y), x_adv, allow_unused=True)
            if gradient is None:
                raise InputError(NO_GRADIENT)
            moving = on_step(k, logits.detach()) if on_step else None
            if leave:
                x_adv = x_adv.detach()
                final[place] = x_adv  # whoever stays is written again
                stay = (logits.argmax(1) == y).nonzero()[:, 0]  # how many they are is all that is waited for
                if not len(stay):
                    break
                if len(stay) < len(place):
                    place, x, y, x_adv, gradient, velocity = (t[stay] for t in (place, x, y, x_adv, gradient, velocity))
            if momentum is not None:
                size = gradient.abs().flatten(1).mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
                gradient = velocity = momentum * velocity + gradient / _per_image(size, x)
            x_adv = x_adv.detach()
            noisy = x_adv + noise * torch.randn_like(x) if noise else x_adv
            moved = climb(noisy, gradient, x, eps if clip else math.inf, step_size, norm).clamp(0, 1)
            x_adv = moved if moving is None else choose(moving, moved, x_adv)
    if not leave:
        return x_adv.detach()
    final[place] = x_adv.detach()
    return final


def start_at(x: Tensor, eps: Budget, norm: str, start: Start) -> Tensor:
    """Where an attack begins, (B, C, H, W), within eps of x and in [0, 1].

    Args:
        x: clean images, (B, C, H, W) in [0, 1].
        eps: budget in pixel units, one number or (B, 1, 1, 1).
        norm: "Linf", "L2" or "L1".
        start: "uniform", the scale of Gaussian noise in pixel units, or the points themselves, which only the box holds.

    Raises:
        InputError: for an unknown norm, or an eps (as one number) that is none for it.
    """
    uniform, _, project = ball(norm)
    if not isinstance(eps, Tensor):
        ThreatModel(norm, float(eps))  # type: ignore[arg-type]  # or InputError: 8 levels is 8/255
    if isinstance(start, Tensor):
        return start.detach().clamp(0, 1)
    x_adv = x + uniform(x, eps) if start == "uniform" else x + float(start) * torch.randn_like(x)
    return project(x_adv, x, eps).clamp(0, 1)


def ball(norm: str) -> Ball:
    """What a norm means to an attack: a draw from the ball, the unit step of steepest ascent, the projection.

    Args:
        norm: "Linf", "L2" or "L1".

    Returns:
        Three functions, `uniform(x, eps)` -> delta, `steepest(gradient)` -> step, `project(x_adv, x, eps)` -> x_adv. L1's
        step is shared by all entries of the gradient that are not zero: `l1.thinned` leaves few.

    Raises:
        InputError: for another norm.
    """
    if norm not in BALLS:
        raise InputError(f"norm {norm!r} is unknown; choose Linf, L2 or L1")
    return BALLS[norm]


def climb(x_adv: Tensor, gradient: Tensor, x: Tensor, eps: Budget, step_size: Budget, norm: str) -> Tensor:
    """x_adv after one step of steepest ascent along the gradient, projected onto the ball around x.

    Args:
        x_adv: where the step begins, (B, C, H, W).
        gradient: of the objective at x_adv, (B, C, H, W).
        x: centre of the ball, (B, C, H, W).
        eps: radius in pixel units, one number or (B, 1, 1, 1).
        step_size: length of the step in pixel units, one number or (B, 1, 1, 1).
        norm: "Linf" (a sign step), "L2" (a step along the gradient) or "L1" (see `ball`).

    Returns:
        The new x_adv; it may lie outside [0, 1].

    Raises:
        InputError: for another norm.
    """
    _, steepest, project = ball(norm)
    return project(x_adv + step_size * steepest(gradient), x, eps)


def distances(delta: Tensor, norm: str) -> Tensor:
    """How far each image is moved, (B,).

    Args:
        delta: (B, C, H, W).
        norm: "Linf", "L2" or "L1".
    """
    return torch.linalg.vector_norm(delta.flatten(1), powers(norm)[0], dim=1)


def powers(norm: str) -> tuple[float, float]:
    """The p of a norm, and that of its dual, in which a gradient tells how fast a logit falls.

    Args:
        norm: "Linf", "L2" or "L1".

    Raises:
        InputError: for another norm.
    """
    ball(norm)
    return {"Linf": (math.inf, 1.0), "L2": (2.0, 2.0), "L1": (1.0, math.inf)}[norm]


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to broadcast over images like x."""
    return values.view(-1, *[1] * (x.dim() - 1))


def _length(delta: Tensor) -> Tensor:
    """L2 length of each image's delta, shaped to broadcast, never zero."""
    length = _per_image(delta.flatten(1).norm(dim=1), delta)
    return length.clamp_min(torch.finfo(delta.dtype).tiny)


def _uniform_linf(x: Tensor, eps: Budget) -> Tensor:
    return (2 * torch.rand_like(x) - 1) * eps


def _uniform_l2(x: Tensor, eps: Budget) -> Tensor:
    direction = torch.randn_like(x)
    radius = torch.rand(len(x), device=x.device, dtype=x.dtype) ** (1 / x[0].numel())
    return direction / _length(direction) * _per_image(radius, x) * eps


def _project_linf(x_adv: Tensor, x: Tensor, eps: Budget) -> Tensor:
    return torch.minimum(torch.maximum(x_adv, x - eps), x + eps)


def _project_l2(x_adv: Tensor, x: Tensor, eps: Budget) -> Tensor:
    delta = x_adv - x
    return x + delta * (eps / _length(delta)).clamp(max=1)


# norm -> (a draw from the ball, the unit step of steepest ascent, the projection onto the ball)
BALLS: dict[str, Ball] = {
    "Linf": (_uniform_linf, torch.sign, _project_linf),
    "L2": (_uniform_l2, lambda gradient: gradient / _length(gradient), _project_l2),
    "L1": (l1.uniform, l1.step, l1.project),
}
