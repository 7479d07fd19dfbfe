"""timm_layout.py: checkpoints of timm's own models have the logits of those; what only looks like one is refused."""

import re

import pytest
import timm
import torch

import piat_hub
from piat_hub.config import InputError
from piat_hub.hub import layouts

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_statistics(model):
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return random_statistics(timm.create_model("resnet18", num_classes=7))


def behind(model, x, mean=MEAN, std=STD):
    shape = (1, 3, 1, 1)
    with torch.no_grad():
        return model((x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))


def named(weights, *prefixes):
    return {prefix + key: tensor for prefix in prefixes for key, tensor in weights.items()}


def robustness(weights):
    """As MadryLab's package saves a model: itself, an attacker with it, and the normaliser of each, under DataParallel."""
    tensors = named(weights, "module.model.", "module.attacker.model.")
    for at in ("module.normalizer.", "module.attacker.normalize."):
        tensors |= {f"{at}new_mean": torch.tensor(MEAN).view(3, 1, 1), f"{at}new_std": torch.tensor(STD).view(3, 1, 1)}
    return {"model": tensors, "epoch": 3, "optimizer": {"state": {}}}


@pytest.mark.parametrize(
    ("wrap", "given"),
    [
        (robustness, {}),
        (lambda w: {"state_dict": named(w, "module.")}, {"mean": MEAN, "std": STD}),
        (
            lambda w: (
                named(w, "module.model.") | {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD)}
            ),
            {},
        ),
    ],
    ids=["robustness", "module", "normalize"],
)
def test_a_resnet_in_its_wrappings(wrap, given, resnet, tmp_path):
    torch.save(wrap(resnet.state_dict()), tmp_path / "c.pt")
    converted = layouts.convert(tmp_path / "c.pt", "resnet18", **given)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(converted(x), behind(resnet, x), atol=1e-5)


def test_without_a_normalisation_there_is_none(resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / "c.pt")
    x = torch.rand(1, 3, 64, 64)
    converted = layouts.convert(tmp_path / "c.pt", "resnet18")
    with torch.no_grad():
        assert torch.equal(converted(x), resnet(x))


def test_xcit_at_its_own_size_and_at_cifars(tmp_path):
    """At 32 pixels the first two of four halvings are taken out (Debenedetti et al. 2022); another depth is read off."""
    torch.manual_seed(0)
    model = random_statistics(timm.create_model("xcit_nano_12_p16_224", num_classes=5, depth=3))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "c.pt")
    for size in (224, 32):
        if size == 32:
            model.patch_embed.proj[0][0].stride = model.patch_embed.proj[2][0].stride = (1, 1)
        x = torch.rand(2, 3, size, size)
        given = {"mean": MEAN, "std": STD, "img_size": size}
        directory = layouts.import_checkpoint(tmp_path / "c.pt", "xcit_nano_12_p16_224", tmp_path / str(size), **given)
        loaded = piat_hub.from_pretrained(directory)
        with torch.no_grad():
            assert torch.allclose(loaded(x), behind(model, x), atol=1e-5)
        assert loaded.pretrained_cfg["input_size"] == [3, size, size] and len(loaded.blocks) == 3


@pytest.mark.slow
def test_a_swin_as_it_was_called_before(tmp_path):
    """Liu et al. 2023: a stage's merging was counted to the stage before it, and the head lay a level higher."""
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224").eval()
    old = {
        re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key).replace(
            "head.fc", "head"
        ): t
        for key, t in model.state_dict().items()
    }
    assert "layers.0.downsample.reduction.weight" in old and "head.weight" in old
    torch.save(named(old, "module."), tmp_path / "c.pt")
    converted = layouts.convert(tmp_path / "c.pt", "swin_tiny_patch4_window7_224", mean=MEAN, std=STD)
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(converted(x), behind(model, x), atol=1e-5)
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    torch.save(old | {table: torch.zeros(23 * 23, 3)}, tmp_path / "c.pt")  # of windows of 12, which timm would resample
    with pytest.raises(InputError, match=f"'{table}' is of another size than swin_tiny.*; no other layout does"):
        layouts.convert(tmp_path / "c.pt", "swin_tiny_patch4_window7_224")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "statistics"), [("convnext_tiny_cvst", ((), ())), ("vit_small_cvst", (MEAN, STD))])
def test_convstem_as_its_authors_name_it(name, statistics, tmp_path):
    """Singh et al. 2023: a module of its own holds the stem's layers; they normalise for the ViT alone."""
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=7).eval()
    stem = r"^(stem|patch_embed\.proj)\."
    torch.save({re.sub(stem, r"\1.stem.", key): t for key, t in whole.state_dict().items()}, tmp_path / "c.pt")
    converted = layouts.convert(tmp_path / "c.pt", name, mean=statistics[0], std=statistics[1])
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = behind(whole, x, *statistics) if statistics[0] else whole(x)
        assert torch.allclose(converted(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "given", "message"),
    [
        ("resnet34", {}, "nothing is there for our 'layer1.2.conv1.weight'; no other layout does"),
        ("resnet10t", {}, "nothing is there for 'conv1.0.weight'; no other layout does"),
        ("vit_tiny_patch16_224", {}, "nothing is there for 'patch_embed.proj.weight'; no other layout does"),
        ("robustbench-wrn", {"img_size": 32}, "--img-size 32 is for layouts that are timm's"),
        ("resnet18", {"mean": (0.5,), "std": (0.5,)}, "must be 3 numbers each, std above 0; give one per channel"),
        ("resnet81", {}, "unknown layout 'resnet81' .did you mean 'resnet18'.*, and the names of timm's models"),
    ],
)
def test_what_does_not_fit(layout, given, message, resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / "c.pt")
    with pytest.raises(InputError, match=message):
        layouts.import_checkpoint(tmp_path / "c.pt", layout, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
