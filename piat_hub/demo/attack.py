"""An attack, a step at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from piat_hub.attacks import attack_mode, cw, pgd
from piat_hub.attacks.core import usable
from piat_hub.config import InputError

ATTACKS = {"pgd": pgd, "cw": cw}  # a step of them needs the last image alone; MIM's would need its velocity


def watched(
    model: nn.Module, x: Tensor, y: Tensor | None, attack: str, norm: str, eps: float, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """x and the model's answer, then the same after each step of eps/4 of an attack that begins at x itself.

    It draws nothing, so the same question has the same answer, whoever else asks.

    Args:
        model: maps images in [0, 1] to logits (B, K); left as it was between two steps.
        x: clean images, (B, C, H, W) in [0, 1], on the model's device.
        y: class numbers, (B,); None for those that the model sees in x.
        attack: of `ATTACKS`.
        norm: "Linf" or "L2".
        eps: budget in pixel units; with 0 there is no step.
        steps: how many.

    Yields:
        x_adv (B, C, H, W), within eps of x and in [0, 1], and probabilities (B, K).

    Raises:
        InputError: as `pgd` does, or for logits that are none.
    """
    x_adv, answer = x, _answer(model, x)
    yield x_adv, answer
    y = answer.argmax(1) if y is None else y
    for _ in range(steps if eps else 0):
        x_adv = ATTACKS[attack](model, x, y, eps, eps / 4, 1, norm=norm, start=x_adv)
        yield x_adv, _answer(model, x_adv)


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    """Probabilities (B, K)."""
    with attack_mode(model) as frozen, torch.no_grad():
        logits = usable(frozen(x), x)
    if not logits.isfinite().all():
        raise InputError("the model gives NaN or Inf for this picture, which is no answer; take another picture")
    return logits.softmax(1)
