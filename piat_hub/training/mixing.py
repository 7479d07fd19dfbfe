"""Soft targets: label smoothing, and timm's Mixup and CutMix, drawn anew from a step's own seed."""

import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from piat_hub.config import MixingConfig
from piat_hub.data import seeded


def mixed(x: Tensor, y: Tensor, mixing: MixingConfig, classes: int) -> tuple[Tensor, Tensor]:
    """The batch as it is trained on: as it is, or with soft targets, and blended where that is asked for.

    A batch is blended whole, image i with image -i by one share, by Mixup or CutMix in half of the batches each where
    both are asked for; smoothing gives every class smoothing / K of a label, as in timm.

    Args:
        x: images, (B, C, H, W) in [0, 1]; changed in place. B is even where they are blended.
        y: class numbers, (B,).
        mixing: what is asked for.
        classes: K.

    Returns:
        Images like x, and class numbers (B,) or probabilities (B, K).
    """
    if mixing.blends:
        shares = {"mixup_alpha": mixing.mixup, "cutmix_alpha": mixing.cutmix, "label_smoothing": mixing.smoothing}
        with seeded(int(torch.randint(2**32, ()))):  # by the CPU's generator, which each step seeds
            return Mixup(num_classes=classes, **shares)(x, y)
    return x, mixup_target(y, classes, smoothing=mixing.smoothing) if mixing.smoothing else y
