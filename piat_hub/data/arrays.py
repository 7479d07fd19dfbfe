"""Images and labels that someone else made: taken as what they mean, or refused in one line."""

from typing import Any

import torch
from torch import Tensor

from piat_hub.config import InputError

NEAR = 1e-3  # of a level, 4e-6 of the range: how far from n/255 a float may lie to be n


def images_of(given: Any, name: str) -> Tensor:
    """Images as (N, C, H, W) uint8, or float32 in [0, 1] where they are no multiples of 1/255.

    Args:
        given: (N, C, H, W) levels 0..255 of a whole-number type, or floats, in [0, 1] or whole levels.
        name: of the data set, for messages.

    Raises:
        InputError: for anything else; uint8 of four dimensions is never looked into.
    """
    images = _tensor(given, f"{name}: images", "(N, C, H, W)")
    shape = tuple(images.shape)
    if images.dim() != 4:
        add = "; images[:, None] adds the one channel of grey ones" if images.dim() == 3 else ""
        raise InputError(f"{name}: images must be (N, C, H, W), got {shape}{add}; give them this shape")
    if shape[3] in (1, 3, 4) and min(shape[1:3]) > 4:
        raise InputError(f"{name}: images of {shape} have their channels last; give images.permute(0, 3, 1, 2)")
    if images.dtype == torch.uint8 or not len(images):
        return images
    if images.dtype == torch.bool or images.is_complex():
        raise InputError(f"{name}: images must be levels 0..255 or floats in [0, 1], got {images.dtype}; convert them")
    exact = images.float()
    low, high = exact.min().item(), exact.max().item()
    if not (0 <= low <= high <= 255):  # NaN too
        raise InputError(
            f"{name}: images must be levels 0..255 or floats in [0, 1], got {images.dtype} from {low:g} to {high:g}; "
            "undo their normalisation, or scale them"
        )
    if not images.is_floating_point():
        if high <= 1:
            raise InputError(
                f"{name}: whole numbers must be levels 0..255, these are 0 and 1 alone; multiply them by 255"
            )
        return images.to(torch.uint8)
    levels = (exact if high > 1 else exact * 255).round()
    if high > 1 and not torch.equal(levels, exact):
        raise InputError(f"{name}: floats must lie in [0, 1], these reach {high:g}; divide them by 255, or clamp them")
    fits = high > 1 or (levels - exact * 255).abs().max().item() <= NEAR
    return levels.to(torch.uint8) if fits else exact


def labels_of(given: Any, n: int, classes: int, name: str) -> Tensor:
    """Labels as (N,) int64.

    Args:
        given: class numbers from 0, of any whole-number type.
        n: how many images there are.
        classes: how many classes; 0 where that is not known.
        name: of the data set, for messages.

    Raises:
        InputError: for another shape, length, type or range.
    """
    labels = _tensor(given, f"{name}: labels", "(N,)")
    if labels.dim() != 1:
        turn = "labels.argmax(1)" if labels.dim() == 2 and labels.shape[1] > 1 else "labels.flatten()"
        raise InputError(f"{name}: labels must be class numbers of shape (N,), got {tuple(labels.shape)}; give {turn}")
    if len(labels) != n:
        raise InputError(f"{name} has {n} images and {len(labels)} labels; there must be one for each")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{name}: labels must be whole numbers, got {labels.dtype}; give labels.long() if they are")
    labels = labels.long()
    if n and (labels.min() < 0 or (classes and labels.max() >= classes)):
        low, high = int(labels.min()), int(labels.max())
        most = f"0..{classes - 1}" if classes else "0 and above"
        raise InputError(f"{name}: labels run from {low} to {high}, they must lie in {most}; number the classes from 0")
    return labels


def _tensor(given: Any, what: str, shape: str) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must be a tensor {shape}, got a {type(given).__name__}; make one of them") from error
