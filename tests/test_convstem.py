"""convstem.py: the parameter counts of Singh et al. 2023, their layout behind a renaming, the sizes of images they take."""

import json

import pytest
import timm
import torch
from torch import nn

import piat_hub
from piat_hub.config import InputError
from piat_hub.hub.save import save_pretrained

COUNTS = {
    "convnext_tiny_cvst": 28_627_432,
    "convnext_small_cvst": 50_261_992,
    "convnext_base_cvst": 88_753_416,
    "convnext_large_cvst": 198_134_680,
    "vit_small_cvst": 22_777_576,
    "vit_base_cvst": 87_147_112,
}
SMALL = {
    "convnext_tiny_cvst": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)},
    "convnext_base_cvst": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)},
    "vit_small_cvst": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "vit_base_cvst": {"embed_dim": 16, "depth": 1, "num_heads": 2, "stem_chs": 1},
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_at_a_thousand_classes(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert timm.model_entrypoint(name).__module__ == "piat_hub.backbones.convstem"
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == ((0.0,) * 3, (1.0,) * 3)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W), spelled out."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        return self.weight.view(1, -1, 1, 1) * (x - mean) / (variance + 1e-6).sqrt() + self.bias.view(1, -1, 1, 1)


def stem(widths, strides, *rest):
    """Their stem: (3x3, padding 1), norm, GELU for each width."""
    layers = []
    for before, width, stride in zip((3, *widths), widths, strides, strict=False):
        layers += [nn.Conv2d(before, width, 3, stride, 1), ChannelNorm(width), nn.GELU()]
    return nn.Sequential(*layers, *rest)


def theirs(name):
    """timm's own model with their stem put in, as their definition does it."""
    shape = {"num_classes": 7} | {key: value for key, value in SMALL[name].items() if key != "stem_chs"}
    if name.startswith("convnext"):
        model = timm.create_model("convnext_tiny", **shape)
        model.stem = stem((4, 8), (2, 2)) if name == "convnext_tiny_cvst" else stem((4, 6, 8), (2, 2, 1))
    else:
        model = timm.create_model("vit_small_patch16_224", img_size=32, **shape)
        widths = (2, 4, 8, 16) if name == "vit_small_cvst" else (1, 2, 4, 8)
        model.patch_embed.proj = stem(widths, (2,) * 4, nn.Conv2d(widths[-1], 16, 1))
    return model.eval()


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_those_of_their_definition(name):
    reference = theirs(name)
    model = piat_hub.create_model(name, num_classes=7, img_size=32, **SMALL[name]).eval()
    model.load_state_dict(reference.state_dict())  # their checkpoints call the stem's layers stem.stem.N, proj.stem.N
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model(x), reference(x), atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_normalisation_goes_inside_and_a_model_comes_back_from_its_directory(name, tmp_path):
    statistics = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
    plain = timm.create_model(name, num_classes=7, **SMALL[name], **({"img_size": 48} if "vit" in name else {})).eval()
    torch.manual_seed(1)
    model = piat_hub.create_model(name, num_classes=7, img_size=48, **SMALL[name], **statistics).eval()
    weights = {k.replace("0.conv.", "0."): v for k, v in model.state_dict().items()}
    plain.load_state_dict(weights)
    x = torch.rand(2, 3, 48, 48)
    mean, std = (torch.tensor(statistics[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(model(x), plain((x - mean) / std), atol=1e-5)
    save_pretrained(model, tmp_path, input_size=(3, 48, 48))
    assert torch.equal(piat_hub.from_pretrained(tmp_path)(x), model(x))
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == name
    with pytest.raises(InputError, match="must be 3 numbers each"):
        piat_hub.create_model(name, mean=(0.5,), std=(0.5,))


def test_a_vit_wants_a_multiple_of_sixteen_pixels():
    with pytest.raises(InputError, match="40 pixels do not divide into patches of 16"):
        piat_hub.create_model("vit_small_cvst", img_size=40, **SMALL["vit_small_cvst"])


def test_they_are_offered_by_name():
    with pytest.raises(InputError, match="did you mean 'vit_small_cvst'"):
        piat_hub.create_model("vit_small_cvts")


@pytest.mark.parametrize("name", SMALL)
def test_layer_decay_knows_their_layers(name):
    from piat_hub.config import OptimizerConfig, TrainConfig
    from piat_hub.training.optimizers import make_optimizer

    model = piat_hub.create_model(name, img_size=32, **SMALL[name])
    config = TrainConfig(optimizer=OptimizerConfig(opt="adamw", layer_decay=0.5, undecayed="1d"))
    scale = {id(p): g["lr_scale"] for g in make_optimizer(config, model).param_groups for p in g["params"]}
    head = model.get_classifier().weight
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight
    assert scale[id(head)] == 1.0 and scale[id(first)] == min(scale.values()) < 0.5
