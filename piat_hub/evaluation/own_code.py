"""What a user names as module:callable: a model, an attack, the front part of a model."""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

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
    except Exception as error:  # whatever anyone's module does when it is imported
        raise InputError(f"{what} {spec!r} cannot be imported: {raised(error)}; mend it") from error
    return found


def raised(error: Exception) -> str:
    """What anyone's code raised, in one line: 'KeyError: 3 (net.py, line 7)'."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{said} ({Path(where.filename).name}, line {where.lineno})"


def source_digest(spec: str) -> str:
    """The first of the sha256 of the file that defines what stands at module:callable; "" for code of no file.

    Args:
        spec: as `imported` takes it.
    """
    file = getattr(importlib.import_module(spec.partition(":")[0]), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file and Path(file).exists() else ""


class Front(nn.Module):
    """A part that stands before a model and may have no gradient: JPEG compression, quantisation.

    Args:
        part: images (B, C, H, W) to images, as a function or an nn.Module.
        name: what messages call it.
    """

    def __init__(self, part: Callable[[Tensor], Tensor], name: str) -> None:
        super().__init__()
        self.part, self.name, self.straight = part, name, False

    def forward(self, x: Tensor) -> Tensor:
        """What the part makes of the images; the gradient is its own, or within `past` that of the identity."""
        if not self.straight:
            return self.part(x)
        made = self.part(x.detach())
        if made.shape != x.shape:
            raise InputError(
                f"{self.name} makes {tuple(made.shape)} of {tuple(x.shape)}; no gradient gets past a resize"
            )
        return x + (made - x).detach()


@contextmanager
def past(fronts: Sequence[Front]) -> Iterator[None]:
    """Take gradients past these parts as if each were the identity (BPDA, Athalye et al. 2018, arXiv:1802.00420)."""
    for front in fronts:
        front.straight = True
    try:
        yield
    finally:
        for front in fronts:
            front.straight = False
