"""An attack suite over a split: which images a model still classifies correctly, and what that says about it.

An attack is a tuple of stages; each stage runs on the images that still stand, in batches. PGD is one stage, AutoAttack
four. A misclassified clean image counts as broken under every attack: the clean image lies within the budget itself.
"""

from __future__ import annotations

import copy
import inspect
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from piat_hub import data
from piat_hub.attacks import ATTACKS, Twin, attack_mode
from piat_hub.attacks.autoattack import STANDARD, changes, components
from piat_hub.config import InputError, ThreatModel, TrainConfig, from_dict, nearest, pixels
from piat_hub.data import Encoded, Split, derived_seed, to_unit
from piat_hub.results import Results, Running

Stage = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> x_adv


@dataclass
class Suite:
    """One attack by name: its stages, and what results.json says about it beside the counts."""

    stages: dict[str, Stage]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Processes:
    """Who shares an evaluation: this process's rank of `world`, and `least`, the smallest over processes, elementwise."""

    rank: int = 0
    world: int = 1
    least: Callable[[Tensor], Tensor] = Tensor.clone


ALONE = Processes()


@dataclass(frozen=True)
class Progress:
    """After a batch: `standing` of `n` images still stand; with every image left to attack it is an upper bound.

    at_a_time: how many images the device's memory took at once.
    """

    attack: str
    done: int
    total: int
    standing: int
    n: int
    at_a_time: int


def unharmed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The stage of "clean"."""
    return x


def suite(
    name: str,
    threat_model: ThreatModel,
    num_classes: int,
    step_size: float | None = None,
    seed: int = 0,
    restarts: int = 1,
) -> Suite:
    """The attack called `name`: "clean", "pgd20", "mim", "cw100", "aa", "square", … InputError with the nearest name otherwise.

    "aa" is AutoAttack's standard version after ten steps of PGD, which find most of what it finds at a small part of the
    cost; an image it breaks is broken, so the whole is at least as strong.
    """
    if name == "clean":
        return Suite({}, {})
    if name == "aa" or name in STANDARD:
        parts = components(threat_model.eps, threat_model.norm, num_classes, seed)
        facts: dict[str, Any] = {"version": "standard"}
        if changed := changes(num_classes):
            facts["changed"] = changed
        if name == "aa":
            budget: dict[str, Any] = {"eps": threat_model.eps, "step_size": threat_model.eps / 4}
            first = partial(ATTACKS["pgd"], **budget, steps=10, norm=threat_model.norm, leave=True)
            return Suite({"pgd10": first, **parts}, facts)
        if name not in parts:
            raise InputError(f"{name} is undefined for {num_classes} classes: {changes(num_classes)}; leave it out")
        return Suite({name: parts[name]}, facts)
    match = re.fullmatch(r"([a-z_]+?)([1-9][0-9]{0,4})?", name)
    if not match or match[1] not in ATTACKS:
        known = ["clean", "aa", *STANDARD, *ATTACKS, *(f"{attack}20" for attack in ATTACKS)]
        raise InputError(
            f"unknown attack {name!r}{nearest(name, known)}; known: clean, aa, {', '.join(STANDARD)}, and with any step "
            f"count {', '.join(ATTACKS)}"
        )
    steps, step_size = int(match[2] or 20), step_size or threat_model.eps / 4
    threat_model.check_step(step_size)
    attack = partial(ATTACKS[match[1]], eps=threat_model.eps, step_size=step_size, steps=steps, norm=threat_model.norm)
    facts = {"steps": steps, "step_size": pixels(step_size), "restarts": restarts}
    options: dict[str, Any] = {"restarts": restarts} if restarts > 1 else {}
    parameters = inspect.signature(attack).parameters.values()
    if any(p.name == "leave" or p.kind is p.VAR_KEYWORD for p in parameters):
        options["leave"] = True  # one misclassification is enough
    return Suite({name: partial(attack, **options)}, facts)


def evaluate(
    model: nn.Module,
    dataset: str | Split,
    attacks: Sequence[str] = ("clean", "pgd20"),
    *,
    threat_model: ThreatModel | None = None,
    n: int | None = None,
    split: str = "test",
    step_size: float | None = None,
    restarts: int = 1,
    batch_size: int = 250,
    seed: int = 0,
) -> Results:
    """Measure a classifier's clean and robust accuracy.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K); left as it was found.
        dataset: a name as in `data.load`, or images of your own, `piat_hub.data.Split(images, labels, label_names, name)`,
            uint8 (N, C, H, W) and int64 (N,). n: only its first n images.
        attacks: a list of names as in `suite`, run in this order. step_size: eps/4 if None. restarts: of PGD, MIM and CW.
        threat_model: if None, the one the model was trained against, where `from_pretrained` knows it, else Linf 8/255.
    Returns: Results with per-image verdicts; `.attacks["pgd20"]["accuracy"]` is a fraction.
    Raises: ValueError for an unknown attack, a class count that differs from the data's, or n beyond the split.
    """
    if not isinstance(dataset, str | Split):
        kind = type(dataset).__name__
        raise InputError(
            f"dataset must be a name or a piat_hub.data.Split, got a {kind}; make one of images and labels"
        )
    if isinstance(attacks, str):
        raise InputError(f"attacks must be a list of names, got {attacks!r}; write [{attacks!r}]")
    images = (data.load(dataset, split) if isinstance(dataset, str) else dataset).first(n)
    results = Results.of(images, threat_model or trained_against(model) or ThreatModel(), split=split, seed=seed)
    for _ in measure(model, images, attacks, results, step_size=step_size, restarts=restarts, batch_size=batch_size):
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
    restarts: int = 1,
    batch_size: int = 250,
    save: Callable[[Results], None] = lambda results: None,
    processes: Processes = ALONE,
) -> Iterator[Progress]:
    """Run the attacks that `results` lacks and fill it in; calls `save` and yields after every batch of every process.

    Verdicts are fp32 with TF32 off and the model's own; the attacks run on its twin. A batch's randomness is derived
    from (seed, attack, stage, batch), so an evaluation that goes on from a saved state, or runs in any number of
    processes, ends with the same verdicts, as long as the device's memory takes whole batches (halves start elsewhere).
    """
    device = device_of(model)
    images, labels = split.images.to(device), split.labels.to(device)
    with verdict_mode(model) as exact:
        classes = class_count(exact, split)
        request = (results.threat_model, classes, step_size, results.seed, restarts)
        todo = {a: suite(a, *request) for a in ("clean", *attacks)}
        attacked: nn.Module | None = None
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
                verdicts, most = [], batch_size
                for i in torch.arange(len(split)).split(batch_size):
                    right, most = survives(exact, exact, unharmed, to_unit(images[i]), labels[i], most, 0)
                    verdicts.append(right)
                stand = processes.least(torch.cat(verdicts).to(torch.uint8))  # from here on all go by the same
                results.record(name, stand.cpu().numpy().astype(bool), {})
                yield Progress(name, len(split), len(split), results.attacks[name]["correct"], len(split), most)
            else:
                results.running = _take_up(name, attack, batch_size, results)
                now = results.running
                attacked = attacked or twin_of(exact, to_unit(images[:2]))
                asked = (images, labels, attack, now, results.seed, lambda: save(results), processes)
                yield from _attack(exact, attacked, *asked)
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


def twin_of(model: nn.Module, x: Tensor) -> nn.Module:
    """What to attack in the model's place: its twin with BatchNorm folded, or itself where nothing folds."""
    try:
        twin = Twin(model, x)
    except Exception:  # anyone's model: one that cannot be copied, or looked into, is attacked as it is
        return model
    return twin if twin.folded else model


def stands(model: nn.Module, attacked: nn.Module, stage: Stage, x: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: the model's class is still y after the stage on `attacked`.

    Where that one is misled and by a rounding the model is not, the stage is run again, on the model itself.
    """
    x_adv = stage(attacked, x, y)
    standing = correct(model, x_adv, y)
    if attacked is not model and (again := standing & ~correct(attacked, x_adv, y)).any():
        standing[again] = correct(model, stage(model, x[again], y[again]), y[again])
    return standing


def survives(
    model: nn.Module, attacked: nn.Module, stage: Stage, x: Tensor, y: Tensor, most: int, seed: int
) -> tuple[Tensor, int]:
    """((B,) bool: the model's class is still y after the stage on `attacked`, how many images went at a time)."""
    return as_memory_allows(partial(stands, model, attacked, stage), x, y, most, seed)


def as_memory_allows(
    work: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, most: int, seed: int
) -> tuple[Tensor, int]:
    """(what `work` gives for each image, how many went at a time): `most`, halved as often as the device's memory asks for."""
    while True:
        torch.manual_seed(seed)
        try:
            return torch.cat([work(*part) for part in zip(x.split(most), y.split(most), strict=True)]), most
        except torch.OutOfMemoryError:
            if (most := min(most, len(x)) // 2) < 1:
                raise
        torch.cuda.empty_cache()


def _attack(
    model: nn.Module,
    attacked: nn.Module,
    images: Tensor | Encoded,
    labels: Tensor,
    attack: Suite,
    now: Running,
    seed: int,
    save: Callable[[], None],
    processes: Processes,
) -> Iterator[Progress]:
    """Run an attack's stages from where `now` stands, each on the images that stood when it began.

    The processes take a batch each, then agree on what still stands.
    """
    most = now.batch_size
    for number, (stage, run) in list(enumerate(attack.stages.items()))[now.stage :]:
        tally = now.stages.setdefault(stage, {"attacked": int(now.entry.sum()), "broken": 0, "seconds": 0.0})
        batches = torch.from_numpy(now.entry.nonzero()[0]).to(images.device).split(now.batch_size)
        while now.batches < len(batches) and tally["attacked"]:
            clock, standing = time.monotonic(), torch.from_numpy(now.standing.astype(np.uint8)).to(images.device)
            if (mine := now.batches + processes.rank) < len(batches):
                index = batches[mine]
                batch = to_unit(images[index]), labels[index]
                drawn = derived_seed(seed, *now.attack.encode(), number, mine)
                verdict, most = survives(model, attacked, run, *batch, most, drawn)
                standing[index] = verdict.to(torch.uint8)
            verdicts = processes.least(standing).cpu().numpy().astype(bool)
            spent = time.monotonic() - clock
            tally["broken"] += int(now.standing.sum() - verdicts.sum())
            tally["seconds"] = round(tally["seconds"] + spent, 3)
            now.standing, now.batches, now.seconds = verdicts, now.batches + processes.world, now.seconds + spent
            save()
            label = now.attack if len(attack.stages) == 1 else f"{now.attack}: {stage}"
            done = min(tally["attacked"], now.batches * now.batch_size)
            yield Progress(label, done, tally["attacked"], int(now.standing.sum()), len(labels), most)
        now.entry, now.stage, now.batches = now.standing.copy(), number + 1, 0


def class_count(model: nn.Module, split: Split) -> int:
    """The number of classes the model tells apart. InputError if it cannot take the images or the data has another count."""
    try:
        with attack_mode(model), torch.no_grad():
            logits = model(to_unit(split.images[:1]).to(device_of(model)))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        size = "x".join(map(str, split.shape))
        again = "name the data it is for with --dataset, or their size with --img-size"
        raise InputError(f"the model cannot take the {size} images of {split.name}: {reason}; {again}") from error
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
    right, most, attacked = 0, batch_size, twin_of(model, to_unit(split.images[:2])) if stage else model

    def withstand(x: Tensor, y: Tensor) -> Tensor:
        verdict = correct(model, x, y)
        if stage is not None and verdict.any():
            x, y = x[verdict], y[verdict]
            verdict = correct(model, stage(attacked, x, y), y)
        return verdict

    for batch, index in enumerate(torch.arange(len(split)).split(batch_size)[rank::world]):
        drawn = derived_seed(seed, batch * world + rank)
        verdict, most = as_memory_allows(withstand, to_unit(split.images[index]), split.labels[index], most, drawn)
        right += int(verdict.sum())
    return right


@contextmanager
def verdict_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in fp32 with TF32 off: itself if it is fp32, else an fp32 copy. Flags and generators are put back after.

    On a GPU convolutions are also deterministic, so that the same question has the same verdicts.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        was = [(part, "allow_tf32", part.allow_tf32) for part in (matmul, cudnn)]
        off: Any = False
    except RuntimeError:  # torch refuses these names once anyone has used the newer ones
        was = [(part, "fp32_precision", part.fp32_precision) for part in (matmul, cudnn.conv, cudnn.rnn)]  # type: ignore[attr-defined]
        off = "ieee"
    was_deterministic, cudnn.deterministic = cudnn.deterministic, True
    try:
        for part, name, _ in was:
            setattr(part, name, off)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            plain = all(p.dtype == torch.float32 for p in model.parameters())
            yield model if plain else copy.deepcopy(model).float()
    finally:
        cudnn.deterministic = was_deterministic
        for part, name, value in was:
            setattr(part, name, value)


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
    threads = torch.get_num_threads()
    return f"CPU {cpu_model()}, {threads} thread{'s' if threads > 1 else ''}"


@cache
def cpu_model() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache  # asked after every attack, and it is the code as it was loaded
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
