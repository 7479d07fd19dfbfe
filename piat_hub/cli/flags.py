"""argv from dataclasses: every field a flag, every error one line."""

import argparse
import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from piat_hub.config import NONE, InputError, choices, nearest, number, scalar_type, show


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line with the nearest known flag.

    Args:
        **options: of `argparse.ArgumentParser`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """InputError in place of argparse's exit."""
        raise InputError(f"{message}; see {self.prog} --help")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse, and refuse what is left over with the nearest flag's name."""
        values, extra = self.parse_known_args(argv)
        self.refuse_unknown(extra)
        return values

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """InputError for the first of these words, if there is one, with the nearest flag's name."""
        if not words:
            return
        flag = words[0].split("=")[0]
        family, dot, _ = flag.rpartition(".")  # of --method.FIELD
        known = [name for name in self._option_string_actions if name.startswith(family + dot)]
        there = (
            f"; there is {', '.join(known)}" if dot and known else nearest(flag, known or self._option_string_actions)
        )
        raise InputError(f"unknown argument {flag!r}{there}; see {self.prog} --help")


def add_fields(parser: Any, config: Any, prefix: str = "") -> None:
    """A flag for every field of a dataclass instance, its values as defaults; nested dataclasses by their prefix.

    Args:
        parser: an argparse parser or group.
        config: the instance.
        prefix: begins every flag, "interpolation.".
    """
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value, kind = getattr(config, f.name), scalar_type(hints[f.name])
        if dataclasses.is_dataclass(value):
            add_fields(parser, value, f.metadata.get("prefix", ""))
            continue
        flag = f.metadata.get("flag", "")
        if flag is None:
            continue
        name = f"--{flag or prefix + f.name.replace('_', '-')}"
        doc = f.metadata.get("doc", "") + (f" [{f.metadata['unit']}]" if f.metadata.get("unit") else "")
        optional = type(None) in typing.get_args(hints[f.name]) and value is not None
        doc += "" if value in (None, "", ()) else f" (default: {show(f, value)}{f', or {NONE}' if optional else ''})"
        common: dict[str, Any] = {"dest": prefix + f.name, "default": argparse.SUPPRESS, "help": doc.replace("%", "%%")}
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction if value else "store_true", **common)
            continue
        if typing.get_origin(kind) is tuple:
            kind, common = typing.get_args(kind)[0], common | {"nargs": "+"}
        names = choices(hints[f.name])
        metavar = "{" + ",".join(names) + "}" if names else kind.__name__.upper()
        convert = fraction if kind is float else kind
        parser.add_argument(name, type=or_none(convert) if optional else convert, metavar=metavar, **common)


def or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """What reads a flag of which the recipe has a value and which may have none: "none" takes it away."""

    def read(text: str) -> Any:
        return None if text == NONE else convert(text)

    read.__name__ = convert.__name__  # argparse says "invalid int value"
    return read


def fraction(text: str) -> float:
    """`number`, with its own message kept by argparse."""
    try:
        return number(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def with_flags(config: Any, given: dict[str, Any], prefix: str = "") -> Any:
    """The dataclass with the flags that were given; nested ones likewise. Validates by construction.

    Args:
        config: what the flags change.
        given: values by the flags' names with underscores, as argparse gives them.
        prefix: begins every flag, "interpolation.".

    Raises:
        InputError: for a value that the dataclass refuses.
    """
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            changes[f.name] = with_flags(value, given, f.metadata.get("prefix", ""))
        elif prefix + f.name in given:
            found = given[prefix + f.name]
            changes[f.name] = tuple(found) if isinstance(found, list) else found
    return dataclasses.replace(config, **changes)
