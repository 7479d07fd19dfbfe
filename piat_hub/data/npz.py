"""Images and labels of an .npz file, as generated sets are published: unpacked once, then mapped; no pickle is read."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from piat_hub.config import Broken, InputError
from piat_hub.data.pictures import _line
from piat_hub.data.split import Split

NEEDED = {"image": "uint8 of shape (N, H, W, C)", "label": "whole numbers of shape (N,)"}
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, KeyError)


def open_npz(file: str | Path) -> Split:
    """The images of an .npz file, which stay on the disk: what an index asks for is read.

    Its arrays are unpacked into a folder of Hugging Face's cache (`HF_HOME`/piat_hub) named after the file's path, size and time,
    whole or not at all.

    Args:
        file: holds `image`, (N, H, W, C) uint8, and `label`, (N,) of a whole-number type.

    Returns:
        The split on the CPU, without names of its classes.

    Raises:
        InputError: for a file that is no whole .npz of such arrays.
        Broken: where there is no room for them.
    """
    path = Path(file).resolve()
    place = _unpacked(path)
    images, labels = (np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in NEEDED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of memory that must not be written to, and nobody does
        mapped = torch.from_numpy(images).permute(0, 3, 1, 2)
    note = f"{path.name}: {len(images):,} images, unpacked into {place} and read from there"
    return Split(mapped, torch.from_numpy(labels.astype(np.int64)), (), path.name, notes=(note,))


def _unpacked(path: Path) -> Path:
    """The folder with the arrays of an .npz file."""
    from huggingface_hub.constants import HF_HOME

    if not path.is_file():
        raise InputError(f"{path} is no file; name an .npz file that is there")
    known = f"{path}\n{path.stat().st_size}\n{path.stat().st_mtime_ns}"
    place = Path(HF_HOME, "piat_hub", f"{path.stem}-{hashlib.sha256(known.encode()).hexdigest()[:16]}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not place.exists():
                _unpack(path, place)
    except OSError as error:
        raise Broken(
            f"{path} cannot be unpacked into {place.parent}: {error.strerror or error}; make room there, or set HF_HOME"
        ) from error
    return place


def _unpack(path: Path, place: Path) -> None:
    """Write the arrays into a scratch folder, which becomes `place`; what a killed process left of it goes."""
    scratch = place.with_name(f".{place.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as packed:
            _check(packed)
            scratch.mkdir()
            for name in NEEDED:
                with packed.open(f"{name}.npy") as member, (scratch / f"{name}.npy").open("wb") as array:
                    shutil.copyfileobj(member, array, 2**20)
                    array.flush()
                    os.fsync(array.fileno())
        scratch.rename(place)
    except UNREADABLE as error:
        raise InputError(
            f"{path} is no whole .npz of images and labels ({_line(error)}); fetch or make it anew"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check(packed: zipfile.ZipFile) -> None:
    """ValueError unless the file's arrays are images and labels, by their headers."""
    counts = []
    for name, needed in NEEDED.items():
        if f"{name}.npy" not in packed.namelist():
            raise ValueError(f"it has no array {name!r}; it has {', '.join(packed.namelist())[:200]}")
        with packed.open(f"{name}.npy") as member:
            shape, _, dtype = HEADERS[np.lib.format.read_magic(member)](member)
            size = member.tell() + dtype.itemsize * math.prod(shape)
        if dtype.hasobject:
            raise ValueError(f"{name!r} holds Python objects, which are never unpickled")
        fits = dtype == np.uint8 and len(shape) == 4 if name == "image" else dtype.kind in "iu" and len(shape) == 1
        if not fits:
            raise ValueError(f"{name!r} is {dtype} of shape {shape}, it must be {needed}")
        if packed.getinfo(f"{name}.npy").file_size != size:
            raise ValueError(f"{name!r} is cut off")
        counts.append(shape[0])
    if counts[0] != counts[1]:
        raise ValueError(f"it has {counts[0]} images and {counts[1]} labels")
