"""A run directory, read once: what it was told, what it learnt, and what was measured on its weights."""

import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from piat_hub.config import InputError, TrainConfig, from_dict, printable, public, to_dict
from piat_hub.records.claims import Figures
from piat_hub.records.files import RESULTS, UNIONS, VERDICTS, WEIGHTS, file_digest, own, read_lines, read_metrics
from piat_hub.records.model_config import ModelConfig
from piat_hub.records.results import Record, read_record
from piat_hub.records.union import Stale, Union


@dataclass(frozen=True)
class Measured:
    """Results that were measured on the weights of a checkpoint as they lie there now.

    Attributes:
        record: what was measured.
        checkpoint: "last" or "best".
        folder: "" for the run's own images; else the folder below the run, for others, such as a slow attack on fewer.
    """

    record: Record
    checkpoint: str
    folder: str = ""

    @property
    def name(self) -> str:
        """'last', 'best', or with the folder 'aa/last'."""
        return f"{self.folder}/{self.checkpoint}".lstrip("/")

    @property
    def results(self) -> str:
        """The path of results.json below the run directory."""
        return f"{self.folder}/{RESULTS[self.checkpoint]}".lstrip("/")

    @property
    def verdicts(self) -> str:
        """The path of verdicts.npz below the run directory."""
        return f"{self.folder}/{VERDICTS[self.checkpoint]}".lstrip("/")


@dataclass(frozen=True)
class ModelDirectory:
    """A model's directory; each of its files is read at most once, when it is first asked for.

    Attributes:
        directory: as it was named.
        model: config.json as it may be shown to strangers.
    """

    directory: Path
    model: ModelConfig

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, [] where there are none; InputError for a damaged file."""
        return read_metrics(self.directory)

    @cached_property
    def digests(self) -> dict[str, str]:
        """The sha256 of each checkpoint's weights, as far as they are there."""
        return digests_in(self.directory)

    @cached_property
    def measured(self) -> list[Measured]:
        """What was measured on the weights that lie there now: the run's own images first, then those in folders below.

        InputError for a damaged file.
        """
        return measured_in(self.directory, self.digests)

    def record(self, checkpoint: str) -> Record | None:
        """What was measured of a checkpoint on the run's own images; None where nothing was."""
        return next((m.record for m in self.measured if (m.folder, m.checkpoint) == ("", checkpoint)), None)

    @cached_property
    def unions(self) -> dict[str, Union]:
        """The union of several threat models, by checkpoint, where it tells what was measured on the weights that lie there now.

        InputError for a damaged file.
        """
        found: dict[str, Union] = {}
        for checkpoint, name in UNIONS.items():
            with suppress(Stale):
                if own(self.directory, name).is_file():
                    union = Union.read(self.directory, checkpoint)
                    found |= {checkpoint: union} if union.first.weights == self.digests.get(checkpoint) else {}
        return found


@dataclass(frozen=True)
class RunDirectory(ModelDirectory):
    """The directory of a model that was trained here.

    Attributes:
        directory: as it was named.
        model: config.json as it may be shown to strangers.
        config: the training configuration in it, without paths of this machine.
    """

    config: TrainConfig

    @classmethod
    def read(cls, directory: str | Path) -> Self:
        """Read config.json.

        Args:
            directory: of the run.

        Raises:
            InputError: if there is none, or it is none of a run.
        """
        directory = Path(directory)
        path = own(directory, "config.json")
        if not path.is_file():
            raise InputError(f"{directory} is no run directory: it has no config.json; train one")
        model = ModelConfig.read(path)
        lacking = {"piat": model.piat, "num_classes": model.num_classes}
        lacking["input_size"] = model.pretrained_cfg.get("input_size")
        for key, value in lacking.items():
            if value is None:
                raise InputError(f"{directory} is no run directory: nothing in config.json under {key!r}; train one")
        try:
            config = public(from_dict(TrainConfig, model.piat or {}))
        except TypeError as error:
            raise InputError(f"{path}: the training configuration in it is none ({error}); train one") from error
        return cls(directory, model.trained_by(config), config)

    @cached_property
    def training(self) -> dict[str, Any] | None:
        """The training's minutes, time, hardware and versions in words, as timing.jsonl has them; None for no record.

        InputError for a damaged file.
        """
        epochs = read_lines(path := own(self.directory, "timing.jsonl"))
        if not epochs:
            return None
        try:
            minutes = round(sum(e["train_seconds"] + e["check_seconds"] for e in epochs) / 60)
            hardware = [e["device"] if e["processes"] == 1 else f"{e['processes']} x {e['device']}" for e in epochs]
            known = [e["versions"] | {"commit": e["git"]} for e in epochs if "versions" in e]
            versions = [", ".join(f"{name} {v}" for name, v in each.items() if v) for each in known]
            if not all(printable(text) for text in (*hardware, *versions)):
                raise ValueError("a device's name cannot be printed")
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(
                f"{path} is damaged ({error!r}); the training's own command with --resume mends it"
            ) from error
        time = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
        return {
            "minutes": minutes,
            "time": time if minutes else "under a minute",
            "hardware": " and ".join(dict.fromkeys(hardware)),
            "versions": "; then ".join(dict.fromkeys(versions)),
        }

    @property
    def benchmark(self) -> str:
        """The data and threat model it was trained for, such as 'digits, Linf eps 0.15'."""
        size = f" at {self.config.img_size} pixels" if self.config.img_size else ""
        return f"{self.config.dataset}{size}, {self.config.threat_model}"

    @property
    def results(self) -> list[Measured]:
        """What was measured on the test split of its own data, under its own threat model."""
        return [m for m in self.measured if self._is_own(m.record)]

    @property
    def elsewhere(self) -> list[Measured]:
        """What was measured on other images, or under another threat model."""
        return [m for m in self.measured if not self._is_own(m.record)]

    def _is_own(self, record: Record) -> bool:
        asked = to_dict(self.config.threat_model), self.config.dataset, "test"
        return (to_dict(record.threat_model), record.dataset, record.split) == asked

    def figures(self, attack: str, beside: str | None = None) -> Figures | None:
        """What is known of the last weights under this attack, or None: on the run's own images first.

        Args:
            attack: its name, "pgd20".
            beside: an attack that must have been measured on the same images.
        """
        last = [m.record.attacks for m in self.results if m.checkpoint == "last"]
        return next((found[attack] for found in last if {attack, beside or attack} <= set(found)), None)


def digests_in(directory: Path) -> dict[str, str]:
    """The sha256 of the weights that lie in a directory, by checkpoint."""
    paths = {checkpoint: own(directory, name) for checkpoint, name in WEIGHTS.items()}
    return {checkpoint: file_digest(path) for checkpoint, path in paths.items() if path.is_file()}


def measured_in(directory: Path, weights: Mapping[str, str] | None = None) -> list[Measured]:
    """What the results in a directory and in its folders tell, its own images first.

    Args:
        directory: of a run, or any other with results.json.
        weights: sha256 by checkpoint, of which alone results are taken; None for those of any weights.

    Raises:
        InputError: for a damaged file, or a folder whose name cannot be printed.
    """
    found = []
    folders = sorted({path.parent.name for path in directory.glob("*/results*.json")})
    if unprintable := [folder for folder in folders if not printable(folder)]:
        raise InputError(f"{directory} holds the folder {unprintable[0]!a}, which is no printable name; rename it")
    for folder, checkpoint in itertools.product(["", *folders], RESULTS):
        path = own(directory, f"{folder}/{RESULTS[checkpoint]}".lstrip("/"))
        if not path.is_file() or (weights is not None and checkpoint not in weights):
            continue
        try:
            record = read_record(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}); move it away and evaluate again") from error
        if weights is None or record.weights == weights[checkpoint]:
            found.append(Measured(record, checkpoint, folder))
    return found


def read_model(directory: str | Path) -> ModelDirectory:
    """A run directory, or that of a model which somebody else trained and says who.

    Args:
        directory: of the model.

    Raises:
        InputError: if it is neither.
    """
    path = own(directory, "config.json")
    model = ModelConfig.read(path) if path.is_file() else None
    if not model or not model.origin or model.piat is not None:
        return RunDirectory.read(directory)
    if model.num_classes is None or not model.pretrained_cfg.get("input_size"):
        raise InputError(f"{path} says no number of classes or no size of images; import the model again")
    return ModelDirectory(Path(directory), model)
