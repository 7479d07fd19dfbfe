"""Checkpoints whose tensors have the names of a timm model: Swin, XCiT, ViT, ConvNeXt, ResNet and whatever else timm has.

torchvision's ResNets have timm's names too, and with them the ImageNet models of MadryLab's robustness. What a model of
another time calls otherwise, timm renames itself.
"""

import importlib
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from piat_hub.backbones import ours
from piat_hub.config import InputError, first_line


def fit(
    found: Mapping[str, Tensor], architecture: str, img_size: int | None, normalised: bool
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """What timm builds the model by, and its whole state_dict; classes, channels and depth are read off the tensors.

    Args:
        found: the tensors of a checkpoint by name.
        architecture: timm's name, of timm's own models or ours.
        img_size: pixels a side; by default the architecture's usual size.
        normalised: by a mean and a std that follow. timm's own models always are, as small_image would take theirs.

    Returns:
        The name of a timm model, its arguments, if normalised by mean 0 and std 1 as yet, and its tensors.

    Raises:
        InputError: naming the first tensor that does not fit.
    """
    cfg, normalised = timm.get_pretrained_cfg(architecture), normalised or not ours(architecture)
    sized = {"img_size": img_size} if img_size and cfg.fixed_input_size else {}
    sketch: Any = _sketch(architecture, sized)
    weights = renamed(found, sketch, architecture)
    stem, head = (f"{_all(name)[0]}.weight" for name in (cfg.first_conv, cfg.classifier))
    for name in (stem, head):
        if name not in weights or weights[name].ndim < 2:
            raise InputError(f"nothing is there for {name!r}")
    arguments: dict[str, Any] = {"in_chans": weights[stem].shape[1], "num_classes": len(weights[head])}
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    if depth != len(getattr(sketch, "blocks", ())):
        arguments["depth"] = depth
    unit = {"mean": [0.0] * arguments["in_chans"], "std": [1.0] * arguments["in_chans"]} if normalised else {}
    if ours(architecture):
        built, arguments = architecture, arguments | sized | unit
    else:
        size = img_size or cfg.input_size[-1]
        built, arguments = "small_image", {"base": architecture, "img_size": size} | arguments | unit
    weights = behind(weights, cfg.first_conv) if normalised else weights
    return built, arguments, whole(weights, _sketch(built, arguments).state_dict(), {})


def behind(weights: Mapping[str, Tensor], first_conv: str | tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors as a model names them whose first convolutions stand behind a normalisation.

    Args:
        weights: as the model names them without one.
        first_conv: timm's record of what images enter by.
    """
    first = re.compile(rf"({'|'.join(map(re.escape, _all(first_conv)))})\.(\w+)")
    return {first.sub(r"\1.conv.\2", name) if first.fullmatch(name) else name: t for name, t in weights.items()}


def whole(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], theirs: Mapping[str, str]
) -> dict[str, Tensor]:
    """The state_dict of an architecture from a checkpoint's tensors, which must be all of it and nothing else.

    Args:
        weights: by the architecture's names.
        expected: the architecture's own state_dict, which may be without memory.
        theirs: what the checkpoint calls each of them, for messages, where that is known to be another name.

    Returns:
        The tensors, a head that is a 1x1 convolution here viewed as one, and zeros for counts of batches that are not there.

    Raises:
        InputError: naming the first tensor that is missing, too many, or of another shape.
    """
    complete = {}
    for name, tensor in weights.items():
        called = theirs.get(name, name)
        if name not in expected:
            raise InputError(f"{called!r} has no place in it")
        if tensor.ndim == 2:
            tensor = tensor.view(tensor.shape + (1,) * (expected[name].ndim - 2))
        if tensor.shape != expected[name].shape:
            wanted = f"{list(weights[name].shape)}, where the others want {list(expected[name].shape)}"
            raise InputError(f"{called!r} has shape {wanted}")
        complete[name] = tensor
    for name, tensor in expected.items():
        if name not in weights:
            if not name.endswith("num_batches_tracked"):
                raise InputError(f"nothing is there for our {name!r}")
            complete[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return complete


def renamed(found: Mapping[str, Tensor], sketch: nn.Module, architecture: str) -> dict[str, Tensor]:
    """The tensors by today's names, as the family's own filter in timm gives them.

    Args:
        found: by the names of a checkpoint.
        sketch: the model, which may be without memory.
        architecture: timm's name of it, for messages.

    Raises:
        InputError: where the filter fails, or would change a tensor itself: resampled, it were another model's.
    """
    filtered = getattr(importlib.import_module(type(sketch).__module__), "checkpoint_filter_fn", None)
    if not filtered or found.keys() <= sketch.state_dict().keys():
        return dict(found)
    try:
        weights: dict[str, Tensor] = filtered(dict(found), sketch)
    except Exception as error:  # it is written for checkpoints of its family alone
        raise InputError(f"its tensors are none of {architecture}'s ({type(error).__name__})") from error
    theirs = {tensor.untyped_storage().data_ptr() for tensor in found.values()}
    for name, tensor in weights.items():
        if tensor.untyped_storage().data_ptr() not in theirs:
            advice = "name the model, and the --img-size, that it was trained as"
            raise InputError(f"{name!r} is of another size than {architecture}'s: {advice}")
    return weights


def _sketch(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model without memory."""
    try:
        with torch.device("meta"):
            return timm.create_model(architecture, **arguments)
    except Exception as error:  # timm passes on whatever its models raise
        reason = first_line(error)
        raise InputError(f"{architecture} cannot be built with {dict(arguments)}: {reason}") from error


def _all(name: str | tuple[str, ...]) -> tuple[str, ...]:
    """A model's heads or stems, of which it may have several."""
    return (name,) if isinstance(name, str) else tuple(name)
