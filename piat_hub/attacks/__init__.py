"""Attacks as pure functions over (model, x, y, eps, step_size, steps, …); the model is left as it was found."""

from piat_hub.attacks.autoattack import autoattack
from piat_hub.attacks.core import attack_mode, cross_entropy
from piat_hub.attacks.cw import cw, margin
from piat_hub.attacks.mim import mim
from piat_hub.attacks.pgd import pgd

__all__ = ["attack_mode", "autoattack", "cross_entropy", "cw", "margin", "mim", "pgd"]
