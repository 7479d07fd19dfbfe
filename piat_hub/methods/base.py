"""What a method is, and the register of their names."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from piat_hub.attacks.core import at_least_fp32 as at_least_fp32, attack_mode
from piat_hub.config import InputError, lookup


class Attack(Protocol):
    """An attack with its budget bound: what a method calls to craft x_adv (B, C, H, W) in [0, 1].

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers (B,), or probabilities (B, K).
        **options: objective(logits, y), summed over the batch; start, "uniform" or a noise scale; on_step(k, logits),
            which may return (B,) bool, true where still moving; and whatever else `attacks.pgd` takes, eps and
            step_size per image too.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, /, **options: Any) -> Tensor: ...


class Method(Protocol):
    """(model, x (B, C, H, W) in [0, 1], y, attack, progress in [0, 1)) -> scalar loss, the mean over the batch.

    y are class numbers (B,), or where labels are smoothed or images blended probabilities (B, K): the loss is then its mean
    over classes so drawn, exactly where it is linear in the label. A method that needs the class itself, to tell whether an
    image is misclassified, sets `needs_class = True`: images are then never blended, and `likeliest` gives their class.
    One that looks into the steps of its attack, or has one of its own, sets `needs_pgd = True`; one whose loss is no
    mean over images, `needs_batch = True`: its batch is then never accumulated.

    A method that trains on each batch several times says how often in the attribute `replays`. One that has state
    offers `begin(config)`, which gives the callable of one run, with state_dict() and load_state_dict(): tensors by
    name, of one shape on all processes, which the run saves with the rest, a row for each process. See `free_at`.

    Args:
        model: maps images in [0, 1] to logits (B, K); in train mode, and wrapped where training is distributed.
        x: clean images of this process's micro-batch, (B, C, H, W) in [0, 1].
        y: class numbers (B,), or probabilities (B, K).
        attack: crafts the adversarial examples; by default it maximises cross-entropy from a uniform start.
        progress: share of the run's epochs that are done, in [0, 1).
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, progress: float) -> Tensor: ...


M = TypeVar("M", bound=type)
_METHODS: dict[str, Callable[..., Method]] = {}


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a method known under `name`.

    Args:
        name: what `get`, configurations and `--method` call it.

    Raises:
        InputError: for the name of a method of another module.
    """

    def add(cls: M) -> M:
        known = _METHODS.get(name, cls)
        if known.__module__ != cls.__module__:
            raise InputError(f"method {name!r} is {known.__module__}'s already; give yours another name")
        _METHODS[name] = cls
        return cls

    return add


def get(name: str) -> Callable[..., Method]:
    """The method's class, to be called with its hyper-parameters.

    Raises:
        InputError: for an unknown name, with the nearest one.
    """
    return lookup("method", name, _METHODS)


def names() -> tuple[str, ...]:
    """All registered methods."""
    return tuple(sorted(_METHODS))


def divergence(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """KL(p || p') of each image, (B,), from two logits (B, K).

    From log-probabilities on both sides: with a probability as target the gradient is NaN where one underflows.

    Args:
        logits: those of p, (B, K); the gradient flows through them too.
        logits_adv: those of p', (B, K).
    """
    log_p, log_p_adv = logits.log_softmax(1), logits_adv.log_softmax(1)
    return F.kl_div(log_p_adv, log_p, reduction="none", log_target=True).sum(1)


def probability_of(y: Tensor, p: Tensor) -> Tensor:
    """The probability p_y that each image's class has, (B,), or its mean over classes drawn from a soft target.

    Args:
        y: class numbers (B,), or probabilities (B, K).
        p: probabilities (B, K).
    """
    return p.gather(1, y[:, None]).squeeze(1) if y.dim() == 1 else (y * p).sum(1)


def likeliest(y: Tensor) -> Tensor:
    """Class numbers (B,), from themselves or from probabilities (B, K)."""
    return y if y.dim() == 1 else y.argmax(1)


def eval_logits(model: nn.Module, x: Tensor) -> Tensor:
    """The logits (B, K) that the attack starts from: eval mode, no gradient, at least fp32.

    Args:
        model: maps images in [0, 1] to logits; every module's mode is restored after.
        x: clean images, (B, C, H, W) in [0, 1].
    """
    with attack_mode(model) as frozen, torch.no_grad():
        return at_least_fp32(frozen(x))


def average(tensors: Iterable[Tensor | None]) -> None:
    """Give all processes the mean of their tensors, in place; nothing where there is one process.

    Args:
        tensors: of floating point, in the same order everywhere; None is left out.
    """
    if distributed.is_available() and distributed.is_initialized():
        for tensor in tensors:
            if tensor is not None:
                distributed.all_reduce(tensor)
                tensor.div_(distributed.get_world_size())
