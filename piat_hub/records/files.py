"""Files that appear whole or not at all, JSON that carries a checksum, and folders that are not trusted."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piat_hub.config import Broken, InputError

if TYPE_CHECKING:
    import numpy as np

METRICS = {"epoch", "lam", "lr", "train_loss", "train_pgd10_acc", "holdout_clean_acc", "holdout_pgd10_acc"}
LARGEST = 2**28  # bytes of arrays; the verdicts of a million images under a hundred attacks take less
LONGEST = 16 * 2**20  # bytes; none of our JSON files comes near it
DEEPEST = 20  # objects and lists within one another
WEIGHTS = {"last": "model.safetensors", "best": "model_best.safetensors"}  # a run's weights, by checkpoint
RESULTS = {"last": "results.json", "best": "results_best.json"}
VERDICTS = {"last": "verdicts.npz", "best": "verdicts_best.npz"}
CORRUPTIONS = {"last": "corruptions.npz", "best": "corruptions_best.npz"}  # verdicts under common corruptions
UNIONS = {"last": "union.json", "best": "union_best.json"}  # of several threat models
RECORDS = (  # all that a run directory holds but its state: a push sends these, a run overwrites none of them
    *("config.json", "README.md", *WEIGHTS.values(), *RESULTS.values(), *VERDICTS.values(), *UNIONS.values()),
    *CORRUPTIONS.values(),
    *("curves.png", "sweep.png", "corruptions.png", "metrics.jsonl", "timing.jsonl"),
)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A scratch path to write to: after the block it is flushed and renamed to `path`; after an error it is removed.

    Args:
        path: of the file that appears; its directory must be there.

    Yields:
        The scratch path, in the same directory and with the same suffix.

    Raises:
        Broken: naming `path`, where the system refuses; the file that was there before stays.
    """
    scratch = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        with written(path):
            scratch.unlink(missing_ok=True)  # it might be a link to somewhere else
            yield scratch
            with scratch.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(scratch, path)
            sync_directory(path.parent)
    finally:
        with suppress(OSError):
            scratch.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole; see `whole_file`."""
    with whole_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


@contextmanager
def written(path: Path) -> Iterator[None]:
    """The system's refusal to write, in words that name the file.

    Args:
        path: named by the message.

    Raises:
        Broken: in place of an OSError from the block.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        again = "make room or get leave, then go on with the same command, and --resume where it has that"
        raise Broken(f"{path} cannot be written: {reason}; what was saved before is whole: {again}") from error


def sync_directory(directory: Path) -> None:
    """Have a rename in it survive a power cut, where the system lets a directory be opened."""
    if hasattr(os, "O_DIRECTORY"):
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one JSON line, flushed to the disk.

    Args:
        path: of the file, made if there is none.
        line: as JSON holds it.

    Raises:
        Broken: where the system refuses.
    """
    with written(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def file_digest(path: Path) -> str:
    """The sha256 of a file as it lies there, which is also what the Hub shows for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(values: Mapping[str, Any]) -> str:
    """A checksum of the values' JSON, by which damage is found: CRC-32, no protection against intent."""
    return f"crc32:{zlib.crc32(json.dumps(values, sort_keys=True, separators=(',', ':')).encode()):08x}"


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with their "checksum" beside them."""
    rest = {key: value for key, value in values.items() if key != "checksum"}
    return rest | {"checksum": checksum(rest)}


def unsealed(text: str) -> dict[str, Any]:
    """The object that a JSON text holds, without its checksum.

    Text without a checksum is another program's and is taken as it is.

    Raises:
        ValueError: if it holds none, or not what its checksum says.
    """
    try:
        values = json.loads(text, object_pairs_hook=_named_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it is no object of named values")
    if _deeper(values, DEEPEST):
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    whole = "checksum" not in values or values["checksum"] == sealed(values)["checksum"]
    if not whole:
        raise ValueError('its content is not what its checksum says; if you changed it, delete its "checksum"')
    values.pop("checksum", None)
    return values


def _deeper(values: Any, most: int) -> bool:
    """Whether JSON values are nested more than so deep."""
    inside = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    return most < 0 or any(_deeper(value, most - 1) for value in inside)


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError where a name stands twice, of which every reader takes another value."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it names a value twice")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object, held against its checksum.

    Raises:
        ValueError: if it holds none, is damaged, is longer than LONGEST, or is no regular file.
        OSError: if it cannot be read.
    """
    return unsealed(_content(path).decode("utf-8"))


def _content(path: Path) -> bytes:
    """All of a file; ValueError for what is no regular file, and beyond LONGEST."""
    _hold_regular(path)
    with path.open("rb") as file:
        content = file.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST // 2**20} MiB")
    return content


def _hold_regular(path: Path) -> None:
    """ValueError for a folder, and for a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")


def read_lines(path: Path, *, strict: bool = True) -> list[dict[str, Any]]:
    """The objects of a file with one a line, [] where there is no file.

    Args:
        path: of the file.
        strict: refuse damaged lines; else they are left out.

    Raises:
        InputError: naming the first damaged line, or for what is no regular file.
    """
    try:
        lines = _content(path).decode("utf-8", errors="replace").splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); move it away") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(unsealed(line))
        except ValueError as error:
            if not strict:
                continue
            raise InputError(damaged(path, number, error)) from error
    return found


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, held against their checksums in timing.jsonl; [] where there is no file.

    Args:
        directory: of the run.

    Raises:
        InputError: for a damaged or missing line.
    """
    path = own(directory, "metrics.jsonl")
    lines, timing = read_lines(path), read_lines(own(directory, "timing.jsonl"), strict=False)
    for epoch, known in ((line.get("epoch"), line["metrics"]) for line in timing if "metrics" in line):
        if type(epoch) is not int or not 0 < epoch <= len(lines) or checksum(lines[epoch - 1]) != known:
            raise InputError(damaged(path, epoch, "its content is not what its checksum says"))
    for number, line in enumerate(lines, 1):
        if not line.keys() >= METRICS or not all(v is None or is_number(v) for v in line.values()):
            raise InputError(damaged(path, number, f"it must have {', '.join(sorted(METRICS))}, all of them numbers"))
    return lines


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number that a float holds: no truth value, not NaN, not infinite."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def damaged(path: Path, line: object, why: object) -> str:
    """What a message says of a damaged line of a run's records.

    Args:
        path: of the file.
        line: its number, from 1, or what it gives as that.
        why: what is wrong with it.
    """
    return f"{path} is damaged in line {line} ({why}); the training's own command with --resume writes it again"


def move_aside(path: Path) -> Path:
    """Rename a damaged file so that nothing of it is lost; returns its new path."""
    taken = (path.with_name(f"{path.name}.damaged{number or ''}") for number in itertools.count())
    return path.rename(next(p for p in taken if not p.exists()))


def own(directory: str | Path, name: str) -> Path:
    """The path of a file of a model folder.

    The Hub's cache is such a folder too, and so are those in it: its files are links into the blobs beside it.

    Args:
        directory: the folder.
        name: of the file, which need not be there.

    Raises:
        InputError: if it is a link that leads out of the folder, or back to itself.
    """
    path = Path(directory) / name
    real, home = Path(os.path.realpath(path)), Path(directory).resolve()
    if real.is_symlink():  # only one that leads back to itself is a link still
        raise InputError(f"{path} is a link that leads back to itself; a model's files lie in its own folder")
    caches = [place.parents[1] for place in (home, home.parent) if place.parent.name == "snapshots"]
    cached = any(real.parent == cache / "blobs" for cache in caches)
    if home not in real.parents and not cached:
        raise InputError(
            f"{path} is a link that leads out of its folder, to {real}; a model's files lie in its own folder"
        )
    return path


def texts(values: Any) -> Iterator[str]:
    """Every text in nested JSON values, names too."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield str(key)
            yield from texts(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from texts(value)


def check_output(directory: Path) -> None:
    """InputError unless the directory exists or can be made, and can be written to."""
    place = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if not place.is_dir():
        raise InputError(f"{directory} cannot be made: {place} is a file; name another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{directory} cannot be written to: no permission in {place}; name another --output")


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an npz file that appears whole; see `whole_file`."""
    import numpy as np

    with whole_file(path) as scratch:
        np.savez_compressed(scratch, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file; no pickle is read. ValueError if it is damaged or unpacks to an absurd size."""
    import numpy as np

    _hold_regular(path)
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(member.file_size for member in packed.infolist()) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST // 2**20} MiB")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
        SyntaxError,
    ) as error:
        raise ValueError(str(error) or type(error).__name__) from error
