"""What a figure takes for granted of a model, tried before the first attack: a function of one image, with a gradient.

An image leaves an attack at the first step that misleads the model, and is judged beside other images than it was
attacked beside. Both are right only for a function of one image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from piat_hub.attacks import attack_mode, core, cross_entropy
from piat_hub.config import InputError, first_line
from piat_hub.data import Encoded, to_unit
from piat_hub.evaluation.verdict import as_memory_allows, right

TRIED = 1000  # images that the premises are tried on
TWICE = 1e-5  # how far rounding takes the logits of the same batch apart, as a share of their spread
BESIDE = 1e-2  # and those of another batch, where other kernels may run, in bf16 within the model too


@dataclass(frozen=True)
class Premises:
    """What was found.

    Attributes:
        random: how far two passes over the same batches lie apart, as a share of the logits' spread; 0 for rounding.
        beside: how far the logits lie apart when other images, and fewer, are in the batch; 0 for rounding.
        lost: how many of the images have logits that are NaN or Inf.
        tried: how many images were tried.
    """

    random: float
    beside: float
    lost: int
    tried: int

    @property
    def function(self) -> bool:
        """The model is a function of one image."""
        return not self.random and not self.beside

    def facts(self, batch_size: int) -> dict[str, Any]:
        """What results.json says of every attack on a model that is no function of one image."""
        return ({} if self.function else {"whole": True}) | ({"batch_size": batch_size} if self.beside else {})

    def notes(self, batch_size: int) -> list[str]:
        """What must stand beside every figure."""
        whole = (
            "so PGD, MIM and CW ran all their steps on every image, and the verdict is the answer to the last example; "
            "what other attacks leave is an upper bound, since they stop at what may be luck"
        )
        found = []
        if self.random:
            found.append(f"two passes of the model over the same images differ: each figure is one draw, {whole}")
        if self.beside:
            found.append(
                "the model's answer for an image depends on what else is in its batch: "
                f"figures are of batches of {batch_size} in the data's order, {whole}"
            )
        if self.lost:
            found.append(
                f"{self.lost} of the first {self.tried} images have logits that are NaN or Inf, which count as misclassified"
            )
        return found


def first_pass(
    model: nn.Module, images: Tensor | Encoded, labels: Tensor, batch_size: int, n: int
) -> tuple[Tensor, Tensor, int]:
    """The clean verdicts of the batches that hold the first n images, and what `examine` wants of them.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        batch_size: images of a batch.
        n: how many images, at least one.

    Returns:
        (at least n,) bool, true where the class is right; the logits of the first TRIED of these, (M, K); and how many
        images the device's memory took at a time.
    """
    verdicts, tried, most = [], [], batch_size
    for number, index in enumerate(torch.arange(len(labels)).split(batch_size)[: -(-n // batch_size)]):
        logits, most = answers(model, images, labels, index, most, 0)
        verdicts.append(right(logits, labels[index]))
        tried.append(logits[: max(0, TRIED - number * batch_size)])
    return torch.cat(verdicts), torch.cat(tried), most


def examine(
    model: nn.Module,
    images: Tensor | Encoded,
    labels: Tensor,
    batch_size: int,
    logits: Tensor,
    least: Callable[[Tensor], Tensor],
) -> Premises:
    """Try the first images twice more, a few at a time, and hold the answers against each other and the first pass.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        batch_size: in which the first pass was made.
        logits: of the first images in that pass, (M, K).
        least: the smallest of a tensor over all processes, so that all go by the same.
    """
    few = max(2, min(batch_size, len(labels)) // 32)
    index = torch.arange(len(logits)).split(few)

    def again(seed: int) -> Tensor:
        return torch.cat([answers(model, images, labels, i, few, seed)[0] for i in index])

    try:
        first, second = again(1), again(2)
        random = apart(first, second, TWICE)
        beside = 0.0 if random else apart(logits, first, BESIDE)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError):  # of another batch size it makes nothing at all
        random, beside = 0.0, torch.inf
    lost = (~logits.isfinite()).any(1).sum()
    found = -least(-torch.tensor([random, beside, lost], device=logits.device))
    return Premises(float(found[0]), float(found[1]), int(found[2]), len(logits))


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the cross-entropy for the images, (B, C, H, W).

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).

    Raises:
        InputError: if there is none, in torch's own words where it has some.
    """
    x = x.clone().requires_grad_()
    try:
        with attack_mode(model) as frozen, torch.enable_grad():
            loss = cross_entropy(core.usable(frozen(x), x).float(), y)
            (found,) = torch.autograd.grad(loss, x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise InputError(f"{core.NO_GRADIENT} (torch: {first_line(error)})") from error
    return found


def gradient_notes(model: nn.Module, x: Tensor, y: Tensor, follows: bool) -> list[str]:
    """What must be said of the model's gradient beside every figure.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: a few images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        follows: an attack will follow it.

    Raises:
        InputError: if one will and there is none.
    """

    def moves(x: Tensor, y: Tensor) -> Tensor:
        found = gradient(model, x, y).flatten(1)
        return torch.stack([(found.isfinite() & (found != 0)).any(1), ~found.isfinite().all(1)], 1)

    try:
        found, _ = as_memory_allows(moves, x, y, len(x), 0)
    except InputError:
        if follows:
            raise
        return ["the model gives no gradient, and no attack here follows one"]
    some, broken = found.any(0).tolist()
    if broken:
        return [
            f"the gradient is not finite at {int(found[:, 1].sum())} of the first {len(x)} images: attacks that follow it "
            "stand still at such pixels, and figures may be too high"
        ]
    if some:
        return []
    return [f"the gradient is zero at each of the first {len(x)} images, and attacks that follow it find nothing there"]


def answers(
    model: nn.Module, images: Tensor | Encoded, labels: Tensor, index: Tensor, most: int, seed: int
) -> tuple[Tensor, int]:
    """The model's logits for a batch, and how many images the device's memory took at a time.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        index: which of them, (B,).
        most: images at a time.
        seed: of the randomness that the model may hold.
    """

    @torch.no_grad()
    def answer(x: Tensor, y: Tensor) -> Tensor:
        with attack_mode(model):
            logits: Tensor = model(x)
        return logits

    return as_memory_allows(answer, to_unit(images[index]), labels[index], most, seed)


def apart(a: Tensor, b: Tensor, rounding: float) -> float:
    """The largest difference of two (M, K) logits, as a share of their mean spread; 0 up to `rounding`, inf for NaN in one.

    Args:
        a: logits.
        b: logits for the same images.
        rounding: the share that counts as none.
    """
    whole = a.isfinite().all(1)
    if not torch.equal(whole, b.isfinite().all(1)):
        return torch.inf
    a, b = a[whole].float(), b[whole].float()
    if not len(a):
        return 0.0
    difference, spread = (a - b).abs().max(), (a.amax(1) - a.amin(1)).mean()
    return float(difference / spread) if difference > rounding * spread else 0.0
