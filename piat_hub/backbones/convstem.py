"""Networks whose patches are cut by a few overlapping convolutions, a ConvStem (Singh, Croce & Hein 2023, arXiv:2303.01870).

The rest is timm's own ConvNeXt, DeiT-S and ViT-B. All take images in [0, 1], without normalisation; weights trained behind one give
its `mean` and `std`, one number a channel, which become a layer before the first convolution.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import LayerNorm2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from piat_hub.backbones.normalization import behind


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the authors' checkpoints by our names: their stem is a module within the stem.

    Args:
        state_dict: by their names.
        model: as timm's filters take it.
    """
    return {re.sub(r"^(stem|patch_embed\.proj)\.stem\.", r"\1.", name): tensor for name, tensor in state_dict.items()}


def conv_stem(
    in_chans: int, widths: Sequence[int], halvings: int, mean: Sequence[float], std: Sequence[float]
) -> nn.Sequential:
    """3x3 convolutions, each with LayerNorm over the channels and GELU.

    Args:
        in_chans: channels of the images.
        widths: channels that each convolution gives.
        halvings: how many of them, the first, have stride 2.
        mean: of a normalisation before the first convolution, one number a channel; none if empty.
        std: of that normalisation, one number a channel, each above 0.
    """
    layers: list[nn.Module] = []
    for number, (before, width) in enumerate(itertools.pairwise((in_chans, *widths))):
        stride = 2 if number < halvings else 1
        layers += [nn.Conv2d(before, width, 3, stride=stride, padding=1), LayerNorm2d(width), nn.GELU()]
    first: Any = layers[0]
    return nn.Sequential(behind(first, mean, std), *layers[1:])


class ConvStemNeXt(ConvNeXt):
    """ConvNeXt behind two or three convolutions in place of 4x4 patches.

    Args:
        in_chans: channels of the images.
        dims: channels of each stage; the stem's last convolution gives the first of them, its first half as many.
        stem_depth: convolutions of the stem, 2 or 3; a third, in the middle, gives three quarters as many.
        mean: subtracted from images in [0, 1] before the stem, one number a channel; nothing if empty.
        std: divided by after that, one number a channel, each above 0.
        **kwargs: of timm's ConvNeXt.
    """

    def __init__(
        self,
        in_chans: int = 3,
        dims: Sequence[int] = (96, 192, 384, 768),
        stem_depth: int = 2,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(in_chans=in_chans, dims=tuple(dims), **kwargs)
        widths = [dims[0] // 2, dims[0] * 3 // 4, dims[0]] if stem_depth == 3 else [dims[0] // 2, dims[0]]
        self.stem = conv_stem(in_chans, widths, 2, mean, std)
        if mean:
            self._traits = {"first_conv": "stem.0.conv"}


class ConvStemViT(VisionTransformer):
    """A vision transformer behind four convolutions in place of 16x16 patches, and one of 1x1 to its width.

    Args:
        in_chans: channels of the images.
        embed_dim: width of the transformer.
        stem_chs: channels that the stem's first convolution gives, each of the next twice as many; by default an eighth of
            the width.
        mean: subtracted from images in [0, 1] before the stem, one number a channel; nothing if empty.
        std: divided by after that, one number a channel, each above 0.
        **kwargs: of timm's VisionTransformer, img_size, a multiple of 16, among them.
    """

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: int = 384,
        stem_chs: int | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, patch_size=16, **kwargs)
        widths = [(stem_chs or embed_dim // 8) * times for times in (1, 2, 4, 8)]
        self.patch_embed.proj = conv_stem(in_chans, widths, 4, mean, std).append(nn.Conv2d(widths[-1], embed_dim, 1))
        if mean:
            self._traits = {"first_conv": "patch_embed.proj.0.conv"}


def _cfg(**kwargs: Any) -> dict[str, Any]:
    unit = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return {"input_size": (3, 224, 224), "num_classes": 1000, "pool_size": None, "crop_pct": 0.875} | unit | kwargs


CONVNEXT = {"interpolation": "bicubic", "first_conv": "stem.0", "classifier": "head.fc"}
VIT = {"interpolation": "bicubic", "first_conv": "patch_embed.proj.0", "classifier": "head", "fixed_input_size": True}
default_cfgs = generate_default_cfgs(
    {
        **{f"convnext_{size}_cvst.untrained": _cfg(**CONVNEXT) for size in ("tiny", "small", "base", "large")},
        **{f"vit_{size}_cvst.untrained": _cfg(**VIT) for size in ("small", "base")},
    }
)


def _convnext(variant: str, pretrained: bool, shape: dict[str, Any]) -> nn.Module:
    features = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    return build_model_with_cfg(ConvStemNeXt, variant, pretrained, feature_cfg=features, **shape)


def _vit(variant: str, pretrained: bool, shape: dict[str, Any]) -> nn.Module:
    features = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(ConvStemViT, variant, pretrained, feature_cfg=features, **shape)


@register_model
def convnext_tiny_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with a ConvStem: 28,627,432 parameters at 1,000 classes."""
    shape = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}
    return _convnext("convnext_tiny_cvst", pretrained, shape | kwargs)


@register_model
def convnext_small_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-S with a ConvStem: 50,261,992 parameters at 1,000 classes."""
    shape = {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)}
    return _convnext("convnext_small_cvst", pretrained, shape | kwargs)


@register_model
def convnext_base_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-B with a ConvStem of three convolutions: 88,753,416 parameters at 1,000 classes."""
    shape = {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024), "stem_depth": 3}
    return _convnext("convnext_base_cvst", pretrained, shape | kwargs)


@register_model
def convnext_large_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-L with a ConvStem of three convolutions: 198,134,680 parameters at 1,000 classes."""
    shape = {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536), "stem_depth": 3}
    return _convnext("convnext_large_cvst", pretrained, shape | kwargs)


@register_model
def vit_small_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-S with a ConvStem: 22,777,576 parameters at 1,000 classes and 224 pixels."""
    return _vit("vit_small_cvst", pretrained, {"embed_dim": 384, "depth": 12, "num_heads": 6} | kwargs)


@register_model
def vit_base_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-B with a ConvStem: 87,147,112 parameters at 1,000 classes and 224 pixels."""
    shape = {"embed_dim": 768, "depth": 12, "num_heads": 12, "stem_chs": 48}
    return _vit("vit_base_cvst", pretrained, shape | kwargs)
