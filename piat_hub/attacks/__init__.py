"""Attacks as pure functions over (model, x, y, eps, step_size, steps, …); the model is left as it was found.

A new file in this folder is imported by itself, and what it registers can be evaluated by name.
"""

import importlib
import pkgutil

from piat_hub.attacks.autoattack import autoattack
from piat_hub.attacks.core import ATTACKS, attack_mode, ball, climb, cross_entropy, register
from piat_hub.attacks.cw import cw, margin
from piat_hub.attacks.mim import mim
from piat_hub.attacks.pgd import pgd
from piat_hub.attacks.twin import Twin

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ATTACKS",
    "Twin",
    "attack_mode",
    "autoattack",
    "ball",
    "climb",
    "cross_entropy",
    "cw",
    "margin",
    "mim",
    "pgd",
    "register",
]
