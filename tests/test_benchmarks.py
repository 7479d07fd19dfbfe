"""benchmarks/: each script runs, and writes what its document's table reads; how fast is not tested."""

import json

import pytest
from conftest import ROOT, python
from PIL import Image

from piat_hub import data, methods

pytestmark = pytest.mark.slow

PEER = '''
import torch
import torch.nn.functional as F

def trades_loss(model, x_natural, y, optimizer, step_size, epsilon, perturb_steps, beta):
    """As its authors wrote it down, in double work: the clean output anew at every step."""
    model.eval()
    x = x_natural + 0.001 * torch.randn(x_natural.shape).cuda()
    divergence = lambda images: F.kl_div(
        F.log_softmax(model(images), 1), F.softmax(model(x_natural), 1), reduction="sum"
    )
    for _ in range(perturb_steps):
        x.requires_grad_()
        x = x.detach() + step_size * torch.autograd.grad(divergence(x), x)[0].sign()
        x = x.clamp(x_natural - epsilon, x_natural + epsilon).clamp(0, 1)
    model.train()
    optimizer.zero_grad()
    clean = F.cross_entropy(model(x_natural), y)
    return clean + beta / len(y) * divergence(x)
'''


def bench(script, *flags):
    """What benchmarks/SCRIPT prints."""
    return python(ROOT / "benchmarks" / script, *flags, check=True).stdout


SMALL = ("--backbone", "cifar_resnet8", "--batch-size", 4, "--steps", 2, "--rounds", 1, "--threads", 1)


def test_methods(tmp_path):
    shown = bench("methods.py", *SMALL, "--output", tmp_path / "cost.json")
    facts = json.loads((tmp_path / "cost.json").read_text())
    names = {row["name"] for row in facts["rows"]}
    assert names == {*methods.names(), "pgd_at + AWP", "pgd_at + EMA", "PIAT, once an epoch"}
    assert facts["rows"][0]["ratio"] == 1 and all(row["seconds"] > 0 and row["name"] in shown for row in facts["rows"])


def test_step_beside_a_peer_that_does_the_same(tmp_path):
    """With the same weights and attack start, both sides' losses and gradients agree."""
    (tmp_path / "TRADES").mkdir()
    (tmp_path / "TRADES" / "trades.py").write_text(PEER)
    flags = ("--method", "trades", "--peer", tmp_path / "TRADES", "--output", tmp_path / "step.jsonl")
    shown = bench("step.py", *SMALL, *flags)
    facts = json.loads((tmp_path / "step.jsonl").read_text())
    assert facts["loss"]["ours"] == pytest.approx(facts["loss"]["theirs"], rel=1e-3)
    assert facts["gradient_deviation"] < 0.1 and facts["ratio"]["median"] > 0 and facts["gflop"] > 0.1
    assert "ratio" in shown and 0 < facts["interpolation_share"] < 1


def test_data(tmp_path):
    digits = data.load("digits", "train", img_size=32)
    for i in range(140):
        place = tmp_path / "d" / "train" / str(int(digits.labels[i])) / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[i, 0].numpy()).convert("RGB").save(place)
    flags = ("--images", 140, "--rounds", 1, "--workers", 0, "--threads", 1, "--output", tmp_path / "data.json")
    bench("data.py", "--dataset", tmp_path / "d", *flags)
    rows = json.loads((tmp_path / "data.json").read_text())["rows"]
    assert [row["pass"] for row in rows] == ["ours, from memory", "ours, streamed", "DataLoader, 0 workers"]


def test_feeding_mapped_images(tmp_path):
    flags = ("--images", 512, "--steps", 2, "--rounds", 1, "--threads", 1, "--output", tmp_path / "extra-feed.json")
    bench("data.py", "--mapped", 600, 2_400, *flags)
    facts = json.loads((tmp_path / "extra-feed.json").read_text())
    assert facts["extra"] == 358 and [row["images"] for row in facts["rows"]] == [600, 2_400]
    assert all(row["seconds"] > 0 and row["computed_mib"] == row["images"] / 2**16 for row in facts["rows"])


def test_scaling(tmp_path):
    bench("scaling.py", *SMALL, "--processes", 1, 2, "--output", tmp_path / "scaling.json")
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert [row["processes"] for row in rows] == [1, 2] and all(row["images/s"] > 0 for row in rows)
    assert rows[0]["all-reduce MiB an update"] == 0 and rows[1]["all-reduce MiB an update"] == 78_042 * 4 / 2**20


def test_costs_are_the_closed_form(tmp_path):
    """FLOPs of K attack steps and an update, from the multiply-adds of a ResNet-8 at 32x32 (no gradient for images there)."""
    flags = ("--backbones", "cifar_resnet8", "--methods", "pgd_at", "nmse", "--steps", 3, "--mixed-precision", "no")
    bench("costs.py", *flags, "--output", tmp_path / "costs.json")
    pgd_at, nmse = json.loads((tmp_path / "costs.json").read_text())["rows"]
    stem, same = 27 * 16 * 1024, 9 * 16 * 16 * 1024
    wider = [(9 * 16 * 32 + 9 * 32 * 32 + 16 * 32) * 256, (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64) * 64]
    f = stem + 2 * same + sum(wider) + 64 * 10
    assert pgd_at["gflop"] * 1e9 == pytest.approx((4 * 3 + 6) * f - 2 * stem)
    assert nmse["gflop"] * 1e9 == pytest.approx((4 * 3 + 12) * f - 4 * stem)
    assert nmse["mib"] > pgd_at["mib"] > pgd_at["mib_checkpointed"] > 0
