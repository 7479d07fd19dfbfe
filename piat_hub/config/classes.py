"""Names of classes, as people write them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence


def numbers_of(classes: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """The number of each class in `names`, as they are written or else as `plainly`; None where one is not there.

    Args:
        classes: names of classes.
        names: of all classes, by their number.
    """
    ways: tuple[Callable[[str], str], ...] = (str, plainly)
    for way in ways:
        known = Counter(map(way, names))
        number = {way(name): k for k, name in enumerate(names) if known[way(name)] == 1}
        found = [number.get(way(name), -1) for name in classes]
        if -1 not in found and len(set(found)) == len(found):
            return found
    return None


def plainly(name: str) -> str:
    """A name without what people write differently: case, kinds of space, dashes and underscores, accents' encoding."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
