"""small_image.py: every family at tiny size learns, is saved and rebuilt, and keeps pretrained weights that fit."""

from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import piat_hub
from piat_hub import methods
from piat_hub.attacks import pgd
from piat_hub.backbones import small_image
from piat_hub.config import InputError
from piat_hub.hub.load import from_pretrained
from piat_hub.hub.save import save_pretrained

FAMILIES = {  # the smallest of each, cut down further where timm lets us
    "resnet18": {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1), "stem_width": 8},
    "resnet26d": {"channels": (4, 4, 8, 8), "layers": (1, 1, 1, 1), "stem_width": 8},
    "res2net50_26w_4s": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
    "resnetv2_18": {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1), "stem_chs": 8},
    "legacy_seresnet18": {"layers": (1, 1, 1, 1)},
    "densenet121": {"growth_rate": 8, "block_config": (1, 1, 1, 1)},
    "efficientnet_b0": {},
    "mobilenetv3_small_050": {},
    "hardcorenas_a": {},
    "ghostnet_050": {},
    "regnetx_002": {},
    "repvgg_a0": {},
    "mobilevit_xxs": {},
    "nf_resnet26": {},
    "poolformer_s12": {},
    "dla46_c": {},
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 48},
    "deit_tiny_distilled_patch16_224": {"depth": 2, "embed_dim": 48},
    "beit_base_patch16_224": {"depth": 1, "embed_dim": 48, "num_heads": 3},
    "eva02_tiny_patch14_224": {"depth": 1, "embed_dim": 48},
    "cait_xxs24_224": {"depth": 1, "embed_dim": 48},
    "vit_base_patch16_clip_224": {"depth": 1, "embed_dim": 48, "num_heads": 3},
    "resnest14d": {},
    "skresnet18": {},
    "nf_regnet_b0": {},
    "mobilenetv4_conv_aa_medium": {},
    "convnext_atto_ols": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24},
    "xcit_nano_12_p16_224": {"depth": 2, "embed_dim": 48},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 1, 1), "embed_dim": 24},
}


# 8 x 8 and those of the class
TOKENS = {"cait": 64, "xcit": 65, "eva": 65, "beit": 65, "vision_transformer": 65, "deit": 66}
GRIDS = {"swin_transformer": (2, 2), "swin_transformer_v2": (2, 2)}  # all convolutional ones end in 4 x 4


def make(base, img_size=32, **kwargs):
    torch.manual_seed(0)
    return piat_hub.create_model(base, img_size=img_size, **{**FAMILIES[base], **kwargs})


@pytest.mark.slow
@pytest.mark.parametrize("base", FAMILIES)
def test_a_family_takes_a_step_of_piat_and_nmse_and_is_rebuilt(base, tmp_path):
    model = make(base).train()
    shape, kind = model.eval().forward_features(torch.rand(1, 3, 32, 32)).shape, small_image.family(base)
    if kind in TOKENS:
        assert shape[1] in (TOKENS[kind], 65), shape
    else:
        assert (shape[1:3] if kind in GRIDS else shape[2:]) == GRIDS.get(kind, (4, 4)), shape
    before = [p.detach().clone() for p in model.train().parameters()]
    optimizer, interpolation = torch.optim.SGD(model.parameters(), lr=0.1), piat_hub.ParameterInterpolation(model)
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    attack = partial(pgd, eps=8 / 255, step_size=2 / 255, steps=2)
    loss = methods.get("nmse")()(model, x, y, attack, 0.5)
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert interpolation.step() == 2 / 11
    assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    save_pretrained(model, tmp_path, input_size=(3, 32, 32))
    with torch.no_grad():
        logits = model.eval()(x)
        assert torch.equal(from_pretrained(tmp_path)(x), logits)
        assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), logits)
        other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
        assert other(x).shape == (4, 3)


def test_a_normalisation_of_ones_own_before_patches_is_saved_with_the_model(tmp_path):
    shape = {"num_classes": 3, "img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = piat_hub.create_model("vit_tiny_patch16_224", **shape, mean=(0.5,) * 3, std=(0.2,) * 3).eval()
    plain = piat_hub.create_model("vit_tiny_patch16_224", **shape).eval()
    assert isinstance(plain, timm.models.VisionTransformer)
    save_pretrained(model, tmp_path, input_size=(3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(from_pretrained(str(tmp_path))(x), model(x))
        inner = model.patch_embed.proj[-1].state_dict()
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith("patch_embed.proj.")}
        plain.load_state_dict(weights | {f"patch_embed.proj.{k}": v for k, v in inner.items()})
        assert torch.allclose(plain((x - 0.5) / 0.2), model(x), atol=1e-5)


def test_at_least_twelve_families():
    assert len({small_image.family(base) for base in FAMILIES}) >= 12


def test_the_long_form_is_the_short_one():
    torch.manual_seed(0)
    long = timm.create_model("small_image", base="resnet18", img_size=32, num_classes=10)
    torch.manual_seed(0)
    short = piat_hub.create_model("resnet18", img_size=32)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(long.eval()(x), short.eval()(x))
    stem = short.conv1.conv
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(short.maxpool, nn.Identity)


def test_errors_name_the_rule():
    with pytest.raises(InputError, match="no small-image rule for the family of 'coat_tiny'; choose from timm's beit"):
        piat_hub.create_model("coat_tiny", img_size=32)
    with pytest.raises(InputError, match="swin_tiny_patch4_window7_224 cannot be built for 30x30 images"):
        timm.create_model("small_image", base="swin_tiny_patch4_window7_224", img_size=30, window_size="no")
    with pytest.raises(InputError, match=r"out_indices \(0, 7\) are not among its 5 features; count them from 0"):
        timm.create_model("small_image", base="resnet18", features_only=True, out_indices=(0, 7))


@pytest.mark.parametrize("base", FAMILIES)
def test_features_have_the_sizes_they_say(base):
    net = make(base, features_only=True).eval()
    with torch.no_grad():
        features = net(torch.rand(1, 3, 32, 32))
    assert net.feature_info.channels() == [f.shape[1] for f in features]
    assert (
        net.feature_info.reduction() == [32 // f.shape[-1] for f in features] == [32 // f.shape[-2] for f in features]
    )
    kind = small_image.family(base)
    assert len(features) >= 4 or kind in TOKENS
    assert net.feature_info.reduction()[-1] == (4 if kind in TOKENS else 16 if kind in GRIDS else 8)


@pytest.mark.parametrize(("base", "size"), [("resnet18", 96), ("resnet18", 64), ("convnext_atto", 96)])
def test_features_of_larger_images(base, size):
    net = make(base, size, features_only=True, out_indices=(1, 3)).eval()
    with torch.no_grad():
        features = net(torch.rand(1, 3, size, size))
    assert net.feature_info.reduction() == [size // f.shape[-1] for f in features]


@pytest.mark.parametrize("base", ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_features_of_a_saved_model_are_its_own(base, tmp_path):
    model = make(base).eval()
    save_pretrained(model, tmp_path, input_size=(3, 32, 32))
    x = torch.rand(1, 3, 32, 32)
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(0, 1)).eval()
    with torch.no_grad():
        own = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
        assert all(torch.equal(f, i) for f, i in zip(net(x), own, strict=True))
    assert net.feature_info.reduction() == [32 // f.shape[-1] for f in own]


@pytest.mark.parametrize("base", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "resnet18"])
@pytest.mark.parametrize("size", [28, 30, 64])
def test_every_pixel_is_seen_at_any_size(base, size):
    x = torch.rand(1, 3, size, size, requires_grad=True)
    model = make(base, size).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # residual branches start at zero
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
    assert gradient[..., -1, :].any() and gradient[..., :, -1].any()


def test_sizes_that_patches_do_not_divide_and_families_without_a_rule():
    with pytest.raises(InputError, match="72 pixels do not divide into patches of 16 for vit_tiny"):
        make("vit_tiny_patch16_224", 72)
    with pytest.raises(InputError, match="no small-image rule for the family of 'levit_128'"):
        piat_hub.create_model("levit_128", img_size=32)
    assert piat_hub.create_model("levit_128", img_size=224, num_classes=3).eval()(torch.rand(1, 3, 224, 224)).shape == (
        1,
        3,
    )
    with pytest.raises(InputError, match="FileNotFoundError: the pretrained weights of resnet18 cannot be had"):
        make("resnet18", pretrained=True, pretrained_cfg_overlay={"file": "none.safetensors"})
    with pytest.raises(InputError, match="the pretrained weights of cifar_resnet18 cannot be had"):
        piat_hub.create_model("cifar_resnet18", pretrained=True)
    assert piat_hub.create_model("small_image", base="resnet18", img_size=32).conv1.conv.stride == (1, 1)


def test_another_number_of_channels_from_a_saved_model(tmp_path):
    save_pretrained(make("resnet18"), tmp_path, input_size=(3, 32, 32))
    grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)
    assert grey(torch.rand(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("channels", [1, 3])
def test_larger_images_keep_the_strides_and_normalise_inside(channels):
    model = make("resnet18", 96, in_chans=channels).eval()
    plain = timm.create_model("resnet18", num_classes=10, in_chans=channels, **FAMILIES["resnet18"]).eval()
    weights = {
        k.replace("conv1.conv.", "conv1.", 1) if k.startswith("conv1.") else k: v for k, v in model.state_dict().items()
    }
    plain.load_state_dict(weights)
    mean, std = (torch.tensor(plain.pretrained_cfg[k]).view(-1, 1, 1) for k in ("mean", "std"))
    if channels == 1:
        mean, std = mean.mean(), std.mean()
    x = torch.rand(2, channels, 96, 96)
    assert torch.allclose(model(x), plain((x - mean) / std), atol=1e-5)


@pytest.fixture
def imagenet(tmp_path):
    """As timm would download: the weights of a 224x224 model as a local file, and the model itself."""

    def make(base):
        torch.manual_seed(1)
        source = timm.create_model(base, num_classes=10, **FAMILIES[base]).eval()
        save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
        return source, {"file": str(tmp_path / "w.safetensors"), "num_classes": 10}

    return make


def test_pretrained_weights_that_fit_are_kept_and_the_stem_is_new(imagenet):
    source, overlay = imagenet("mobilenetv3_small_050")
    model = make("mobilenetv3_small_050", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(model.conv_stem.conv.weight, source.conv_stem.weight)  # 3x3: only its stride changed
    assert all(
        torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items() if not k.startswith("conv_stem")
    )
    source, overlay = imagenet("convnext_atto")
    model = make("convnext_atto", pretrained=True, pretrained_cfg_overlay=overlay)
    assert model.stem[0].weight.shape[-1] == 1 and source.stem[0].weight.shape[-1] == 4
    assert torch.equal(model.stages[0].blocks[0].conv_dw.weight, source.stages[0].blocks[0].conv_dw.weight)


@pytest.mark.parametrize("base", ["vit_base_patch16_clip_224", "convnext_atto_ols"])
def test_pretrained_weights_that_do_not_fold_are_saved_and_rebuilt(imagenet, tmp_path, base):
    _, overlay = imagenet(base)
    model = make(base, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    save_pretrained(model, tmp_path / "m", input_size=(3, 32, 32))
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(from_pretrained(tmp_path / "m")(x), model(x))


def test_a_pretrained_vit_is_resampled_and_takes_unit_images(imagenet):
    source, overlay = imagenet("vit_tiny_patch16_224")
    model = make("vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    options = {"img_size": 32, "patch_size": 4, "num_classes": 10, **FAMILIES["vit_tiny_patch16_224"]}
    small = timm.create_model("vit_tiny_patch16_224", **options).eval()
    small.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(source.state_dict(), small))
    mean, std = (torch.tensor(source.pretrained_cfg[k]).view(-1, 1, 1) for k in ("mean", "std"))
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model(x), small((x - mean) / std), atol=1e-5)
    assert model.pretrained_cfg["mean"] == (0.0,) * 3 and model.pretrained_cfg["std"] == (1.0,) * 3
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
