"""Networks whose patches are cut by a few overlapping convolutions, a ConvStem (Singh, Croce & Hein 2023, arXiv:2303.01870).

The rest is timm's own ConvNeXt-T and DeiT-S. Both take images in [0, 1], without normalisation; weights trained behind one give
its `mean` and `std`, one number a channel, which become a layer before the first convolution.
"""

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


def conv_stem(in_chans: int, widths: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    """3x3 convolutions of stride 2, each with LayerNorm over the channels and GELU.

    Args:
        in_chans: channels of the images.
        widths: channels that each convolution gives.
        mean: of a normalisation before the first convolution, one number a channel; none if empty.
        std: of that normalisation, one number a channel, each above 0.
    """
    layers: list[nn.Module] = []
    for before, width in zip((in_chans, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), LayerNorm2d(width), nn.GELU()]
    first: Any = layers[0]
    return nn.Sequential(behind(first, mean, std), *layers[1:])


class ConvStemNeXt(ConvNeXt):
    """ConvNeXt behind two convolutions in place of 4x4 patches.

    Args:
        in_chans: channels of the images.
        dims: channels of each stage; the stem's last convolution gives the first of them, the one before half as many.
        mean: subtracted from images in [0, 1] before the stem, one number a channel; nothing if empty.
        std: divided by after that, one number a channel, each above 0.
        **kwargs: of timm's ConvNeXt.
    """

    def __init__(
        self,
        in_chans: int = 3,
        dims: Sequence[int] = (96, 192, 384, 768),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(in_chans=in_chans, dims=tuple(dims), **kwargs)
        self.stem = conv_stem(in_chans, (dims[0] // 2, dims[0]), mean, std)
        if mean:
            self._traits = {"first_conv": "stem.0.conv"}


class ConvStemViT(VisionTransformer):
    """A vision transformer behind four convolutions in place of 16x16 patches, and one of 1x1 to its width.

    Args:
        in_chans: channels of the images.
        embed_dim: width of the transformer; the stem's convolutions give an eighth, a quarter, half and all of it.
        mean: subtracted from images in [0, 1] before the stem, one number a channel; nothing if empty.
        std: divided by after that, one number a channel, each above 0.
        **kwargs: of timm's VisionTransformer, img_size, a multiple of 16, among them.
    """

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: int = 384,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, patch_size=16, **kwargs)
        widths = [embed_dim // part for part in (8, 4, 2, 1)]
        self.patch_embed.proj = conv_stem(in_chans, widths, mean, std).append(nn.Conv2d(embed_dim, embed_dim, 1))
        if mean:
            self._traits = {"first_conv": "patch_embed.proj.0.conv"}


def _cfg(**kwargs: Any) -> dict[str, Any]:
    unit = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return {"input_size": (3, 224, 224), "num_classes": 1000, "pool_size": None, "crop_pct": 0.875} | unit | kwargs


default_cfgs = generate_default_cfgs(
    {
        "convnext_tiny_cvst.untrained": _cfg(interpolation="bicubic", first_conv="stem.0", classifier="head.fc"),
        "vit_small_cvst.untrained": _cfg(
            interpolation="bicubic", first_conv="patch_embed.proj.0", classifier="head", fixed_input_size=True
        ),
    }
)


@register_model
def convnext_tiny_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with a ConvStem: 28,627,432 parameters at 1,000 classes."""
    shape = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)} | kwargs
    features = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    return build_model_with_cfg(ConvStemNeXt, "convnext_tiny_cvst", pretrained, feature_cfg=features, **shape)


@register_model
def vit_small_cvst(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-S with a ConvStem: 22,777,576 parameters at 1,000 classes and 224 pixels."""
    shape = {"embed_dim": 384, "depth": 12, "num_heads": 6} | kwargs
    features = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(ConvStemViT, "vit_small_cvst", pretrained, feature_cfg=features, **shape)
