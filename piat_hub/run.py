"""The run directory: a training run's configuration, weights, metrics and state."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from piat_hub import backbones, data, engine, evaluation, hub, methods
from piat_hub.attacks import Twin, pgd
from piat_hub.config import (
    DATASETS,
    TRACKED,
    WEIGHTS,
    Diverged,
    InputError,
    RunOptions,
    TrainConfig,
    flat,
    nearest,
    printable,
    to_dict,
)
from piat_hub.files import append, checksum, read_lines, sealed, write_text
from piat_hub.interpolation import EMA, SWA, ParameterInterpolation
from piat_hub.state import Done, PerProcess, State, written_states

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# how long a process waits for the others: while one decodes the data, or has the harder batch of an evaluation
PATIENCE = InitProcessGroupKwargs(timeout=timedelta(days=1))
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


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop, and is saved after so many whole epochs and steps of the next."""

    epochs: int
    steps: int


def output_directory(config: TrainConfig, options: RunOptions) -> Path:
    """Where the run goes: `--output`, else runs/RECIPE."""
    return Path(options.output or f"runs/{config.recipe or config.backbone}")


def train(
    config: TrainConfig, options: RunOptions | None = None, stopping: Callable[[], bool] = lambda: False
) -> Iterator[Notice | engine.Step | EpochDone | Stopped]:
    """Train a run directory from its configuration; yields what it chose, then after every step and every epoch.

    stopping: asked after every step (every tenth and an epoch's last where there are several processes: they have to
    agree); once it says yes on any of them, the state is saved, and Stopped is the last event.
    Everything that can be wrong with the request is checked before anything is written. Raises InputError for that, and
    Diverged, naming the last good state, if the loss stops being finite.
    """
    options, config = options or RunOptions(), settled(config)
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
        where: Any = (config.image_column, config.label_column, config.img_size, options.device_data_limit)
        whole = data.load(config.dataset, "train", *where)
        tracked = data.load(config.dataset, "test", *where)[:TRACKED] if options.track_test else None
    if bad := [name for name in whole.label_names if not printable(name)]:
        raise InputError(f"{whole.name} has a class {bad[0]!a}, which cannot be printed on one line; rename it")
    train_split, held = (s.to(accelerator.device) for s in data.hold_out(whole, config.holdout, config.train_size))
    batch = min(config.batch_size, len(train_split))
    engine.shards(torch.arange(batch), accelerator.num_processes, config.accumulation)  # or InputError

    torch.manual_seed(config.seed)
    begun = options.resume and written_states(directory)  # its weights come from there
    model = make_backbone(dataclasses.replace(config, init_from=None) if begun else config, whole)
    if begun and config.init_from:
        hub.keep_origin(model, directory)
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
    done, warning = state.load() if options.resume else (Done(), "")
    engine.align_momentum(optimizer)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        directory.mkdir(parents=True, exist_ok=True)
        keep_epochs(directory, done)
        hub.save_config(checked, directory, config=config, label_names=whole.label_names, input_size=whole.shape)
        if (
            done.epochs and not done.steps
        ):  # it may have been killed after its state was saved and before its weights were
            hub.save_weights(evaluated, directory / WEIGHTS["last"])
    if options.tracker != "none":
        accelerator.init_trackers("piat_hub", flat(to_dict(config)))

    if warning:
        yield Notice(f"warning: {warning}")
    if done.epochs + done.steps and done.processes != accelerator.num_processes:
        yield Notice(
            f"warning: this run began with {done.processes} processes and goes on with {accelerator.num_processes}: "
            "images are divided otherwise, so it will not end with the same bits"
        )
    done.processes = accelerator.num_processes
    yield Notice(describe(train_split, whole, accelerator.device, options, compiled))
    threat, crafting = config.threat_model, config.attack
    budget: dict[str, Any] = {"eps": threat.eps, "norm": threat.norm}
    attack = partial(pgd, **budget, step_size=crafting.step_size, steps=crafting.steps)
    tracked = tracked and tracked.to(accelerator.device)
    check = make_check(config, accelerator, train_split[: len(held) or 1000], held, tracked)
    steps = data.steps_per_epoch(len(train_split), config.batch_size)
    environment = evaluation.environment(accelerator.device)
    clock = time.monotonic() - done.seconds
    resume: dict[str, Any] = {"epochs_done": done.epochs, "steps_done": done.steps, "losses_done": done.losses}
    sides: dict[str, Any] = {"twin": twin, "interpolation": interpolation, "ema": ema, "swa": swa}
    try:
        for event in engine.train(
            model, method, attack, train_split, optimizer, accelerator, config, **sides, **resume
        ):
            if isinstance(event, engine.Step):
                yield event
                at_stop = agreed(stopping, event, accelerator)
                if at_stop or (options.save_every_steps and event.step % options.save_every_steps == 0):
                    refuse_not_finite((bare, evaluated), f"epoch {event.epoch}, step {event.step}")
                    done.steps, done.losses, done.seconds = event.step, event.losses.all(), time.monotonic() - clock
                    save(state, done, accelerator)
                if at_stop:
                    yield Stopped(done.epochs, done.steps)
                    return
                continue
            refuse_not_finite((bare, evaluated), f"the end of epoch {event.epoch}")
            trained = time.monotonic()
            checked.load_state_dict(evaluated.state_dict())
            metrics = dataclasses.asdict(event) | check(checked, event.epoch)
            better = held and (done.best is None or metrics["holdout_pgd10_acc"] > done.best["holdout_pgd10_acc"])
            timing = {
                "epoch": event.epoch,
                "train_seconds": round(trained - clock, 3),
                "check_seconds": round(time.monotonic() - trained, 3),
                "images_per_second": round(steps * batch / (trained - clock), 2),
                "processes": accelerator.num_processes,
                "threads": threads,
                "peak_memory_gib": peak_memory(accelerator.device),
                **environment,
            }
            done = Done(
                event.epoch, [*done.metrics, metrics], metrics if better else done.best, processes=done.processes
            )
            if accelerator.is_main_process:  # in this order a kill at any point loses nothing: see State.load
                if better:
                    hub.save_weights(checked, directory / WEIGHTS["best"])
                append(directory / "metrics.jsonl", metrics)
                append(directory / "timing.jsonl", sealed(timing | {"metrics": checksum(metrics)}))
            save(state, done, accelerator)
            if accelerator.is_main_process:
                hub.save_weights(checked, directory / WEIGHTS["last"])
            accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=event.epoch)
            yield EpochDone(metrics, timing)
            for warning in (collapsed(done.metrics), underflowing(accelerator)):
                if warning:
                    yield Notice(f"warning: {warning}")
            clock = time.monotonic()
    except Diverged as error:
        culprit = engine.not_finite(bare)
        named = f": {culprit} holds NaN or Inf" if culprit and culprit not in str(error) else ""
        checked.load_state_dict(bare.state_dict())
        advice = advise(checked, data.to_unit(train_split.images[:batch]), accelerator.mixed_precision)
        raise Diverged(f"{error}{named}; the last good state is {last_state(state, done)}. {advice}") from None
    finally:
        accelerator.end_training()


def last_state(state: State, done: Done) -> str:
    """Where a run can go on from, in words."""
    within = f", step {done.steps} of the next" if done.steps else ""
    return f"{state.path}, of epoch {done.epochs}{within}" if state.path.exists() else "none, no epoch was finished"


def refuse_not_finite(models: Iterable[nn.Module], where: str) -> None:
    """Diverged if a weight or buffer is not finite: such a state is not saved."""
    for model in models:
        if culprit := engine.not_finite(model):
            raise Diverged(f"{culprit} holds NaN or Inf at {where}")


@torch.no_grad()
def advise(model: nn.Module, x: Tensor, precision: str) -> str:
    """What to do once a loss is not finite: whether half precision overflowed, or the training diverged.

    model: in fp32, with the weights of that moment. Where they give finite logits for x, it is the precision that failed.
    """
    lost = engine.not_finite(model)
    with evaluation.verdict_mode(model) as exact:
        finite = not lost and bool(exact.eval()(x).isfinite().all())
    if precision in HALF and finite:
        return f"In fp32 these weights give finite logits, so {precision} overflowed: start again without it"
    if precision in HALF and lost:  # on a GPU they are when the loss is read
        return f"Either {precision} overflowed or the training diverged: start again without it, or with a lower --lr"
    return "The training diverged: lower --lr, then start again"


def collapsed(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A warning when an epoch loses most of the robustness there was: catastrophic overfitting (Wong et al. 2020), or "".

    It is PGD-10 accuracy on held-out images, or else on training ones, that falls by half, and by 10 points, in an epoch.
    """
    key = "train_pgd10_acc" if metrics[-1]["holdout_pgd10_acc"] is None else "holdout_pgd10_acc"
    before, now = (metrics[-2][key] if len(metrics) > 1 else 0.0), metrics[-1][key]
    if now > before / 2 or before - now < 0.1:
        return ""
    return (
        f"PGD-10 accuracy fell from {before:.1%} to {now:.1%} in epoch {metrics[-1]['epoch']}: catastrophic overfitting, as "
        "attacks of one or few steps bring about; take more --steps, a smaller --step-size or a lower --lr"
    )


def underflowing(accelerator: Accelerator) -> str:
    """A warning when fp16's gradients overflow again and again, so that its scaler leaves out update after update; or ""."""
    if not accelerator.scaler or accelerator.scaler.get_scale() >= 1:
        return ""
    return (
        "fp16 overflows again and again, and those updates are left out; --mixed-precision bf16 has the range of fp32"
    )


def save(state: State, done: Done, accelerator: Accelerator) -> None:
    """Collect the state on every process and write it on the first."""
    collected = state.collect()
    if accelerator.is_main_process:
        state.save(done, collected)


def agreed(stopping: Callable[[], bool], at: engine.Step, accelerator: Accelerator) -> bool:
    """Whether any process is to stop; several are asked every tenth step and at the last, as an answer waits for the device."""
    if accelerator.num_processes == 1:
        return stopping()
    if at.step % 10 and at.step < at.steps:
        return False
    return bool(accelerator.reduce(torch.tensor(float(stopping()), device=accelerator.device)))


def settled(config: TrainConfig) -> TrainConfig:
    """Folders that the configuration names as absolute paths: they mean the same from everywhere, and no Hub id."""
    known = {*DATASETS, "digits", "imagenet"}
    named = {key: value for key in ("dataset", "init_from") if (value := getattr(config, key)) and value not in known}
    folders: dict[str, Any] = {key: str(Path(value).resolve()) for key, value in named.items() if Path(value).is_dir()}
    return dataclasses.replace(config, **folders)


def describe(split: data.Split, whole: data.Split, device: torch.device, options: RunOptions, compiled: bool) -> str:
    """Where the training images are and what is compiled, in one line."""
    mib, limit = 2**20, f"{options.device_data_limit:g} GiB"
    if isinstance(split.images, data.Encoded):
        size = f"{math.prod(whole.images.shape) / mib:,.1f} MiB"
        line = f"data: {len(split):,} images are streamed; decoded, {whole.name} takes {size}, the limit is {limit}"
    else:
        line = f"data: {len(split):,} images on {device}, {math.prod(split.images.shape) / mib:,.1f} MiB decoded"
    if options.compile:
        line += "; attack and update are compiled" if compiled else "; not compiled: on a CPU it does not pay"
    return line


def make_backbone(config: TrainConfig, split: data.Split) -> nn.Module:
    """The configured backbone for a data set's classes, channels and image size, with `init_from`'s weights.

    InputError where it cannot be built, or those weights do not fit.
    """
    channels, height, width = split.shape
    known = timm.is_model(config.backbone.partition(".")[0])
    if height != width and known and not backbones.ours(config.backbone):
        raise InputError(
            f"{config.backbone} needs square images, {split.name} has {height}x{width}; resize them with --img-size"
        )
    shape: dict[str, Any] = {"num_classes": len(split.label_names), "in_chans": channels, "img_size": height}
    if config.init_from == "imagenet":
        if backbones.ours(config.backbone):
            raise InputError(f"{config.backbone} is ours and has no ImageNet weights; choose one of timm's --backbone")
        return backbones.create_model(config.backbone, **shape, pretrained=True)
    model = backbones.create_model(config.backbone, **shape)
    if config.init_from:
        hub.start_from(model, config.init_from)
    return model


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
        kwargs_handlers=[PATIENCE],
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
        libc.mallopt(-3, 2**30) or libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, and the most that an older glibc takes
    torch.set_num_threads(threads or data.cores())
    return torch.get_num_threads()


def make_check(
    config: TrainConfig,
    accelerator: Accelerator,
    subset: data.Split,
    held: data.Split,
    test: data.Split | None = None,
) -> Callable[[nn.Module, int], dict[str, float | None]]:
    """The check at each epoch's end: PGD-10 on a fixed training subset, clean and PGD-10 on held-out and test images."""
    threat = config.threat_model
    attack = partial(pgd, eps=threat.eps, step_size=threat.eps / 4, steps=10, norm=threat.norm, leave=True)
    parts: dict[str, tuple[data.Split, evaluation.Stage | None]] = {"train_pgd10_acc": (subset, attack)}
    parts |= {"holdout_clean_acc": (held, None), "holdout_pgd10_acc": (held, attack)}
    if test:
        parts |= {"test_clean_acc": (test, None), "test_pgd10_acc": (test, attack)}

    def measure(model: nn.Module, split: data.Split, stage: evaluation.Stage | None, epoch: int) -> float | None:
        if not len(split):
            return None
        seed, rank, world = data.derived_seed(config.seed, epoch), accelerator.process_index, accelerator.num_processes
        with evaluation.verdict_mode(model) as exact:
            right = evaluation.accuracy(exact, split, stage, batch_size=250, seed=seed, rank=rank, world=world)
        return float(accelerator.reduce(torch.tensor(float(right), device=accelerator.device))) / len(split)

    def check(model: nn.Module, epoch: int) -> dict[str, float | None]:
        return {name: measure(model, split, stage, epoch) for name, (split, stage) in parts.items()}

    return check


def refuse_overwrite(directory: Path) -> None:
    """InputError if the directory already holds a run, or a file that a run would overwrite."""
    if (directory / "config.json").exists() or (directory / "state").exists():
        raise InputError(f"{directory} already holds a run; add --resume to go on with it, or name another --output")
    for name in hub.RECORDS:
        if (directory / name).exists():
            raise InputError(f"{directory} already holds a {name}, which a run would overwrite; name another --output")


def check_output(directory: Path) -> None:
    """InputError unless the directory exists or can be made, and can be written to."""
    place = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if not place.is_dir():
        raise InputError(f"{directory} cannot be made: {place} is a file; name another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{directory} cannot be written to: no permission in {place}; name another --output")


def keep_epochs(directory: Path, done: Done) -> None:
    """Cut timing.jsonl back to the epochs that are done, and write metrics.jsonl from the state's own copy."""
    timing = [
        line
        for line in read_lines(directory / "timing.jsonl", strict=False)
        if line.get("epoch", math.inf) <= done.epochs
    ]
    for name, lines in (("timing.jsonl", [sealed(line) for line in timing]), ("metrics.jsonl", done.metrics)):
        if lines or (directory / name).exists():
            write_text(directory / name, "".join(json.dumps(line) + "\n" for line in lines))


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
