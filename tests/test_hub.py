"""hub.py: logits come back bit for bit, by us and by timm; anything that does not fit exactly is refused; no pickle."""

import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import piat_hub
from piat_hub.config import Broken, InputError, recipes
from piat_hub.hub.load import start_from
from piat_hub.hub.save import save_pretrained, save_weights
from piat_hub.records.files import read_json


@pytest.fixture
def saved(tmp_path):
    """A saved model with lived-in BatchNorm statistics, and its directory."""
    model = piat_hub.create_model("cifar_resnet8", num_classes=10, in_chans=1)
    for _ in range(3):
        model(torch.rand(8, 1, 8, 8))
    names = tuple("0123456789")
    save_pretrained(model, tmp_path / "m", config=recipes.get("digits"), label_names=names, input_size=(1, 8, 8))
    return model.eval(), tmp_path / "m"


def test_logits_are_equal_bit_for_bit(saved):
    model, directory = saved
    x = torch.rand(5, 1, 8, 8)
    again = piat_hub.from_pretrained(directory)
    assert not again.training and torch.equal(again(x), model(x))
    assert again.label_names == tuple("0123456789") and again.piat["recipe"] == "digits"
    assert torch.equal(timm.create_model(f"local-dir:{directory}", pretrained=True).eval()(x), model(x))
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", "model.safetensors"]


def test_channels_last_weights_save(saved, tmp_path):
    model, _ = saved
    model = model.to(memory_format=torch.channels_last)
    save_pretrained(model, tmp_path / "cl", input_size=(1, 8, 8))
    again = piat_hub.from_pretrained(tmp_path / "cl").state_dict()
    assert all(torch.equal(t, again[k]) for k, t in model.state_dict().items())


def test_a_vit_keeps_its_arguments(tmp_path):
    model = piat_hub.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=2, num_classes=7).eval()
    save_pretrained(model, tmp_path, input_size=(3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(piat_hub.from_pretrained(tmp_path)(x), model(x))


def test_best_and_last(saved):
    model, directory = saved
    with pytest.raises(InputError, match=r"no model_best\.safetensors"):
        piat_hub.from_pretrained(directory, checkpoint="best")
    with torch.no_grad():
        model.fc.bias += 1
    save_weights(model, directory / "model_best.safetensors")
    gap = piat_hub.from_pretrained(directory, checkpoint="best").fc.bias - piat_hub.from_pretrained(directory).fc.bias
    assert torch.allclose(gap, torch.ones(10))
    with pytest.raises(InputError, match="did you mean 'best'"):
        piat_hub.from_pretrained(directory, checkpoint="bst")


def change(directory, edit):
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("fc.bias"), r"lacks tensor 'fc\.bias'"),
        (lambda t: t.update(more=torch.ones(1)), "has the extra tensor 'more'"),
        (
            lambda t: t.update({"fc.bias": torch.ones(11)}),
            r"'fc\.bias' has shape \[11\], the architecture wants \[10\]",
        ),
    ],
)
def test_weights_must_fit_exactly(saved, edit, message):
    _, directory = saved
    change(directory, edit)
    with pytest.raises(ValueError, match=message):
        piat_hub.from_pretrained(directory)


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


def test_no_pickle_is_read(saved, tmp_path):
    _, directory = saved
    payload = pickle.dumps(Bomb())
    (directory / "model.safetensors").write_bytes(payload)
    with pytest.raises(ValueError, match="is a pickle, not safetensors"):
        piat_hub.from_pretrained(directory)
    (directory / "model.safetensors").write_bytes(payload[3:])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        piat_hub.from_pretrained(directory)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        piat_hub.from_pretrained(directory)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(payload)  # the bomb is real
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no config of a model"),
        ("[]", "it is no object of named values"),
        ('{"architecture": 3}', "names no architecture"),
        ('{"architecture": "cifar_resnet9"}', "did you mean 'cifar_resnet8'"),
        ('{"architecture": "cifar_resnet8", "model_args": {"wings": 2}}', "cannot be built with"),
    ],
)
def test_bad_configs_are_named(saved, text, message):
    _, directory = saved
    (directory / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        piat_hub.from_pretrained(directory)


def test_what_is_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is no model: it has no config\.json"):
        piat_hub.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such directory, and 'nowhere' is no Hub id"):
        piat_hub.from_pretrained("nowhere")
    with pytest.raises(ValueError, match=r"no config\.json for 'nobody/nothing'"):
        piat_hub.from_pretrained("nobody/nothing@main")


def test_what_else_is_refused(saved):
    _, directory = saved
    with pytest.raises(InputError, match="is a directory, which has no revision 'v1'"):
        piat_hub.from_pretrained(directory, revision="v1")
    config = read_json(directory / "config.json")
    config["pretrained_cfg"]["mean"] = [0.5]
    del config["piat"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="wants normalised images"):
        piat_hub.from_pretrained(directory)


def test_config_is_timms_format_with_a_piat_block(saved):
    config = json.loads((saved[1] / "config.json").read_text())
    assert config["piat"]["threat_model"] == {"norm": "Linf", "eps": "0.15"}
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8] and config["pretrained_cfg"]["crop_pct"] == 1.0


def test_list_pretrained_shows_model_cards_with_what_was_measured(small_digits, trained, do_evaluate):
    assert piat_hub.list_pretrained() == []
    for name in ("one", "two"):
        trained(small_digits(epochs=2), f"model_cards/{name}")
    do_evaluate("model_cards/two", "clean", "pgd2", n=30)
    one, two = piat_hub.list_pretrained()
    results = json.loads(Path("model_cards/two/results.json").read_text())["attacks"]
    assert (one["model"], two["model"]) == ("model_cards/one", "model_cards/two")
    assert "clean_acc" not in one and two["clean_acc"] == results["clean"]["accuracy"] and two["n"]["pgd2"] == 30
    assert two["method"] == "PIAT+NMSE" and two["threat_model"] == {"norm": "Linf", "eps": "0.15"}
    Path("model_cards/broken").mkdir()
    Path("model_cards/broken/config.json").write_text("{")
    broken = piat_hub.list_pretrained()[0]
    assert broken["model"] == "model_cards/broken" and "is no config of a model" in broken["problem"]
    assert piat_hub.from_pretrained(two["model"]).weights_sha256 == two["weights_sha256"]["last"]


def test_weights_that_want_another_normalisation_are_no_start(tmp_path):
    """Its statistics are built in and not among the weights, so they would change in silence."""
    build = partial(piat_hub.create_model, "cifar_preact_resnet18_silu", layers=[1] * 4, channels=[8] * 4, stem_chs=8)
    own = build()
    save_pretrained(build(mean=(0.0,) * 3, std=(1.0,) * 3), tmp_path / "m")
    with pytest.raises(InputError, match="normalises images by .* choose the --backbone that it was built as"):
        start_from(own, str(tmp_path / "m"))
    save_pretrained(build(), tmp_path / "same")
    start_from(own, str(tmp_path / "same"))


def test_weights_that_cannot_be_written_leave_no_model(tmp_path, monkeypatch):
    def full(*_):
        raise Broken("model.safetensors cannot be written: No space left on device")

    model = piat_hub.create_model("cifar_resnet8", in_chans=1)
    monkeypatch.setattr("piat_hub.hub.save.save_weights", full)
    with pytest.raises(Broken):
        save_pretrained(model, tmp_path / "m", input_size=(1, 8, 8))
    assert not (tmp_path / "m").exists()
