"""The real RobustBench against our models: `make test-robustbench`, in an environment of its own (docs/robustbench.md)."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas
import pyautoattack
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures


class AutoAttack:
    """The interface that RobustBench 1.1.1 calls, of the package it does not install, on the one it installs."""

    def __init__(self, model, norm, eps, version, device, log_path=None):
        self.attack = pyautoattack.AutoAttack(model, norm=norm, eps=eps, version=version, device=str(device), seed=0)

    def run_standard_evaluation(self, x, y, bs=250, state_path=None):
        return self.attack.run_standard_evaluation(x, y, batch_size=bs)[0]


sys.modules["autoattack"] = types.ModuleType("autoattack")
sys.modules["autoattack.state"] = types.ModuleType("autoattack.state")
sys.modules["autoattack"].AutoAttack = AutoAttack
sys.modules["autoattack.state"].EvaluationState = None

import robustbench  # noqa: E402
import timm  # noqa: E402
import torchvision  # noqa: E402
from hub_server import serve  # noqa: E402
from robustbench.data import CORRUPTION_DATASET_LOADERS, load_cifar10c  # noqa: E402
from robustbench.model_zoo import model_dicts  # noqa: E402
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel  # noqa: E402
from robustbench.utils import load_model  # noqa: E402

from piat_hub.config import COMMON  # noqa: E402
from piat_hub.hub import layouts, zoo  # noqa: E402
from piat_hub.hub.load import from_pretrained  # noqa: E402
from piat_hub.leaderboard import submission as leaderboard  # noqa: E402

IMAGES = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Striped 32x32 images of ten classes: as parquet for us, as CIFAR-10's own files for RobustBench."""
    folder, rng = tmp_path_factory.mktemp("rb"), np.random.default_rng(0)
    names = [f"class {k}" for k in range(10)]

    def pictures(n):
        labels = np.arange(n) % 10
        stripes = 127 + 90 * np.sin(np.arange(32) * (1 + labels[:, None]) / 5)
        pixels = stripes[:, None, :, None] + rng.normal(0, 25, (n, 32, 32, 3))
        return pixels.clip(0, 255).astype(np.uint8), labels

    tables = {}
    for split, n in (("train", 320), ("test", 40)):
        pixels, labels = pictures(n)
        features = Features(img=Image(), label=ClassLabel(names=names))
        table = {"img": [Pictures.fromarray(p) for p in pixels], "label": labels.tolist()}
        Dataset.from_dict(table, features=features).to_parquet(out := io.BytesIO())
        tables[f"{split}-00000-of-00001.parquet"] = out.getvalue()
    batches = folder / "data/cifar-10-batches-py"
    batches.mkdir(parents=True)
    rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    with (batches / "test_batch").open("wb") as file:
        pickle.dump({"data": rows, "labels": labels.tolist()}, file)
    with (batches / "batches.meta").open("wb") as file:
        pickle.dump({"label_names": names}, file)
    corrupted = folder / "data/CIFAR-10-C"  # 10,000 images of each severity, of which the first are more than zeros
    corrupted.mkdir()
    np.save(corrupted / "labels.npy", np.tile(np.arange(10_000) % 10, 5))
    for number, corruption in enumerate(COMMON):
        images = np.lib.format.open_memmap(corrupted / f"{corruption}.npy", "w+", np.uint8, (50_000, 32, 32, 3))
        for severity in range(5):
            noise = rng.normal(0, 10 * severity + number, (IMAGES, 32, 32, 3))
            images[10_000 * severity :][:IMAGES] = (pixels[:IMAGES] + noise).clip(0, 255)
        images.flush()
    train = "train resnet20-cifar10 --backbone cifar_resnet8 --epochs 3 --holdout 0 --batch-size 32 --output run"
    paper = ["--authors", "Kun He", "--venue", "ICML 2023", "--link", "https://x.org"]
    with serve({"datasets/uoft-cs/cifar10": tables}) as hub:  # CIFAR-10 by its own name, as far as anyone can tell
        environment = os.environ | hub.environment(folder / "home")
        for words in (
            f"{train} --steps 1 --method standard --interpolation none --clean-epochs 0".split(),
            f"evaluate run --attacks clean aa --n {IMAGES} --corruptions data/CIFAR-10-C".split(),
            ["robustbench", "run", *paper, "--draft", "--output", "."],
            ["robustbench", "run", *paper, "--draft", "--output", ".", "--corruptions"],
            f"evaluate l2 --attacks clean aa --n {IMAGES} --norm L2 --eps 0.5".split(),
            ["robustbench", "l2", *paper, "--draft", "--output", "."],
        ):
            if words[1] == "l2" and not (folder / "l2").exists():
                shutil.copytree(folder / "run", folder / "l2", ignore=shutil.ignore_patterns("results.json", "*.npz"))
            subprocess.run([sys.executable, "-m", "piat_hub", *words], env=environment, cwd=folder, check=True)
    return folder


@pytest.fixture
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)
    cifar10 = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar10, "_check_integrity", lambda self: True)  # its files are ours
    monkeypatch.setattr(cifar10, "train_list", [])
    monkeypatch.setattr(cifar10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(cifar10, "meta", cifar10.meta | {"md5": None})
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)


@pytest.mark.usefixtures("_inside")
@pytest.mark.parametrize(
    ("norm", "run", "eps"), [("Linf", "run", 8 / 255), ("L2", "l2", 0.5), ("corruptions", "run", None)]
)
def test_load_model_finds_ours_and_benchmark_agrees(norm, run, eps, place, monkeypatch):
    """Their clean accuracy is ours; their attack or corruptions find what ours found; their JSON keeps our entries."""
    name = "He2023PIAT_cifar-resnet8"
    (module,) = place.glob(f"he2023piat*_{norm.lower()}.py")
    exec(module.read_text(), {})
    model = load_model(name, dataset="cifar10", threat_model=norm)
    path = Path(f"model_info/cifar10/{norm}") / f"{name}.json"
    before = json.loads(path.read_text())
    results = json.loads(Path(run, "results.json").read_text())
    if norm == "corruptions":  # 1.1.1 gives its loader a word too many, and its table for CIFAR lacks AlexNet's errors
        loaders = CORRUPTION_DATASET_LOADERS[BenchmarkDataset.cifar_10]
        monkeypatch.setitem(loaders, ThreatModel.corruptions, lambda *a, prepr, **k: load_cifar10c(*a, **k))
        columns = pandas.MultiIndex.from_product([COMMON, range(1, 6)])
        pandas.DataFrame(0.5, ["AlexNet"], columns).to_csv(path.with_name("unaggregated_results.csv"))
    torch.manual_seed(0)
    options = {"to_disk": True, "model_name": name, "data_dir": "data", "eps": eps, "batch_size": 8}
    clean, robust = robustbench.benchmark(model, IMAGES, "cifar10", norm, **options)
    assert clean == results["attacks"]["clean"]["accuracy"] > 0.5
    if norm == "corruptions":
        assert robust == pytest.approx(results["corruptions"]["mean"]["accuracy"], abs=1e-9)
    else:
        assert robust == pytest.approx(results["attacks"]["aa"]["accuracy"], abs=1 / IMAGES + 1e-9)
    after = json.loads(path.read_text())
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed <= {"autoattack_acc", "eps", "corruptions_mce"} and after["clean_acc"] == before["clean_acc"]
    assert before.keys() <= after.keys()


def test_their_zoos_names_are_looked_up_as_ours_are():
    assert leaderboard.timm_name("He2023PIAT_WRN-32-10", "cifar10", "Linf") == "he2023piat_wrn_32_10_cifar10_linf"


def theirs(name):
    """The network of a row of our table as RobustBench defines it, its weights and statistics random."""
    dataset, threat, model = name.split("/")
    registered = f"{model}_{dataset}_{threat}".lower().replace("-", "_")
    torch.manual_seed(0)
    if timm.is_model(registered):
        network = timm.create_model(registered)
    else:
        network = model_dicts[BenchmarkDataset(dataset)][ThreatModel(threat)][model]["model"]()
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        torch.nn.init.uniform_(norm.running_var, 0.8, 1.2)
    return network.eval()


def once_each():
    """A name for each layout, normalisation and size of image in the table."""
    found = {}
    for name in zoo.rows():
        row = zoo.known(name)
        found.setdefault((row.layout, row.mean, row.img_size), name)
    return list(found.values())


@pytest.mark.parametrize("name", once_each())
def test_an_imported_model_has_the_logits_of_theirs(name, tmp_path):
    """The files of the zoo lack the statistics that its code has, but for Modas2021PRIME's."""
    network, row = theirs(name), zoo.known(name)
    inside = ("normalize.", "mu", "sigma") if row.mean else ()
    weights = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(inside)}
    torch.save({"state_dict": weights}, tmp_path / "c.pt")
    layouts.import_known(tmp_path / "c.pt", name, tmp_path / "run")
    imported = from_pretrained(tmp_path / "run")
    (tmp_path / "c.pt").unlink()
    side = imported.pretrained_cfg["input_size"][-1]
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        expected = network(x)
        difference = (imported(x) - expected).abs().max().item()
    print(
        f"{name}: {difference:.1e} of {expected.abs().max():.2f}, {sum(p.numel() for p in imported.parameters()):,} parameters"
    )
    assert difference < 1e-5 * max(1, expected.abs().max().item())
