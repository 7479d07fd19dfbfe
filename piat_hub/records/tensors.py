"""Tensors on disk: safetensors files whose header carries a checksum of what follows it. No pickle is read or written."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from piat_hub.config import InputError
from piat_hub.records.files import whole_file

FLOATING, WHOLE = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "I16", "I8", "U8", "BOOL")  # safetensors' names


def save(tensors: Mapping[str, Tensor], path: Path, facts: str = "") -> None:
    """Write named tensors, and a text about them; the file appears whole or not at all.

    Args:
        tensors: on any device; written from the CPU, contiguous.
        path: of a safetensors file.
        facts: the text, which `load` gives back.

    Raises:
        Broken: where the system refuses.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps({"sha256": digest(whole, facts), "facts": facts})
    with whole_file(path) as scratch:
        scratch.touch()
        mode = scratch.stat().st_mode  # safetensors would leave it to its owner alone
        try:  # one entry: safetensors writes several in random order
            save_file(whole, scratch, metadata={"piat": header})
        except SafetensorError as error:  # what the system said
            raise OSError(str(error)) from error
        scratch.chmod(mode)


def load(path: Path) -> tuple[dict[str, Tensor], str]:
    """(tensors by name, the text saved with them, or ""), on the CPU.

    Args:
        path: of a safetensors file; what it holds must be what its checksum says, where it has one (others' have none).

    Raises:
        InputError: unless the file is whole.
        OSError: if there is none.
    """
    with _opened(path) as file:
        header = (file.metadata() or {}).get("piat")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header is None:
        return tensors, ""
    try:
        known = json.loads(header)
        if known["sha256"] != digest(tensors, known["facts"]):
            raise ValueError("its content is not what its checksum says")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); fetch or write it again") from error
    return tensors, known["facts"]


def shapes(path: Path) -> dict[str, tuple[bool, tuple[int, ...]]]:
    """(of floating point, shape) of every tensor by name, from the header alone.

    Args:
        path: of a safetensors file.

    Raises:
        InputError: unless the file is whole and its numbers are of known types.
        OSError: if there is none.
    """
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    for name, (kind, _) in found.items():
        if kind not in {*FLOATING, *WHOLE}:
            raise InputError(
                f"{path}: {name!r} has numbers of the type {kind}, which no model here has; write it again"
            )
    return {name: (kind in FLOATING, shape) for name, (kind, shape) in found.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file under reading; InputError for whatever is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        with path.open("rb") as start:
            if start.read(2) in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
                raise InputError(
                    f"{path} is a pickle, not safetensors; pickles can run code and are never read"
                ) from error
        raise InputError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from error


def digest(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """The sha256 of names, types, shapes and bytes in the order of the names, then of `facts`.

    Args:
        tensors: on any device.
        facts: a text about them.
    """
    summed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        summed.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous()
        flat = content.as_strided((content.numel(),), (1,))  # one element may have any stride, and then no view
        summed.update(flat.view(torch.uint8).numpy().data)
    summed.update(facts.encode())
    return summed.hexdigest()
