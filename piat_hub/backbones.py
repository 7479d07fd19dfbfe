"""timm backbones for small images, registered with timm under names of their own.

Every backbone takes images in [0, 1], without normalisation. The classes are timm's own with the ImageNet stem (7x7,
stride 2, max-pool) replaced by a 3x3 convolution of stride 1, as is usual for 32x32 images.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

from piat_hub import small_image
from piat_hub.config import InputError, nearest


class CifarResNet(ResNet):
    """He et al. 2016's residual network for 32x32 images: 3x3 stem of `stem_chs` channels, no max-pool, stride 1."""

    def __init__(self, *args: Any, in_chans: int = 3, stem_chs: int = 64, **kwargs: Any) -> None:
        # timm derives the stem's width from a "deep" stem only; that stem is then replaced by the 3x3 one
        super().__init__(
            *args, in_chans=in_chans, stem_type="deep", stem_width=stem_chs // 2, zero_init_last=False, **kwargs
        )
        self.conv1 = nn.Conv2d(in_chans, stem_chs, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        if not hasattr(self, "layer4"):
            self.layer4 = nn.Sequential()  # three stages; timm's forward calls four
        _divide_reductions(self)


class CifarWideResNet(ResNetV2):
    """Zagoruyko & Komodakis 2016's wide, pre-activation residual network: three stages after a 3x3 stem."""

    def __init__(self, *args: Any, in_chans: int = 3, **kwargs: Any) -> None:
        super().__init__(*args, in_chans=in_chans, stem_chs=16, **kwargs)
        conv = nn.Conv2d(in_chans, 16, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(OrderedDict(conv=conv))
        _divide_reductions(self)


def _divide_reductions(model: nn.Module) -> None:
    """timm counts its stem as stride 4 (2 before the pool); here it is 1."""
    for info in model.feature_info:  # type: ignore[union-attr]
        info["reduction"] = max(1, info["reduction"] // 4)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 32, 32),
        "num_classes": 10,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet8.untrained": _cfg(first_conv="conv1", classifier="fc"),
        "cifar_resnet18.untrained": _cfg(first_conv="conv1", classifier="fc"),
        "cifar_resnet20.untrained": _cfg(first_conv="conv1", classifier="fc"),
        "cifar_wrn_32_10.untrained": _cfg(first_conv="stem.conv", classifier="head.fc"),
    }
)


def _resnet(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    kwargs.setdefault("num_classes", 10)
    return build_model_with_cfg(CifarResNet, variant, pretrained, **kwargs)


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Three basic blocks of 16, 32 and 64 channels (He et al. 2016, Sec. 4.2, n = 1): for 8x8 digits and tests."""
    return _resnet("cifar_resnet8", pretrained, **_basic([1, 1, 1], 16), **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 (He et al. 2016, Sec. 4.2, n = 3), with 1x1 convolutions in the two widening shortcuts."""
    return _resnet("cifar_resnet20", pretrained, **_basic([3, 3, 3], 16), **kwargs)


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with a CIFAR stem, the paper's: 11,173,962 parameters at 10 classes."""
    return _resnet("cifar_resnet18", pretrained, block=BasicBlock, layers=[2, 2, 2, 2], **kwargs)


@register_model
def cifar_wrn_32_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-32-10 as Madry counts (others say WRN-34-10): 5 blocks a stage, 46,160,474 parameters at 10 classes."""
    kwargs.setdefault("num_classes", 10)
    shape = {"layers": [5, 5, 5], "channels": (160, 320, 640), "basic": True, "preact": True, "bottle_ratio": 1.0}
    layers = {"norm_layer": BatchNormAct2d, "conv_layer": create_conv2d}
    return build_model_with_cfg(CifarWideResNet, "cifar_wrn_32_10", pretrained, **shape, **layers, **kwargs)


def _basic(layers: list[int], width: int) -> dict[str, Any]:
    return {"block": BasicBlock, "layers": layers, "channels": (width, 2 * width, 4 * width), "stem_chs": width}


def create_model(
    name: str, *, num_classes: int = 10, in_chans: int = 3, img_size: int | None = None, **kwargs: Any
) -> nn.Module:
    """Build a timm model, ours or any other, with random weights, or pretrained=True where timm has weights.

    Args: name as in `timm.list_models()`, e.g. "cifar_resnet18"; img_size: the side of its square images, which adapts
    timm's own models to them (see small_image.py; ours take any size), with pretrained=True by default that of the
    weights; kwargs go to timm. The model maps (B, in_chans, H, W) in [0, 1] to (B, num_classes) logits. Raises
    InputError for an unknown name, with the nearest one, and for a family that has no rule for small images.
    """
    kwargs |= {"num_classes": num_classes, "in_chans": in_chans}
    if not timm.is_model(name.partition(".")[0]):
        mine = timm.list_models("cifar_*")
        guess = nearest(name, mine) or nearest(name, timm.list_models())
        raise InputError(f"unknown backbone {name!r}{guess}; ours: {', '.join(mine)}; timm.list_models() has the rest")
    if ours(name):
        sized = {"img_size": img_size} if name == "small_image" and img_size else {}
        return small_image.made(name, img_size or 32, **kwargs, **sized)
    if img_size is None and kwargs.get("pretrained"):
        img_size = timm.get_pretrained_cfg(name).input_size[-1]
    if img_size is None:
        return timm.create_model(name, **kwargs)
    if small_image.family(name) in small_image.KEYWORDS:
        model = small_image.build(name, img_size, **dict(kwargs))
        if small_image.folds(name, model):  # plain timm can rebuild it from its own arguments
            return model
    return timm.create_model("small_image", base=name, img_size=img_size, **kwargs)


def ours(name: str) -> bool:
    """Whether a registered backbone is not one of timm's own: it takes images of any size as it is."""
    return not timm.models.model_entrypoint(name.partition(".")[0]).__module__.startswith("timm.")


def checkpoint_gradients(model: Any) -> None:
    """Keep fewer activations and compute them again in backward (timm's set_grad_checkpointing), in place.

    BatchNorm sees a batch once all the same: a forward that is repeated leaves its statistics alone. InputError for a
    family in which timm cannot do it.
    """
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        name = type(model).__name__
        raise InputError(f"{name} has no gradient checkpointing in timm; leave out --gradient-checkpointing") from error

    def hold(norm: Any, _: Any) -> None:
        if norm.training and torch._C._current_graph_task_id() != -1:  # a forward inside a backward
            norm.held, norm.momentum = norm.momentum, 0.0
            norm.num_batches_tracked.sub_(1)  # it adds one

    def release(norm: Any, *_: Any) -> None:
        if "held" in vars(norm):
            norm.momentum = vars(norm).pop("held")

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.register_forward_pre_hook(hold)
            module.register_forward_hook(release, always_call=True)  # a forward is broken off once it has what it needs
