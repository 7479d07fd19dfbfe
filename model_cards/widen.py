"""A ResNet-20 as one of twice the width that computes the same: `python model_cards/widen.py MODEL TARGET`.

Every channel stands in it twice, and who reads it shares each weight out between the two: unequally, so that training
on can tell them apart (Chen et al. 2016, Net2Net, arXiv:1511.05641).
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

import piat_hub
from piat_hub.hub.save import ORIGIN, save_pretrained

UNEQUAL = 0.25  # standard deviation of the first channel's share around a half


def widened(tensor: Tensor, shape: torch.Size, noise: torch.Generator) -> Tensor:
    """A ResNet-20's tensor in the shape that the wide network has for it.

    Args:
        tensor: weights (outputs, inputs, …), or one number a channel.
        shape: of the wide network's, each of the first two dimensions the same or twice as large.
        noise: draws the shares.
    """
    if tensor.ndim and shape[0] > len(tensor):
        tensor = torch.cat([tensor, tensor])
    if tensor.ndim > 1 and shape[1] > tensor.shape[1]:
        share = 0.5 + UNEQUAL * torch.randn(tensor.shape, generator=noise)
        tensor = torch.cat([tensor * share, tensor * (1 - share)], 1)
    return tensor


def widen(model: Path, target: Path) -> None:
    """Write TARGET, a cifar_resnet20x2, from the cifar_resnet20 at MODEL; the same two give the same weights."""
    narrow = piat_hub.from_pretrained(str(model))
    wide = piat_hub.create_model("cifar_resnet20x2", num_classes=narrow.num_classes, in_chans=narrow.in_chans)
    noise, shapes = torch.Generator().manual_seed(0), {name: t.shape for name, t in wide.state_dict().items()}
    wide.load_state_dict({name: widened(t, shapes[name], noise) for name, t in narrow.state_dict().items()})
    wide.pretrained_cfg |= {key: narrow.pretrained_cfg.get(key) for key in ORIGIN}
    size = narrow.pretrained_cfg["input_size"]
    save_pretrained(wide, target, label_names=tuple(narrow.label_names), input_size=size)


if __name__ == "__main__":
    widen(*map(Path, sys.argv[1:]))
