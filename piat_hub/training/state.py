"""All that resume needs, as one safetensors file of our own."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from piat_hub import methods
from piat_hub.config import InputError, TrainConfig, flat, from_dict, to_dict
from piat_hub.records import files, tensors
from piat_hub.records.model_config import ModelConfig


class PerProcess:
    """The state of a method under way, which differs between processes: saved as one row for each.

    Args:
        method: with or without state.
        accelerator: as launched.
    """

    def __init__(self, method: methods.Method, accelerator: Accelerator) -> None:
        self.method, self.accelerator = method, accelerator

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors by name, (processes, …) each; call it on every process. {} for a method without state."""
        state = self.method.state_dict() if hasattr(self.method, "state_dict") else {}
        device = self.accelerator.device
        return {name: self.accelerator.gather(tensor.to(device)[None]) for name, tensor in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up this process's row."""
        if hasattr(self.method, "load_state_dict"):
            rank, device = self.accelerator.process_index, self.accelerator.device
            self.method.load_state_dict({name: rows[rank % len(rows)].to(device) for name, rows in state.items()})


FILES = ("state.safetensors", "before.safetensors")  # in state/: the newest, and the one before it


@dataclass
class Done:
    """How far a run is.

    Attributes:
        epochs: whole epochs behind it.
        metrics: their lines of metrics.jsonl.
        best: the line of the held-out best, None before there is one.
        steps: of the next epoch behind it.
        losses: what those gave.
        seconds: that they took.
        processes: that the run last went on with.
    """

    epochs: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    processes: int = 1


class State:
    """All that resume needs, as one safetensors file: tensors, and JSON in its metadata. No pickle.

    Order, augmentation and attack starts are derived from (seed, epoch, step), so there is no generator to save. The
    file is written beside the old one, flushed, then renamed, and the old one is kept: should the newest be damaged,
    there is one before it.

    Args:
        directory: the run's; the files lie in its state/.
        config: settled; a state of another configuration is refused.
        parts: whatever has state_dict and load_state_dict, by name.
    """

    def __init__(self, directory: Path, config: TrainConfig, parts: dict[str, Any]) -> None:
        self.directory = directory
        self.path, self.before = (directory / "state" / name for name in FILES)
        self.config, self.parts = config, parts

    def collect(self) -> dict[str, Any]:
        """The state of every part; call it on every process."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def save(self, done: Done, collected: dict[str, Any]) -> None:
        """Write what was collected when so much was done.

        Args:
            done: how far the run is.
            collected: by `collect`.

        Raises:
            Broken: if the system refuses to write.
        """
        found: dict[str, Tensor] = {}
        facts = {"schema": 4, "done": asdict(done), "config": to_dict(self.config)}
        facts["parts"] = without_tensors(collected, found)
        with files.written(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name("new.safetensors")
        tensors.save(found, new, json.dumps(facts))
        with files.written(self.path):
            if self.path.exists():
                os.replace(self.path, self.before)
            os.replace(new, self.path)  # killed before this, a run goes on from the state before
            files.sync_directory(self.path.parent)

    def load(self) -> tuple[Done, str]:
        """Restore everything; returns how far it was, and a warning where the newest state is damaged, or "".

        At an epoch's end a run writes its best weights, its metrics, this state, then its last weights: what stands
        before the state is written again when the epoch is run again, metrics and the last weights are written from the
        state.

        Returns:
            Done() for a run killed in its first epoch, else as saved; and the warning.

        Raises:
            InputError: if there is no run, no whole state, or one of another configuration.
        """
        there = written_states(self.directory)
        if not there and not (self.directory / "config.json").exists():
            raise InputError(f"{self.directory} holds no run to resume; leave out --resume to start one")
        if not there and (self.directory / files.WEIGHTS["last"]).exists():
            raise InputError(
                f"{self.directory} has weights but no {self.path}, so nothing to resume; name another --output"
            )
        if not there:
            self._same_config(ModelConfig.read(self.directory / "config.json").piat or {})
            return Done(), ""
        warnings: list[str] = []
        for path in there:
            try:
                done, saved, config = _read(path)
                break
            except InputError as error:
                warnings.append(str(error))
        else:
            raise InputError(
                f"{'; '.join(warnings)}; there is no whole state, move {self.path.parent} away to start again"
            )
        self._same_config(config)
        for name, part in self.parts.items():
            part.load_state_dict(saved.get(name, {}) if name == "data" else saved[name])  # older states lack it
        where = f"epoch {done.epochs}" + (f", step {done.steps} of the next" if done.steps else "")
        return done, f"{warnings[0]}; going on from the one before, of {where}" if warnings else ""

    def _same_config(self, config: Mapping[str, Any]) -> None:
        saved, now = flat(to_dict(from_dict(TrainConfig, config))), flat(to_dict(self.config))  # new fields: defaults
        for key in sorted(saved.keys() | now.keys()):
            if saved.get(key) != now.get(key):
                raise InputError(
                    f"the run in {self.directory} has {key}={saved.get(key)}, this command {now.get(key)}; "
                    "resume with the command it was started with, or name another --output"
                )


class SameData:
    """A part of the state that says what a run learns from, as `training_digest` does: it goes on with nothing else.

    Args:
        digest: of them.
    """

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def state_dict(self) -> dict[str, str]:
        """What they were."""
        return {"digest": self.digest}

    def load_state_dict(self, saved: Mapping[str, str]) -> None:
        """InputError where they have changed; states of before this was recorded say nothing."""
        if saved.get("digest", self.digest) != self.digest:
            raise InputError(
                "the training images have other labels than when this run began, or the extra data are another file; put the "
                "former back, or name another --output"
            )


def written_states(directory: Path) -> list[Path]:
    """The states of a run that are there, the newest first."""
    return [path for name in FILES if (path := directory / "state" / name).exists()]


def _read(path: Path) -> tuple[Done, dict[str, Any], dict[str, Any]]:
    """(how far, the parts' states, the configuration) of a state file. InputError if it is not whole."""
    try:
        found, text = tensors.load(path)
        facts = json.loads(text)
        if facts["schema"] != 4:
            raise KeyError(f"schema {facts['schema']}, this version writes 4")
        return Done(**facts["done"]), with_tensors(facts["parts"], found), facts["config"]
    except (InputError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a whole state of a run ({error})") from error


def without_tensors(value: Any, found: dict[str, Tensor], path: str = "") -> Any:
    """A state_dict as JSON can hold it: each tensor goes to `found` under its path, {"tensor": path} in its place.

    Args:
        value: nested mappings, lists and tuples of tensors and JSON types.
        found: takes the tensors, by path.
        path: of `value`, its keys and positions joined by "/".
    """
    if isinstance(value, Tensor):
        found[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {str(k): without_tensors(v, found, f"{path}/{k}" if path else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_tensors(v, found, f"{path}/{i}") for i, v in enumerate(value)]
    return value


def with_tensors(value: Any, found: Mapping[str, Tensor]) -> Any:
    """The inverse of `without_tensors`; an optimizer's keys are numbers again.

    Args:
        value: as JSON holds it.
        found: the tensors, by path.
    """
    if isinstance(value, dict) and set(value) == {"tensor"}:
        return found[value["tensor"]]
    if isinstance(value, dict):
        return {int(k) if k.isdigit() else k: with_tensors(v, found) for k, v in value.items()}
    return [with_tensors(v, found) for v in value] if isinstance(value, list) else value
