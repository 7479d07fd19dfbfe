"""backbones.py: parameter counts of the literature, the small-image stem, features, normalisation inside, timm's registry."""

import copy

import pytest
import timm
import torch
from torch import nn

import piat_hub
from piat_hub import backbones, create_model
from piat_hub.config import InputError
from piat_hub.hub.save import save_pretrained

COUNTS = {
    "cifar_resnet18": 11_173_962,
    "cifar_preact_resnet18": 11_172_170,
    "cifar_wrn_28_10": 36_479_194,
    "cifar_wrn_32_10": 46_160_474,
    "cifar_preact_resnet18_silu": 12_548_426,
    "cifar_wrn_28_10_silu": 36_479_194,
    "cifar_wrn_70_16_silu": 266_796_506,
    "cifar_rawrn_70_16": 267_240_802,
    "cifar_resnet50": 23_520_842,
    "cifar_resnet20": 272_474,
    "cifar_resnet20x2": 1_084_586,
    "cifar_resnet8": 78_042,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_at_ten_classes(name):
    with torch.device("meta"):
        model = piat_hub.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "layers", "width", "count"),
    [("cifar_wrn_28_10", 5, 320, 184_531_674), ("cifar_wrn_28_10", 11, 256, 266_796_506)],
)
def test_other_depths_and_widths(name, layers, width, count):
    with torch.device("meta"):  # WRN-34-20 and WRN-70-16
        model = timm.create_model(name, layers=[layers] * 3, channels=[width, 2 * width, 4 * width])
    assert sum(p.numel() for p in model.parameters()) == count


STRIDES = {"cifar_resnet18": 8, "cifar_resnet20": 4, "cifar_preact_resnet18": 8, "cifar_wrn_32_10": 4}
STRIDES |= {"cifar_preact_resnet18_silu": 8, "cifar_wrn_28_10_silu": 4}


@pytest.mark.parametrize(("name", "stride"), STRIDES.items())
def test_total_stride_and_stem(name, stride):
    with torch.device("meta"):
        model = piat_hub.create_model(name).eval()
        features = model.forward_features(torch.empty(2, 3, 32, 32))
    assert features.shape[-1] == 32 // stride
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert (stem.kernel_size, stem.stride, stem.bias) == ((3, 3), (1, 1), None)
    assert not any(isinstance(m, nn.MaxPool2d) for m in model.modules())
    assert model.feature_info[-1]["reduction"] == stride


def test_input_channels_classes_and_gradient():
    model = piat_hub.create_model("cifar_resnet8", num_classes=7, in_chans=1)
    logits = model(torch.rand(3, 1, 8, 8))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in COUNTS if "wrn" not in n])
def test_registered_with_timm(name):
    assert name in timm.list_models("cifar_*")
    a = timm.create_model(name, num_classes=5).eval()
    assert (a.pretrained_cfg["mean"], a.pretrained_cfg["std"]) == ((0.0,) * 3, (1.0,) * 3)
    assert a.pretrained_cfg["input_size"] == (3, 32, 32)
    assert a(torch.rand(1, 3, 32, 32)).shape == (1, 5)


NORMALISED = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
SMALL = {  # every architecture, cut down
    "cifar_resnet8": {},
    "cifar_resnet20": {"layers": [1, 1, 1]},
    "cifar_resnet20x2": {"layers": [1, 1, 1]},
    "cifar_resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_chs": 8},
    "cifar_preact_resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_chs": 8},
    "cifar_wrn_28_10": {"layers": [1, 1, 1], "channels": [16, 32, 64]},
    "cifar_wrn_32_10": {"layers": [1, 1, 1], "channels": [8, 16, 32]},
    "cifar_preact_resnet18_silu": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_chs": 8},
    "cifar_wrn_28_10_silu": {"layers": [1, 1, 1], "channels": [16, 32, 64]},
    "cifar_wrn_70_16_silu": {"layers": [1, 1, 1], "channels": [8, 16, 32]},
    "cifar_rawrn_70_16": {"layers": [1, 1, 1], "channels": [8, 16, 32]},
    "cifar_resnet50": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_chs": 8},
}


def small(name, **kwargs):
    """An architecture, cut down, with BatchNorm statistics as training leaves them, in eval mode."""
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL[name], **kwargs)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5), (norm.running_var, 0.5)):
            nn.init.uniform_(tensor, low, low + 1)
    return model.eval()


def test_the_small_ones_are_all():
    assert set(SMALL) == set(COUNTS)


@pytest.mark.parametrize("kwargs", [{}, NORMALISED], ids=["", "normalised"])
@pytest.mark.parametrize("name", SMALL)
def test_features_have_the_sizes_they_say(name, kwargs, tmp_path):
    model, x = small(name, **kwargs), torch.rand(2, 3, 32, 32)
    save_pretrained(model, tmp_path, input_size=(3, 32, 32))
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        features, own = net(x), model.forward_intermediates(x, intermediates_only=True)
    assert len(features) == len(model.feature_info) == len(SMALL[name].get("layers", [1, 1, 1])) + 1
    assert net.feature_info.channels() == [f.shape[1] for f in features]
    assert net.feature_info.reduction() == [32 // f.shape[-1] for f in features] == [1, 1, 2, 4, 8][: len(features)]
    assert all(torch.equal(f, i) for f, i in zip(features, own[: len(features)], strict=True))
    some = timm.create_model(name, features_only=True, out_indices=(1, -1), **SMALL[name])
    assert some.feature_info.reduction() == [1, net.feature_info.reduction()[-1]]


@pytest.mark.parametrize("name", SMALL)
def test_a_saved_model_is_rebuilt_and_gets_a_new_head(name, tmp_path):
    model, x = small(name, num_classes=4, **NORMALISED), torch.rand(2, 3, 32, 32)
    save_pretrained(model, tmp_path, input_size=(3, 32, 32))
    with torch.no_grad():
        assert torch.equal(piat_hub.from_pretrained(tmp_path)(x), model(x))
        assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))
        other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7).eval()
        assert other(x).shape == (2, 7)
        assert torch.equal(other.forward_features(x), model.forward_features(x))


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_preact_resnet18"])
def test_normalisation_inside(name, tmp_path):
    model, plain = small(name, **NORMALISED), small(name)
    first = model.pretrained_cfg["first_conv"]
    weights = {key.replace(f"{first}.conv.", f"{first}."): tensor for key, tensor in model.state_dict().items()}
    plain.load_state_dict(weights)
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(NORMALISED[key]).view(-1, 1, 1) for key in ("mean", "std"))
    assert torch.equal(model(x), plain((x - mean) / std)) and not torch.equal(model(x), plain(x))
    save_pretrained(model, tmp_path, input_size=(3, 32, 32))
    with pytest.raises(InputError, match="must be 1 numbers each, std above 0; give one per channel"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)
    grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1, mean=[0.4], std=[0.25]).eval()
    assert grey(x[:, :1]).shape == (2, 10)
    assert torch.equal(grey.get_submodule(first).conv.weight, model.get_submodule(first).conv.weight.sum(1, True))
    for wrong in ({"mean": (0.5, 0.5, 0.5)}, {"mean": (0.5,) * 3, "std": (0.2, 0.2, -0.2)}):
        with pytest.raises(InputError, match="must be 3 numbers each"):
            timm.create_model(name, **wrong)


def test_networks_with_silu_have_cifars_statistics_inside():
    for channels, mean in ((3, [0.4914, 0.4822, 0.4465]), (1, [(0.4914 + 0.4822 + 0.4465) / 3])):
        model = timm.create_model("cifar_wrn_28_10_silu", in_chans=channels, **SMALL["cifar_wrn_28_10_silu"])
        assert model.stem.conv.normalize.mean.flatten().tolist() == pytest.approx(mean)
        assert model(torch.rand(2, channels, 8, 8)).shape == (2, 10)
    bare = timm.create_model("cifar_wrn_28_10_silu", mean=(), std=(), **SMALL["cifar_wrn_28_10_silu"])
    assert isinstance(bare.stem.conv, nn.Conv2d)


def test_preact_variants_spelled_out(tmp_path):
    """raw_shortcut and final_norm against the sums of He et al. 2016, and through config.json."""
    x = torch.rand(2, 3, 32, 32)
    for raw in (False, True):
        for final in (False, True):
            model = small("cifar_preact_resnet18", raw_shortcut=raw, final_norm=final)
            h = model.stem(x)
            for block in (stage.blocks[0] for stage in model.stages):
                y = block.norm1(h)
                shortcut = h if block.downsample is None else block.downsample(h if raw else y)
                h = block.conv2(block.norm2(block.conv1(y))) + shortcut
            pooled = (model.norm(h) if final else h).mean((2, 3))
            logits = pooled @ model.head.fc.weight.flatten(1).T + model.head.fc.bias
            assert torch.allclose(model(x), logits, atol=1e-5)
            assert ("norm.weight" in model.state_dict()) == final
            save_pretrained(model, tmp_path, input_size=(3, 32, 32))
            assert torch.equal(piat_hub.from_pretrained(tmp_path)(x), model(x))


def test_nothing_shadows_timm():
    ours = timm.list_models("cifar_*")
    assert set(ours) == set(COUNTS) and all(
        timm.model_entrypoint(n).__module__ == "piat_hub.backbones.cifar" for n in ours
    )
    assert timm.model_entrypoint("resnet18").__module__ == "timm.models.resnet"


def test_any_timm_model_and_unknown_names():
    assert piat_hub.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4)(torch.rand(1, 3, 32, 32)).shape == (
        1,
        10,
    )
    with pytest.raises(InputError, match="did you mean 'cifar_resnet18'"):
        piat_hub.create_model("cifar_resnet-18")


@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet8",
        "cifar_preact_resnet18",
        "mobilenetv3_small_050",
        pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow),
    ],
)
def test_checkpointed_gradients_and_statistics_are_the_same(name):
    torch.manual_seed(0)
    size = SMALL.get(name, {"img_size": 32})
    plain = create_model(name, num_classes=3, **size).double()
    checkpointed = copy.deepcopy(plain)
    backbones.checkpoint_gradients(checkpointed)
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    for model in (plain, checkpointed):
        for _ in range(2):
            model.train()(x).square().sum().backward()
    for (key, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-12), key
    for (key, a), b in zip(plain.state_dict().items(), checkpointed.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-12), key


def test_a_model_that_cannot_checkpoint_is_refused():
    with pytest.raises(InputError, match="leave out --gradient-checkpointing"):
        backbones.checkpoint_gradients(torch.nn.Linear(2, 2))
