"""Models and attacks cut down to what a test can afford; conftest.py hands them out."""

import pyautoattack
import torch


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
        self.square.n_queries = 100
