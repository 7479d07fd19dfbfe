"""The run directory: a training run's configuration, weights, metrics and state, and the evaluation that joins them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from piat_hub import backbones, card, data, engine, evaluation, figures, hub, methods
from piat_hub.attacks import pgd
from piat_hub.config import EvalConfig, InputError, RunOptions, TrainConfig, from_dict, nearest, to_dict
from piat_hub.interpolation import ParameterInterpolation

PLAIN = {"NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU"}  # one process, or DDP


@dataclass(frozen=True)
class EpochDone:
    """An epoch is trained, checked and saved: its lines of metrics.jsonl and timing.jsonl."""

    metrics: dict[str, Any]
    timing: dict[str, Any]


def output_directory(config: TrainConfig, options: RunOptions) -> Path:
    """Where the run goes: `--output`, else runs/RECIPE."""
    return Path(options.output or f"runs/{config.recipe or config.backbone}")


def train(config: TrainConfig, options: RunOptions | None = None) -> Iterator[engine.Step | EpochDone]:
    """Train a run directory from its configuration; yields after every step and every epoch.

    Everything that can be wrong with the request is checked before anything is written. Raises InputError for that, and
    engine.Diverged, naming the last good state, if the loss stops being finite.
    """
    options = options or RunOptions()
    directory = output_directory(config, options)
    method = make_method(config)
    if not options.resume:
        refuse_overwrite(directory)
    accelerator = make_accelerator(config, options, directory)
    threads = set_threads(options.threads)
    with accelerator.main_process_first():
        whole = data.load(config.dataset, "train", config.image_column, config.label_column)
    train_split, held = (s.to(accelerator.device) for s in data.hold_out(whole, config.holdout, config.train_size))

    torch.manual_seed(config.seed)
    model = backbones.create_model(config.backbone, num_classes=len(whole.label_names), in_chans=whole.shape[0])
    model = model.to(memory_format=torch.channels_last)  # the same sums, 1.2 times as fast
    checked = copy.deepcopy(model).to(accelerator.device)  # the model that is measured, free of any wrapper
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    bare = accelerator.unwrap_model(model)
    if model is not bare and accelerator.num_processes > 1:
        model.broadcast_buffers = False  # the engine averages them after every step instead
    interpolation = make_interpolation(config, bare)
    state = State(directory / "state", config, bare, optimizer, interpolation)
    epoch, best = state.load() if options.resume else (0, None)
    keep_metrics(directory, epoch, write=accelerator.is_main_process and options.resume)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        directory.mkdir(parents=True, exist_ok=True)
        hub.save_config(checked, directory, config=config, label_names=whole.label_names, input_size=whole.shape)
    if options.tracker != "none":
        accelerator.init_trackers("piat_hub", flat(to_dict(config)))

    attack = partial(
        pgd,
        eps=config.threat_model.eps,
        step_size=config.attack.step_size,
        steps=config.attack.steps,
        norm=config.threat_model.norm,
    )
    check = make_check(config, accelerator, train_split[: len(held) or 1000], held)
    clock, began = time.monotonic(), epoch
    try:
        for event in engine.train(
            model, method, attack, train_split, optimizer, interpolation, accelerator, config, epoch + 1
        ):
            if isinstance(event, engine.Step):
                yield event
                continue
            trained = time.monotonic()
            checked.load_state_dict(bare.state_dict())
            metrics = dataclasses.asdict(event) | check(checked, event.epoch)
            better = held and (best is None or metrics["holdout_pgd10_acc"] > best["holdout_pgd10_acc"])
            best = metrics if better else best
            images = data.steps_per_epoch(len(train_split), config.batch_size) * min(
                config.batch_size, len(train_split)
            )
            timing = {
                "epoch": event.epoch,
                "train_seconds": round(trained - clock, 3),
                "check_seconds": round(time.monotonic() - trained, 3),
                "images_per_second": round(images / (trained - clock), 2),
                "processes": accelerator.num_processes,
                "threads": threads,
                "device": evaluation.device_name(accelerator.device),
                "peak_memory_gib": peak_memory(accelerator.device),
            }
            if accelerator.is_main_process:
                if better:
                    hub.save_weights(checked, directory / hub.WEIGHTS["best"])
                hub.save_weights(checked, directory / hub.WEIGHTS["last"])
                state.save(event.epoch, best)
                append(directory / "metrics.jsonl", metrics)
                append(directory / "timing.jsonl", timing)
            accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=event.epoch)
            epoch = event.epoch
            yield EpochDone(metrics, timing)
            clock = time.monotonic()
    except engine.Diverged as error:
        last = f"{state.path}, of epoch {epoch}" if epoch > 0 else "none, no epoch was finished"
        raise engine.Diverged(f"{error}; the last good state is {last}. Lower --lr, then start again") from None
    finally:
        accelerator.end_training()
    if accelerator.is_main_process:
        if epoch == began:  # resumed after the end: weights are there or come from the state
            hub.save_weights(bare, directory / hub.WEIGHTS["last"])
        figures.save(figures.curves(read_metrics(directory), title=card.title(config)), directory / "curves.png")
        card.write(directory)


def make_method(config: TrainConfig) -> methods.Method:
    """The configured method with its hyper-parameters. InputError for an unknown name or field."""
    cls = methods.get(config.method)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in config.method_args:
        if name not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise InputError(f"method {config.method} has no field {name!r}{nearest(name, known)}; {has}")
    return cls(**config.method_args)


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
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.accumulation, sync_with_dataloader=False),
        log_with=None if options.tracker == "none" else options.tracker,
        project_dir=str(directory),
    )
    kind = getattr(accelerator.distributed_type, "value", str(accelerator.distributed_type))
    if kind not in PLAIN:
        raise InputError(
            f"{kind} shards the weights that PIAT interpolates whole and is not supported; launch with plain DDP (--multi_gpu)"
        )
    parts = accelerator.num_processes * config.accumulation
    if config.batch_size % parts:
        raise InputError(
            f"batch-size {config.batch_size} cannot be divided by {accelerator.num_processes} processes x "
            f"{config.accumulation} accumulation; choose a multiple of {parts}"
        )
    return accelerator


def set_threads(threads: int | None) -> int:
    """Give this process its share of the cores (`accelerate launch` would leave it one); returns the count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return torch.get_num_threads()


def make_check(
    config: TrainConfig, accelerator: Accelerator, subset: data.Split, held: data.Split
) -> Callable[[nn.Module, int], dict[str, float | None]]:
    """The check at each epoch's end: PGD-10 on a fixed training subset, clean and PGD-10 on the held-out images."""
    threat = config.threat_model
    attack = partial(pgd, eps=threat.eps, step_size=threat.eps / 4, steps=10, norm=threat.norm)

    def measure(model: nn.Module, split: data.Split, stage: evaluation.Stage | None, epoch: int) -> float | None:
        if not len(split):
            return None
        share = {"rank": accelerator.process_index, "world": accelerator.num_processes}
        right = evaluation.accuracy(
            model, split, stage, batch_size=250, seed=data.derived_seed(config.seed, epoch), **share
        )
        total = accelerator.reduce(torch.tensor(float(right), device=accelerator.device))
        return float(total) / len(split)

    def check(model: nn.Module, epoch: int) -> dict[str, float | None]:
        return {
            "train_pgd10_acc": measure(model, subset, attack, epoch),
            "holdout_clean_acc": measure(model, held, None, epoch),
            "holdout_pgd10_acc": measure(model, held, attack, epoch),
        }

    return check


class State:
    """All that resume needs, as one safetensors file: tensors, and JSON in its metadata. No pickle.

    Order, augmentation and attack starts are derived from (seed, epoch, step), so there is no generator to save. The
    file is written beside the old one, flushed, then renamed: the previous state stays until the next is whole.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        interpolation: ParameterInterpolation | None,
    ) -> None:
        self.path, self.config = folder / "state.safetensors", config
        self.model, self.optimizer, self.interpolation = model, optimizer, interpolation

    def save(self, epoch: int, best: dict[str, Any] | None) -> None:
        """Write the state after `epoch`."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for number, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{slot}": t for slot, t in slots.items() if isinstance(t, Tensor)}
        if self.interpolation:
            tensors |= {f"previous.{name}": t for name, t in self.interpolation.state_dict()["previous"].items()}
        facts = {"schema": 1, "epoch": epoch, "best": best, "config": to_dict(self.config)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(".state.new")
        whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(whole, scratch, metadata={"piat": json.dumps(facts)})
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(scratch, self.path)

    def load(self) -> tuple[int, dict[str, Any] | None]:
        """Restore model, optimizer and interpolation; returns (epochs done, best metrics). (0, None) if none was saved."""
        if not self.path.parent.parent.is_dir():
            raise InputError(f"{self.path.parent.parent} holds no run to resume; leave out --resume to start one")
        if not self.path.exists():
            return 0, None
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["piat"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise InputError(
                f"{self.path} is not a whole state of a run ({error}); move it away to start again"
            ) from error
        saved, now = flat(facts["config"]), flat(to_dict(self.config))
        for key in sorted(saved.keys() | now.keys()):
            if saved.get(key) != now.get(key):
                raise InputError(
                    f"the run in {self.path.parent.parent} has {key}={saved.get(key)}, this command {now.get(key)}; "
                    "resume with the command it was started with, or name another --output"
                )
        self._restore(tensors)
        if self.interpolation:
            previous = {n.removeprefix("previous."): t for n, t in tensors.items() if n.startswith("previous.")}
            self.interpolation.load_state_dict({"epoch": facts["epoch"], "previous": previous})
        return facts["epoch"], facts["best"]

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        self.model.load_state_dict(weights)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, slot = name.split(".", 2)
                state.setdefault(int(number), {})[slot] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def refuse_overwrite(directory: Path) -> None:
    """InputError if the directory already holds a run."""
    if (directory / "config.json").exists() or (directory / "state").exists():
        raise InputError(f"{directory} already holds a run; add --resume to go on with it, or name another --output")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file, not a directory; name another --output")


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def keep_metrics(directory: Path, epoch: int, *, write: bool) -> None:
    """Cut metrics.jsonl and timing.jsonl back to the epochs that the state has finished."""
    for path in (directory / "metrics.jsonl", directory / "timing.jsonl"):
        if write and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()[:epoch]
            scratch = path.with_name(f".{path.name}.new")
            scratch.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            os.replace(scratch, path)


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
class Evaluated:
    """One model's measured results and where they were written."""

    name: str
    results: evaluation.Results
    directory: Path


def evaluate(spec: str, config: EvalConfig) -> Iterator[evaluation.Progress | Evaluated]:
    """Measure MODEL and write results, verdicts and, for a run directory, the card; ends with an Evaluated.

    spec: a run or model directory, a Hub id (with @revision), or "module:callable" for anyone's nn.Module.
    """
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise InputError(
            f"evaluate runs in one process, it was launched with {accelerator.num_processes}; start it with python"
        )
    model, name, directory = load_model(spec, config.checkpoint)
    piat = getattr(model, "piat", None)
    trained = from_dict(TrainConfig, piat) if piat else None
    threat = config.threat_model(trained.threat_model if trained else None)
    split = evaluation_data(spec, config, trained)
    for attack in config.attacks:  # every request is checked before anything is measured or written
        evaluation.suite(attack, threat, len(split.label_names), config.step_size, config.seed)
    output = Path(config.output) if config.output else directory or Path("results") / name
    labels, digest = split.labels.numpy(), weights_digest(model)
    facts = (split.name, config.split, len(split), config.seed, config.checkpoint, labels)
    results = evaluation.Results(threat, *facts, weights=digest)
    results.resume(output, running=config.resume)
    set_threads(config.threads)
    placed: nn.Module = model.to(accelerator.device).to(memory_format=torch.channels_last)
    options: dict[str, Any] = {"step_size": config.step_size, "batch_size": config.batch_size}
    yield from evaluation.measure(
        placed, split, config.attacks, results, **options, save=lambda measured: measured.save(output)
    )
    if (output / "config.json").exists():
        card.write(output)
    yield Evaluated(name, results, output)


def evaluation_data(spec: str, config: EvalConfig, trained: TrainConfig | None) -> data.Split:
    """The images to evaluate on: those asked for, else the test split of what the model was trained for."""
    if config.dataset:
        found = data.load(config.dataset, config.split, config.image_column, config.label_column)
    elif trained:
        columns = (config.image_column or trained.image_column, config.label_column or trained.label_column)
        found = data.load(trained.dataset, config.split, *columns)
    else:
        raise InputError(f"{spec} does not say what data it is for; name it with --dataset")
    return found.first(config.n)


def weights_digest(model: nn.Module) -> str:
    """The sha256 of the model's weights as a safetensors file (that of model.safetensors itself, where it was saved by us)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(to_safetensors(tensors)).hexdigest()


def load_model(spec: str, checkpoint: str = "last") -> tuple[nn.Module, str, Path | None]:
    """(model in eval mode, a name for it, its run directory if it is one) for MODEL as the commands take it."""
    path = Path(spec)
    if not path.is_dir() and re.fullmatch(r"[\w.]+:[\w.]+", spec):
        return _from_code(spec), re.sub(r"[^\w.]", "-", spec), None
    if path.is_file():
        raise InputError(f"{spec} is a file; MODEL is a run directory, a model directory, a Hub id or module:callable")
    model = hub.from_pretrained(spec, checkpoint=checkpoint)
    run = path if (path / "metrics.jsonl").exists() or (path / "results.json").exists() else None
    return model, path.resolve().name if path.is_dir() else spec.replace("/", "-"), run


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
    model = found if isinstance(found, nn.Module) else found()
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} gives a {type(model).__name__}, not an nn.Module; point it at a model or its factory")
    return model.eval()
