"""Name -> TrainConfig. A recipe is one function; its docstring says command, source, expected accuracy, time and hardware.

A new file in this folder is found by itself.
"""

import importlib
import pkgutil

from piat_hub.config.recipes.base import (
    RECIPES as RECIPES,
    described as described,
    get as get,
    names as names,
    recipe as recipe,
    told as told,
    unsaid as unsaid,
    words as words,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
