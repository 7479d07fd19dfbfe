"""layouts.py: networks written as others write them have the logits of what they are converted to; the rest is refused."""

import json
import pickle
import re
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import piat_hub
from piat_hub.config import InputError
from piat_hub.hub import layouts

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def conv(before, after, size, stride=1):
    return nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """Two convolutions and a shortcut, as each layout orders and names them."""

    def __init__(self, kind, before, after, stride):
        super().__init__()
        self.kind, self.projects = kind, stride > 1 or before != after
        self.conv1, self.conv2 = conv(before, after, 3, stride), conv(after, after, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(after if kind == "resnet" else before), nn.BatchNorm2d(after)
        if kind == "wrn":
            self.convShortcut = conv(before, after, 1, stride) if self.projects else None
        else:
            norm = [nn.BatchNorm2d(after)] if kind == "resnet" else []
            self.shortcut = nn.Sequential(*([conv(before, after, 1, stride), *norm] if self.projects else []))

    def forward(self, x):
        if self.kind == "resnet":
            return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.shortcut(x)).relu()
        y = self.bn1(x).relu()
        shortcut = x if self.kind == "preact" or not self.projects else y
        if self.projects:
            shortcut = (self.convShortcut if self.kind == "wrn" else self.shortcut)(shortcut)
        return self.conv2(self.bn2(self.conv1(y)).relu()) + shortcut


def same_padded(x, stride):
    """What TensorFlow's SAME adds to an even side before a 3x3 convolution of this stride."""
    return functional.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


class SiLUBlock(nn.Module):
    """A residual block of DMWideResNet, or of DMPreActResNet: its 3x3 projection takes what comes in as it is."""

    def __init__(self, kind, before, after, stride):
        super().__init__()
        self.wide, self.stride = kind != "preact", stride
        first, second = ("conv_0", "conv_1") if self.wide else ("conv_2d_1", "conv_2d_2")
        self.first, self.second = first, second
        self.batchnorm_0, self.batchnorm_1 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.add_module(first, nn.Conv2d(before, after, 3, stride, bias=False))
        self.add_module(second, conv(after, after, 3))
        if before != after or (stride > 1 and not self.wide):
            self.shortcut = nn.Conv2d(before, after, 1 if self.wide else 3, stride, bias=False)
        if kind == "rawrn":
            self.se = nn.Module()
            self.se.fc1, self.se.fc2 = nn.Conv2d(after, after // 4, 1), nn.Conv2d(after // 4, after, 1)

    def forward(self, x):
        y = functional.silu(self.batchnorm_0(x))
        shortcut = x
        if hasattr(self, "shortcut"):
            shortcut = self.shortcut(y if self.wide else same_padded(x, self.stride))
        z = self.get_submodule(self.first)(same_padded(y, self.stride))
        z = self.get_submodule(self.second)(functional.silu(self.batchnorm_1(z)))
        if hasattr(self, "se"):
            z = z * self.se.fc2(self.se.fc1(z.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return z + shortcut


class SiLU(nn.Module):
    """Gowal et al. 2020's WideResNet, Peng et al. 2023's RaWRN or Rebuffi et al. 2021's PreActResNet, by the names of its tensors.

    `norms` is in no file.
    """

    def __init__(self, kind, layers, width=8, classes=10, norms=(MEAN, STD)):
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.norms = kind != "preact", norms
        before = 16 if self.wide else width
        self.add_module("init_conv" if self.wide else "conv_2d", conv(3, before, 3))
        stages = []
        for stage, depth in enumerate(layers):
            after = width * 2**stage
            strides = [1 if stage == 0 else 2, *[1] * (depth - 1)]
            chain = [SiLUBlock(kind, after if i else before, after, stride) for i, stride in enumerate(strides)]
            stages.append(nn.Sequential(*chain))
            before = after
        if self.wide:
            self.layer = nn.Sequential(*(nn.Sequential(OrderedDict(block=stage)) for stage in stages))
        else:
            for number, stage in enumerate(stages):
                self.add_module(f"layer_{number}", stage)
        self.stages = len(stages)
        self.batchnorm, self.logits = nn.BatchNorm2d(before), nn.Linear(before, classes)
        as_trained(self)

    def forward(self, x):
        mean, std = (torch.tensor(numbers).to(x.dtype).view(-1, 1, 1) for numbers in self.norms)
        x = (self.init_conv if self.wide else self.conv_2d)((x - mean) / std)
        for number in range(self.stages):
            x = (self.layer[number] if self.wide else self.get_submodule(f"layer_{number}"))(x)
        return self.logits(functional.silu(self.batchnorm(x)).mean((2, 3)))


def as_trained(network):
    """BatchNorm's weights and statistics as training leaves them; eval mode."""
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5)):
            nn.init.uniform_(tensor, low, low + 1)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    network.eval()


class Foreign(nn.Module):
    """A classifier of 32x32 images as RobustBench lays it out, with BatchNorm statistics as training leaves them."""

    def __init__(self, layout, layers, width=8, classes=10, channels=3, final_norm=True, own=False, beside=False):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind = layout.removeprefix("robustbench-")
        self.stem, self.final_norm = 16 if kind == "wrn" else width, final_norm
        self.conv1 = conv(channels, self.stem, 3)
        if kind == "resnet":
            self.bn1 = nn.BatchNorm2d(width)
        before = self.stem
        for stage, depth in enumerate(layers, 1):
            after = width * 2 ** (stage - 1)
            chain = [
                Block(kind, before if i == 0 else after, after, 2 if i == 0 < stage - 1 else 1) for i in range(depth)
            ]
            if kind == "wrn":
                self.add_module(f"block{stage}", nn.Module())
                self.get_submodule(f"block{stage}").layer = nn.Sequential(*chain)
                if beside and stage == 1:
                    self.sub_block1 = nn.Module()
                    self.sub_block1.layer = nn.Sequential(Block(kind, before, after, 1))
            else:
                self.add_module(f"layer{stage}", nn.Sequential(*chain))
            before = after
        if kind != "resnet" and final_norm:
            self.add_module("bn1" if kind == "wrn" else "bn", nn.BatchNorm2d(before))
        self.add_module("fc" if kind == "wrn" else "linear", nn.Linear(before, classes))
        self.depth = len(layers)
        if own:
            for name, numbers in (("mu", MEAN), ("sigma", STD)):
                self.register_buffer(name, torch.tensor(numbers).view(1, 3, 1, 1))
        as_trained(self)

    def forward(self, x):
        x = self.conv1((x - self.mu) / self.sigma if hasattr(self, "mu") else x)
        if self.kind == "resnet":
            x = self.bn1(x).relu()
        for stage in range(1, self.depth + 1):
            x = self.get_submodule(f"block{stage}.layer" if self.kind == "wrn" else f"layer{stage}")(x)
        if self.kind == "wrn":
            return self.fc(functional.avg_pool2d(self.bn1(x).relu(), 8).flatten(1))
        if self.kind != "resnet" and self.final_norm:
            x = self.bn(x).relu()
        return self.linear(functional.avg_pool2d(x, x.shape[-1]).flatten(1))


def saved(network, path, wrap=lambda weights: weights):
    torch.save(wrap(network.state_dict()), path)
    return path


def same(network, converted, channels=3):
    """Whether both give the same logits, in float64."""
    x = torch.rand(2, channels, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = network.double()(x)
        return torch.allclose(converted.double()(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def prefixed(prefix):
    return lambda weights: {prefix + key: tensor for key, tensor in weights.items()}


WRN, PREACT, PREACT2, RESNET = "robustbench-wrn", "robustbench-preact", "robustbench-preact-v2", "robustbench-resnet"
NETWORKS = {
    "wrn": (WRN, {"layers": [2, 2, 2]}),
    "wrn-40-2": (WRN, {"layers": [6, 6, 6], "width": 32}),
    "wrn-10-1": (WRN, {"layers": [1, 1, 1], "width": 16}),  # no projection in the first stage
    "wrn, beside": (WRN, {"layers": [1, 1, 1], "beside": True, "own": True, "classes": 100}),
    "wrn, grey": (WRN, {"layers": [1, 1, 1], "channels": 1, "classes": 2}),
    "preact": (PREACT, {"layers": [2, 2, 2, 2]}),
    "preact, no norm": (PREACT, {"layers": [1, 2, 1, 1], "final_norm": False, "own": True}),
    "preact-v2": (PREACT2, {"layers": [2, 2, 2, 2], "own": True, "classes": 100}),
    "preact-v2, no norm": (PREACT2, {"layers": [1, 1, 1, 1], "final_norm": False}),
    "resnet": (RESNET, {"layers": [2, 2, 2, 2]}),
    "resnet-34": (RESNET, {"layers": [3, 4, 6, 3], "own": True, "classes": 7}),
    "resnet, three stages": (RESNET, {"layers": [1, 1, 1], "width": 16}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_others(name, tmp_path):
    layout, shape = NETWORKS[name]
    network = Foreign(layout, **shape)
    converted = layouts.convert(saved(network, tmp_path / "c.pt"), layout)
    assert not any(m.training for m in converted.modules())
    assert same(network, converted, shape.get("channels", 3))
    assert converted.pretrained_cfg["architecture"] in timm.list_models("cifar_*")


CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
SILU = {
    "wrn": ("wrn", [2, 1, 2], {"width": 32}),
    "wrn, no projection in the first stage": ("wrn", [1, 1, 1], {"width": 16}),
    "wrn, a hundred classes": ("wrn", [1, 1, 1], {"classes": 100, "norms": CIFAR100}),
    "preact": ("preact", [2, 2, 2, 2], {}),
    "preact, a hundred classes": ("preact", [1, 2, 1, 1], {"classes": 100, "norms": CIFAR100}),
    "rawrn": ("rawrn", [3, 2, 1], {"width": 24}),
}


@pytest.mark.parametrize("name", SILU)
def test_silu_networks_have_the_logits_of_their_definition(name, tmp_path):
    """Also from a file of DataParallel's with a second network in it, as their authors save them, and through config.json."""
    kind, layers, shape = SILU[name]
    network = SiLU(kind, layers, **shape)
    layout = "robustbench-rawrn" if kind == "rawrn" else f"robustbench-{kind}-silu"

    def wrap(weights):
        return {"model_state_dict": prefixed("module.0.")(weights), "unaveraged_model_state_dict": {}}

    converted = layouts.convert(saved(network, tmp_path / "c.pt", wrap), layout)
    assert same(network, converted)
    assert all(norm.momentum == 0.01 for norm in converted.modules() if isinstance(norm, nn.BatchNorm2d))
    directory = layouts.import_checkpoint(tmp_path / "c.pt", layout, tmp_path / "run")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        theirs = network.float()(x)
        for ours in (
            piat_hub.from_pretrained(directory),
            timm.create_model(f"local-dir:{directory}", pretrained=True).eval(),
        ):
            assert torch.allclose(ours(x), theirs, rtol=0, atol=1e-5)


def test_statistics_of_silu_networks_go_by_the_classes_unless_given(tmp_path):
    network = SiLU("wrn", [1, 1, 1], norms=((0.5,) * 3, (0.5,) * 3))  # as of SVHN
    path = saved(network, tmp_path / "c.pt")
    given = layouts.convert(path, "robustbench-wrn-silu", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert same(network, given) and not same(network, layouts.convert(path, "robustbench-wrn-silu"))
    path = saved(SiLU("wrn", [1, 1, 1], classes=7), tmp_path / "seven.pt")
    with pytest.raises(
        InputError, match="seven.pt has 7 classes and normalises .* give those of its training with --mean"
    ):
        layouts.convert(path, "robustbench-wrn-silu")
    assert layouts.convert(path, "robustbench-wrn-silu", mean=MEAN, std=STD)(torch.rand(1, 3, 32, 32)).shape == (1, 7)


def test_wide_networks_by_the_names_of_huang_et_al(tmp_path):
    network = Foreign(WRN, [1, 2, 1])

    def renamed(weights):
        named = {re.sub(r"^block(\d)", lambda m: f"blocks.{int(m[1]) - 1}", key): t for key, t in weights.items()}
        return {re.sub("^conv1", "stem_conv", key): t for key, t in named.items()}

    assert same(network, layouts.convert(saved(network, tmp_path / "c.pt", renamed), "robustbench-wrn-r"))


def test_bottlenecks(tmp_path):
    """torchvision's ResNet with a stem for small images, by the names of the CIFAR ResNets."""
    torch.manual_seed(0)
    network = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 2, 1, 1], num_classes=10)
    network.conv1, network.maxpool = conv(3, 64, 3), nn.Identity()
    as_trained(network)

    def renamed(weights):
        return {k.replace("downsample", "shortcut").replace("fc.", "linear."): t for k, t in weights.items()}

    path = saved(network, tmp_path / "c.pt", renamed)
    assert same(network, layouts.convert(path, "robustbench-resnet50"))
    with pytest.raises(InputError, match="use robustbench-resnet50$"):
        layouts.convert(path, RESNET)


def test_the_two_kinds_of_shortcut_differ_and_both_load(tmp_path):
    network = Foreign(PREACT, [1, 1, 1, 1])
    path = saved(network, tmp_path / "c.pt")
    assert same(network, layouts.convert(path, PREACT)) and not same(network, layouts.convert(path, PREACT2))


@pytest.mark.parametrize(
    "wrap",
    [
        prefixed("module."),
        lambda w: {"state_dict": prefixed("module.model.")(w), "epoch": 3, "optimizer": {"state": {}}},
        lambda w: {"net": OrderedDict(w), "acc": 0.5},
        lambda w: {"state_dict": {k: 0 * t for k, t in w.items()}, "state_dict_ema": prefixed("module.")(w)},
        lambda w: {"model": w, "model_ema": None},
        lambda w: {"n_averaged": torch.tensor(3)} | prefixed("module.")(w),
        lambda w: {"model": {"state_dict": prefixed("0.")(w)}},
        lambda w: {"last": prefixed("_orig_mod.")(w), "best": {}},
        lambda w: w | {"model_preact_hl1.1.weight": w["conv1.weight"]},
        lambda w: {k: t for k, t in w.items() if "num_batches_tracked" not in k},
        lambda w: prefixed("1.")(w) | {"0.mean": torch.zeros(3), "0.std": torch.ones(3)},
        lambda w: prefixed("model.")(w) | {"normalize.mean": torch.zeros(3), "normalize.std": torch.ones(3)},
    ],
)
def test_wrappings(wrap, tmp_path):
    network = Foreign(PREACT2, [1, 1, 1, 1])
    assert same(network, layouts.convert(saved(network, tmp_path / "c.pt", wrap), PREACT2))


def test_safetensors(tmp_path):
    network = Foreign(RESNET, [1, 1, 1, 1])
    save_file(network.state_dict(), tmp_path / "c.safetensors")
    assert same(network, layouts.convert(tmp_path / "c.safetensors", RESNET))


def test_normalisation_from_the_arguments_or_from_the_checkpoint(tmp_path):
    network = Foreign(WRN, [1, 1, 1], own=True)
    own = saved(network, tmp_path / "own.pt")
    bare = saved(network, tmp_path / "bare.pt", lambda w: {k: t for k, t in w.items() if k not in ("mu", "sigma")})
    given = layouts.convert(bare, WRN, mean=MEAN, std=STD)
    assert same(network, layouts.convert(own, WRN, mean=MEAN, std=STD)) and same(network, given)
    assert not same(network, layouts.convert(bare, WRN))
    with pytest.raises(InputError, match=r"own\.pt has a std of its own, \[0\.247.*, not \[0\.25, .*leave yours out"):
        layouts.convert(own, WRN, mean=MEAN, std=(0.25, 0.25, 0.25))
    for mean, std in ((MEAN, ()), ((0.5,), (0.5,)), (MEAN, (0.2, 0.0, 0.2))):
        with pytest.raises(InputError, match="must be 3 numbers each, std above 0"):
            layouts.convert(bare, WRN, mean=mean, std=std)


@pytest.mark.parametrize("name", ["wrn, beside", "preact, no norm", "preact-v2", "resnet-34", "wrn, grey"])
def test_an_imported_checkpoint_is_a_run_directory(name, tmp_path):
    layout, shape = NETWORKS[name]
    path = saved(Foreign(layout, **shape), tmp_path / "c.pt")
    directory = layouts.import_checkpoint(path, layout, tmp_path / "run")
    assert directory == tmp_path / "run"
    files = {file.name: file.stat().st_size for file in directory.iterdir()}
    assert sorted(files) == ["config.json", "metrics.jsonl", "model.safetensors"] and files["metrics.jsonl"] == 0
    channels = shape.get("channels", 3)
    x = torch.rand(2, channels, 32, 32)
    with torch.no_grad():
        logits = layouts.convert(path, layout)(x)
        assert torch.equal(piat_hub.from_pretrained(directory)(x), logits)
        assert torch.equal(timm.create_model(f"local-dir:{directory}", pretrained=True).eval()(x), logits)
        other = timm.create_model(f"local-dir:{directory}", pretrained=True, num_classes=5)
        assert other(x).shape == (2, 5)
    config = json.loads((directory / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [channels, 32, 32] and config["num_classes"] == logits.shape[1]


def test_nothing_is_overwritten_or_half_written(tmp_path):
    path = saved(Foreign(RESNET, [1, 1, 1, 1]), tmp_path / "c.pt")
    with pytest.raises(InputError, match="does not fit layout"):
        layouts.import_checkpoint(path, WRN, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    layouts.import_checkpoint(path, RESNET, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"run holds config\.json and model\.safetensors already; name another output"):
        layouts.import_checkpoint(path, RESNET, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    with pytest.raises(InputError, match=r"c\.pt holds a file already"):
        layouts.import_checkpoint(path, RESNET, path)


@pytest.mark.parametrize(
    ("holds", "asked", "message"),
    [
        (PREACT, RESNET, "'layer2.0.bn1.weight' has shape [8], .*; use robustbench-preact or robustbench-preact-v2"),
        (RESNET, PREACT, "'bn1.weight' has no place in it; use robustbench-resnet"),
        (WRN, RESNET, "'block1.layer.0.conv1.weight' has no place in it; use robustbench-wrn"),
        (RESNET, WRN, "'layer1.0.conv1.weight' has no place in it; use robustbench-resnet"),
        ("wrn", WRN, "'init_conv.weight' has no place in it; use robustbench-wrn-silu"),
        ("preact", PREACT, "'conv_2d.weight' has no place in it; use robustbench-preact-silu"),
    ],
)
def test_another_layout_is_named(holds, asked, message, tmp_path):
    layers = [1, 1, 1] if holds in (WRN, "wrn") else [1, 1, 1, 1]
    foreign = SiLU(holds, layers) if holds in ("wrn", "preact") else Foreign(holds, layers, final_norm=holds != PREACT)
    path = saved(foreign, tmp_path / "c.pt")
    message = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(InputError, match=f"c.pt does not fit layout {asked}: {message}$"):
        layouts.convert(path, asked)


def without(key):
    return lambda w: {k: t for k, t in w.items() if k != key}


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            lambda w: w | {"block1.layer.0.conv3.weight": torch.ones(1)},
            "'block1.layer.0.conv3.weight' has no place in it",
        ),
        (lambda w: w | {"activation.alpha": torch.ones(1)}, "'activation.alpha' has no place in it"),
        (lambda w: w | {"mu": torch.ones(3)}, "'mu' has no place in it"),
        (lambda w: w | {"head.fc.bias": torch.ones(10)}, "'head.fc.bias' has no place in it"),
        (without("fc.bias"), "nothing is there for our 'head.fc.bias'"),
        (without("fc.weight"), "nothing is there for our 'head.fc.weight'"),
        (without("block2.layer.0.bn2.running_var"), "nothing is there for our 'stages.1.blocks.0.norm2.running_var'"),
        (lambda w: w | {"bn1.bias": torch.ones(31)}, "'bn1.bias' has shape [31], where the others want [32]"),
        (lambda w: w | {"conv1.weight": torch.tensor(1.0)}, "nothing is there for our 'stem.conv.weight'"),
        (lambda w: {k: t for k, t in w.items() if "block3" not in k}, "residual blocks in 2 stages, not in 3 or 4"),
        (lambda w: {k.replace("layer.0", "layer.7"): t for k, t in w.items()}, "has no place in it"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(wrap, message, tmp_path):
    path = saved(Foreign(WRN, [1, 1, 1]), tmp_path / "c.pt", wrap)
    with pytest.raises(InputError, match=f"{re.escape(message)}; no other layout does$"):
        layouts.convert(path, WRN)


def test_what_is_no_checkpoint(tmp_path):
    path = saved(Foreign(RESNET, [1, 1, 1, 1]), tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"no checkpoint .*none\.pt: there is no such file; check the path"):
        layouts.convert(tmp_path / "none.pt", RESNET)
    with pytest.raises(InputError, match="unknown layout 'robustbench-resent' .did you mean 'robustbench-resnet'"):
        layouts.convert(path, "robustbench-resent")
    for size in (0, 100, path.stat().st_size // 2, path.stat().st_size - 100):
        (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:size])
        with pytest.raises(InputError, match=r"cut\.pt is no whole checkpoint of torch\.save"):
            layouts.convert(tmp_path / "cut.pt", RESNET)
    for held in ([torch.ones(2)], {"epoch": 3}, {"state_dict": {}}, torch.ones(2)):
        torch.save(held, tmp_path / "odd.pt")
        with pytest.raises(InputError, match=r"odd\.pt holds no tensors by name"):
            layouts.convert(tmp_path / "odd.pt", RESNET)
    held = {}
    held["model"] = held
    torch.save(held, tmp_path / "endless.pt")
    with pytest.raises(InputError, match=r"endless\.pt holds no tensors by name"):
        layouts.convert(tmp_path / "endless.pt", RESNET)
    twice = saved(Foreign(RESNET, [1] * 4), tmp_path / "two.pt", lambda w: prefixed("0.")(w) | prefixed("1.")(w))
    with pytest.raises(InputError, match=r"two\.pt holds 'conv1\.weight' twice, also as '1\.conv1\.weight'"):
        layouts.convert(twice, RESNET)


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.parametrize("write", [torch.save, lambda held, path: path.write_bytes(pickle.dumps(held, protocol=2))])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write({"state_dict": Foreign(RESNET, [1, 1, 1, 1]).state_dict(), "more": Bomb()}, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"c\.pt (holds more than tensors|is no whole checkpoint)"):
        layouts.import_checkpoint(tmp_path / "c.pt", RESNET, tmp_path / "run")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.pt"]
    pickle.loads(pickle.dumps(Bomb())).close()  # the bomb is real
    assert (tmp_path / "exploded").exists()


def test_a_whole_module_or_options_beside_the_tensors_are_refused_with_their_name(tmp_path):
    torch.save({"args": SimpleNamespace(depth=3)}, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"holds more than tensors \(types\.SimpleNamespace\).*state_dict alone"):
        layouts.convert(tmp_path / "c.pt", RESNET)
