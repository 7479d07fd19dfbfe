"""Models and attacks cut down to what a test can afford; conftest.py hands them out."""

import io

import numpy as np
import pyautoattack
import torch
from PIL import Image


class Linear(torch.nn.Module):
    """z = W x: a model whose optimal perturbation is known in closed form."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


class Tiny(torch.nn.Module):
    """A small smooth network without BatchNorm, in any dtype."""

    def __init__(self, pixels=12, classes=4):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(pixels, 16), torch.nn.Tanh(), torch.nn.Linear(16, classes)
        )

    def forward(self, x):
        return self.net(x)


class Quick(pyautoattack.AutoAttack):
    """AutoAttack's four parts with far fewer iterations: their order and bookkeeping are tested, not their strength."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10
        self.apgd.n_iter_orig = self.apgd_targeted.n_iter_orig = 10  # of L1's three budgets together
        self.square.n_queries = 100


def numbered_shards(folder, sizes, side=8):
    """Parquet files of so many pictures each, of two classes; the k-th of all is one grey of level k, its label k % 2."""
    import datasets

    folder.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    numbers = iter(range(sum(sizes)))
    for shard, size in enumerate(sizes):
        cells, labels = [], []
        for _ in range(size):
            k, file = next(numbers), io.BytesIO()
            Image.fromarray(np.full((side, side, 3), k, np.uint8)).save(file, "PNG")
            cells.append({"bytes": file.getvalue(), "path": None})
            labels.append(k % 2)
        table = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
        table.to_parquet(str(folder / f"train-{shard:05}-of-{len(sizes):05}.parquet"))
    return str(folder)
