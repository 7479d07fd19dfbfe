"""Any timm model for the images at hand."""

from typing import Any

import timm
import torch
from torch import nn

from piat_hub.backbones import small_image
from piat_hub.config import InputError, nearest

OURS = ["cifar_*", "*_cvst"]  # what we register, but for small_image
SIZED = ("small_image", "vit_small_cvst", "vit_base_cvst")  # those of ours that are built for one size of image


def create_model(
    name: str, *, num_classes: int = 10, in_chans: int = 3, img_size: int | None = None, **kwargs: Any
) -> nn.Module:
    """Build a timm model, ours or any other, with random weights, or pretrained=True where timm has weights.

    Args:
        name: as in `timm.list_models()`, e.g. "cifar_resnet18".
        num_classes: classes, the K of the logits.
        in_chans: channels of the images.
        img_size: the side of its square images in pixels, which adapts timm's own models to them (see small_image.py;
            ours take any size, but vit_*_cvst). With pretrained=True it is by default that of the weights.
        **kwargs: of the model, passed to timm; pretrained=True among them.

    Returns:
        A model that maps images (B, in_chans, H, W) in [0, 1] to logits (B, num_classes). With neither img_size nor
        pretrained=True, timm's own models are timm's, untouched.

    Raises:
        InputError: for an unknown name, with the nearest one; a family that has no rule for small images; or a model or
            weights that cannot be had.
    """
    kwargs |= {"num_classes": num_classes, "in_chans": in_chans}
    if not timm.is_model(name.partition(".")[0]):
        mine = timm.list_models(OURS)
        guess = nearest(name, mine) or nearest(name, timm.list_models())
        raise InputError(f"unknown backbone {name!r}{guess}; ours: {', '.join(mine)}; timm.list_models() has the rest")
    if ours(name):
        sized = {"img_size": img_size} if name in SIZED and img_size else {}
        return small_image.made(name, img_size or 32, **kwargs, **sized)
    if img_size is None and kwargs.get("pretrained"):
        img_size = timm.get_pretrained_cfg(name).input_size[-1]
    if img_size is None:
        return timm.create_model(name, **kwargs)
    plain = not {"mean", "std", "features_only"} & {k for k, v in kwargs.items() if v}
    if plain and small_image.family(name) in small_image.KEYWORDS:
        model = small_image.adapt(name, img_size, **dict(kwargs))
        if small_image.folds(name, model):  # plain timm can rebuild it from its own arguments
            return model
    return timm.create_model("small_image", base=name, img_size=img_size, **kwargs)


def ours(name: str) -> bool:
    """Whether a registered backbone is not one of timm's own: it takes images of any size as it is."""
    return not timm.models.model_entrypoint(name.partition(".")[0]).__module__.startswith("timm.")


def checkpoint_gradients(model: Any) -> None:
    """Keep fewer activations and compute them again in backward (timm's set_grad_checkpointing), in place.

    BatchNorm sees a batch once all the same: a forward that is repeated leaves its statistics alone.

    Args:
        model: built by timm or `create_model`.

    Raises:
        InputError: for a family in which timm cannot do it.
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
