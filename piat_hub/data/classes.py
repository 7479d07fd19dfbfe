"""Labels go by the names of their classes: a model's and a data set's need not stand in the same order."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from piat_hub.config import InputError, numbers_of, shortened
from piat_hub.data.split import Split


def numbered_as(split: Split, names: Sequence[str], whose: str = "the model") -> Split:
    """The split with the class numbers of `names`: the same classes in another order, or only some of them.

    Names that differ in case, spaces, dashes or underscores alone are the same. A split whose names are only numbers
    that were found in it goes by those numbers where its names are none of these; one whose names are numbers in the
    order of text ("10" before "2") goes by them where nothing else names the classes.

    Args:
        split: its labels number its own label_names.
        names: of all classes, in the order that counts; () where nobody knows them.
        whose: has them, for messages: "the model".

    Returns:
        A split with `names` as label_names, and a note of what was done.

    Raises:
        InputError: where a class that has images is none of `names`.
    """
    own, names, evaluated = split.label_names, tuple(names), whose == "the model"
    if own == names:
        return split
    if not names:
        return _by_number(split)
    there = split.labels.unique().tolist()
    found = numbers_of([own[k] for k in there], names)
    if found is None and split.inferred and len(own) <= len(names):
        note = f"{split.name} has no names for its classes: its label k is taken for class k of {whose}, {names[0]!r} for 0"
        return replace(split, label_names=names, inferred=False, notes=(*split.notes, note))
    if found is None:
        lists = f"{shortened([own[k] for k in there])} against {shortened(names)}"
        other = "name the data it was trained for with --dataset, or " if evaluated else ""
        raise InputError(
            f"{whose} has {len(names)} classes and {split.name} has {len(there)}; {other}name the classes alike, since labels "
            f"go by name: {lists}"
        )
    numbers = torch.zeros(len(own), dtype=torch.int64)
    numbers[there] = torch.tensor(found)
    notes = []
    if found != sorted(found):
        notes.append(f"the classes of {split.name} stand in another order than those of {whose}; labels go by name")
    elif split.inferred and found != there:
        k, n = next((k, n) for k, n in zip(there, found, strict=True) if k != n)
        notes.append(
            f"the labels of {split.name} are read as class names: {k} is class {names[n]!r} of {whose}, its number {n}"
        )
    if renamed := [(own[k], names[n]) for k, n in zip(there, found, strict=True) if own[k] != names[n]]:
        notes.append(f"class {renamed[0][0]!r} of {split.name} is taken for {renamed[0][1]!r}" + _more(renamed))
    if len(there) < len(names):
        counted = ": an answer outside of them counts as wrong" if evaluated else ""
        notes.append(f"{split.name} has {len(there)} of the {len(names)} classes of {whose}{counted}")
    labels = numbers.to(split.labels.device)[split.labels]
    return replace(split, labels=labels, label_names=names, inferred=False, notes=(*split.notes, *notes))


def _by_number(split: Split) -> Split:
    """The split with classes called 0, 1, 2 … or 1, 2, 3 … in that order, if they stand sorted as text."""
    own = split.label_names
    if not all(name.isascii() and name.isdigit() for name in own) or list(own) != sorted(own):
        return split
    first, last = min(map(int, own)), max(map(int, own))
    if first > 1 or last > 2 * len(own) or sorted(own, key=int) == list(own):
        return split
    note = f"the classes of {split.name} are called by numbers, and the model names none: "
    note += f"{first} is taken for its first class, {first + 1} for its second, and so on"
    numbers = torch.tensor([int(name) - first for name in own]).to(split.labels.device)
    names = tuple(map(str, range(first, last + 1)))
    return replace(split, labels=numbers[split.labels], label_names=names, notes=(*split.notes, note))


def _more(pairs: Sequence[object]) -> str:
    return f", and {len(pairs) - 1} more likewise" if len(pairs) > 1 else ""
