"""backbones.py: parameter counts of the literature, the small-image stem, other channels and classes, timm's registry."""

import copy

import pytest
import timm
import torch
from torch import nn

import piat_hub
from piat_hub import backbones, create_model
from piat_hub.config import InputError

COUNTS = {
    "cifar_resnet18": 11_173_962,
    "cifar_wrn_32_10": 46_160_474,
    "cifar_resnet20": 272_474,
    "cifar_resnet8": 78_042,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_at_ten_classes(name):
    with torch.device("meta"):
        model = piat_hub.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


def test_resnet20_is_the_papers_270_thousand_plus_projections():
    assert 272_474 - (16 * 32 + 2 * 32 + 32 * 64 + 2 * 64) == 269_722  # He et al. 2016, Table 6: 0.27 M


@pytest.mark.parametrize(("name", "stride"), [("cifar_resnet18", 8), ("cifar_resnet20", 4), ("cifar_wrn_32_10", 4)])
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


@pytest.mark.parametrize("name", [n for n in COUNTS if n != "cifar_wrn_32_10"])
def test_registered_with_timm(name):
    assert name in timm.list_models("cifar_*")
    a = timm.create_model(name, num_classes=5).eval()
    assert (a.pretrained_cfg["mean"], a.pretrained_cfg["std"]) == ((0.0,) * 3, (1.0,) * 3)
    assert a.pretrained_cfg["input_size"] == (3, 32, 32)
    assert a(torch.rand(1, 3, 32, 32)).shape == (1, 5)


def test_features_only():
    model = timm.create_model("cifar_resnet20", features_only=True, out_indices=(1, 2, 3))
    assert [f.shape[1:] for f in model(torch.rand(1, 3, 32, 32))] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_nothing_shadows_timm():
    ours = timm.list_models("cifar_*")
    assert set(ours) == set(COUNTS) and all(timm.model_entrypoint(n).__module__ == "piat_hub.backbones" for n in ours)
    assert timm.model_entrypoint("resnet18").__module__ == "timm.models.resnet"


def test_any_timm_model_and_unknown_names():
    assert piat_hub.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4)(torch.rand(1, 3, 32, 32)).shape == (
        1,
        10,
    )
    with pytest.raises(InputError, match="did you mean 'cifar_resnet18'"):
        piat_hub.create_model("cifar_resnet-18")


@pytest.mark.parametrize("name", ["cifar_resnet8", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_checkpointed_gradients_and_statistics_are_the_same(name):
    torch.manual_seed(0)
    size = {} if name.startswith("cifar") else {"img_size": 32}
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
