"""Ctrl-C and SIGTERM, taken where the work can be saved."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

GO_ON = "go on with the same command and --resume"


class Interrupted(KeyboardInterrupt):
    """The work ended early, by a signal, at a place from which it can go on."""


@contextlib.contextmanager
def noting_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted, for the work to stop where it can be saved; again a second later, they interrupt.

    A launcher passes on a Ctrl-C that its processes have had from the terminal already.

    Yields:
        The list, empty at first, of the signals' numbers.
    """
    noted: list[int] = []
    since = 0.0

    def note(number: int, _: Any) -> None:
        nonlocal since
        if noted and time.monotonic() - since > 1:
            raise KeyboardInterrupt
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
