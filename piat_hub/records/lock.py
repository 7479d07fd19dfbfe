"""One writer at a time in a directory."""

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from piat_hub.config import Broken, InUse
from piat_hub.records.files import written

IN_USE = "is in use by"  # what a sweep knows the refusal by
LOCK = ".lock"  # in the directory while somebody writes there; one that a killed process left behind is free
PATIENCE = 1.0  # seconds, for one who is just leaving, or only looks whether the directory is free


@contextmanager
def only_writer(directory: str | Path, *, launch: bool = False) -> Iterator[None]:
    """No other process of ours writes in the directory inside the block; this thread may enter it again.

    A directory that cannot be written to has no writers, and needs no lock.

    Args:
        directory: made if there is none, and taken away again where nothing was put into what was made.
        launch: every process of a launch calls this, after Accelerate has begun: the first of them holds the lock, and
            all of them are refused as it is.

    Raises:
        InUse: if another process is at work there.
        Broken: if the directory or the lock cannot be made.
    """
    with contextlib.ExitStack() as held:
        refusal: list[InUse | Broken | None] = [None]
        if not launch or _first_of_launch():
            try:
                held.enter_context(_locked(Path(directory), PATIENCE))
            except (InUse, Broken) as error:
                refusal = [error]
        if launch:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(refusal)
        if refusal[0]:
            raise refusal[0]
        yield


def in_use(directory: Path) -> bool:
    """Whether another process writes in the directory at this moment."""
    try:
        with _locked(directory, 0) if directory.exists() else contextlib.nullcontext():
            return False
    except InUse:
        return True


def _first_of_launch() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


@contextmanager
def _locked(directory: Path, patience: float) -> Iterator[None]:
    made = [place for place in (directory.absolute(), *directory.absolute().parents) if not place.exists()]
    if not made and not os.access(directory, os.W_OK):
        yield
        return
    # every spelling of a directory leads to one file; the system lets go of it however its holder ends
    lock = FileLock(directory.resolve() / LOCK, is_singleton=True)
    try:
        with written(directory):
            try:
                _enter(directory, lock, patience)
            except FileNotFoundError:  # who had made the directory has just taken it away again
                _enter(directory, lock, patience)
        try:
            yield
        finally:
            _leave(lock)
    finally:
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()


def _enter(directory: Path, lock: FileLock, patience: float) -> None:
    """Make the directory, take its lock and write into that whose it is."""
    directory.mkdir(parents=True, exist_ok=True)
    path = Path(lock.lock_file)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        rule = "one command at a time writes there: wait until that one ends, or work in another directory"
        raise InUse(f"{directory} {IN_USE} {_holder(path)}; {rule}") from None
    if not isinstance(lock, SoftFileLock):  # which the library falls back to, and fills, where the system has no locks
        with contextlib.suppress(OSError):
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")


def _leave(lock: FileLock) -> None:
    """Let go of a lock as often as it was taken; at the last its file goes too, while it is held: who waits for it sees that."""
    if lock.lock_counter == 1 and not isinstance(lock, SoftFileLock):
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()


def _holder(path: Path) -> str:
    """Who holds a lock, as far as its file tells."""
    try:
        number, host, *_ = path.read_text(encoding="utf-8", errors="replace").split()
        return f"process {int(number)} on {host[:80]}"
    except (OSError, ValueError):
        return "another process"
