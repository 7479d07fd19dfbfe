"""Outer losses, one file each: a frozen dataclass whose fields are its hyper-parameters, found by name.

    method = methods.get("nmse")(mu=5.0)
    loss = method(model, x, y, attack, progress)

attack(model, x, y, *, objective=…, start=…, on_step=…) -> x_adv crafts the examples; progress in [0, 1) is the share
of the run's epochs that are done. A new file in this folder is found by itself.
"""

import importlib
import pkgutil

from piat_hub.methods.base import (
    Attack as Attack,
    Method as Method,
    at_least_fp32 as at_least_fp32,
    divergence as divergence,
    eval_logits as eval_logits,
    get as get,
    likeliest as likeliest,
    names as names,
    probability_of as probability_of,
    register as register,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
