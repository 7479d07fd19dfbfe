"""Normalisation inside a model, so that it takes images in [0, 1]: a layer before its first convolution, or folded into that."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from piat_hub.config import InputError


class Normalize(nn.Module):
    """(x - mean) / std of images (B, C, H, W) in [0, 1], before the stem's convolution.

    Args:
        mean: (C,), for images in [0, 1].
        std: (C,), above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The normalised images, (B, C, H, W)."""
        return (x - self.mean) / self.std


def normalized(conv: nn.Module, mean: Tensor, std: Tensor) -> nn.Sequential:
    """A convolution that takes images in [0, 1] and pads them, where it does, after their normalisation.

    Args:
        conv: takes normalised images (B, C, H, W).
        mean: (C,), for images in [0, 1].
        std: (C,), above 0.
    """
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), conv=conv))


def behind(conv: nn.Conv2d, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The convolution, behind the normalisation by mean and std, one number a channel each; itself where both are empty.

    Args:
        conv: takes normalised images (B, C, H, W).
        mean: for images in [0, 1].
        std: each above 0.

    Raises:
        InputError: unless they fit its channels.
    """
    return normalized(conv, *per_channel(mean, std, conv.in_channels)) if mean or std else conv


def per_channel(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[Tensor, Tensor]:
    """(mean, std), (C,) each.

    Args:
        mean: for images in [0, 1], one number a channel.
        std: each above 0.
        channels: of the images.

    Raises:
        InputError: unless they fit the channels.
    """
    if len(mean) != channels or len(std) != channels or not all(s > 0 for s in std):
        raise InputError(
            f"mean {mean} and std {std} must be {channels} numbers each, std above 0; give one per channel"
        )
    return torch.tensor(mean).float(), torch.tensor(std).float()


def unpadded(model: nn.Module) -> bool:
    """Whether images enter by convolutions with a bias and without padding."""
    first = [model.get_submodule(path) for path in first_convolutions(model)]
    return all(isinstance(c, nn.Conv2d) and c.bias is not None and c.padding in (0, (0, 0)) for c in first)


def first_convolutions(model: Any) -> list[str]:
    """The submodules that images enter by, as timm records them (RepVGG has two)."""
    first = model.pretrained_cfg["first_conv"]
    return [first] if isinstance(first, str) else list(first)


def statistics(model: Any) -> tuple[Tensor, Tensor]:
    """(mean, std), (C,) each; for other than 3 channels the mean over red, green and blue."""
    both = (torch.tensor(model.pretrained_cfg[name]) for name in ("mean", "std"))
    mean, std = (t if model.in_chans == 3 else t.mean().expand(model.in_chans) for t in both)
    return mean.clone(), std.clone()


def normalize_before(model: Any, mean: Tensor, std: Tensor) -> None:
    """A `Normalize` before each first convolution; exact also where that pads.

    Args:
        model: of timm's, which takes normalised images; changed in place.
        mean: (C,), for images in [0, 1].
        std: (C,), above 0.
    """
    paths = first_convolutions(model)
    for path in paths:
        model.set_submodule(path, normalized(model.get_submodule(path), mean, std))
    first = tuple(f"{path}.conv" for path in paths)
    model.pretrained_cfg["first_conv"] = model._traits["first_conv"] = first[0] if len(first) == 1 else first


@torch.no_grad()
def fold_normalization(model: Any) -> None:
    """Change the patch projection's weight and bias so that it takes images in [0, 1]: exact, as it does not pad."""
    mean, std = (t.view(1, -1, 1, 1) for t in statistics(model))
    for path in first_convolutions(model):
        conv = model.get_submodule(path)
        conv.weight.div_(std)
        conv.bias.sub_((conv.weight * mean).sum((1, 2, 3)))
