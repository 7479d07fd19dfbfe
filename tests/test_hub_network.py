"""Models and data sets by Hub id, from a real server on loopback with the real client, in real processes."""

import io
import json
from functools import partial

import datasets
import numpy as np
import pytest
import timm
import torch
from conftest import python
from hub_server import serve
from PIL import Image

import piat_hub
from piat_hub import data
from piat_hub.config import recipes
from piat_hub.hub.save import save_pretrained

pytestmark = pytest.mark.slow


def cifar_like(n, seed):
    """A parquet split with the columns of uoft-cs/cifar10."""
    rng = np.random.default_rng(seed)
    features = datasets.Features(
        img=datasets.Image(), label=datasets.ClassLabel(names=[f"class {k}" for k in range(10)])
    )
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]
    table = datasets.Dataset.from_dict({"img": images, "label": [k % 10 for k in range(n)]}, features=features)
    table.to_parquet(out := io.BytesIO())
    return out.getvalue()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    model = piat_hub.create_model("cifar_resnet8", in_chans=1)
    save_pretrained(model, folder, config=recipes.get("digits"), label_names=tuple("0123456789"), input_size=(1, 8, 8))
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    card = b"---\nconfigs:\n- config_name: plain_text\n  default: true\n  data_files:\n"
    card += b"  - split: train\n    path: plain_text/train-*\n  - split: test\n    path: plain_text/test-*\n---\n"
    tables = {f"plain_text/{s}-00000-of-00001.parquet": cifar_like(n, n) for s, n in (("train", 80), ("test", 20))}
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=1, num_classes=10)
    timm.models.save_for_hf(vit, tmp_path_factory.mktemp("vit"), safe_serialization=True)
    foreign = {p.name: p.read_bytes() for p in (folder.parent / "vit0").iterdir()}
    with serve(
        {"models/org/net": files, "models/org/vit": foreign, "datasets/uoft-cs/cifar10": {"README.md": card, **tables}}
    ) as url:
        yield url, folder


@pytest.fixture
def online(endpoint, tmp_path):
    """Run piat with the server as its Hub and an empty cache; gives the finished process."""
    environment = {"HF_ENDPOINT": endpoint[0], "HF_HOME": tmp_path / "cache", "HF_HUB_OFFLINE": "0"}
    return partial(python, HF_HUB_DISABLE_XET="1", **environment)


LOAD = """
import sys, torch, piat_hub, timm
x = torch.arange(128.).view(2, 1, 8, 8) / 128
models = [piat_hub.from_pretrained(name) for name in sys.argv[1:]]
models.append(timm.create_model("hf-hub:org/net", pretrained=True).eval())
print(all(torch.equal(m(x), models[0](x)) for m in models), len(models), models[0].label_names[3])
"""


def test_from_pretrained_by_hub_id_equals_the_directory(endpoint, online):
    """With xet switched on, which this Hub does not offer: the client then reads over plain HTTP; and from the cache."""
    done = online("-c", LOAD, str(endpoint[1]), "org/net", "org/net@main", HF_HUB_DISABLE_XET="0")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["True", "4", "3"]
    offline = online("-c", LOAD, str(endpoint[1]), "org/net", HF_HUB_OFFLINE="1")
    assert offline.stdout.split() == ["True", "3", "3"]  # from the cache


def test_evaluate_by_hub_id(online, tmp_path):
    command = ["evaluate", "org/net", "--attacks", "clean", "pgd2", "--n", "20", "--threads", "1"]
    done = online("-m", "piat_hub", *command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "results/org-net/results.json").exists() and "PGD-2" in done.stdout
    wrong = online("-m", "piat_hub", "evaluate", "org/nit")
    assert (
        wrong.returncode == 2 and "no config.json for 'org/nit'" in wrong.stderr and len(wrong.stderr.splitlines()) == 1
    )
    old = online("-m", "piat_hub", "evaluate", "org/net@v9")
    assert old.returncode == 2 and len(old.stderr.splitlines()) == 1


def test_timms_own_models_are_measured_behind_their_normalisation(endpoint, online, tmp_path):
    done = online(
        "-m", "piat_hub", "evaluate", "hf-hub:org/vit", "--dataset", "cifar10", "--attacks", "clean", "--threads", "1"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "results/org-vit/results.json").read_text())["attacks"]["clean"]
    model = timm.create_model(f"local-dir:{endpoint[1].parent / 'vit0'}", pretrained=True).eval()
    assert list(model.pretrained_cfg["mean"]) == [0.5] * 3
    (tmp_path / "d").mkdir()
    (tmp_path / "d/test-0.parquet").write_bytes(cifar_like(20, 20))
    split = data.load(str(tmp_path / "d"), "test")
    with torch.no_grad():
        right = int((model((split.images / 255 - 0.5) / 0.5).argmax(1) == split.labels).sum())
    assert (found["correct"], found["n"]) == (right, 20)


def test_train_on_the_hubs_cifar10_by_alias(online, tmp_path):
    flags = "--backbone cifar_resnet8 --epochs 1 --holdout 16 --batch-size 32 --steps 1 --threads 1 --output r"
    done = online("-m", "piat_hub", "train", "resnet20-cifar10", *flags.split())
    assert done.returncode == 0, done.stderr[-2000:]
    model = piat_hub.from_pretrained(tmp_path / "r")
    assert model.label_names == tuple(f"class {k}" for k in range(10)) and model(torch.rand(1, 3, 32, 32)).shape == (
        1,
        10,
    )
    measured = online("-m", "piat_hub", "evaluate", "r", "--attacks", "clean", "--threads", "1")
    assert "20 images of cifar10 (test)" in measured.stdout, measured.stderr[-2000:]
    assert measured.stderr == done.stderr == ""
