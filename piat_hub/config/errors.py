"""Errors that a user can cause, and their words. Imports nothing of the house."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")


UNSEEN = re.compile("[\u202a-\u202e\u2066-\u2069]")  # they turn the order of the text that follows


def printable(text: str) -> bool:
    """Whether a text is one line that a terminal and a page show as it is: no control characters, no turned order."""
    return not UNSEEN.search(text) and not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: the value, the rule, the next step; never a token.

    Args:
        message: what to say; Hub tokens, what cannot be printed and all beyond 2,000 characters are taken out.
    """

    def __init__(self, message: str) -> None:
        text = TOKEN.sub("hf_…", message if len(message) < 2000 else f"{message[:2000]}…")
        super().__init__("".join(c if printable(c) else "\ufffd" for c in text))


class InUse(InputError):
    """Another process is at work in the directory; only one at a time may write there."""


class Diverged(RuntimeError):
    """Training's loss, a gradient or a weight is not finite."""


class Broken(RuntimeError):
    """The work cannot go on from here for a reason outside it: a disk, another process. What was saved is whole."""


class Alone(InputError):
    """What was given cannot be used, as one of several processes found on its share of the images: each may say it."""


class Refuted(RuntimeError):
    """A claim does not stand against what was measured."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def lookup(kind: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or an InputError that offers the nearest name.

    Args:
        kind: what messages call such a thing, "recipe".
        name: the one asked for.
        known: all there are, by name.

    Raises:
        InputError: for an unknown name.
    """
    if name in known:
        return known[name]
    raise InputError(f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(sorted(known))}")


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known name closest to `name`, or nothing where none is near.

    Args:
        name: the one asked for.
        known: all names there are.
    """
    bare = {one.lstrip("-"): one for one in known}  # what all flags share makes none of them alike
    asked = name.lstrip("-")
    begins = [one for one in bare if len(one) > 2 and asked.startswith(one)]  # --optimizer, of --opt
    close = difflib.get_close_matches(asked, bare, n=1, cutoff=0.7) or sorted(begins, key=len)[-1:]
    return f" (did you mean {bare[close[0]]!r}?)" if close else ""


def shortened(names: Sequence[str], most: int = 5) -> str:
    """'a, b, c', of more than `most` the first and how many more.

    Args:
        names: texts.
        most: shown at most.
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
