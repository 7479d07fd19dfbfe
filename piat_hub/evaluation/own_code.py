"""What a user names as module:callable: a model, an attack, the front part of a model."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from piat_hub.config import InputError


def imported(spec: str, what: str) -> Any:
    """What stands at module:callable; the current directory is importable.

    Args:
        spec: "module:callable", with dots on either side as Python has them.
        what: what messages call it, "model".

    Raises:
        InputError: if the module cannot be imported or lacks it.
    """
    module_name, _, attribute = spec.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(f"no {what} {spec!r}: {error}; give module:callable, importable from here") from error
    return found
