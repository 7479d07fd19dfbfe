"""The run directory: a training run's configuration, weights, metrics and state, and the evaluation that joins them."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import hashlib
import importlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from piat_hub import backbones, card, checks, data, engine, evaluation, hub, methods
from piat_hub.attacks import Twin, pgd
from piat_hub.config import (
    RESULTS,
    WEIGHTS,
    Diverged,
    EvalConfig,
    InputError,
    RunOptions,
    ThreatModel,
    TrainConfig,
    from_dict,
    nearest,
    number,
    pixels,
    to_dict,
    whole_file,
)
from piat_hub.interpolation import EMA, SWA, ParameterInterpolation
from piat_hub.results import Results
from piat_hub.small_image import Normalize

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PLAIN = {"NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU"}  # one process, or DDP


@dataclass(frozen=True)
class EpochDone:
    """An epoch is trained, checked and saved: its lines of metrics.jsonl and timing.jsonl."""

    metrics: dict[str, Any]
    timing: dict[str, Any]


@dataclass(frozen=True)
class Notice:
    """What was chosen for this run, in one line for people."""

    text: str


def output_directory(config: TrainConfig, options: RunOptions) -> Path:
    """Where the run goes: `--output`, else runs/RECIPE."""
    return Path(options.output or f"runs/{config.recipe or config.backbone}")


def train(config: TrainConfig, options: RunOptions | None = None) -> Iterator[Notice | engine.Step | EpochDone]:
    """Train a run directory from its configuration; yields what it chose, then after every step and every epoch.

    Everything that can be wrong with the request is checked before anything is written. Raises InputError for that, and
    Diverged, naming the last good state, if the loss stops being finite.
    """
    options = options or RunOptions()
    directory = output_directory(config, options)
    method = make_method(config)
    check_output(directory)
    if not options.resume:
        refuse_overwrite(directory)
    if hasattr(method, "begin"):  # a method with state
        method = method.begin(config.threat_model)
    accelerator = make_accelerator(config, options, directory)
    threads = set_threads(options.threads)
    with accelerator.main_process_first():
        columns = config.image_column, config.label_column
        whole = data.load(config.dataset, "train", *columns, config.img_size, options.device_data_limit)
    train_split, held = (s.to(accelerator.device) for s in data.hold_out(whole, config.holdout, config.train_size))
    batch = min(config.batch_size, len(train_split))
    engine.shards(torch.arange(batch), accelerator.num_processes, config.accumulation)  # or InputError

    torch.manual_seed(config.seed)
    model = make_backbone(config, whole)
    evaluation.class_count(model, whole)  # or InputError: a backbone that cannot take these images
    # convolutions run faster in channels_last; sums differ by rounding only
    model = model.to(accelerator.device).to(memory_format=torch.channels_last)
    checked = copy.deepcopy(model)  # the model that is measured, free of any wrapper
    if options.gradient_checkpointing:
        backbones.checkpoint_gradients(model)
    twin = Twin(model, data.to_unit(train_split.images[:2]), HALF.get(accelerator.mixed_precision))
    ema = EMA(model, config.ema) if config.ema is not None else None
    swa = SWA(ema.copy if ema else model, config.swa_start) if config.swa is not None else None
    evaluated = swa.copy if swa else ema.copy if ema else model
    decay, momentum = config.weight_decay, config.momentum
    sgd = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=momentum, weight_decay=decay, foreach=True)
    compiled = options.compile and accelerator.device.type != "cpu"
    if compiled:
        for part in (model, twin):
            part.compile(dynamic=False)
    model, optimizer = engine.prepare(model, sgd, accelerator)
    bare = engine.unwrap(model, accelerator)
    interpolation = make_interpolation(config, bare)
    parts = {"model": bare, "optimizer": optimizer, "interpolation": interpolation, "ema": ema, "swa": swa}
    parts |= {"scaler": accelerator.scaler, "method": PerProcess(method, accelerator)}
    state = State(directory, config, {name: p for name, p in parts.items() if hasattr(p, "state_dict")})
    epoch, best = state.load() if options.resume else (0, None)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        directory.mkdir(parents=True, exist_ok=True)
        keep_epochs(directory, epoch)
        hub.save_config(checked, directory, config=config, label_names=whole.label_names, input_size=whole.shape)
        if epoch:  # the run may have been killed after its state was saved and before its weights were
            hub.save_weights(evaluated, directory / WEIGHTS["last"])
    if options.tracker != "none":
        accelerator.init_trackers("piat_hub", flat(to_dict(config)))

    yield Notice(describe(train_split, accelerator.device, options, compiled))
    threat, crafting = config.threat_model, config.attack
    budget: dict[str, Any] = {"eps": threat.eps, "norm": threat.norm}
    attack = partial(pgd, **budget, step_size=crafting.step_size, steps=crafting.steps)
    check = make_check(config, accelerator, train_split[: len(held) or 1000], held)
    images, clock = data.steps_per_epoch(len(train_split), config.batch_size) * batch, time.monotonic()
    try:
        events = engine.train(
            model,
            method,
            attack,
            train_split,
            optimizer,
            accelerator,
            config,
            twin=twin,
            interpolation=interpolation,
            ema=ema,
            swa=swa,
            first_epoch=epoch + 1,
        )
        for event in events:
            if isinstance(event, engine.Step):
                yield event
                continue
            trained, epoch = time.monotonic(), event.epoch
            checked.load_state_dict(evaluated.state_dict())
            metrics = dataclasses.asdict(event) | check(checked, epoch)
            better = held and (best is None or metrics["holdout_pgd10_acc"] > best["holdout_pgd10_acc"])
            best = metrics if better else best
            timing = {
                "epoch": epoch,
                "train_seconds": round(trained - clock, 3),
                "check_seconds": round(time.monotonic() - trained, 3),
                "images_per_second": round(images / (trained - clock), 2),
                "processes": accelerator.num_processes,
                "threads": threads,
                "device": evaluation.device_name(accelerator.device),
                "peak_memory_gib": peak_memory(accelerator.device),
            }
            collected = state.collect()
            if accelerator.is_main_process:  # in this order a kill at any point loses nothing: see State.load
                if better:
                    hub.save_weights(checked, directory / WEIGHTS["best"])
                append(directory / "metrics.jsonl", metrics)
                append(directory / "timing.jsonl", timing)
                state.save(epoch, best, collected)
                hub.save_weights(checked, directory / WEIGHTS["last"])
            accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=epoch)
            yield EpochDone(metrics, timing)
            clock = time.monotonic()
    except Diverged as error:
        last = f"{state.path}, of epoch {epoch}" if epoch else "none, no epoch was finished"
        raise Diverged(f"{error}; the last good state is {last}. Lower --lr, then start again") from None
    finally:
        accelerator.end_training()


def describe(split: data.Split, device: torch.device, options: RunOptions, compiled: bool) -> str:
    """Where the training images are and what is compiled, in one line."""
    mib = f"{math.prod(split.images.shape) / 2**20:,.1f} MiB decoded"
    if isinstance(split.images, data.Encoded):
        line = f"data: {len(split):,} images are streamed: {mib}, --device-data-limit {options.device_data_limit:g} GiB"
    else:
        line = f"data: {len(split):,} images on {device}, {mib}"
    if options.compile:
        line += "; attack and update are compiled" if compiled else "; not compiled: on a CPU it does not pay"
    return line


def make_backbone(config: TrainConfig, split: data.Split) -> nn.Module:
    """The configured backbone for a data set's classes, channels and image size. InputError where it cannot be built."""
    channels, height, width = split.shape
    known = timm.is_model(config.backbone.partition(".")[0])
    if height != width and known and not backbones.ours(config.backbone):
        raise InputError(
            f"{config.backbone} needs square images, {split.name} has {height}x{width}; resize them with --img-size"
        )
    classes = len(split.label_names)
    return backbones.create_model(config.backbone, num_classes=classes, in_chans=channels, img_size=height)


def make_method(config: TrainConfig) -> methods.Method:
    """The configured method with its hyper-parameters. InputError for an unknown name or field."""
    cls = methods.get(config.method)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in config.method_args:
        if name not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise InputError(f"method {config.method} has no field {name!r}{nearest(name, known)}; {has}")
    method = cls(**config.method_args)
    if getattr(method, "replays", 1) > 1 and config.accumulation > 1:
        raise InputError(f"{config.method} replays each batch whole; leave out --accumulation {config.accumulation}")
    return method


def make_interpolation(config: TrainConfig, model: nn.Module) -> ParameterInterpolation | None:
    """The configured ParameterInterpolation of the bare model, or None."""
    law = config.interpolation
    if law.kind == "none":
        return None
    constant = law.constant if law.kind == "constant" else None
    return ParameterInterpolation(
        model, a=law.a, b=law.b, c=law.c, d=law.d, constant=constant, start_epoch=law.start_epoch, bn=law.bn
    )


def make_accelerator(config: TrainConfig, options: RunOptions, directory: Path) -> Accelerator:
    """Accelerate as launched. InputError for what interpolating whole weights in place cannot work with."""
    # what the launcher says, before Accelerate looks for their packages
    for flag in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{flag}", "false").lower() in ("true", "1"):
            refuse_sharding(flag)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.accumulation, sync_with_dataloader=False),
        log_with=None if options.tracker == "none" else options.tracker,
        project_dir=str(directory),
    )
    kind = getattr(accelerator.distributed_type, "value", str(accelerator.distributed_type))
    if kind not in PLAIN:
        refuse_sharding(kind)
    parts = accelerator.num_processes * config.accumulation
    if config.batch_size % parts:
        raise InputError(
            f"batch-size {config.batch_size} cannot be divided by {accelerator.num_processes} processes x "
            f"{config.accumulation} accumulation; choose a multiple of {parts}"
        )
    return accelerator


def refuse_sharding(kind: str) -> NoReturn:
    """InputError for a launcher that shards weights."""
    raise InputError(f"{kind} shards the weights that PIAT interpolates whole; launch with plain DDP (--multi_gpu)")


def set_threads(threads: int | None) -> int:
    """Give this process its share of the cores (`accelerate launch` would leave it one); returns the count.

    On Linux it also keeps freed memory: by default an attack's activations go back to the system and are faulted in anew
    at every step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return torch.get_num_threads()


def make_check(
    config: TrainConfig, accelerator: Accelerator, subset: data.Split, held: data.Split
) -> Callable[[nn.Module, int], dict[str, float | None]]:
    """The check at each epoch's end: PGD-10 on a fixed training subset, clean and PGD-10 on the held-out images."""
    threat = config.threat_model
    attack = partial(pgd, eps=threat.eps, step_size=threat.eps / 4, steps=10, norm=threat.norm, leave=True)

    def measure(model: nn.Module, split: data.Split, stage: evaluation.Stage | None, epoch: int) -> float | None:
        if not len(split):
            return None
        seed, rank, world = data.derived_seed(config.seed, epoch), accelerator.process_index, accelerator.num_processes
        with evaluation.verdict_mode(model) as exact:
            right = evaluation.accuracy(exact, split, stage, batch_size=250, seed=seed, rank=rank, world=world)
        return float(accelerator.reduce(torch.tensor(float(right), device=accelerator.device))) / len(split)

    def check(model: nn.Module, epoch: int) -> dict[str, float | None]:
        return {
            "train_pgd10_acc": measure(model, subset, attack, epoch),
            "holdout_clean_acc": measure(model, held, None, epoch),
            "holdout_pgd10_acc": measure(model, held, attack, epoch),
        }

    return check


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
        tensors: dict[str, Tensor] = {}
        facts = {"schema": 2, "epoch": epoch, "best": best, "config": to_dict(self.config)}
        facts["parts"] = without_tensors(collected, tensors)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        with whole_file(self.path) as scratch:
            save_file(whole, scratch, metadata={"piat": json.dumps(facts)})

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
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["piat"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if facts["schema"] != 2:
                raise KeyError(f"schema {facts['schema']}, this version writes 2")
            saved = with_tensors(facts["parts"], tensors)
            epoch, best, config = facts["epoch"], facts["best"], facts["config"]
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
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


def without_tensors(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """A state_dict as JSON can hold it: each tensor goes to `tensors` under its path, {"tensor": path} in its place."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {str(k): without_tensors(v, tensors, f"{path}/{k}" if path else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_tensors(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
    return value


def with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `without_tensors`; an optimizer's keys are numbers again."""
    if isinstance(value, dict) and set(value) == {"tensor"}:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {int(k) if k.isdigit() else k: with_tensors(v, tensors) for k, v in value.items()}
    return [with_tensors(v, tensors) for v in value] if isinstance(value, list) else value


OWN = (*WEIGHTS.values(), *RESULTS.values(), "metrics.jsonl", "timing.jsonl", "verdicts.npz", "README.md", "curves.png")


def refuse_overwrite(directory: Path) -> None:
    """InputError if the directory already holds a run, or a file that a run would overwrite."""
    if (directory / "config.json").exists() or (directory / "state").exists():
        raise InputError(f"{directory} already holds a run; add --resume to go on with it, or name another --output")
    for name in OWN:
        if (directory / name).exists():
            raise InputError(f"{directory} already holds a {name}, which a run would overwrite; name another --output")


def check_output(directory: Path) -> None:
    """InputError unless the directory exists or can be made, and can be written to."""
    place = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if not place.is_dir():
        raise InputError(f"{directory} cannot be made: {place} is a file; name another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{directory} cannot be written to: no permission in {place}; name another --output")


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON line, flushed to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def keep_epochs(directory: Path, last: int) -> None:
    """Cut metrics.jsonl and timing.jsonl back to the epochs up to `last`; a line cut short by a kill goes too."""
    for path in (directory / "metrics.jsonl", directory / "timing.jsonl"):
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["epoch"] <= last]
            with whole_file(path) as scratch:
                scratch.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots; values as text where they are no number."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, int | float) else str(value)
    return out


def peak_memory(device: torch.device) -> float:
    """The most memory used so far: of the GPU where there is one, else of the process; GiB."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)


@dataclass(frozen=True)
class Evaluation:
    """A checked request: one model, its images, its results so far, and the directory they are written to."""

    name: str
    model: nn.Module
    split: data.Split
    results: Results
    directory: Path
    of_run: bool
    surrogate: nn.Module | None = None
    processes: evaluation.Processes = evaluation.ALONE

    def measure(self, config: EvalConfig, ends: float = math.inf) -> Iterator[evaluation.Progress]:
        """Run the attacks; results and verdicts are saved after every batch, a run directory's card at the end.

        ends: the `time.monotonic()` after which no batch is begun; `results.running` then tells where it stopped.
        """
        events = evaluation.measure(
            self.model,
            self.split,
            config.attacks,
            self.results,
            step_size=config.step_size,
            restarts=config.restarts,
            batch_size=self.batch_size(config),
            save=self._save,
            processes=self.processes,
        )
        for event in events:
            yield event
            on_time = torch.tensor(int(time.monotonic() < ends), device=evaluation.device_of(self.model))
            if not self.processes.least(on_time):
                return
        self._write_card()

    def sweep(self, config: EvalConfig) -> Iterator[dict[str, Any]]:
        """Measure the attacks at each of `config.sweep_eps`; yields {"eps", "attacks": {name: figures}}, saved one by one."""
        for eps in config.sweep_eps:
            done = next((point for point in self.results.sweep if point["eps"] == pixels(eps)), None)
            if done is None or set(config.attacks) - set(done["attacks"]):
                at = Results.of(self.split, ThreatModel(self.results.threat_model.norm, eps), seed=self.results.seed)
                options = {
                    "restarts": config.restarts,
                    "batch_size": self.batch_size(config),
                    "processes": self.processes,
                }
                for _ in evaluation.measure(self.model, self.split, config.attacks, at, **options):  # type: ignore[arg-type]
                    pass
                others = [point for point in self.results.sweep if point is not done]
                done = {"eps": pixels(eps), "attacks": at.attacks}
                self.results.sweep = sorted([*others, done], key=lambda point: number(point["eps"]))
                self._save(self.results)
            yield done
        self._write_card()

    def check(self, images: int = 100) -> Iterator[dict[str, Any]]:
        """The honesty report on the first images; yields each check, all saved at the end."""
        found = []
        threat = self.results.threat_model
        for result in checks.check(
            self.model, self.split[:images], threat, seed=self.results.seed, surrogate=self.surrogate
        ):
            found.append(result | {"n": min(images, len(self.split))})
            yield found[-1]
        self.results.checks = found
        self._save(self.results)
        self._write_card()

    def batch_size(self, config: EvalConfig) -> int:
        """How many images are attacked at a time: as asked, else 250 on a CPU, 1000 on a GPU."""
        return config.batch_size or (250 if evaluation.device_of(self.model).type == "cpu" else 1000)

    def _save(self, results: Results) -> None:
        if self.processes.rank == 0:
            results.save(self.directory)

    def _write_card(self) -> None:
        if self.of_run and self.processes.rank == 0:
            card.write(self.directory)


def prepare_evaluation(spec: str, config: EvalConfig) -> Evaluation:
    """Load MODEL and its data and check the whole request; nothing is measured or written yet.

    spec: a run or model directory, a Hub id (with @revision), "hf-hub:ORG/NAME" for timm's own, or "module:callable" for
    anyone's nn.Module.
    """
    accelerator = Accelerator()
    set_threads(config.threads)
    with accelerator.main_process_first():
        model, name, directory = load_model(spec, config)
        surrogate = load_model(config.surrogate, config)[0] if config.surrogate else None
        piat = getattr(model, "piat", None)
        trained = from_dict(TrainConfig, piat) if piat else None
        split = evaluation_data(spec, config, trained)
    classes = evaluation.class_count(model, split)
    threat = config.threat_model(evaluation.trained_against(model))
    for attack in config.attacks:
        evaluation.suite(attack, threat, classes, config.step_size, config.seed, config.restarts)
    output = Path(config.output) if config.output else directory or Path("results") / name
    check_output(output)
    own = Path(spec).is_dir() and output.resolve() == Path(spec).resolve()
    if (output / "config.json").exists() and not own:
        raise InputError(f"{output} holds another model; name another --output")
    weights = weights_digest(model)
    if config.mean:  # another question of the same weights
        weights += f" behind mean {config.mean} std {config.std}"
    facts = {"split": config.split, "seed": config.seed, "checkpoint": config.checkpoint, "weights": weights}
    results = Results.of(split, threat, **facts)
    results.resume(output, stopped=config.resume)
    placed = model.to(accelerator.device).to(memory_format=torch.channels_last)
    rank, world = accelerator.process_index, accelerator.num_processes
    least = (lambda t: accelerator.gather(t[None]).amin(0)) if world > 1 else Tensor.clone
    processes = evaluation.Processes(rank, world, least)
    return Evaluation(name, placed, split, results, output, own and trained is not None, surrogate, processes)


def evaluation_data(spec: str, config: EvalConfig, trained: TrainConfig | None) -> data.Split:
    """The images to evaluate on: those asked for, else the test split of what the model was trained for."""
    img_size = config.img_size or (trained.img_size if trained else None)
    if config.dataset:
        columns = (config.image_column, config.label_column)
        found = data.load(config.dataset, config.split, *columns, img_size)
    elif trained:
        columns = (config.image_column or trained.image_column, config.label_column or trained.label_column)
        found = data.load(trained.dataset, config.split, *columns, img_size)
    else:
        raise InputError(f"{spec} does not say what data it is for; name it with --dataset")
    return found.first(config.n)


def weights_digest(model: nn.Module) -> str:
    """The sha256 of the weights file the model was loaded from; for a model from code, of its tensors in order."""
    if known := getattr(model, "weights_sha256", None):
        return str(known)
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_model(spec: str, config: EvalConfig | None = None) -> tuple[nn.Module, str, Path | None]:
    """(model in eval mode, a name for it, its run directory if it is one) for MODEL as the commands take it.

    A model from timm's Hub format gets its own normalisation in front, any model `config.mean` and `config.std`.
    """
    config, path = config or EvalConfig(), Path(spec)
    run = None
    if not path.is_dir() and spec.startswith("hf-hub:"):
        _one_checkpoint(spec, config)
        model, name = hub.from_timm(spec), spec.removeprefix("hf-hub:").replace("/", "-")
    elif not path.is_dir() and re.fullmatch(r"[\w.]+:[\w.]+", spec):
        _one_checkpoint(spec, config)
        model, name = _from_code(spec), re.sub(r"[^\w.]", "-", spec)
    elif path.is_file():
        raise InputError(f"{spec} is a file; MODEL is a run directory, a model directory, a Hub id or module:callable")
    else:
        model = hub.from_pretrained(spec, checkpoint=config.checkpoint)
        run = path if (path / "metrics.jsonl").exists() or (path / "results.json").exists() else None
        name = path.resolve().name if path.is_dir() else spec.replace("/", "-")
    if config.mean:
        known = {k: getattr(model, k) for k in ("piat", "weights_sha256", "label_names") if hasattr(model, k)}
        model = nn.Sequential(Normalize(torch.tensor(config.mean), torch.tensor(config.std)), model).eval()
        for key, value in known.items():
            setattr(model, key, value)
    return model, name, run


def _one_checkpoint(spec: str, config: EvalConfig) -> None:
    if config.checkpoint != "last":
        raise InputError(f"{spec} is one model, without a {config.checkpoint} checkpoint; leave out --checkpoint")


def _from_code(spec: str) -> nn.Module:
    """The nn.Module, or what the factory returns, at module:callable; the current directory is importable."""
    module_name, _, attribute = spec.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(f"no model {spec!r}: {error}; give module:callable, importable from here") from error
    try:
        model = found if isinstance(found, nn.Module) else found()
    except TypeError as error:
        raise InputError(f"{spec} is no model and cannot be called without arguments ({error}); wrap it") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} gives a {type(model).__name__}, not an nn.Module; point it at a model or its factory")
    return model.eval()


def predict(
    spec: str, images: Sequence[str], checkpoint: str = "last"
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """(file, classes with their probabilities, likeliest first) for image files, resized to the model's input size.

    InputError for a model without a known input size, or a file that is no image.
    """
    model = load_model(spec, EvalConfig(checkpoint=checkpoint))[0]  # type: ignore[arg-type]
    shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if not shape:
        raise InputError(f"{spec} does not say what images it takes; give a model that piat_hub saved")
    pictures = [data.read_image(image, shape) for image in images]
    for image, picture in zip(images, pictures, strict=True):
        with evaluation.verdict_mode(model) as exact, torch.no_grad():
            probabilities = exact.eval()(data.to_unit(picture[None])).softmax(1)[0].tolist()
        names = getattr(model, "label_names", ()) or [str(k) for k in range(len(probabilities))]
        yield image, sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])
