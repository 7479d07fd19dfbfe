"""A dataclass field as flag, JSON value and bound."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal, TypeVar

from piat_hub.config.errors import TOKEN, InputError, lookup, nearest, printable

T = TypeVar("T")


MOST = 2**53  # beyond it a float skips whole numbers
NONE = "none"  # takes away what a recipe has, on the command line


def number(text: str | float) -> float:
    """A finite float.

    Args:
        text: "8/255", "0.15" or a number.

    Raises:
        InputError: for anything else.
    """
    try:
        if isinstance(text, str) and "/" in text:
            above, _, below = text.partition("/")
            value = float(above) / float(below)
        elif isinstance(text, bool):
            raise TypeError
        else:
            value = float(text)  # not by way of a Fraction, which takes for ever over 1e-999999999
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        raise InputError(f"{text!r:.80} is not a number; write a fraction like 8/255 or a decimal like 0.03") from None
    if not math.isfinite(value):
        raise InputError(f"{text!r:.80} is not finite; write a fraction like 8/255 or a decimal like 0.03")
    return value


def pixels(value: float, norm: str = "Linf") -> str:
    """The text of a pixel distance, of Linf '8/255' where it is a multiple of 1/255, else the decimal. `number` undoes it.

    Args:
        value: in pixel units, for images in [0, 1].
        norm: that it is measured in; those of L2 and L1 are no levels of a pixel.
    """
    levels = round(value * 255) if norm == "Linf" and abs(value) < MOST else 0
    return f"{levels}/255" if levels and levels / 255 == value else repr(float(value))


def option(default: Any, doc: str, *, unit: str = "", flag: str | None = "", **limits: float) -> Any:
    """A dataclass field with its documentation.

    Args:
        default: its value where none is given.
        doc: what the value means, for `--help`.
        unit: what the number counts; "pixels" values are written as fractions of 255.
        flag: the command-line name where it is not the field's own; None keeps the field off the command line.
        **limits: any of above, below (exclusive), least, most (inclusive), checked by `check`.
    """
    return field(default=default, metadata={"doc": doc, "unit": unit, "flag": flag, "limits": limits})


def check(config: Any) -> None:
    """Hold every field of a dataclass against its type, its Literal choices and its limits.

    Args:
        config: an instance, its fields made by `option`.

    Raises:
        InputError: for the first field that fails.
    """
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value, hint = getattr(config, f.name), hints[f.name]
        name = f.metadata.get("flag") or f.name.replace("_", "-")
        if value is None and type(None) in typing.get_args(hint):
            continue
        known, kind = choices(hint), scalar_type(hint)
        if known and value not in known:
            raise InputError(f"{name} {value!r} is unknown{nearest(str(value), known)}; choose {', '.join(known)}")
        if typing.get_origin(kind) is tuple and (of := typing.get_args(kind)[0]) in (int, float, str):
            types = (int, float) if of is float else of
            if not isinstance(value, tuple) or not all(isinstance(v, types) and not isinstance(v, bool) for v in value):
                raise InputError(
                    f"{name} must be several of {of.__name__}, got {value!r:.80}; see --help for its meaning"
                )
        fits = isinstance(value, (int, float) if kind is float else kind) if kind in (int, float, bool, str) else True
        if not fits or (isinstance(value, bool) and kind is not bool):  # Python's truth is a number, JSON's is none
            raise InputError(f"{name} must be {kind.__name__}, got {value!r:.80}; see --help for its meaning")
        if isinstance(value, str) and (not printable(value) or TOKEN.search(value)):
            raise InputError(f"{name} {value!r} must be printable text without a Hub token; write it anew")
        if any(
            isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, tuple) else (value,))
        ):
            raise InputError(f"{name} must be finite, got {value}; see --help for its meaning")
        if isinstance(value, int) and abs(value) > MOST:
            raise InputError(
                f"{name} must be at most {MOST}, got a number of {len(hex(value))} hexadecimal digits; lower it"
            )
        rules = {"above": (">", float.__gt__), "least": (">=", float.__ge__)}
        rules |= {"below": ("<", float.__lt__), "most": ("<=", float.__le__)}
        for rule, bound in f.metadata.get("limits", {}).items():
            sign, holds = rules[rule]
            if not holds(float(value), float(bound)):
                raise InputError(f"{name} must be {sign} {bound}, got {value}; see --help for its meaning")


class Checked:
    """Base of a dataclass that holds its fields against their types and limits when it is made, by `check`."""

    def __post_init__(self) -> None:
        check(self)


def to_dict(config: Any, norm: str = "Linf") -> dict[str, Any]:
    """The dataclass as JSON types; pixel distances as text such as '8/255'.

    Args:
        config: an instance.
        norm: of its distances, where it has none itself.
    """
    out: dict[str, Any] = {}
    norm = getattr(config, "norm", norm)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value, norm)
        elif f.metadata.get("unit") == "pixels" and value is not None:
            value = pixels(value, norm)
        elif isinstance(value, tuple):
            value = [list(v) if isinstance(v, tuple) else v for v in value]
        elif isinstance(value, Mapping):
            value = dict(value)
        out[f.name] = value
    return out


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots; values as text where they are no number.

    Args:
        values: as `to_dict` gives them.
        prefix: begins every key.
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, int | float) else str(value)
    return out


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass from what `to_dict` wrote; absent keys take the default.

    Args:
        cls: the dataclass.
        values: as JSON holds them.

    Raises:
        InputError: on an unknown key or a bad value.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{cls.__name__} must be an object of named values, got {values!r}; see config.json of a run")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for key, value in values.items():
        f, hint = lookup(f"{cls.__name__} field", key, fields), hints[key]
        if dataclasses.is_dataclass(kind := scalar_type(hint)) and not (value is None and kind is not hint):
            value = from_dict(typing.cast(type, kind), value)
        elif f.metadata.get("unit") == "pixels" and value is not None:
            value = number(value)
        elif isinstance(value, list):
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        built[key] = value
    return cls(**built)


def flags(config: Any, base: Any, prefix: str = "", norm: str = "Linf") -> list[str]:
    """The command-line words that turn `base` into `config`, two dataclasses of one type.

    Args:
        config: what the words are to give.
        base: where they start from.
        prefix: begins every flag, "interpolation.".
        norm: of its distances, where it has none itself.
    """
    words: list[str] = []
    norm = getattr(config, "norm", norm)
    for f in dataclasses.fields(config):
        value, default = getattr(config, f.name), getattr(base, f.name)
        if dataclasses.is_dataclass(value):
            words += flags(value, default, f.metadata.get("prefix", ""), norm)
        elif value != default and f.metadata.get("flag") is not None:
            name = f.metadata["flag"] or prefix + f.name.replace("_", "-")
            several = value if isinstance(value, tuple) else (value,)
            shown = [NONE if one is None else show(f, one, norm) for one in several]
            words += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else flag(name, *shown)
    return words


def flagless(config: Any, base: Any, but: Sequence[str] = ()) -> list[str]:
    """The fields without a flag in which `config` differs from `base`, two dataclasses of one type.

    Args:
        config: what `flags` turns `base` into, as far as they can.
        base: where they start from.
        but: fields that do not count.
    """
    found: list[str] = []
    for f in dataclasses.fields(config):
        value, default = getattr(config, f.name), getattr(base, f.name)
        if dataclasses.is_dataclass(value):
            found += flagless(value, default)
        elif value != default and f.name not in but and f.metadata.get("flag") is None:
            found.append(f.name)
    return found


def flag(name: str, *values: str) -> list[str]:
    """The words of a flag; a single value that begins as flags do is tied to its name, so that it is none.

    Args:
        name: without dashes.
        *values: what follows it.
    """
    return [f"--{name}={values[0]}"] if len(values) == 1 and values[0].startswith("-") else [f"--{name}", *values]


def show(f: dataclasses.Field[Any], value: Any, norm: str = "Linf") -> str:
    """A field's value as people write it; several values with spaces between them.

    Args:
        f: the field, whose unit tells pixel distances.
        value: its value, or one of several.
        norm: of a distance.
    """
    if isinstance(value, tuple):
        return " ".join(show(f, one, norm) for one in value)
    return pixels(value, norm) if f.metadata.get("unit") == "pixels" else str(value)


def choices(hint: Any) -> tuple[str, ...]:
    """The options of a Literal, or of the Literal in `Literal[…] | None`; () for other types."""
    literals = [h for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) is Literal]
    return typing.get_args(literals[0]) if literals else ()


def scalar_type(hint: Any) -> Any:
    """The single type behind `hint`: int for `int | None`, str for a Literal; the hint itself otherwise."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
    return str if typing.get_origin(hint) is Literal else hint


def duration(text: str) -> float:
    """Seconds from '90s', '30m', '2h' or '1h30m'.

    Args:
        text: hours, minutes and seconds, in this order, as far as they are there.

    Raises:
        InputError: for anything else, and for no time at all.
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    hours, minutes, seconds = map(int, match.groups("0") if match else (0, 0, 0))
    if not hours + minutes + seconds:
        raise InputError(f"{text!r} is no length of time; write 90s, 30m or 1h30m")
    return 3600 * hours + 60 * minutes + seconds
