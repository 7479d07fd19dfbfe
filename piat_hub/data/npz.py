"""Images and labels of an .npz file, as generated sets are published: converted once, then mapped; no pickle is read."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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


def outline_npz(file: str | Path) -> Split:
    """What an .npz file holds, without its pixels: images on torch's device "meta", and the labels; nothing is converted.

    Args:
        file: as `open_npz` takes it.

    Raises:
        InputError: as `open_npz` does, but for pixels that are damaged.
    """
    path = _there(file)
    with _as_input(path), zipfile.ZipFile(path) as packed:
        n, height, width, channels = _shapes(packed)["image"]
        with packed.open("label.npy") as member:
            labels = torch.from_numpy(_labels(member))
    return Split(torch.empty(n, channels, height, width, dtype=torch.uint8, device="meta"), labels, (), path.name)


def open_npz(file: str | Path) -> Split:
    """The images of an .npz file, which stay on the disk: what an index asks for is read.

    They are converted into a folder of Hugging Face's cache (`HF_HOME`/piat_hub) named after the file's path, size and time,
    whole or not at all, and without ever being held. What is missing there, or cut short, is converted anew.

    Args:
        file: holds `image`, (N, H, W, C) uint8, and `label`, (N,) of a whole-number type.

    Returns:
        The split on the CPU, without names of its classes.

    Raises:
        InputError: for a file that is no whole .npz of such arrays.
        Broken: where there is no room for them.
    """
    path = _there(file)
    place, images, labels = _converted(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of memory that must not be written to, and nobody does
        mapped = torch.from_numpy(images)
    note = f"{path.name}: {len(images):,} images, converted into {place} and read from there"
    return Split(mapped, torch.from_numpy(labels), (), path.name, notes=(note,))


def checksum(file: str | Path) -> str:
    """Of what an .npz file holds, as it says itself: the CRC-32 of its arrays.

    Args:
        file: as `open_npz` takes it.

    Raises:
        InputError: for a file that is no .npz of such arrays.
    """
    with _as_input(_there(file)), zipfile.ZipFile(file) as packed:
        return " ".join(f"{packed.getinfo(f'{name}.npy').CRC:08x}" for name in NEEDED)


def _there(file: str | Path) -> Path:
    """The file's whole path. InputError if there is none."""
    path = Path(file).resolve()
    if not path.is_file():
        raise InputError(f"{path} is no file; name an .npz file that is there")
    return path


@contextmanager
def _as_input(path: Path) -> Iterator[None]:
    """Whatever a damaged or other file raises, as InputError."""
    try:
        yield
    except UNREADABLE as error:
        raise InputError(
            f"{path} is no whole .npz of images and labels ({first_line(error)}); fetch or make it anew"
        ) from error


def _converted(path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """(the folder, images mapped with channels first, labels) of an .npz file."""
    from huggingface_hub.constants import HF_HOME

    known = f"{path}\n{path.stat().st_size}\n{path.stat().st_mtime_ns}"
    place = Path(HF_HOME, "piat_hub", f"{path.stem}-{hashlib.sha256(known.encode()).hexdigest()[:16]}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not (arrays := _read(place)):
                shutil.rmtree(place, ignore_errors=True)
                _convert(path, place)
                arrays = _read(place)
            if not arrays:
                raise OSError("what was written does not read back")
    except OSError as error:
        raise Broken(
            f"{path} cannot be converted into {place.parent}: {error.strerror or error}; make room there, or set HF_HOME"
        ) from error
    return place, *arrays


def _read(place: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """What was converted, if it is there and whole."""
    try:
        images, labels = np.load(place / "image.npy", mmap_mode="r"), np.load(place / "label.npy")
    except (FileNotFoundError, ValueError, EOFError):  # not there, or cut short
        return None
    return (images, labels) if len(images) == len(labels) else None


def _convert(path: Path, place: Path) -> None:
    """Write the arrays into a scratch folder, which becomes `place`; what a killed process left of it goes."""
    scratch = place.with_name(f".{place.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with _as_input(path), zipfile.ZipFile(path) as packed:
            _shapes(packed)
            scratch.mkdir()
            for name, write in {"image": _write_images, "label": _write_labels}.items():
                with packed.open(f"{name}.npy") as member, (scratch / f"{name}.npy").open("wb") as array:
                    write(member, array)
                    array.flush()
                    os.fsync(array.fileno())
        scratch.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _shapes(packed: zipfile.ZipFile) -> dict[str, tuple[int, ...]]:
    """The shapes of both arrays, by their headers; ValueError unless they are what is needed."""
    shapes = {name: _shape(packed, name) for name in NEEDED}
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(f"it has {shapes['image'][0]} images and {shapes['label'][0]} labels")
    return shapes


def _labels(member: IO[bytes]) -> np.ndarray:
    """The labels as int64."""
    return np.lib.format.read_array(member, allow_pickle=False).astype(np.int64)


def _write_labels(member: IO[bytes], to: IO[bytes]) -> None:
    np.save(to, _labels(member))


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
