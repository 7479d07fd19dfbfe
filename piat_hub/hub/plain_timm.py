"""The lines that load our weights where piat_hub is not installed: plain timm, and torch where timm has no such model."""

from typing import Any

from piat_hub.records.model_config import ModelConfig

RESNET = """\
model = timm.create_model("{base}", num_classes={classes}, in_chans={channels})
model.conv1 = nn.Conv2d({channels}, 64, 3, padding=1, bias=False)
model.maxpool = nn.Identity()"""
SMALL_RESNET = """\
model = ResNet(BasicBlock, {layers}, {classes}, {channels}, channels={widths},
               stem_type="deep", stem_width={half})
model.conv1 = nn.Conv2d({channels}, {stem}, 3, padding=1, bias=False)
model.maxpool, model.layer4 = nn.Identity(), nn.Sequential()"""
PREACT = """\
model = ResNetV2({layers}, {widths}, {classes}, {channels}, stem_chs={stem},
                 basic=True, preact=True, bottle_ratio=1.0,
                 norm_layer=BatchNormAct2d, conv_layer=create_conv2d)
stem = nn.Conv2d({channels}, {stem}, 3, padding=1, bias=False)
model.stem = nn.Sequential(OrderedDict(conv=stem))"""
IMPORTS = {
    RESNET: "import timm",
    SMALL_RESNET: "from timm.models.resnet import BasicBlock, ResNet",
    PREACT: "from collections import OrderedDict\nfrom timm.layers import BatchNormAct2d, create_conv2d\n"
    "from timm.models.resnetv2 import ResNetV2",
}


def _small(blocks: int, width: int) -> tuple[str, dict[str, Any]]:
    widths = (width, 2 * width, 4 * width)
    return SMALL_RESNET, {"layers": [blocks] * 3, "widths": widths, "stem": width, "half": width // 2}


BUILT: dict[str, tuple[str, dict[str, Any]]] = {  # architecture -> how plain timm builds it
    "cifar_resnet8": _small(1, 16),
    "cifar_resnet20": _small(3, 16),
    "cifar_resnet20x2": _small(3, 32),
    "cifar_resnet18": (RESNET, {"base": "resnet18"}),
    "cifar_resnet50": (RESNET, {"base": "resnet50"}),
    "cifar_preact_resnet18": (PREACT, {"layers": [2] * 4, "widths": (64, 128, 256, 512), "stem": 64}),
    "cifar_wrn_28_10": (PREACT, {"layers": [4] * 3, "widths": (160, 320, 640), "stem": 16}),
    "cifar_wrn_32_10": (PREACT, {"layers": [5] * 3, "widths": (160, 320, 640), "stem": 16}),
}


def lines(model: ModelConfig, weights: str) -> str | None:
    """Python that builds `model` from a config.json and loads the file at the expression `weights`.

    Args:
        model: whose architecture it is.
        weights: Python source, a path or a download.

    Returns:
        None where timm and torch alone cannot in a few lines: for small_image, ours with SiLU or a ConvStem, and ours with
        arguments beyond classes and channels.
    """
    given = model.model_args
    own = {"num_classes", "in_chans", "global_pool"}
    if model.architecture not in BUILT or set(given) - own or given.get("global_pool", "avg") != "avg":
        return None
    template, shape = BUILT[model.architecture]
    built = template.format(**shape, classes=model.num_classes, channels=given.get("in_chans", 3))
    text = [IMPORTS[template], "from safetensors.torch import load_file", "from torch import nn"]
    text += ["from huggingface_hub import hf_hub_download"] if weights.startswith("hf_hub_download") else []
    text += ["", built, f"weights = {weights}", "model.load_state_dict(load_file(weights))", "model.eval()"]
    return "\n".join(text)
