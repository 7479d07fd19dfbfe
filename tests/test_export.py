"""export.py: torch alone and onnxruntime give the model's logits for any batch; torch its gradients too."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from conftest import python

import piat_hub
from piat_hub import cli
from piat_hub.config import InputError
from piat_hub.hub import export
from piat_hub.hub.save import save_pretrained

pytestmark = pytest.mark.slow


@pytest.fixture
def saved(tmp_path):
    """A saved model with lived-in BatchNorm statistics, and its directory."""
    model = piat_hub.create_model("cifar_resnet8", in_chans=1)
    for _ in range(3):
        model(torch.rand(8, 1, 8, 8))
    save_pretrained(model, tmp_path / "m", input_size=(1, 8, 8))
    return piat_hub.from_pretrained(tmp_path / "m"), tmp_path / "m"


TORCH_ALONE = """
import sys, torch
x = torch.load("x.pt", weights_only=True).requires_grad_()
logits = torch.export.load(sys.argv[1]).module()(x)
gradient, = torch.autograd.grad(logits.square().sum(), x)
torch.save((logits.detach(), gradient), "found.pt")
print("timm" in sys.modules or "piat_hub" in sys.modules)
"""


def test_pt2_runs_with_torch_alone(saved, capsys):
    model, directory = saved
    assert cli.main(["export", str(directory), "--formats", "pt2"]) == 0
    assert capsys.readouterr().out == f"{directory / 'model.pt2'}\n"
    x = torch.rand(5, 1, 8, 8, requires_grad=True)
    torch.save(x.detach(), "x.pt")
    shown = python("-c", TORCH_ALONE, directory / "model.pt2", check=True)
    assert shown.stdout.strip() == "False"
    logits, gradient = torch.load("found.pt", weights_only=True)
    assert torch.equal(logits, model(x))
    assert torch.equal(gradient, torch.autograd.grad(model(x).square().sum(), x)[0])


def test_onnx_gives_the_same_logits(saved):
    model, directory = saved
    (path,) = export.export(model, directory / "elsewhere", ["onnx"])
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 7):
        x = torch.rand(batch, 1, 8, 8)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        assert torch.allclose(torch.from_numpy(logits), model(x), atol=1e-5)
    assert [p.name for p in (directory / "elsewhere").iterdir()] == ["model.onnx"]


def test_what_cannot_be_exported(saved, monkeypatch, capsys):
    _, directory = saved
    with pytest.raises(InputError, match="does not say what images it takes"):
        export.export(torch.nn.Linear(2, 2), directory, ["pt2"])
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["export", str(directory)]) == 2
    assert "pip install 'PATH/TO/piat_hub[onnx]'" in capsys.readouterr().err
    assert sorted(p.name for p in Path(directory).iterdir()) == ["config.json", "model.safetensors"]
