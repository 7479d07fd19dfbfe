"""Whether a model is right about an image: fp32, deterministic, on the model itself."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from piat_hub.attacks import Twin, attack_mode
from piat_hub.attacks.core import distances, usable
from piat_hub.config import InputError, first_line
from piat_hub.data import Split, derived_seed, to_unit
from piat_hub.evaluation.suites import Stage
from piat_hub.machine import device_of


def twin_of(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> nn.Module:
    """What to attack in the model's place: its twin with BatchNorm folded, or itself where nothing folds.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        x: an example batch, (B, C, H, W) in [0, 1].
        dtype: bf16 for a twin in half precision; None for the model's own.

    Raises:
        InputError: for a model without a twin where one in half precision is wanted.
    """
    try:
        twin = Twin(model, x, dtype)
    except Exception as error:  # anyone's model: one that cannot be copied, or looked into, is attacked as it is
        if dtype:
            raise InputError(
                f"the model cannot be copied to search in half precision ({error}); leave that out"
            ) from error
        return model
    return twin if twin.folded or dtype else model


def reach(model: nn.Module, attacked: nn.Module, stage: Stage, norm: str, x: Tensor, y: Tensor) -> Tensor:
    """How far from each image the example lies that a minimum-norm stage finds on `attacked`, (B,); inf where it is none.

    Args:
        model: gives the verdicts.
        attacked: the model or its twin, on which the examples are crafted.
        stage: (model, x, y) -> x_adv.
        norm: in which the distance is meant.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
    """
    x_adv, standing = examples(model, attacked, stage, x, y)
    return distances(x_adv - x, norm).masked_fill(standing, torch.inf)


def stands(model: nn.Module, attacked: nn.Module, stage: Stage, x: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: the model's class is still y after the stage on `attacked`; see `examples`.

    Args:
        model: gives the verdicts.
        attacked: the model or its twin, on which the examples are crafted.
        stage: (model, x, y) -> x_adv.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
    """
    return examples(model, attacked, stage, x, y)[1]


def examples(model: nn.Module, attacked: nn.Module, stage: Stage, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(what the stage gives on `attacked`, (B,) bool: the model's class for it is still y).

    Where that one is misled and by a rounding the model is not, the stage is run again, on the model itself. Pixels that are
    not finite, as a gradient that is not may make them, are put back: something that is no image misleads nobody.

    Args:
        model: gives the verdicts.
        attacked: the model or its twin, on which the examples are crafted.
        stage: (model, x, y) -> x_adv.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
    """
    x_adv = _finite(stage(attacked, x, y), x)
    standing = correct(model, x_adv, y)
    if attacked is not model and (again := standing & ~correct(attacked, x_adv, y)).any():
        x_adv = x_adv.index_put((again,), _finite(stage(model, x[again], y[again]), x[again]))
        standing[again] = correct(model, x_adv[again], y[again])
    return x_adv, standing


def _finite(x_adv: Tensor, x: Tensor) -> Tensor:
    """x_adv with the pixels of x where its own are not finite."""
    return torch.where(x_adv.isfinite(), x_adv, x)


def survives(
    model: nn.Module, attacked: nn.Module, stage: Stage, x: Tensor, y: Tensor, most: int, seed: int
) -> tuple[Tensor, int]:
    """`stands`, with as many images at a time as the device's memory allows.

    Args:
        model: gives the verdicts.
        attacked: the model or its twin, on which the examples are crafted.
        stage: (model, x, y) -> x_adv.
        x: clean images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
        most: images at a time.
        seed: of the stage's randomness.

    Returns:
        (B,) bool, true where the model's class is still y, and how many images went at a time.
    """
    return as_memory_allows(partial(stands, model, attacked, stage), x, y, most, seed)


def as_memory_allows(
    work: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, most: int, seed: int
) -> tuple[Tensor, int]:
    """(what `work` gives for each image, how many went at a time).

    Args:
        work: (x, y) -> (B,), on a part of the images.
        x: images, (B, C, H, W).
        y: class numbers, (B,).
        most: images at a time, halved as often as the device's memory asks for.
        seed: set in the global generators before each try.

    Raises:
        torch.OutOfMemoryError: if one image alone is too many.
    """
    while True:
        torch.manual_seed(seed)
        try:
            return torch.cat([work(*part) for part in zip(x.split(most), y.split(most), strict=True)]), most
        except torch.OutOfMemoryError:
            if (most := min(most, len(x)) // 2) < 1:
                raise
        torch.cuda.empty_cache()


def logits_of(model: nn.Module, x: Tensor, what: str, again: str) -> Any:
    """What the model gives for images, whatever that is; anyone's model may not take them.

    Args:
        model: any.
        x: images, (B, C, H, W) in [0, 1], moved to its device.
        what: the images are, in words.
        again: what to do where it cannot take them.

    Raises:
        InputError: where it raises.
    """
    try:
        with attack_mode(model), torch.no_grad():
            return model(x.to(device_of(model)))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = first_line(error)
        raise InputError(f"the model cannot take {what}: {reason}; {again}") from error


def class_count(model: nn.Module, split: Split) -> int:
    """The number of classes the model tells apart.

    Args:
        model: maps images in [0, 1] to logits (B, K); tried on the split's first two images.
        split: its data.

    Raises:
        InputError: if the model cannot take the images, changes them, does not return logits (B, K), or the data has
            another count.
    """
    x = to_unit(split.images[:2]).to(device_of(model))
    what = f"the {'x'.join(map(str, split.shape))} images of {split.name}"
    again = "name the data it is for with --dataset, or their size with --img-size"
    logits = logits_of(model, given := x.clone(), what, again)
    usable(logits, x)
    if not torch.equal(given, x):
        raise InputError(
            "the model changes the images it is given, so what was attacked is not what it judged; "
            "let its forward work on a copy: x = x.clone()"
        )
    classes, known = logits.shape[1], len(split.label_names)
    if classes < known or (classes > known and not split.inferred):
        raise InputError(
            f"the model has {classes} classes and {split.name} has {known}; "
            "name the data it was trained for with --dataset"
        )
    return classes


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: the model's class is y. Logits that are not finite are never correct.

    Args:
        model: maps images in [0, 1] to logits (B, K); in eval mode for this, restored after.
        x: images, (B, C, H, W) in [0, 1].
        y: class numbers, (B,).
    """
    with attack_mode(model):
        return right(model(x), y)


def right(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: the class is y. Logits (B, K) that are not finite are never right."""
    return (logits.argmax(1) == y) & logits.isfinite().all(1)


def accuracy(
    model: nn.Module,
    split: Split,
    stage: Stage | None = None,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> int:
    """How many of this rank's share of the split the model gets right, after `stage` if one is given.

    The quick check inside training; images already wrong when clean stay wrong.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        split: the images, on the model's device.
        stage: (model, x, y) -> x_adv, run on the images that are right when clean.
        batch_size: images at a time, halved as often as the device's memory asks for.
        seed: a batch's randomness is derived from it, the batch and the rank.
        rank: this process's, from 0.
        world: how many processes share the split, a batch each in turn.

    Returns:
        A count of images.
    """
    count, most, attacked = 0, batch_size, twin_of(model, to_unit(split.images[:2])) if stage else model

    def withstand(x: Tensor, y: Tensor) -> Tensor:
        verdict = correct(model, x, y)
        if stage is not None and verdict.any():
            x, y = x[verdict], y[verdict]
            verdict = correct(model, _finite(stage(attacked, x, y), x), y)
        return verdict

    for batch, index in enumerate(torch.arange(len(split)).split(batch_size)[rank::world]):
        drawn = derived_seed(seed, batch * world + rank)
        verdict, most = as_memory_allows(withstand, to_unit(split.images[index]), split.labels[index], most, drawn)
        count += int(verdict.sum())
    return count


@contextmanager
def verdict_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in fp32 with TF32 and autocast off: itself if it is fp32, else a copy; all is put back after.

    On a GPU convolutions are also deterministic, so that the same question has the same verdicts.

    Args:
        model: left as it is.

    Yields:
        The model to ask.
    """
    cudnn, onednn = torch.backends.cudnn, cast(Any, torch.backends.mkldnn)
    # a CPU's, which have no older names
    newer: list[Any] = [onednn.conv, onednn.rnn] if hasattr(onednn, "conv") else []
    was: list[tuple[Any, str, Any, Any]] = []
    precision: str | None = None
    try:
        was = [(cudnn, "allow_tf32", cudnn.allow_tf32, False)]
        precision = torch.get_float32_matmul_precision()  # of every backend, a CPU's bf16 too
    except RuntimeError:  # torch refuses these names once anyone has used the newer ones
        was, newer = [], [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, onednn.matmul, *newer]  # type: ignore[attr-defined]
    was += [(part, "fp32_precision", part.fp32_precision, "ieee") for part in newer]
    was_deterministic, cudnn.deterministic = cudnn.deterministic, True
    try:
        if precision:
            torch.set_float32_matmul_precision("highest")
        for part, name, _, off in was:
            setattr(part, name, off)
        devices = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices=devices), torch.autocast(device_of(model).type, enabled=False):
            plain = all(p.dtype == torch.float32 for p in model.parameters())
            yield model if plain else copy.deepcopy(model).float()
    finally:
        cudnn.deterministic = was_deterministic
        if precision:
            torch.set_float32_matmul_precision(precision)
        for part, name, value, _ in was:
            setattr(part, name, value)
