"""Adversarial weight perturbation (Wu et al. 2020, arXiv:2004.05884): a context round loss and backward.

`craft` is the attack as a method calls it; the method's loss is computed twice, at w and at w + v, on one crafting.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Craft: TypeAlias = Callable[..., Tensor]  # an attack as methods call it


@contextmanager
def perturbed(
    model: nn.Module,
    gamma: float | None,
    craft: Craft,
    loss: Callable[[Craft], Tensor],
    mean: Callable[[Tensor], Tensor] = Tensor.detach,
) -> Iterator[Craft]:
    """Inside, each weight w is w + v, v = gamma ||w|| d / ||d||, d the loss's gradient at w; after, exactly w again.

    Weights are the parameters called so that have two or more dimensions (Wu et al. 2020, Eqs. 8-9, one step of a
    proxy). `loss` leaves no trace in BatchNorm's statistics; its scale does not matter. The weights are restored also
    after an exception; step the optimizer after the block (the authors step inside it, so that weight decay acts on
    w + v).

    Args:
        model: the bare module, changed in place for the block.
        gamma: size of v relative to w, 0.01 for AT and 0.005 for TRADES in the authors' code; None: nothing happens,
            `craft` itself is yielded.
        craft: the attack as methods call it.
        loss: the method's loss of this batch on `model`, from the attack that it is to call.
        mean: averages a flat tensor over processes.

    Yields:
        The attack to use inside, which gives back the examples crafted at w.
    """
    if gamma is None:
        yield craft
        return
    again = once(craft)
    weights: list[Tensor] = [
        w for name, w in model.named_parameters() if "weight" in name and w.dim() > 1 and w.requires_grad
    ]
    with frozen_statistics(model):
        gradients = torch.autograd.grad(loss(again()), weights, materialize_grads=True)
    flat = mean(torch.cat([d.flatten() for d in gradients]))
    before = [w.detach().clone() for w in weights]
    try:
        with torch.no_grad():
            for w, d in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
                v = gamma * w.norm() / d.norm().clamp_min(1e-20) * d.view_as(w)
                w.add_(v.nan_to_num(0, 0, 0))  # a gradient that overflowed in half precision moves nothing
        yield again()
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, before)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, forwards in train mode leave no trace: the buffers, BatchNorm's running statistics, are put back after.

    Args:
        model: its buffers are put back also after an exception.
    """
    buffers = list(model.buffers())
    before = [b.clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for b, was in zip(buffers, before, strict=True):
                b.copy_(was)


def once(craft: Craft) -> Callable[[], Craft]:
    """A maker of attacks that share one crafting: the first one crafts, the later ones give back what it crafted.

    A method calls its attack in the same order each time: the n-th call of a later attack gives the n-th examples, and
    its on_step sees the logits of every step again.

    Args:
        craft: the attack as methods call it.

    Returns:
        A function that makes one such attack at each call.
    """
    crafted: list[tuple[Tensor, list[tuple[int, Tensor]]]] = []  # examples, and (k, logits) of each step

    def make() -> Craft:
        calls = itertools.count()

        def attack(model: nn.Module, x: Tensor, y: Tensor, /, **options: Any) -> Tensor:
            call, on_step = next(calls), options.pop("on_step", None)
            if call < len(crafted):
                for k, logits in crafted[call][1] if on_step else ():
                    on_step(k, logits)
                return crafted[call][0]
            seen: list[tuple[int, Tensor]] = []

            def watch(k: int, logits: Tensor) -> Any:
                seen.append((k, logits))
                return on_step(k, logits)

            options |= {"on_step": watch} if on_step else {}  # not every attack takes one
            crafted.append((craft(model, x, y, **options), seen))
            return crafted[call][0]

        return attack

    return make
