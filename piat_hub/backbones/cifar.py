"""timm backbones for small images, registered with timm under names of their own.

Every backbone takes images in [0, 1], without normalisation but for those with SiLU; weights trained behind one give its
`mean` and `std`, one number a channel, which become a layer before the first convolution. The classes are timm's own with
the ImageNet stem (7x7, stride 2, max-pool) replaced by a 3x3 convolution of stride 1, as is usual for 32x32 images.
`layers` and `channels`, one number a stage, make other depths and widths.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from timm.layers import BatchNormAct2d, SEModule, create_conv2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.resnetv2 import PreActBasic, ResNetV2
from torch import Tensor, nn

from piat_hub.backbones import small_image
from piat_hub.backbones.normalization import behind
from piat_hub.records import published

CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}  # of training images in [0, 1]
CIFAR100 = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}


class CifarResNet(ResNet):
    """He et al. 2016's residual network for 32x32 images: 3x3 stem of `stem_chs` channels, no max-pool, stride 1.

    Args:
        *args: of timm's ResNet.
        in_chans: channels of the images.
        stem_chs: channels that the stem gives, an even number.
        mean: subtracted from images in [0, 1] by a layer before the stem, one number a channel; nothing if empty.
        std: divided by after that, one number a channel, each above 0.
        **kwargs: of timm's ResNet, such as layers and channels, one number a stage.

    Raises:
        InputError: where mean and std are not one number a channel each, or a std is not above 0.
    """

    def __init__(
        self,
        *args: Any,
        in_chans: int = 3,
        stem_chs: int = 64,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        # timm derives the stem's width from a "deep" stem only; that stem is then replaced by the 3x3 one
        super().__init__(
            *args, in_chans=in_chans, stem_type="deep", stem_width=stem_chs // 2, zero_init_last=False, **kwargs
        )
        self.conv1 = _first_conv(in_chans, stem_chs, mean, std)
        self.maxpool = nn.Identity()
        if not hasattr(self, "layer4"):
            self.layer4 = nn.Sequential()  # three stages; timm's forward calls four
        if mean:
            self._traits = {"first_conv": "conv1.conv"}
        small_image.divide_reductions(self)


class CifarPreActResNet(ResNetV2):
    """He et al. 2016's pre-activation residual network for 32x32 images: 3x3 stem of `stem_chs` channels, no max-pool.

    With wide channels and a stem of 16 it is Zagoruyko & Komodakis 2016's wide residual network. Others' checkpoints
    differ in final_norm, raw_shortcut, shortcut_size and se_ratio.

    Args:
        *args: of timm's ResNetV2.
        in_chans: channels of the images.
        stem_chs: channels that the stem gives.
        final_norm: BatchNorm and ReLU between the last block and the pooling.
        raw_shortcut: a block's projection takes what enters the block, not that after its first BatchNorm and ReLU.
        shortcut_size: of the kernels of these projections, pixels a side.
        se_ratio: a block's last convolution is followed by squeeze and excitation, squeezed to so much of its channels; 0
            for none.
        conv_layer: makes the blocks' convolutions.
        mean: subtracted from images in [0, 1] by a layer before the stem, one number a channel; nothing if empty.
        std: divided by after that, one number a channel, each above 0.
        **kwargs: of timm's ResNetV2, such as layers and channels, one number a stage.

    Raises:
        InputError: where mean and std are not one number a channel each, or a std is not above 0.
    """

    def __init__(
        self,
        *args: Any,
        in_chans: int = 3,
        stem_chs: int = 64,
        final_norm: bool = True,
        raw_shortcut: bool = False,
        shortcut_size: int = 1,
        se_ratio: float = 0.0,
        conv_layer: Callable[..., nn.Conv2d] = create_conv2d,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, in_chans=in_chans, stem_chs=stem_chs, conv_layer=conv_layer, **kwargs)
        self.stem = nn.Sequential(OrderedDict(conv=_first_conv(in_chans, stem_chs, mean, std)))
        if not final_norm:
            self.norm = nn.Identity()
        for block in self.modules():
            if isinstance(block, PreActBasic) and block.downsample is not None:
                if raw_shortcut:
                    block.__class__ = RawShortcut
                if shortcut_size > 1:
                    conv = block.downsample.conv
                    shape = (conv.in_channels, conv.out_channels, shortcut_size)
                    block.downsample.conv = _initialised(conv_layer(*shape, stride=conv.stride[0]))
        for block in self.modules():
            if se_ratio and isinstance(block, PreActBasic):
                conv = block.conv2
                excited = SEModule(conv.out_channels, rd_channels=round(se_ratio * conv.out_channels))
                block.conv2 = nn.Sequential(OrderedDict(conv=conv, se=excited))
        self._traits = {"first_conv": "stem.conv.conv" if mean else "stem.conv"}
        small_image.divide_reductions(self)


class RawShortcut(PreActBasic):
    """timm's basic block, but for what its projection takes; timm chooses the class of its blocks by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for features (B, C, H, W)."""
        residual = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return self.drop_path(residual) + self.downsample(x)


def _first_conv(in_chans: int, out_chans: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """3x3, of stride 1; with mean and std behind their normalisation. InputError unless they fit the channels."""
    return behind(_initialised(nn.Conv2d(in_chans, out_chans, 3, stride=1, padding=1, bias=False)), mean, std)


def _initialised(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with random weights as timm's ResNets begin with them."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


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


RESNET = {"first_conv": "conv1", "classifier": "fc"}
PREACT = {"first_conv": "stem.conv", "classifier": "head.fc"}
NORMALISED = {"first_conv": "stem.conv.conv", "classifier": "head.fc"}
ENDS = {
    **dict.fromkeys(
        ("cifar_resnet8", "cifar_resnet18", "cifar_resnet20", "cifar_resnet20x2", "cifar_resnet50"), RESNET
    ),
    **dict.fromkeys(("cifar_preact_resnet18", "cifar_wrn_28_10", "cifar_wrn_32_10"), PREACT),
    **dict.fromkeys(("cifar_preact_resnet18_silu", "cifar_wrn_28_10_silu", "cifar_wrn_70_16_silu"), NORMALISED),
    "cifar_rawrn_70_16": NORMALISED,
}
WEIGHTS: dict[str, dict[str, Any]] = {f"{name}.untrained": {} for name in ENDS} | published.timm_configs()
default_cfgs = generate_default_cfgs({n: _cfg(**ENDS[n.partition(".")[0]], **where) for n, where in WEIGHTS.items()})


def _resnet(variant: str, pretrained: bool, layers: list[int], width: int, kwargs: dict[str, Any]) -> nn.Module:
    shape = _shape(layers, width, {"stem_chs": width, "block": BasicBlock} | kwargs)
    return build_model_with_cfg(CifarResNet, variant, pretrained, **shape)


def _preact(variant: str, pretrained: bool, layers: list[int], width: int, kwargs: dict[str, Any]) -> nn.Module:
    shape = _shape(layers, width, kwargs)
    block = {"basic": True, "preact": True, "bottle_ratio": 1.0, "norm_layer": BatchNormAct2d}
    shape["feature_cfg"]["flatten_sequential"] = True
    return build_model_with_cfg(CifarPreActResNet, variant, pretrained, **block | shape)


def _silu(variant: str, pretrained: bool, layers: list[int], width: int, kwargs: dict[str, Any]) -> nn.Module:
    """As Gowal et al. 2020 (arXiv:2010.03593) define them: SiLU, TensorFlow's padding, and CIFAR-10's statistics inside.

    A convolution of stride 2 pads below and to the right alone. Images of other than 3 channels get the mean statistics.
    """
    norm = partial(BatchNormAct2d, momentum=0.01)
    block = {"act_layer": "silu", "norm_layer": norm, "conv_layer": partial(create_conv2d, padding="same")}
    channels = kwargs.get("in_chans", 3)
    usual = {key: numbers if channels == 3 else (fmean(numbers),) * channels for key, numbers in CIFAR10.items()}
    return _preact(variant, pretrained, layers, width, block | usual | kwargs)


def _shape(layers: list[int], width: int, given: dict[str, Any]) -> dict[str, Any]:
    """Stages that double in width unless given otherwise; features_only=True gives the stem's features and each stage's."""
    shape = {"layers": layers, "channels": tuple(width * 2**stage for stage in range(len(layers)))} | given
    return shape | {"feature_cfg": {"out_indices": tuple(range(len(shape["layers"]) + 1))}}


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Three basic blocks of 16, 32 and 64 channels (He et al. 2016, Sec. 4.2, n = 1): for 8x8 digits and tests."""
    return _resnet("cifar_resnet8", pretrained, [1, 1, 1], 16, kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 (He et al. 2016, Sec. 4.2, n = 3), with 1x1 convolutions in the two widening shortcuts."""
    return _resnet("cifar_resnet20", pretrained, [3, 3, 3], 16, kwargs)


@register_model
def cifar_resnet20x2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 of twice the width, stages of 32, 64 and 128 channels: 1,084,586 parameters at 10 classes."""
    return _resnet("cifar_resnet20x2", pretrained, [3, 3, 3], 32, kwargs)


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with a CIFAR stem, the paper's: 11,173,962 parameters at 10 classes."""
    return _resnet("cifar_resnet18", pretrained, [2, 2, 2, 2], 64, kwargs)


@register_model
def cifar_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50, of bottlenecks, with a CIFAR stem: 23,520,842 parameters at 10 classes."""
    return _resnet("cifar_resnet50", pretrained, [3, 4, 6, 3], 64, {"block": Bottleneck} | kwargs)


@register_model
def cifar_preact_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PreActResNet-18 with a CIFAR stem: 11,172,170 parameters at 10 classes, 1,024 of them the final norm's."""
    return _preact("cifar_preact_resnet18", pretrained, [2, 2, 2, 2], 64, kwargs)


@register_model
def cifar_preact_resnet18_silu(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PreActResNet-18 of Rebuffi et al. 2021 (arXiv:2103.01946): SiLU, 3x3 projections; 12,548,426 parameters at 10 classes."""
    shortcut = {"raw_shortcut": True, "shortcut_size": 3}
    return _silu("cifar_preact_resnet18_silu", pretrained, [2, 2, 2, 2], 64, shortcut | kwargs)


@register_model
def cifar_wrn_28_10_silu(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-28-10 with SiLU (Gowal et al. 2020): 36,479,194 parameters at 10 classes."""
    return _silu("cifar_wrn_28_10_silu", pretrained, [4, 4, 4], 160, {"stem_chs": 16} | kwargs)


@register_model
def cifar_wrn_70_16_silu(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-70-16 with SiLU (Gowal et al. 2020): 11 blocks a stage, 266,796,506 parameters at 10 classes."""
    return _silu("cifar_wrn_70_16_silu", pretrained, [11, 11, 11], 256, {"stem_chs": 16} | kwargs)


@register_model
def cifar_rawrn_70_16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RaWRN-70-16 (Peng et al. 2023, arXiv:2308.16258): SiLU, squeeze and excitation; 267,240,802 parameters at 10 classes."""
    shape = {"stem_chs": 96, "se_ratio": 0.25}
    return _silu("cifar_rawrn_70_16", pretrained, [30, 31, 10], 216, shape | kwargs)


@register_model
def cifar_wrn_28_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-28-10 (Zagoruyko & Komodakis 2016; Madry's count: 26): 4 blocks a stage, 36,479,194 parameters at 10 classes."""
    return _preact("cifar_wrn_28_10", pretrained, [4, 4, 4], 160, {"stem_chs": 16} | kwargs)


@register_model
def cifar_wrn_32_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-32-10 as Madry counts (others say WRN-34-10): 5 blocks a stage, 46,160,474 parameters at 10 classes."""
    return _preact("cifar_wrn_32_10", pretrained, [5, 5, 5], 160, {"stem_chs": 16} | kwargs)
