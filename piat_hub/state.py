"""All that resume needs, as one safetensors file of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from piat_hub import hub, methods, tensors
from piat_hub.config import WEIGHTS, InputError, TrainConfig, to_dict


class PerProcess:
    """The state of a method under way, which differs between processes: saved as one row for each."""

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


class State:
    """All that resume needs, as one safetensors file: tensors, and JSON in its metadata. No pickle.

    parts: whatever has state_dict and load_state_dict, by name. Order, augmentation and attack starts are derived from
    (seed, epoch, step), so there is no generator to save. The file is written beside the old one, flushed, then
    renamed: the previous state stays until the next is whole.
    """

    def __init__(self, directory: Path, config: TrainConfig, parts: dict[str, Any]) -> None:
        self.directory, self.path = directory, directory / "state" / "state.safetensors"
        self.config, self.parts = config, parts

    def collect(self) -> dict[str, Any]:
        """The state of every part; call it on every process."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def save(self, epoch: int, best: dict[str, Any] | None, collected: dict[str, Any]) -> None:
        """Write what was collected after `epoch`."""
        found: dict[str, Tensor] = {}
        facts = {"schema": 3, "epoch": epoch, "best": best, "config": to_dict(self.config)}
        facts["parts"] = without_tensors(collected, found)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors.save(found, self.path, json.dumps(facts))

    def load(self) -> tuple[int, dict[str, Any] | None]:
        """Restore everything; returns (epochs done, best metrics), (0, None) for a run killed in its first epoch.

        At an epoch's end a run writes its best weights, its metrics, this state, then its last weights: what stands
        before the state is written again when the epoch is run again, and the last weights are written from the state.
        """
        if not (self.directory / "config.json").exists():
            raise InputError(f"{self.directory} holds no run to resume; leave out --resume to start one")
        if not self.path.exists() and (self.directory / WEIGHTS["last"]).exists():
            raise InputError(
                f"{self.directory} has weights but no {self.path}, so nothing to resume; name another --output"
            )
        if not self.path.exists():
            self._same_config(hub.read_config(self.directory / "config.json").get("piat") or {})
            return 0, None
        try:
            found, text = tensors.load(self.path)
            facts = json.loads(text)
            if facts["schema"] != 3:
                raise KeyError(f"schema {facts['schema']}, this version writes 3")
            saved = with_tensors(facts["parts"], found)
            epoch, best, config = facts["epoch"], facts["best"], facts["config"]
        except (InputError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(
                f"{self.path} is not a whole state of a run ({error}); move it away to start again"
            ) from error
        self._same_config(config)
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        return epoch, best

    def _same_config(self, config: dict[str, Any]) -> None:
        saved, now = flat(config), flat(to_dict(self.config))
        for key in sorted(saved.keys() | now.keys()):
            if saved.get(key) != now.get(key):
                raise InputError(
                    f"the run in {self.directory} has {key}={saved.get(key)}, this command {now.get(key)}; "
                    "resume with the command it was started with, or name another --output"
                )


def without_tensors(value: Any, found: dict[str, Tensor], path: str = "") -> Any:
    """A state_dict as JSON can hold it: each tensor goes to `found` under its path, {"tensor": path} in its place."""
    if isinstance(value, Tensor):
        found[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {str(k): without_tensors(v, found, f"{path}/{k}" if path else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_tensors(v, found, f"{path}/{i}") for i, v in enumerate(value)]
    return value


def with_tensors(value: Any, found: Mapping[str, Tensor]) -> Any:
    """The inverse of `without_tensors`; an optimizer's keys are numbers again."""
    if isinstance(value, dict) and set(value) == {"tensor"}:
        return found[value["tensor"]]
    if isinstance(value, dict):
        return {int(k) if k.isdigit() else k: with_tensors(v, found) for k, v in value.items()}
    return [with_tensors(v, found) for v in value] if isinstance(value, list) else value


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots; values as text where they are no number."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, int | float) else str(value)
    return out
