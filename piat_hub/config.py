"""Every choice a run can make, as frozen dataclasses that validate themselves. Imports no torch.

A field is a default, a doc and, where it has one, a unit: the command line, `--help` and config.json are all read off
these fields. `to_dict` and `from_dict` are exact inverses, so a configuration survives JSON.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

TRACKED = 1000  # test images that `track_test` measures at the end of each epoch
WEIGHTS = {"last": "model.safetensors", "best": "model_best.safetensors"}  # a run's weights, by checkpoint
RESULTS = {"last": "results.json", "best": "results_best.json"}
VERDICTS = {"last": "verdicts.npz", "best": "verdicts_best.npz"}
DATASETS = {  # alias -> (Hub id, configuration, image column, label column)
    "cifar10": ("uoft-cs/cifar10", None, "img", "label"),
    "cifar100": ("uoft-cs/cifar100", None, "img", "fine_label"),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", "image", "label"),
}


def local_name(path: str | Path) -> str:
    """What a folder of data is called on results and cards: its own name, but never that of an alias."""
    name = Path(path).resolve().name
    return f"local-{name}" if name in (*DATASETS, "digits") else name


TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")
UNSEEN = re.compile("[\u202a-\u202e\u2066-\u2069]")  # they turn the order of the text that follows
MOST = 2**53  # beyond it a float skips whole numbers


def printable(text: str) -> bool:
    """Whether a text is one line that a terminal and a page show as it is: no control characters, no turned order."""
    return not UNSEEN.search(text) and not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: the value, the rule, the next step; never a token."""

    def __init__(self, message: str) -> None:
        text = TOKEN.sub("hf_…", message if len(message) < 2000 else f"{message[:2000]}…")
        super().__init__("".join(c if printable(c) else "\ufffd" for c in text))


class Diverged(RuntimeError):
    """Training's loss, a gradient or a weight is not finite."""


class Broken(RuntimeError):
    """The work cannot go on from here for a reason outside it: a disk, another process. What was saved is whole."""


def lookup(kind: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or an InputError that offers the nearest name."""
    if name in known:
        return known[name]
    raise InputError(f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(sorted(known))}")


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known name closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def number(text: str | float) -> float:
    """A float from '8/255', '0.15' or a number, finite. Raises InputError."""
    try:
        value = float(Fraction(text) if isinstance(text, str) else text)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        raise InputError(f"{text!r} is not a number; write a fraction like 8/255 or a decimal like 0.03") from None
    if not math.isfinite(value):
        raise InputError(f"{text!r} is not finite; write a fraction like 8/255 or a decimal like 0.03")
    return value


def pixels(value: float) -> str:
    """The text of a pixel distance, '8/255' where it is a multiple of 1/255, else the decimal. `number` undoes it."""
    levels = round(value * 255)
    return f"{levels}/255" if levels and levels / 255 == value else repr(value)


def option(default: Any, doc: str, *, unit: str = "", flag: str | None = "", **limits: float) -> Any:
    """A dataclass field with its documentation.

    unit: what the number counts; "pixels" values are written as fractions of 255. flag: the command-line name where it
    is not the field's own; None keeps the field off the command line. limits: any of above, below (exclusive), least,
    most (inclusive), checked by `check`.
    """
    return field(default=default, metadata={"doc": doc, "unit": unit, "flag": flag, "limits": limits})


def check(config: Any) -> None:
    """Hold every field of a dataclass against its type, its Literal choices and its limits; InputError if one fails."""
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value, hint = getattr(config, f.name), hints[f.name]
        name = f.metadata.get("flag") or f.name.replace("_", "-")
        if value is None and type(None) in typing.get_args(hint):
            continue
        known, kind = choices(hint), scalar_type(hint)
        if known and value not in known:
            raise InputError(f"{name} {value!r} is unknown{nearest(str(value), known)}; choose {', '.join(known)}")
        if kind in (int, float, bool, str) and not isinstance(value, (int, float) if kind is float else kind):
            raise InputError(f"{name} must be {kind.__name__}, got {value!r}; see --help for its meaning")
        if isinstance(value, str) and (not printable(value) or TOKEN.search(value)):
            raise InputError(f"{name} {value!r} must be printable text without a Hub token; write it anew")
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


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as JSON types; pixel distances as text such as '8/255'."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif f.metadata.get("unit") == "pixels" and value is not None:
            value = pixels(value)
        elif isinstance(value, tuple):
            value = [list(v) if isinstance(v, tuple) else v for v in value]
        elif isinstance(value, Mapping):
            value = dict(value)
        out[f.name] = value
    return out


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots; values as text where they are no number."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, int | float) else str(value)
    return out


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass from what `to_dict` wrote; absent keys take the default. InputError on an unknown key or a bad value."""
    if not isinstance(values, Mapping):
        raise InputError(f"{cls.__name__} must be an object of named values, got {values!r}; see config.json of a run")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for key, value in values.items():
        f, hint = lookup(f"{cls.__name__} field", key, fields), hints[key]
        if dataclasses.is_dataclass(hint):
            value = from_dict(typing.cast(type, hint), value)
        elif f.metadata.get("unit") == "pixels" and value is not None:
            value = number(value)
        elif isinstance(value, list):
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        built[key] = value
    return cls(**built)


def flags(config: Any, base: Any, prefix: str = "") -> list[str]:
    """The command-line words that turn `base` into `config`, two dataclasses of one type."""
    words: list[str] = []
    for f in dataclasses.fields(config):
        value, default = getattr(config, f.name), getattr(base, f.name)
        if dataclasses.is_dataclass(value):
            words += flags(value, default, f.metadata.get("prefix", ""))
        elif value != default and value is not None and f.metadata.get("flag") is not None:
            name = f.metadata["flag"] or prefix + f.name.replace("_", "-")
            several = value if isinstance(value, tuple) else (value,)
            shown = [show(f, one) for one in several]
            words += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", *shown]
    return words


def show(f: dataclasses.Field[Any], value: Any) -> str:
    """A field's value as people write it; several values with spaces between them."""
    if isinstance(value, tuple):
        return " ".join(show(f, one) for one in value)
    return pixels(value) if f.metadata.get("unit") == "pixels" else str(value)


def choices(hint: Any) -> tuple[str, ...]:
    """The options of a Literal, or of the Literal in `Literal[…] | None`; () for other types."""
    literals = [h for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) is Literal]
    return typing.get_args(literals[0]) if literals else ()


def scalar_type(hint: Any) -> Any:
    """The single type behind `hint`: int for `int | None`, str for a Literal; the hint itself otherwise."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
    return str if typing.get_origin(hint) is Literal else hint


@dataclass(frozen=True)
class ThreatModel:
    """What the adversary may do: any image within distance eps of the clean one. Part of every reported number."""

    norm: Literal["Linf", "L2"] = option("Linf", "norm of the perturbation")
    eps: float = option(8 / 255, "perturbation budget, for images in [0, 1]", unit="pixels", above=0)

    def __post_init__(self) -> None:
        check(self)
        if self.norm == "Linf" and self.eps > 1:
            raise InputError(f"eps must be in (0, 1] for Linf, got {self.eps}; images lie in [0, 1]: 8 levels is 8/255")

    def __str__(self) -> str:
        return f"{self.norm} eps {pixels(self.eps)}"

    def check_step(self, step_size: float) -> None:
        """Raise InputError unless 0 < step_size <= 2 eps."""
        if not 0 < step_size <= 2 * self.eps:
            raise InputError(
                f"step-size must be in (0, 2 eps] = (0, {pixels(2 * self.eps)}], got {pixels(step_size)}; eps/4 is usual"
            )


@dataclass(frozen=True)
class AttackConfig:
    """The attack that training crafts its adversarial examples with (PGD, Madry et al. 2018)."""

    steps: int = option(10, "attack iterations", least=1)
    step_size: float = option(2 / 255, "length of one attack step", unit="pixels", above=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class InterpolationConfig:
    """Epoch-end parameter interpolation, lam = g(n) = (a n + b) / (c n + d) (He et al. 2023, Eqs. 3-4)."""

    kind: Literal["none", "piat", "constant"] = option(
        "piat", "write lam theta' + (1 - lam) theta back after each epoch", flag="interpolation"
    )
    constant: float = option(0.9, "lam where the interpolation is constant", least=0, below=1)
    a: float = option(1.0, "numerator slope of g(n)", least=0)
    b: float = option(1.0, "numerator offset of g(n)", least=0)
    c: float = option(1.0, "denominator slope of g(n), at least a", least=0)
    d: float = option(10.0, "denominator offset of g(n), at least b", least=0)
    start_epoch: int = option(1, "the epoch that counts as n = 1; before it lam = 0", unit="epoch", least=1)
    bn: Literal["interpolate", "copy", "recalibrate"] = option(
        "interpolate", "BatchNorm statistics at an interpolation: as the weights, untouched, or measured again"
    )

    def __post_init__(self) -> None:
        check(self)
        check_law(self.a, self.b, self.c, self.d)


def check_law(a: float, b: float, c: float, d: float) -> None:
    """Raise InputError unless g(n) = (a n + b) / (c n + d) lies in [0, 1] for every n >= 1."""
    if not (0 <= a <= c and 0 <= b <= d and c + d > 0):
        raise InputError(
            f"g(n) = (a n + b)/(c n + d) needs c >= a >= 0 and d >= b >= 0, got {a=:g} {b=:g} {c=:g} {d=:g}"
        )


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run learns; recorded whole in config.json and compared on resume."""

    recipe: str = option("", "name of the recipe this started from", flag=None)
    backbone: str = option("cifar_resnet18", "timm model name; built for the data's classes and channels")
    init_from: str | None = option(
        None,
        "start from a trained MODEL of this backbone, or imagenet for timm's own weights; other classes, a new head",
    )
    dataset: str = option(
        "cifar10", "digits, cifar10, cifar100, svhn, a Hub id, or a directory that load_dataset reads"
    )
    image_column: str | None = option(None, "the data set's image column (default: found by its feature type)")
    label_column: str | None = option(None, "the data set's label column (default: found by its feature type)")
    train_size: int | None = option(None, "use only this many training images", unit="images", least=1)
    holdout: int = option(
        1000, "training images held out to choose the best epoch; 0: last only", unit="images", least=0
    )
    img_size: int | None = option(
        None, "resize images to this many pixels a side (default: as they are)", unit="pixels of the image", least=1
    )
    crop_pad: int = option(4, "random crop after padding each side by this much", unit="pixels of the image", least=0)
    flip: bool = option(True, "random horizontal flip")
    method: str = option("nmse", "outer loss; its own fields are flags --method.FIELD")
    method_args: Mapping[str, Any] = field(default_factory=dict, metadata={"doc": "method fields", "flag": None})
    interpolation: InterpolationConfig = field(
        default_factory=InterpolationConfig, metadata={"prefix": "interpolation."}
    )
    ema: float | None = option(
        None, "also average the weights after every step with this decay; the average is evaluated", least=0, below=1
    )
    swa: float | None = option(
        None, "also average epoch-end weights from this share of the run; the average is evaluated", least=0, below=1
    )
    awp: float | None = option(
        None, "adversarial weight perturbation of this relative size: 0.01 for AT, 0.005 for TRADES", above=0, below=1
    )
    threat_model: ThreatModel = field(default_factory=ThreatModel, metadata={"prefix": ""})
    attack: AttackConfig = field(default_factory=AttackConfig, metadata={"prefix": ""})
    epochs: int = option(120, "passes over the training images", unit="epochs", least=1)
    clean_epochs: int | None = option(
        None, "clean warm-up (default: the recipe's share of epochs)", unit="epochs", least=0
    )
    clean_share: float = option(1 / 12, "clean warm-up as a share of epochs", flag=None, least=0, below=1)
    batch_size: int = option(128, "global batch, divided by processes and accumulation", unit="images", least=1)
    accumulation: int = option(1, "micro-batches whose gradients add up to one step", least=1)
    lr: float = option(0.01, "learning rate at the first knot (SGD)", above=0)
    lr_knots: tuple[tuple[float, float], ...] = option(
        ((0.5, 1.0), (0.75, 0.1), (1.0, 0.01)), "(share of the run, factor of lr), linear between", flag=None
    )
    momentum: float = option(0.9, "SGD momentum", least=0, below=1)
    weight_decay: float = option(3.5e-3, "SGD weight decay, on all parameters", least=0)
    seed: int = option(0, "seeds initialisation, order, augmentation and attack starts", least=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "autocast precision of training; checks stay fp32")

    def __post_init__(self) -> None:
        check(self)
        self.threat_model.check_step(self.attack.step_size)
        if self.warmup >= self.epochs:
            raise InputError(
                f"{self.epochs} epochs with {self.warmup} clean ones leave no adversarial epoch; lower --clean-epochs"
            )
        if not isinstance(self.method_args, Mapping):
            raise InputError(f"method_args must be an object of named values, got {self.method_args!r:.80}")
        knots: Any = self.lr_knots if isinstance(self.lr_knots, tuple) else ()
        pairs = all(isinstance(k, tuple) and len(k) == 2 and {type(v) for v in k} <= {int, float} for k in knots)
        shares = [share for share, _ in knots] if pairs else []
        if shares != sorted(shares) or not shares or shares[-1] != 1:
            raise InputError(
                f"lr_knots must be (share, factor) of rising shares that end at 1, got {self.lr_knots!r:.80}"
            )

    @property
    def warmup(self) -> int:
        """Clean epochs before the adversarial ones: `clean_epochs`, or the recipe's share of this run."""
        return round(self.clean_share * self.epochs) if self.clean_epochs is None else self.clean_epochs

    @property
    def swa_start(self) -> int:
        """The first epoch in SWA's mean."""
        return math.floor((self.swa or 0) * self.epochs) + 1

    def lr_at(self, progress: float) -> float:
        """The learning rate after the share `progress` in [0, 1] of the run: constant to the first knot, then linear."""
        share, factor = self.lr_knots[0]
        for next_share, next_factor in self.lr_knots[1:]:
            if progress <= share:
                break
            if progress <= next_share:
                return self.lr * (factor + (next_factor - factor) * (progress - share) / (next_share - share))
            share, factor = next_share, next_factor
        return self.lr * factor


@dataclass(frozen=True)
class PushOptions:
    """How a run is published."""

    private: bool = option(False, "a new repository is private")
    revision: str | None = option(None, "push to this branch, made if there is none (default: main)")
    create_pr: bool = option(False, "open a pull request instead of writing to main")

    def __post_init__(self) -> None:
        check(self)
        if self.revision and self.create_pr:
            raise InputError(
                f"a pull request is made against main, not {self.revision!r}; leave out --revision or --create-pr"
            )


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run happens; decides nothing about what it learns but by rounding (threads and compile order sums)."""

    output: str | None = option(None, "the run directory (default: runs/RECIPE)")
    resume: bool = option(False, "go on from the state in the run directory")
    save_every_steps: int | None = option(
        None, "also save the state within epochs, every so many steps (default: at their ends)", unit="steps", least=1
    )
    threads: int | None = option(None, "CPU threads of this process (default: cores / local processes)", least=1)
    compile: bool = option(
        False, "compile attack and update with torch.compile; left off on a CPU, where it does not pay"
    )
    gradient_checkpointing: bool = option(False, "keep fewer activations and compute them again: less memory, slower")
    track_test: bool = option(
        False,
        f"also record accuracy on {TRACKED:,} test images after each epoch, for a figure; nothing is chosen by it",
    )
    device_data_limit: float = option(
        4.0, "training data that would take more than this on the device, decoded, is streamed", unit="GiB", least=0
    )
    tracker: Literal["none", "tensorboard", "trackio"] = option(
        "none", "also log to an experiment tracker (its own extra)"
    )
    push_to_hub: str | None = option(None, "after the last epoch, publish the run as ORG/NAME")
    push: PushOptions = field(default_factory=PushOptions, metadata={"prefix": ""})

    def __post_init__(self) -> None:
        check(self)
        if self.push != PushOptions() and not self.push_to_hub:
            raise InputError("--private, --revision and --create-pr go with --push-to-hub ORG/NAME; give it too")


@dataclass(frozen=True)
class StudyOptions:
    """The size of a sweep, and where it goes."""

    seeds: int = option(3, "runs of each member, with seeds that follow each other", least=1)
    jobs: int | None = option(None, "members that run at a time (default: one a GPU, else one)", least=1)
    attacks: tuple[str, ...] = option((), "as in evaluate (default: clean pgd20, or the columns of the paper's table)")
    n: int | None = option(None, "evaluate on the first n test images (default: all)", unit="images", least=1)
    track_test: bool = option(False, "also record accuracy on test images after each epoch, as in training")
    output: str | None = option(None, "the directory of the members and the table (default: runs/study/RECIPE)")

    def __post_init__(self) -> None:
        check(self)


def duration(text: str) -> float:
    """Seconds from '90s', '30m', '2h' or '1h30m'. Raises InputError."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    seconds = (
        sum(int(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if not seconds:
        raise InputError(f"{text!r} is no length of time; write 90s, 30m or 1h30m")
    return seconds


@dataclass(frozen=True)
class EvalConfig:
    """What `evaluate` measures, and where the figures go."""

    attacks: tuple[str, ...] = option(
        ("clean", "pgd20"), "any of clean, pgdN, mimN, cwN, aa, apgd-ce, apgd-t, fab-t, square"
    )
    sweep_eps: tuple[float, ...] = option(
        (), "also measure the attacks at these budgets, such as 2/255 4/255 8/255", unit="pixels"
    )
    mean: tuple[float, ...] = option(
        (), "subtracted from the images, one number per channel, for a model that wants it"
    )
    std: tuple[float, ...] = option((), "then divided by, one number per channel")
    n: int | None = option(None, "the first n images of the split (default: all)", unit="images", least=1)
    dataset: str | None = option(None, "as in training (default: the data the model was trained for)")
    split: str = option("test", "which split to evaluate on")
    image_column: str | None = option(None, "the data set's image column (default: the model's, else by feature type)")
    label_column: str | None = option(None, "the data set's label column (default: the model's, else by feature type)")
    img_size: int | None = option(
        None, "resize images to this many pixels a side (default: as in training)", unit="pixels of the image", least=1
    )
    norm: Literal["Linf", "L2"] | None = option(None, "norm of the perturbation (default: the model's, else Linf)")
    eps: float | None = option(None, "perturbation budget (default: the model's, else 8/255)", unit="pixels", above=0)
    step_size: float | None = option(None, "length of one attack step (default: eps/4)", unit="pixels", above=0)
    restarts: int = option(1, "independent tries of PGD, MIM and CW", least=1)
    checks: bool = option(False, "also check that the figures can be believed (gradient masking)")
    surrogate: str | None = option(
        None, "another MODEL (last weights, no --mean), whose adversarial examples the checks try on this one"
    )
    per_class: bool = option(False, "also print the accuracy of each class")
    time_budget: str | None = option(None, "stop cleanly after this long, e.g. 30m or 1h30m; go on with --resume")
    checkpoint: Literal["last", "best"] = option("last", "the run's last weights or its held-out best")
    batch_size: int | None = option(
        None, "images attacked at a time (default: 250 on a CPU, 1000 on a GPU)", unit="images", least=1
    )
    seed: int = option(0, "seeds the attacks' random starts", least=0)
    output: str | None = option(
        None, "directory for results.json and verdicts.npz (default: MODEL's own, else results/NAME)"
    )
    resume: bool = option(False, "go on with an evaluation that was stopped")
    threads: int | None = option(None, "CPU threads of this process (default: cores / local processes)", least=1)

    def __post_init__(self) -> None:
        check(self)
        if self.norm is not None:
            self.threat_model()
        if self.time_budget:
            duration(self.time_budget)
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise InputError(
                f"mean {self.mean} and std {self.std} must be as many numbers each, std above 0; give one per channel"
            )
        if any(eps <= 0 for eps in self.sweep_eps):
            raise InputError(f"sweep-eps must be above 0, got {self.sweep_eps}; clean accuracy is measured anyway")

    def threat_model(self, default: ThreatModel | None = None) -> ThreatModel:
        """The threat model to evaluate under: what was asked for, else `default`, else Linf 8/255."""
        base = default or ThreatModel()
        return ThreatModel(norm=self.norm or base.norm, eps=base.eps if self.eps is None else self.eps)
