"""What an evaluation found: figures, verdicts image by image, their files, and how two models compare."""

from __future__ import annotations

import itertools
import json
import math
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from piat_hub import files
from piat_hub.config import RESULTS, VERDICTS, InputError, ThreatModel, pixels
from piat_hub.data import Split
from piat_hub.files import own, sealed, whole_file, write_text

LARGEST = 2**28  # bytes of verdicts; those of a million images under a hundred attacks take less
Z95 = 1.959963984540054  # a standard normal lies within this of 0 with probability 95 %


@dataclass
class Running:
    """An attack under way: `entry` stood when its current stage began, `standing` stands now, after `batches` of it."""

    attack: str
    facts: dict[str, Any]
    batch_size: int
    entry: np.ndarray
    standing: np.ndarray
    stage: int = 0
    batches: int = 0
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Results:
    """What was measured: `attacks` as in results.json, `verdicts` by attack, (n,) bool, true where still correct."""

    threat_model: ThreatModel
    dataset: str
    split: str
    n: int
    seed: int
    checkpoint: str
    labels: np.ndarray
    attacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdicts: dict[str, np.ndarray] = field(default_factory=dict)
    running: Running | None = None
    stopped: dict[str, Running] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    weights: str = ""
    images: str = ""
    checks: list[dict[str, Any]] = field(default_factory=list)
    sweep: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of(cls, images: Split, threat_model: ThreatModel, **facts: Any) -> Results:
        """Empty results for these images: split "test", seed 0 and checkpoint "last" unless told."""
        defaults: dict[str, Any] = {"split": "test", "seed": 0, "checkpoint": "last"}
        labels = images.labels.cpu().numpy()
        known: dict[str, Any] = {
            "n": len(images),
            "labels": labels,
            "label_names": images.label_names,
            "images": images.digest(),
        }
        return cls(threat_model, images.name, **known, **(defaults | facts))

    def to_dict(self) -> dict[str, Any]:
        """results.json, schema 1."""
        return {
            "schema": 1,
            "threat_model": {"norm": self.threat_model.norm, "eps": pixels(self.threat_model.eps)},
            "dataset": {"name": self.dataset, "split": self.split, "n": self.n},
            "seed": self.seed,
            "checkpoint": self.checkpoint,
            "weights_sha256": self.weights,
            "images_sha256": self.images,
            "attacks": self.attacks,
            "worst_case": self.worst_case(),
            "per_class": {"label_names": list(self.label_names)}
            | {a: class_accuracy(v, self.labels, len(self.label_names)) for a, v in self.verdicts.items()},
            "checks": self.checks,
            "sweep": self.sweep,
            **self.environment,
            "seconds": round(self.seconds, 1),
        }

    def worst_case(self) -> dict[str, Any] | None:
        """The figures of images that withstood every attack run; None before the first."""
        if not self.verdicts:
            return None
        standing = np.logical_and.reduce(list(self.verdicts.values()))
        return proportion(int(standing.sum()), self.n) | {"attacks": list(self.verdicts)}

    def save(self, directory: Path) -> None:
        """Write results.json and verdicts.npz (results_best.json, verdicts_best.npz for the best checkpoint), each whole."""
        directory.mkdir(parents=True, exist_ok=True)
        results, verdicts = result_files(directory, self.checkpoint)
        if self.running:
            arrays = {"entry": self.running.entry, "standing": self.running.standing}
            facts = {k: v for k, v in vars(self.running).items() if k not in arrays} | {"of": self._identity()}
            return _save_arrays(_partial(verdicts, self.running.attack), facts=np.array(json.dumps(facts)), **arrays)
        _save_arrays(verdicts, index=np.arange(self.n), label=self.labels, **self.verdicts)
        write_text(results, json.dumps(sealed(self.to_dict()), indent=2) + "\n")
        for attack in self.attacks:
            _partial(verdicts, attack).unlink(missing_ok=True)
        return None

    def resume(self, directory: Path, *, stopped: bool = False) -> None:
        """Take over what an earlier call measured in `directory`; with `stopped`, also attacks it was stopped in.

        InputError if it measured something else, or if its files are damaged.
        """
        results, verdicts = result_files(directory, self.checkpoint)
        if not results.exists():
            return
        try:
            before, kept = read_results(directory, self.checkpoint)
        except InputError as error:
            aside = [move_aside(path).name for path in (results, verdicts) if path.exists()]
            raise InputError(f"{error}: they were moved to {' and '.join(aside)}") from error
        now = self.to_dict()
        for key in ("threat_model", "dataset", "seed", "checkpoint", "weights_sha256", "images_sha256"):
            if before.get(key) != now[key]:
                raise InputError(
                    f"{results} holds results for {key} {_words(before.get(key))}, this call asks for {_words(now[key])}; "
                    f"name another place with --output, or move {results.name} and {verdicts.name} away"
                )
        self.attacks, self.verdicts, self.seconds = before["attacks"], kept, float(before.get("seconds", 0.0))
        self.checks, self.sweep = before.get("checks") or [], before.get("sweep") or []
        self.environment = {key: before.get(key) for key in ("versions", "git", "device")}
        for path in sorted(directory.glob(_partial(verdicts, "*").name)) if stopped else ():
            try:
                arrays = _load_arrays(path)
                facts = json.loads(str(arrays["facts"]))
                if facts.pop("of") != self._identity():
                    raise ValueError("it is of another model, images or threat model")
                running = Running(**facts, entry=arrays["entry"], standing=arrays["standing"])
                if not running.entry.shape == running.standing.shape == (self.n,):
                    raise ValueError("verdicts of another shape")
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{path} is not a whole state of an evaluation ({error}); it was moved to {move_aside(path).name}: "
                    "the same command begins that attack anew"
                ) from error
            if running.attack in self.attacks:  # killed after its results were written
                path.unlink()
            else:
                self.stopped[running.attack] = running

    def _identity(self) -> list[Any]:
        """What a partial state must agree in."""
        return [self.weights, self.images, str(self.threat_model), self.seed, self.checkpoint, self.n]

    def record(self, name: str, standing: np.ndarray, facts: dict[str, Any]) -> None:
        """Add one attack's verdicts and its figures."""
        self.attacks[name], self.verdicts[name] = proportion(int(standing.sum()), self.n) | facts, standing


def move_aside(path: Path) -> Path:
    """Rename a damaged file so that nothing of it is lost; returns its new path."""
    taken = (path.with_name(f"{path.name}.damaged{number or ''}") for number in itertools.count())
    return path.rename(next(p for p in taken if not p.exists()))


def proportion(correct: int, n: int) -> dict[str, Any]:
    """What results.json says about a count: accuracy, correct, n and the Wilson interval."""
    return {"accuracy": correct / n, "correct": correct, "n": n, "ci95": list(wilson(correct, n))}


def class_accuracy(verdicts: np.ndarray, labels: np.ndarray, classes: int) -> list[float | None]:
    """The share of each class that is correct; None for a class without images."""
    return [float(verdicts[labels == k].mean()) if (labels == k).any() else None for k in range(classes)]


def result_files(directory: Path, checkpoint: str) -> tuple[Path, Path]:
    """(results, verdicts) of a checkpoint in a directory."""
    return directory / RESULTS[checkpoint], directory / VERDICTS[checkpoint]


def _words(value: Any) -> str:
    if isinstance(value, dict) and "split" in value:
        return f"{value['name']} ({value['split']}, the first {value['n']} images)"
    return " ".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def _partial(verdicts: Path, attack: str) -> Path:
    return verdicts.with_name(f"{verdicts.stem}.{attack}.partial.npz")


def _save_arrays(path: Path, **arrays: np.ndarray) -> None:
    with whole_file(path) as scratch:
        np.savez_compressed(scratch, **arrays)  # type: ignore[arg-type]


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file; no pickle is read. ValueError if it is damaged or unpacks to an absurd size."""
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(member.file_size for member in packed.infolist()) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST // 2**20} MiB")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
        SyntaxError,
    ) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927), 95 % by default; both ends in [0, 1]."""
    p, zz = correct / n, z * z
    middle, half = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    low, high = (middle - half) / (1 + zz / n), (middle + half) / (1 + zz / n)
    return max(0.0, low) if correct else 0.0, min(1.0, high) if correct < n else 1.0  # exact where rounding is not


@dataclass(frozen=True)
class Paired:
    """Two models under one attack on the same images: `difference` is B - A, `only_a` stood with A alone."""

    attack: str
    n: int
    accuracy_a: float
    accuracy_b: float
    only_a: int
    only_b: int
    difference: float
    ci95: tuple[float, float]
    p_value: float


def compare(a: Path, b: Path, checkpoint: str = "last") -> list[Paired]:
    """Pair two evaluated directories, attack by attack. InputError unless they measured the same images and threat model."""
    (facts_a, kept_a), (facts_b, kept_b) = (read_results(path, checkpoint) for path in (a, b))
    for key in ("threat_model", "dataset", "images_sha256"):
        if facts_a.get(key) != facts_b.get(key):
            raise InputError(
                f"{a} was measured with {key} {_words(facts_a.get(key))}, {b} with {_words(facts_b.get(key))}; "
                "only the same images under the same threat model can be paired"
            )
    common = [name for name in kept_a if name in kept_b]
    for name in common:
        for key in ("steps", "step_size", "restarts", "version"):
            if facts_a["attacks"][name].get(key) != facts_b["attacks"][name].get(key):
                raise InputError(f"{name} was run with another {key} in {a} than in {b}; evaluate one of them again")
    if not common:
        raise InputError(f"{a} and {b} have no attack in common; evaluate both with the same --attacks")
    return [paired(name, kept_a[name], kept_b[name]) for name in common]


def paired(attack: str, a: np.ndarray, b: np.ndarray) -> Paired:
    """B - A with the adjusted Wald interval for matched pairs (Agresti & Min 2005) and McNemar's exact p."""
    from scipy.stats import binomtest  # a second's import that little else needs

    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    m, gain, discordant = n + 2, only_b - only_a, only_a + only_b + 1  # half an image is added to each of four cells
    half = Z95 * math.sqrt(discordant - gain**2 / m) / m
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    interval = (max(-1.0, gain / m - half), min(1.0, gain / m + half))
    return Paired(attack, n, float(a.mean()), float(b.mean()), only_a, only_b, gain / n, interval, p_value)


def read_results(directory: Path, checkpoint: str = "last") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(results.json, verdicts by attack) of an evaluated directory. InputError if they are missing or damaged."""
    results, verdicts = result_files(directory, checkpoint)
    if not results.exists():
        raise InputError(f"{directory} has no {results.name}; evaluate it first: python evaluate.py {directory}")
    try:
        facts, arrays = files.read_results(own(directory, results.name)), _load_arrays(own(directory, verdicts.name))
        kept = {name: arrays[name] for name in facts["attacks"]}
        if any(k.shape != (facts["dataset"]["n"],) or k.dtype != bool for k in kept.values()):
            raise ValueError("verdicts of another shape or type")
        if any(facts["attacks"][name]["correct"] != int(k.sum()) for name, k in kept.items()):
            raise ValueError("they do not tell the same accuracies")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{results} and {verdicts.name} cannot be read together ({error}); evaluate again") from error
    return facts, kept
