"""An attack suite over a split: which images a model still classifies correctly, and what that says about it.

An attack is a tuple of stages; each stage runs on the images that still stand, in batches. PGD is one stage, AutoAttack
four. A misclassified clean image counts as broken under every attack: the clean image lies within the budget itself.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
import re
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from piat_hub import data
from piat_hub.attacks import ATTACKS, attack_mode
from piat_hub.attacks.autoattack import changes, components
from piat_hub.config import RESULTS, InputError, ThreatModel, TrainConfig, from_dict, nearest, pixels, whole_file
from piat_hub.data import Split, derived_seed, to_unit

Stage = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> x_adv


@dataclass
class Suite:
    """One attack by name: its stages, and what results.json says about it beside the counts."""

    stages: dict[str, Stage]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """After a batch: `standing` of `n` images still stand; with every image left to attack it is an upper bound."""

    attack: str
    done: int
    total: int
    standing: int
    n: int


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
    weights: str = ""
    images: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of(cls, images: Split, threat_model: ThreatModel, **facts: Any) -> Results:
        """Empty results for these images: split "test", seed 0 and checkpoint "last" unless told."""
        defaults: dict[str, Any] = {"split": "test", "seed": 0, "checkpoint": "last"}
        digest = hashlib.sha256(images.images.cpu().numpy().tobytes()).hexdigest()
        labels = images.labels.cpu().numpy()
        return cls(threat_model, images.name, n=len(images), labels=labels, images=digest, **(defaults | facts))

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
            **self.environment,
            "seconds": round(self.seconds, 1),
        }

    def save(self, directory: Path) -> None:
        """Write results.json and verdicts.npz (results_best.json, verdicts_best.npz for the best checkpoint), each whole."""
        directory.mkdir(parents=True, exist_ok=True)
        results, verdicts = result_files(directory, self.checkpoint)
        if self.running:
            arrays = {"entry": self.running.entry, "standing": self.running.standing}
            facts = {k: v for k, v in vars(self.running).items() if k not in arrays}
            return _save_arrays(_partial(verdicts, self.running.attack), facts=np.array(json.dumps(facts)), **arrays)
        _save_arrays(verdicts, index=np.arange(self.n), label=self.labels, **self.verdicts)
        with whole_file(results) as scratch:
            scratch.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
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
            before = json.loads(results.read_text(encoding="utf-8"))
            with np.load(verdicts, allow_pickle=False) as arrays:
                kept = {name: arrays[name] for name in before["attacks"]}
            if any(k.shape != (before["dataset"]["n"],) or k.dtype != bool for k in kept.values()):
                raise ValueError("verdicts of another shape or type")
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{results} and {verdicts.name} cannot be read together ({error}); move them away"
            ) from error
        now = self.to_dict()
        for key in ("threat_model", "dataset", "seed", "checkpoint", "weights_sha256", "images_sha256"):
            if before.get(key) != now[key]:
                raise InputError(
                    f"{results} holds results for {key} {_words(before.get(key))}, this call asks for {_words(now[key])}; "
                    "name another place with --output"
                )
        self.attacks, self.verdicts, self.seconds = before["attacks"], kept, float(before["seconds"])
        self.environment = {key: before.get(key) for key in ("versions", "git", "device")}
        for path in sorted(directory.glob(_partial(verdicts, "*").name)) if stopped else ():
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    running = Running(
                        **json.loads(str(arrays["facts"])), entry=arrays["entry"], standing=arrays["standing"]
                    )
            except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
                raise InputError(f"{path} is not a whole state of an evaluation ({error}); move it away") from error
            self.stopped[running.attack] = running

    def record(self, name: str, standing: np.ndarray, facts: dict[str, Any]) -> None:
        """Add one attack's verdicts and its figures."""
        correct = int(standing.sum())
        figures = {"accuracy": correct / self.n, "correct": correct, "n": self.n, "ci95": list(wilson(correct, self.n))}
        self.attacks[name], self.verdicts[name] = figures | facts, standing


def result_files(directory: Path, checkpoint: str) -> tuple[Path, Path]:
    """(results, verdicts) of a checkpoint in a directory."""
    results = directory / RESULTS[checkpoint]
    return results, results.with_name(results.name.replace("results", "verdicts").replace(".json", ".npz"))


def _words(value: Any) -> str:
    return " ".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def _partial(verdicts: Path, attack: str) -> Path:
    return verdicts.with_name(f"{verdicts.stem}.{attack}.partial.npz")


def _save_arrays(path: Path, **arrays: np.ndarray) -> None:
    with whole_file(path) as scratch:
        np.savez_compressed(scratch, **arrays)  # type: ignore[arg-type]


def wilson(correct: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The Wilson score interval of a proportion (Wilson 1927), 95 % by default; both ends in [0, 1]."""
    p, zz = correct / n, z * z
    middle, half = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, (middle - half) / (1 + zz / n)), min(1.0, (middle + half) / (1 + zz / n))


def suite(
    name: str, threat_model: ThreatModel, num_classes: int, step_size: float | None = None, seed: int = 0
) -> Suite:
    """The attack called `name`: "clean", "pgd20", "mim", "cw100", "aa", … InputError with the nearest name otherwise."""
    if name == "clean":
        return Suite({}, {})
    if name == "aa":
        facts: dict[str, Any] = {"version": "standard"}
        if changed := changes(num_classes):
            facts["changed"] = changed
        return Suite(dict(components(threat_model.eps, threat_model.norm, num_classes, seed)), facts)
    match = re.fullmatch(r"([a-z_]+?)([1-9][0-9]{0,4})?", name)
    if not match or match[1] not in ATTACKS:
        known = ["clean", "aa", *ATTACKS, *(f"{attack}20" for attack in ATTACKS)]
        raise InputError(
            f"unknown attack {name!r}{nearest(name, known)}; known: clean, aa, and with any step count {', '.join(ATTACKS)}"
        )
    steps, step_size = int(match[2] or 20), step_size or threat_model.eps / 4
    threat_model.check_step(step_size)
    attack = partial(ATTACKS[match[1]], eps=threat_model.eps, step_size=step_size, steps=steps, norm=threat_model.norm)
    return Suite({name: attack}, {"steps": steps, "step_size": pixels(step_size), "restarts": 1})


def evaluate(
    model: nn.Module,
    dataset: str | Split,
    attacks: Sequence[str] = ("clean", "pgd20"),
    *,
    threat_model: ThreatModel | None = None,
    n: int | None = None,
    split: str = "test",
    step_size: float | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> Results:
    """Measure a classifier's clean and robust accuracy.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K); left as it was found.
        dataset: a name as in `data.load`, or a Split. n: only its first n images.
        attacks: names as in `suite`, run in this order. step_size: eps/4 if None.
        threat_model: if None, the one the model was trained against, where `from_pretrained` knows it, else Linf 8/255.
    Returns: Results with per-image verdicts; `.attacks["pgd20"]["accuracy"]` is a fraction.
    Raises: ValueError for an unknown attack, a class count that differs from the data's, or n beyond the split.
    """
    images = (data.load(dataset, split) if isinstance(dataset, str) else dataset).first(n)
    results = Results.of(images, threat_model or trained_against(model) or ThreatModel(), split=split, seed=seed)
    for _ in measure(model, images, attacks, results, step_size=step_size, batch_size=batch_size):
        pass
    return results


def trained_against(model: nn.Module) -> ThreatModel | None:
    """The threat model in a loaded model's training configuration (`model.piat`), None where it has none."""
    piat = getattr(model, "piat", None)
    return from_dict(TrainConfig, piat).threat_model if piat else None


def measure(
    model: nn.Module,
    split: Split,
    attacks: Sequence[str],
    results: Results,
    *,
    step_size: float | None = None,
    batch_size: int = 250,
    save: Callable[[Results], None] = lambda results: None,
) -> Iterator[Progress]:
    """Run the attacks that `results` lacks and fill it in; calls `save` and yields after every batch.

    Verdicts are fp32 with TF32 off. A batch's randomness is derived from (seed, attack, stage, batch), so an evaluation
    that goes on from a saved state ends with the verdicts of one that was never stopped.
    """
    device = device_of(model)
    images, labels = split.images.to(device), split.labels.to(device)
    with verdict_mode(model) as exact:
        classes = class_count(exact, split)
        todo = {a: suite(a, results.threat_model, classes, step_size, results.seed) for a in ("clean", *attacks)}
        for name, attack in todo.items():
            if name in results.verdicts:
                differs = [k for k, v in attack.facts.items() if results.attacks[name].get(k) != v]
                if differs:
                    was, now = results.attacks[name].get(differs[0]), attack.facts[differs[0]]
                    raise InputError(
                        f"{name} was measured with {differs[0]} {was}, this call asks for {now}; name another place with --output"
                    )
                continue
            if name == "clean":
                parts = [
                    correct(exact, to_unit(images[i]), labels[i]) for i in torch.arange(len(split)).split(batch_size)
                ]
                results.record(name, torch.cat(parts).cpu().numpy(), {})
                yield Progress(name, len(split), len(split), results.attacks[name]["correct"], len(split))
            else:
                results.running = _take_up(name, attack, batch_size, results)
                yield from _attack(exact, images, labels, attack, results.running, results.seed, lambda: save(results))
                now, results.running = results.running, None
                extra = {"per_attack": now.stages} if len(now.stages) > 1 else {}
                results.seconds += now.seconds
                results.record(name, now.standing, attack.facts | extra | {"seconds": round(now.seconds, 1)})
            results.environment = environment(device)
            save(results)


def _take_up(name: str, attack: Suite, batch_size: int, results: Results) -> Running:
    """Where an earlier call was stopped in this attack, or its beginning."""
    clean = results.verdicts["clean"]
    now = results.stopped.pop(name, None) or Running(name, attack.facts, batch_size, clean.copy(), clean.copy())
    if (now.facts, now.batch_size) != (attack.facts, batch_size):
        raise InputError(
            f"{name} was stopped with {now.facts} in batches of {now.batch_size}, this call asks for {attack.facts} in "
            f"batches of {batch_size}; ask for the same, or leave out --resume to begin it anew"
        )
    return now


def _attack(
    model: nn.Module, images: Tensor, labels: Tensor, attack: Suite, now: Running, seed: int, save: Callable[[], None]
) -> Iterator[Progress]:
    """Run an attack's stages from where `now` stands, each on the images that stood when it began."""
    for number, (stage, run) in list(enumerate(attack.stages.items()))[now.stage :]:
        tally = now.stages.setdefault(stage, {"attacked": int(now.entry.sum()), "broken": 0, "seconds": 0.0})
        survivors = torch.from_numpy(now.entry.nonzero()[0]).to(images.device)
        for batch, index in list(enumerate(survivors.split(now.batch_size)))[now.batches :]:
            clock = time.monotonic()
            torch.manual_seed(derived_seed(seed, *now.attack.encode(), number, batch))
            x, y = to_unit(images[index]), labels[index]
            verdict = correct(model, run(model, x, y), y).cpu().numpy()
            now.standing[index.cpu().numpy()] = verdict
            now.batches += 1
            spent = time.monotonic() - clock
            now.seconds += spent
            tally["broken"] += int((~verdict).sum())
            tally["seconds"] = round(tally["seconds"] + spent, 3)
            save()
            label = now.attack if len(attack.stages) == 1 else f"{now.attack}: {stage}"
            done = min(tally["attacked"], now.batches * now.batch_size)
            yield Progress(label, done, tally["attacked"], int(now.standing.sum()), len(labels))
        now.entry, now.stage, now.batches = now.standing.copy(), number + 1, 0


def class_count(model: nn.Module, split: Split) -> int:
    """The number of classes the model tells apart. InputError if it cannot take the images or the data has another count."""
    try:
        with attack_mode(model), torch.no_grad():
            logits = model(to_unit(split.images[:1]).to(device_of(model)))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        size = "x".join(map(str, split.shape))
        raise InputError(f"the model cannot take the {size} images of {split.name}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        kind = (
            f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        )
        raise InputError(f"the model returns {kind}; a classifier returns logits of shape (B, classes)")
    classes, known = logits.shape[1], len(split.label_names)
    if classes < known or (classes > known and not split.inferred):
        raise InputError(
            f"the model has {classes} classes and {split.name} has {known}; "
            "name the data it was trained for with --dataset"
        )
    return classes


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU for a model without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: the model's class is y. Logits that are not finite are never correct."""
    with attack_mode(model):
        logits = model(x)
    return (logits.argmax(1) == y) & logits.isfinite().all(1)


def accuracy(
    model: nn.Module,
    split: Split,
    stage: Stage | None = None,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> int:
    """How many of this rank's share of the split the model gets right, after `stage` if one is given.

    The quick check inside training; images already wrong when clean stay wrong.
    """
    right = 0
    for batch, index in enumerate(torch.arange(len(split)).split(batch_size)[rank::world]):
        torch.manual_seed(derived_seed(seed, batch * world + rank))
        x, y = to_unit(split.images[index]), split.labels[index]
        verdict = correct(model, x, y)
        if stage is not None and verdict.any():
            x, y = x[verdict], y[verdict]
            verdict = correct(model, stage(model, x, y), y)
        right += int(verdict.sum())
    return right


@contextmanager
def verdict_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in fp32 with TF32 off: itself if it is fp32, else an fp32 copy. Flags and generators are put back after."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            plain = all(p.dtype == torch.float32 for p in model.parameters())
            yield model if plain else copy.deepcopy(model).float()
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def environment(device: torch.device) -> dict[str, Any]:
    """versions, git and device of results.json."""
    names = ("piat-hub", "torch", "timm", "pyautoattack", "numpy")
    return {
        "versions": {"python": platform.python_version()} | {n.replace("-", "_"): _version(n) for n in names},
        "git": git_revision(),
        "device": device_name(device),
    }


def device_name(device: torch.device) -> str:
    """The device in words, with the thread count of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"CPU {cpu_model()}, {torch.get_num_threads()} threads"


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_revision() -> str | None:
    """The commit this package runs from, with "-dirty" for changed files; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
