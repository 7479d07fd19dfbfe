"""Attacks as pure functions over (model, x, y, eps, step_size, steps, …); the model is left as it was found.

A new file in this folder is imported by itself, and what it registers can be evaluated by name.
"""

import importlib
import pkgutil

from piat_hub.attacks.apgd import apgd as apgd
from piat_hub.attacks.autoattack import autoattack as autoattack
from piat_hub.attacks.core import (
    ATTACKS as ATTACKS,
    attack_mode as attack_mode,
    ball as ball,
    climb as climb,
    cross_entropy as cross_entropy,
    register as register,
)
from piat_hub.attacks.cw import cw as cw, margin as margin
from piat_hub.attacks.fmn import fmn as fmn
from piat_hub.attacks.malt import malt as malt, nearest_classes as nearest_classes
from piat_hub.attacks.mim import mim as mim
from piat_hub.attacks.pgd import pgd as pgd
from piat_hub.attacks.twin import Twin as Twin

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
globals().update(ATTACKS)  # a file and its attack share a name: `from piat_hub.attacks import NAME` gives the function
