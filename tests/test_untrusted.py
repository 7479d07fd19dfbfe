"""untrusted.py: anyone's config.json builds what its weights hold, and nothing else happens."""

import contextlib
import dataclasses
import json
import os
import re
import resource
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import piat_hub
from piat_hub.config import InputError, recipes, to_dict
from piat_hub.hub import untrusted
from piat_hub.hub.load import from_pretrained, from_timm
from piat_hub.hub.save import save_pretrained
from piat_hub.records.files import read_json
from piat_hub.records.model_config import ModelConfig


@pytest.fixture
def stranger(tmp_path):
    """Saves a small model whose config.json then holds other values; gives its directory."""

    def make(**changes):
        model = piat_hub.create_model("cifar_resnet8", num_classes=10, in_chans=1)
        save_pretrained(model, tmp_path / "m", input_size=(1, 8, 8))
        config = read_json(tmp_path / "m/config.json")
        for key, value in changes.items():
            config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
        (tmp_path / "m/config.json").write_text(json.dumps(config))
        return tmp_path / "m"

    return make


def memory():
    """What this process holds, or has held since the last reset of its peak where the system has one; KiB."""
    with contextlib.suppress(OSError):
        text = Path("/proc/self/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", text)[1])
        Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is a new one
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 10**9}, r"'fc.bias' has shape \[10\], the architecture wants \[1000000000\]"),
        ({"num_classes": 10**30}, "cannot be built"),
        ({"num_classes": True}, "num_classes must be a whole number"),
        ({"num_classes": -1}, "num_classes must be a whole number"),
        ({"num_classes": "10"}, "num_classes must be a whole number"),
        ({"label_names": ["a", "b"]}, "2 label_names for 10 classes"),
        ({"model_args": {"channels": [16, 32, 10**5]}}, "has shape"),
        ({"model_args": {"channels": [16, 32, 10**9]}}, "none above 100,000"),
        ({"model_args": {"layers": [99_999, 99_999, 99_999]}}, "more parameters than its weights hold tensors"),
        ({"model_args": {"layers": [100_000] * 900}}, "400,000 together"),
        ({"model_args": {"channels": [16, -32, 64]}}, "none above 100,000 or below 0"),
        ({"model_args": {"drop_path_rate": -0.5}}, "none above 100,000 or below 0"),
        ({"architecture": "mixnet_m", "model_args": {"depth_multiplier": 99_999}}, "steps of Python"),
        ({"architecture": "convnext_tiny", "model_args": {"depths": [300] * 900}}, "more parameters than"),
        ({"architecture": "sequencer2d_s", "model_args": {"num_rnn_layers": 99_999}}, "more parameters than"),
        ({"architecture": "maxvit_tiny_tf_224", "model_args": {"img_size": 90_000}}, "steps of Python"),
        ({"model_args": {"channels": list(range(2000))}}, "at most 1000 values"),
        ({"model_args": {"drop_rate": float("nan")}}, "none above 100,000"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "may not hold 'checkpoint_path'"),
        ({"model_args": {"pretrained": True}}, "may not hold 'pretrained'"),
        ({"model_args": {"pretrained_cfg": {"file": "bomb.pth"}}}, "may not hold 'pretrained_cfg'"),
        ({"model_args": {"cache_dir": "/tmp"}}, "may not hold 'cache_dir'"),
        ({"model_args": {"features_only": True}}, "may not hold 'features_only'"),
        ({"model_args": {"block": "os.system"}}, "cannot be built"),
        ({"model_args": {"norm_layer": "os.system"}}, "cannot be built"),
        ({"architecture": "hf-hub:nobody/resnet18"}, "names no architecture"),
        ({"architecture": "local-dir:/etc"}, "names no architecture"),
        ({"architecture": "../cifar_resnet8"}, "names no architecture"),
        ({"architecture": "os.system"}, "unknown architecture"),
        (
            {"architecture": "small_image", "model_args": {"base": "hf-hub:a/b", "img_size": 96}},
            "none of timm's models",
        ),
        (
            {"architecture": "small_image", "model_args": {"base": "local-dir:/", "img_size": 32}},
            "none of timm's models",
        ),
        ({"architecture": "small_image", "model_args": {"base": 5}}, "cannot be built"),
        (
            {"architecture": "small_image", "model_args": {"base": "small_image", "img_size": 99}},
            "tensor|cannot be built",
        ),
        (
            {"architecture": "tiny_vit_5m_224", "model_args": {"window_sizes": [7, 600, 14, 7]}},
            "is taken with .* alone",
        ),
        ({"architecture": "x`<img src=x>`"}, "names no architecture"),
        ({"pretrained_cfg": {"mean": 0.5}}, "mean must be a list of numbers"),
        ({"architecture": "swin_tiny_patch4_window7_224", "model_args": {"img_size": 90_000}}, "tensor"),
    ],
)
def test_what_describes_no_model_is_refused_before_memory_is_taken(stranger, change, message):
    directory = stranger(**change)
    memory()
    before, traced = memory(), sys.gettrace()
    with pytest.raises(InputError, match=message) as error:
        piat_hub.from_pretrained(directory)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert torch.is_grad_enabled() and sys.gettrace() is traced
    assert memory() - before < 2**18  # KiB: a quarter GiB


def test_what_is_not_ours_to_take_is_left_out(stranger):
    model = piat_hub.from_pretrained(
        stranger(
            pretrained_cfg={"url": "http://evil", "file": "/etc/passwd", "hf_hub_id": "evil/model", "custom_load": True}
        )
    )
    assert not {"evil", "/etc/passwd"} & set(map(str, model.pretrained_cfg.values()))
    assert model.pretrained_cfg["input_size"] == [1, 8, 8]


def test_buffers_that_no_file_holds_are_counted_too(stranger, monkeypatch):
    """Attention masks and the like are computed when a model is built: here a model that is larger than its weights."""
    directory = stranger()
    monkeypatch.setattr("piat_hub.hub.untrusted.SPARE", -(2**30))
    with pytest.raises(InputError, match="far more than its weights"):
        piat_hub.from_pretrained(directory)


def test_numbers_of_another_kind_are_refused(stranger):
    from safetensors.torch import load_file, save_file

    directory = stranger()
    weights = load_file(directory / "model.safetensors")
    save_file({k: t.int() if k == "fc.bias" else t for k, t in weights.items()}, directory / "model.safetensors")
    with pytest.raises(InputError, match=r"'fc\.bias' has numbers of another kind"):
        piat_hub.from_pretrained(directory)
    save_file(
        {k: t.half() if t.is_floating_point() else t for k, t in weights.items()}, directory / "model.safetensors"
    )
    loaded = piat_hub.from_pretrained(directory)
    assert torch.equal(loaded.fc.weight, weights["fc.weight"].half().float())  # half the size on disk, fp32 in use


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_models_files_lie_in_its_folder(stranger, tmp_path, name):
    directory = stranger()
    (directory / name).rename(tmp_path / "elsewhere")
    (directory / name).symlink_to("../elsewhere")
    with pytest.raises(InputError, match="leads out of its folder"):
        piat_hub.from_pretrained(directory)


def test_a_type_that_no_model_has_is_refused(stranger):
    directory = stranger()
    file = directory / "model.safetensors"
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = file.read_bytes()[8 : 8 + length].replace(b'"I64"', b'"C64"', 1)
    file.write_bytes(length.to_bytes(8, "little") + header + file.read_bytes()[8 + length :])
    with pytest.raises(InputError, match="numbers of the type C64, which no model here has"):
        piat_hub.from_pretrained(directory)


def test_images_of_other_channels_than_the_models_are_not_believed(stranger):
    model = piat_hub.from_pretrained(stranger(pretrained_cfg={"input_size": [3, 8, 8]}))
    assert model.pretrained_cfg["input_size"] != [3, 8, 8]


def test_a_pipe_is_no_file(stranger):
    directory = stranger()
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")
    with pytest.raises(InputError, match=r"has no config\.json"):
        piat_hub.from_pretrained(directory)


def test_nothing_is_imported_for_a_config(stranger, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("open('imported', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for change in (
        {"architecture": "planted:model"},
        {"architecture": "planted.model"},
        {"model_args": {"block": "planted.Block"}},
        {"model_args": {"norm_layer": "planted.Norm"}},
        {"pretrained_cfg": {"architecture": "planted", "custom_load": "planted"}, "architecture": "planted"},
    ):
        with pytest.raises(InputError):
            piat_hub.from_pretrained(stranger(**change))
    assert "planted" not in sys.modules and not Path("imported").exists()


def test_our_names_shadow_none_of_timms():
    ours = [n for n in timm.list_models() if not timm.models.model_entrypoint(n).__module__.startswith("timm.")]
    assert {"cifar_resnet20", "small_image"} <= set(ours)
    known = {n for m in vars(timm.models).values() if hasattr(m, "__all__") for n in m.__all__}
    assert "resnet18" in known and not set(ours) & known


@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet18",
        "vit_tiny_patch16_224",
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
        "convnext_atto",
    ],
)
def test_building_twice_changes_no_bit(name, tmp_path):
    sized = {} if name.startswith("cifar") else {"img_size": 32}
    model = piat_hub.create_model(name, **sized).eval()
    save_pretrained(model, tmp_path / "m", input_size=(3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(piat_hub.from_pretrained(tmp_path / "m")(x), model(x))


def test_a_config_chooses_no_folder_of_the_users(stranger, tmp_path, do_evaluate):
    (tmp_path / "private").mkdir()
    for dataset in ("private", "../" + tmp_path.name + "/private", str(tmp_path / "private")):
        directory = stranger(piat=to_dict(dataclasses.replace(recipes.get("digits"), dataset=dataset)))
        with pytest.raises(InputError, match="may not choose; name the data with --dataset"):
            do_evaluate(directory, "clean", n=4)
    assert do_evaluate(directory, "clean", n=4, dataset="digits").results.n == 4


@pytest.fixture
def of_timm(tmp_path):
    """Saves a small model as timm does, whose config.json then holds other values; gives what the commands call it."""

    def make(rename=lambda key: key, **changes):
        torch.manual_seed(0)
        shape = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 5}
        model = timm.create_model("convnext_atto", **shape)
        timm.models.save_for_hf(model, tmp_path / "m", safe_serialization=True)
        save_file({rename(k): t.contiguous() for k, t in model.state_dict().items()}, tmp_path / "m/model.safetensors")
        config = read_json(tmp_path / "m/config.json")
        config = {k: v | changes.get(k, {}) if isinstance(v, dict) else changes.get(k, v) for k, v in config.items()}
        (tmp_path / "m/config.json").write_text(json.dumps(config))
        return model.eval(), f"local-dir:{tmp_path / 'm'}"

    return make


def facebooks(key):
    """A tensor's name in the first ConvNeXt's own files."""
    key = key.replace("stem.", "downsample_layers.0.").replace("blocks.", "").replace("conv_dw", "dwconv")
    key = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", key).replace("mlp.fc", "pwconv")
    return key.replace("head.norm", "norm").replace("head.fc", "head")


@pytest.mark.parametrize("rename", [str, facebooks])
def test_timms_own_models_come_behind_their_normalisation(rename, of_timm):
    """Also those whose file has names of before timm, which timm itself knows."""
    model, spec = of_timm(rename)
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(from_timm(spec)(x), model((x - mean) / std), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_args": {"depths": [300] * 900}}, "more parameters than its weights hold tensors"),
        ({"model_args": {"dims": [8, 8, 16, 10**5]}}, "has shape"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "may not hold 'checkpoint_path'"),
        ({"architecture": "local-dir:/etc"}, "names no architecture"),
        ({"num_classes": 10**9}, "has shape"),
        ({"pretrained_cfg": {"mean": []}}, "does not say by what mean and std it normalises"),
        ({"pretrained_cfg": {"mean": [0.5]}}, "must be 3 numbers each, std above 0"),
        ({"pretrained_cfg": {"std": [0.5, 0.0, 0.5]}}, "must be 3 numbers each, std above 0"),
        ({"pretrained_cfg": {"mean": "0.5"}}, "mean must be a list of numbers"),
        ({"pretrained_cfg": {"crop_pct": 87.5}}, "crop_pct must be a share in"),
        ({"pretrained_cfg": {"crop_mode": "fill"}}, "crop_mode 'fill' is none of timm's: center, squash, border"),
        ({"pretrained_cfg": {"interpolation": "area"}}, "interpolation 'area' is none of timm's: nearest"),
    ],
)
def test_timms_own_models_get_the_same_guards(change, message, of_timm):
    _, spec = of_timm(**change)
    with pytest.raises(InputError, match=message) as refusal:
        from_timm(spec)
    assert "\n" not in str(refusal.value)


def test_a_model_that_does_not_say_how_it_normalises_is_not_taken_for_one_of_images_from_0_to_1(of_timm, tmp_path):
    """timm takes its own defaults there, where we would normalise nothing."""
    _, spec = of_timm()
    config = read_json(tmp_path / "m/config.json")
    (tmp_path / "m/config.json").write_text(json.dumps(config | {"pretrained_cfg": {}}))
    for take in (from_timm, lambda spec: from_pretrained(spec.removeprefix("local-dir:"))):
        with pytest.raises(InputError, match="does not say by what mean and std it normalises; add them"):
            take(spec)


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ({"2": "horse", "0": "cat", "1": "dog"}, ("cat", "dog", "horse")),
        ({str(k): f"c{k}" for k in sorted(range(12), key=str)}, tuple(f"c{k}" for k in range(12))),
        ({"0": "cat", "2": "dog"}, None),
        ({"cat": "0"}, None),
    ],
)
def test_names_of_classes_by_number_go_by_it(names, read):
    content = {"architecture": "resnet10t", "label_names": names}
    if read:
        assert ModelConfig.of(content, "m").label_names == read
    else:
        with pytest.raises(InputError, match="m: label_names must be numbered 0 to"):
            ModelConfig.of(content, "m")


def test_no_pickle_of_timms_is_read(of_timm, tmp_path):
    _, spec = of_timm()
    weights = tmp_path / "m/model.safetensors"
    for name in ("pytorch_model.bin", "model.safetensors"):
        torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "m" / name)
        if name == "pytorch_model.bin":
            weights.unlink()
        with pytest.raises(InputError, match=r"it has no model\.safetensors|is a pickle, not safetensors"):
            from_timm(spec)


def test_a_header_without_end_is_refused(of_timm, tmp_path):
    _, spec = of_timm()
    (tmp_path / "m/model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{" * 100)
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        from_timm(spec)


def test_a_hub_id_is_no_folder_here(tmp_path):
    (tmp_path / "org/net").mkdir(parents=True)
    with pytest.raises(InputError, match="no config.json for 'org/net'.*the Hub says"):
        from_timm("hf-hub:org/net")


def test_counting_parameters_leaves_other_threads_alone():
    made = []
    with untrusted._few_parameters(1):
        other = threading.Thread(target=lambda: made.append(torch.nn.Linear(2, 2)))
        other.start(), other.join()
        with pytest.raises(ValueError, match="more parameters than its weights hold"):
            torch.nn.Linear(2, 2)
    assert len(made) == 1
