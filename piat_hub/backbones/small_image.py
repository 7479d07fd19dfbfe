"""Any timm model on small images: one rule for each family takes out the strides meant for 224x224 pixels.

Convolutional networks lose the first two halvings of their resolution (stem stride and pool), so that 32x32 images end
in 4x4 features, as in the CIFAR literature; transformers get smaller patches. A model takes images in [0, 1].
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import timm
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.layers import to_2tuple
from timm.models import generate_default_cfgs, is_model_in_modules, load_pretrained, register_model
from timm.models._builder import pretrained_cfg_for_features, resolve_pretrained_cfg
from timm.models._features import FeatureGetterNet
from torch import nn

from piat_hub.backbones.normalization import fold_normalization, normalize_before, per_channel, statistics, unpadded
from piat_hub.config import InputError, first_line

LARGEST = 64  # images of more pixels a side are not small: the model stays as timm builds it


def patch(size: int, at_least: int) -> int:
    """The largest patch that divides `size` into at least so many a side; pixels beyond the last patch would go unseen.

    Args:
        size: of the images, pixels a side.
        at_least: patches a side; where that many cannot be had, the patch is one pixel.

    Returns:
        The patch's side in pixels.
    """
    return max(p for p in range(1, size + 1) if size % p == 0 and (size // p >= at_least or p == 1))


def patches(size: int) -> dict[str, Any]:
    """Vision transformers: at least 8 x 8 patches, 4 x 4 pixels each at size 32."""
    return {"img_size": size, "patch_size": patch(size, 8)}


def windows(size: int) -> dict[str, Any]:
    """Swin: at least 16 x 16 patches before its three mergings, in windows of 4 x 4."""
    return {"img_size": size, "patch_size": patch(size, 16), "window_size": 4}


def sized(size: int) -> dict[str, Any]:
    """XCiT: its patches are convolutions, see `xcit`."""
    return {"img_size": size}


def stem_patches(size: int) -> dict[str, Any]:
    """ConvNeXt: a stem of single pixels, then timm's three halvings; after one of 2 x 2 patches timm would halve four times."""
    return {"patch_size": 1}


def at(*prefixes: str) -> Callable[[nn.Module], None]:
    """A rule that takes out every stride below these submodules, a factor of 4 in all.

    Args:
        *prefixes: paths of submodules, as in `named_modules()`.

    Returns:
        A function that changes a built timm model in place.
    """

    def rule(model: nn.Module) -> None:
        for prefix in prefixes:
            take_out_strides(model, prefix)
        divide_reductions(model)

    return rule


def mobile(model: nn.Module) -> None:
    """EfficientNet, MobileNet and their kin: the stem, and the first block that halves."""
    strided = [n for n, m in model.named_modules() if n.startswith("blocks.") and steps(m)]
    at("conv_stem", ".".join(strided[0].split(".")[:3]))(model)


def overlapping(model: nn.Module) -> None:
    """ConvNeXt's overlapping stems, which take no patch size."""
    if not unpadded(model):
        at("stem")(model)


def xcit(model: Any) -> None:
    """XCiT: the first two convolutions of its patches, as Debenedetti et al. 2022 do it for CIFAR."""
    at("patch_embed.proj.0", "patch_embed.proj.2")(model)
    model.patch_embed.patch_size //= 4


def vgg(model: nn.Module) -> None:
    """VGG: the first two pools."""
    pools = [n for n, m in model.named_modules() if isinstance(m, nn.MaxPool2d)]
    at(*pools[:2])(model)


KEYWORDS: dict[str, Callable[[int], dict[str, Any]]] = {  # timm module -> its own arguments do it
    **dict.fromkeys(("vision_transformer", "deit", "beit", "eva", "cait"), patches),
    **dict.fromkeys(("swin_transformer", "swin_transformer_v2"), windows),
    "convnext": stem_patches,
    "xcit": sized,
}
SURGERY: dict[str, Callable[[nn.Module], None]] = {  # timm module -> what is changed in the built model
    **dict.fromkeys(("resnet", "res2net", "resnest", "sknet"), at("conv1", "maxpool")),
    "resnetv2": at("stem"),
    "senet": at("layer0", "pool0"),
    "densenet": at("features.conv0", "features.pool0"),
    **dict.fromkeys(("efficientnet", "mobilenetv3", "hardcorenas", "ghostnet"), mobile),
    "regnet": at("stem", "s1.b1"),
    "byobnet": at("stem", "stages.0.0"),
    "mobilevit": at("stem", "stages.1.0"),
    "nfnet": at("stem", "stages.0"),
    "metaformer": at("stem"),
    "dla": at("level1", "level2"),
    "vgg": vgg,
    "xcit": xcit,
    "convnext": overlapping,
}


def family(base: str) -> str | None:
    """The timm module that a model's rule is kept under; None where there is no rule."""
    name = base.partition(".")[0]
    return next((module for module in {**KEYWORDS, **SURGERY} if is_model_in_modules(name, [module])), None)


def steps(module: nn.Module) -> bool:
    """Whether it is a layer that steps by more than one pixel: a convolution, a pool, a blur."""
    stride = getattr(module, "stride", 1)
    return max(stride if isinstance(stride, tuple) else (stride,)) > 1 and not list(module.children())


def take_out_strides(model: nn.Module, prefix: str) -> None:
    """Below `prefix`: convolutions step by 1, those larger than 3x3 become new 3x3 ones; pools and their padding go.

    Args:
        model: changed in place.
        prefix: path of the submodule, as in `named_modules()`.
    """
    for path, module in list(model.named_modules()):
        if path != prefix and not path.startswith(f"{prefix}."):
            continue
        if isinstance(module, nn.Conv2d) and steps(module):
            if max(module.kernel_size) <= 3:
                module.stride = (1, 1)
                continue
            shape: dict[str, Any] = {"stride": 1, "padding": 1, "bias": module.bias is not None}
            conv = type(module)(module.in_channels, module.out_channels, 3, groups=module.groups, **shape)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            model.set_submodule(path, conv)
        elif isinstance(module, nn.ConstantPad2d) or steps(module):
            model.set_submodule(path, nn.Identity())


def divide_reductions(model: Any) -> None:
    """What timm records of its features, once the image keeps the resolution that timm quarters first."""
    for info in model.feature_info:
        info["reduction"] = max(1, info["reduction"] // 4)


def adapt(
    base: str,
    img_size: int,
    *,
    pretrained: bool = False,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    **kwargs: Any,
) -> nn.Module:
    """The timm model `base` for images of img_size x img_size; above `LARGEST` pixels its strides stay as they are.

    It takes images in [0, 1]: normalisation is a layer before the first convolution, or, where that projects patches
    without padding, folded into pretrained weights.

    Args:
        base: timm's name of the model.
        img_size: of the images, pixels a side.
        pretrained: take over the ImageNet weights whose shapes fit; what was replaced starts at random.
        mean: of the normalisation, one number a channel, where it is another than the base's; it is then always a layer.
        std: the same, each above 0.
        **kwargs: of the model, passed to timm.

    Returns:
        A model that maps images (B, C, img_size, img_size) in [0, 1] to logits (B, K).

    Raises:
        InputError: for an unknown base, a family without a rule, or a size or weights that cannot be had.
    """
    if not timm.is_model(base.partition(".")[0]):  # timm would look elsewhere: on the Hub, in folders
        raise InputError(f"base {base!r} is none of timm's models; choose one of timm.list_models()")
    module = family(base)
    if img_size <= LARGEST and module is None:
        known = ", ".join(sorted({**KEYWORDS, **SURGERY}))
        raise InputError(f"no small-image rule for the family of {base!r}; choose from timm's {known}")
    source = {k: kwargs.pop(k) for k in ("pretrained_cfg_overlay", "cache_dir") if k in kwargs}
    keywords = KEYWORDS[module](img_size) if module in KEYWORDS else {}
    if img_size > LARGEST:
        keywords = {k: v for k, v in keywords.items() if k == "img_size"}
    model: Any = made(base, img_size, **{**keywords, **kwargs})
    if module in SURGERY and img_size <= LARGEST:
        SURGERY[module](model)
    if pretrained:
        unchanged = {k: v for k, v in kwargs.items() if k not in keywords}
        take_over(model, made(base, img_size, pretrained=True, **unchanged, **source))
    if mean or std:
        normalize_before(model, *per_channel(mean, std, model.in_chans))
    elif not folds(base, model):
        normalize_before(model, *statistics(model))
    elif pretrained:
        fold_normalization(model)
    unit = {"mean": (0.0,) * model.in_chans, "std": (1.0,) * model.in_chans}
    model.pretrained_cfg |= {"input_size": (model.in_chans, img_size, img_size), "pool_size": None, **unit}
    return model


def made(base: str, size: int, /, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, whose failures are one line.

    Args:
        base: timm's name of the model.
        size: of the images it is for, pixels a side.
        **kwargs: passed to timm.

    Raises:
        InputError: where timm, or the download of its weights, fails, or pixels would go unseen, as `size` does not
            divide into patches.
    """
    try:
        model: Any = timm.create_model(base, **kwargs)
    except Exception as error:  # timm passes on whatever its models, the network or the Hub raise
        reason = first_line(error)
        if kwargs.get("pretrained"):
            offline = constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError)
            cause = "HF_HUB_OFFLINE is set, and they are not in the cache" if offline else reason
            raise InputError(
                f"{cause}: the pretrained weights of {base} cannot be had; fetch them where there is a network"
            ) from error
        raise InputError(f"{base} cannot be built for {size}x{size} images: {reason}") from error
    side, _ = to_2tuple(getattr(getattr(model, "patch_embed", None), "patch_size", 1))
    if not kwargs.get("pretrained") and size % side:
        raise InputError(f"{size} pixels do not divide into patches of {side} for {base}; choose another --img-size")
    return model


def folds(base: str, model: nn.Module) -> bool:
    """Whether normalisation folds into the first convolution: such a model is plain timm's, and loads without us."""
    return family(base) in KEYWORDS and unpadded(model)


def take_over(model: nn.Module, source: nn.Module) -> None:
    """Load every tensor of `source` that has its name and shape in `model`; timm resamples patches and positions.

    Args:
        model: changed in place; what `source` lacks, or has in another shape, stays as it is.
        source: a timm model of the same family.
    """
    weights = source.state_dict()
    resample = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    if resample and hasattr(model, "patch_embed"):
        weights = resample(weights, model)
    own = model.state_dict()
    model.load_state_dict({k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}, strict=False)


def features(model: Any, out_indices: int | Sequence[int] | None = None) -> nn.Module:
    """timm's FeatureGetterNet over an adapted model, which it prunes: images to a list of features (B, C, H, W).

    Args:
        model: from `adapt`; pruned in place.
        out_indices: which of the model's `feature_info`, from 0, or the last so many; None as in timm, every stage, but
            the last three blocks of a transformer that has no stages.

    Raises:
        InputError: for features that there are not.
    """
    known = len(model.feature_info)
    if out_indices is None:
        staged = len({info["reduction"] for info in model.feature_info}) > 1
        out_indices = known if staged else min(3, known)
    try:
        net: Any = FeatureGetterNet(model, out_indices)
    except (AssertionError, IndexError) as error:
        raise InputError(f"out_indices {out_indices} are not among its {known} features; count them from 0") from error
    net.pretrained_cfg = net.default_cfg = pretrained_cfg_for_features(model.pretrained_cfg)
    net.in_chans, net._traits = model.in_chans, model._traits
    return net


default_cfgs = generate_default_cfgs({"small_image.untrained": {"input_size": (3, 32, 32), "pool_size": None}})


@register_model
def small_image(
    pretrained: bool = False,
    base: str = "resnet18",
    img_size: int | Sequence[int] = 32,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`adapt` as a timm model, so that config.json rebuilds it: timm.create_model("small_image", base=…, img_size=…).

    Args:
        pretrained: take over ImageNet weights; with pretrained_cfg, load those that it names.
        base: timm's name of the model.
        img_size: of the images, pixels a side; of (height, width) the height.
        pretrained_cfg: timm's record of a saved small_image.
        pretrained_cfg_overlay: values that take the place of those in pretrained_cfg, or in that of `base`.
        cache_dir: where weights are downloaded to.
        **kwargs: of `adapt`, and timm's features_only and out_indices (see `features`).

    Returns:
        A model that maps images (B, C, H, W) in [0, 1] to logits (B, K), or with features_only to a list of features.

    Raises:
        InputError: as `adapt` and `features` do.
    """
    features_only = kwargs.pop("features_only", False)
    out_indices = kwargs.pop("out_indices", None) if features_only else None
    kwargs.pop("pretrained_model_args", None)
    if pretrained and not pretrained_cfg:
        source = {"pretrained_cfg_overlay": pretrained_cfg_overlay, "cache_dir": cache_dir}
        kwargs |= {"pretrained": True} | {k: v for k, v in source.items() if v}
    side = img_size if isinstance(img_size, int) else img_size[0]  # timm saves (height, width)
    model: Any = adapt(base, side, **kwargs)
    model.pretrained_cfg |= {"architecture": "small_image", "tag": "", "hf_hub_id": None, "url": ""}
    if pretrained_cfg:  # a saved small_image
        saved = resolve_pretrained_cfg("small_image", pretrained_cfg, pretrained_cfg_overlay).to_dict()
        model.pretrained_cfg |= {k: v for k, v in saved.items() if v is not None}
        if pretrained:
            shape = {"num_classes": model.num_classes, "in_chans": model.in_chans}
            load_pretrained(model, pretrained_cfg=model.pretrained_cfg, cache_dir=cache_dir, **shape)
    return features(model, out_indices) if features_only else model
