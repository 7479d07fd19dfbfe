"""Ctrl-C and SIGTERM, taken where the work can be saved."""

import contextlib
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn


class Interrupted(KeyboardInterrupt):
    """The work ended early, by a signal; the text says from where it can go on, "" where nothing was begun."""


def go_on(command: str, argv: Sequence[str]) -> str:
    """How to go on with this program, as a line that can be pasted into a shell.

    Args:
        command: the command's name; all but a study go on by --resume.
        argv: the words after it.
    """
    runner, program, name = sys.executable, [sys.argv[0]], Path(sys.argv[0]).name
    if name == "__main__.py":
        program = ["-m", "piat_hub", command]
    elif not name.endswith(".py"):
        runner, program = sys.argv[0], [command]
    words = [*program, *argv, *(["--resume"] if command != "study" and "--resume" not in argv else [])]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"go on with the same launcher and {shlex.join(words)}"
    return f"go on with {shlex.join([_short(runner), *words])}"


def _short(program: str) -> str:
    """A program as one would type it: by its name where the shell finds it, else by its path from here."""
    path = Path(program).absolute()
    if shutil.which(path.name) == str(path):
        return path.name
    here = Path.cwd()
    return str(path.relative_to(here) if here in path.parents else path)


@contextlib.contextmanager
def noting_signals(begun: Callable[[], bool] = lambda: False) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted, for the work to stop where it can be saved; again a second later, they interrupt.

    A launcher passes on a Ctrl-C that its processes have had from the terminal already.

    Args:
        begun: whether there is something to go on from where the second interrupts.

    Yields:
        The list, empty at first, of the signals' numbers.
    """
    noted: list[int] = []
    since = 0.0

    def note(number: int, _: Any) -> None:
        nonlocal since
        if noted and time.monotonic() - since > 1:
            raise Interrupted("what was saved before is whole" if begun() else "")
        noted.append(number)
        since = time.monotonic()

    with handling({signal.SIGINT: note, signal.SIGTERM: note}):
        yield noted


@contextlib.contextmanager
def handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """These signal handlers inside the block, where Python allows it: in the main thread.

    Args:
        handlers: by signal; those of before are put back after.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminate(number: int, _: Any) -> NoReturn:
    """A handler that ends the work at once, as SIGTERM does where nothing can be saved."""
    raise Interrupted("")
