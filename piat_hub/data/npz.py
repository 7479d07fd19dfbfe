"""Images and labels of an .npz file, as generated sets are published: converted once, then mapped; no pickle is read."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock

from piat_hub.config import Broken, InputError, first_line
from piat_hub.data.split import Split

NEEDED = {"image": "uint8 of shape (N, H, W, C)", "label": "whole numbers of shape (N,)"}
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
ROWS = 4096  # that are held while they are converted
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, KeyError)


def open_npz(file: str | Path) -> Split:
    """The images of an .npz file, which stay on the disk: what an index asks for is read.

    They are converted into a folder of Hugging Face's cache (`HF_HOME`/piat_hub) named after the file's path, size and time,
    whole or not at all, and without ever being held.

    Args:
        file: holds `image`, (N, H, W, C) uint8, and `label`, (N,) of a whole-number type.

    Returns:
        The split on the CPU, without names of its classes.

    Raises:
        InputError: for a file that is no whole .npz of such arrays.
        Broken: where there is no room for them.
    """
    path = Path(file).resolve()
    place = _converted(path)
    images, labels = np.load(place / "image.npy", mmap_mode="r"), np.load(place / "label.npy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of memory that must not be written to, and nobody does
        mapped = torch.from_numpy(images)
    note = f"{path.name}: {len(images):,} images, converted into {place} and read from there"
    return Split(mapped, torch.from_numpy(labels), (), path.name, notes=(note,))


def _converted(path: Path) -> Path:
    """The folder with the arrays of an .npz file, channels first."""
    from huggingface_hub.constants import HF_HOME

    if not path.is_file():
        raise InputError(f"{path} is no file; name an .npz file that is there")
    known = f"{path}\n{path.stat().st_size}\n{path.stat().st_mtime_ns}"
    place = Path(HF_HOME, "piat_hub", f"{path.stem}-{hashlib.sha256(known.encode()).hexdigest()[:16]}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not place.exists():
                _convert(path, place)
    except OSError as error:
        raise Broken(
            f"{path} cannot be converted into {place.parent}: {error.strerror or error}; make room there, or set HF_HOME"
        ) from error
    return place


def _convert(path: Path, place: Path) -> None:
    """Write the arrays into a scratch folder, which becomes `place`; what a killed process left of it goes."""
    scratch = place.with_name(f".{place.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as packed:
            shapes = {name: _shape(packed, name) for name in NEEDED}
            if len({shape[0] for shape in shapes.values()}) > 1:
                raise ValueError(f"it has {shapes['image'][0]} images and {shapes['label'][0]} labels")
            scratch.mkdir()
            with packed.open("image.npy") as member, (scratch / "image.npy").open("wb") as array:
                _write_images(member, array)
                array.flush()
                os.fsync(array.fileno())
            with packed.open("label.npy") as member:
                np.save(scratch / "label.npy", np.lib.format.read_array(member, allow_pickle=False).astype(np.int64))
        scratch.rename(place)
    except UNREADABLE as error:
        raise InputError(
            f"{path} is no whole .npz of images and labels ({first_line(error)}); fetch or make it anew"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, type) of an .npy file, read up to its first number."""
    shape, by_columns, dtype = HEADERS[np.lib.format.read_magic(member)](member)
    if by_columns:
        raise ValueError("an array is stored by columns")
    return shape, dtype


def _shape(packed: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape of an array; ValueError unless it is what is needed, by its header."""
    if f"{name}.npy" not in packed.namelist():
        raise ValueError(f"it has no array {name!r}; it has {', '.join(packed.namelist())[:200]}")
    with packed.open(f"{name}.npy") as member:
        shape, dtype = _header(member)
        size = member.tell() + dtype.itemsize * math.prod(shape)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects, which are never unpickled")
    if not (dtype == np.uint8 and len(shape) == 4 if name == "image" else dtype.kind in "iu" and len(shape) == 1):
        raise ValueError(f"{name!r} is {dtype} of shape {shape}, it must be {NEEDED[name]}")
    if not shape[0]:
        raise ValueError(f"{name!r} is empty")
    if packed.getinfo(f"{name}.npy").file_size != size:
        raise ValueError(f"{name!r} is cut off")
    return shape


def _write_images(member: IO[bytes], to: IO[bytes]) -> None:
    """Write the images anew with their channels first, a few at a time: so a batch is whole rows of the file."""
    (n, height, width, channels), _ = _header(member)
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, channels, height, width)}
    np.lib.format.write_array_header_1_0(to, header)
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        block = np.frombuffer(member.read(rows * height * width * channels), np.uint8)
        to.write(block.reshape(rows, height, width, channels).transpose(0, 3, 1, 2).tobytes())
