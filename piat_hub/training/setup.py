"""From a configuration to the parts of a run."""

import copy
import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from piat_hub import backbones, data, methods
from piat_hub.attacks import Twin, pgd
from piat_hub.attacks.apgd import few_steps
from piat_hub.attacks.core import ascend
from piat_hub.config import DATASETS, InputError, PictureConfig, RunOptions, TrainConfig, nearest
from piat_hub.evaluation.suites import Stage
from piat_hub.evaluation.verdict import accuracy, class_count, verdict_mode
from piat_hub.hub.load import from_timms_weights, origin_of, start_from
from piat_hub.machine import PATIENCE, bf16_warning, images_at_a_time, see_cpu_processes, set_threads
from piat_hub.training import averages, engine, guards, optimizers, state
from piat_hub.training.images import load_extra, load_images, seen_before
from piat_hub.training.interpolation import ParameterInterpolation

PLAIN = {"NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU"}  # one process, or DDP


@dataclass
class Setup:
    """All parts of a run, built from its configuration.

    Attributes:
        parts: what the engine works with.
        whole: all training images, before any were held out.
        held: those that choose the best epoch.
        tracked: the test images of each epoch's check, or None.
        bare: the model that is trained, without wrappers.
        checked: the model that is measured, free of any wrapper.
        evaluated: whose weights it gets, the bare model or its side copy.
        threads: of this process on the CPU.
        compiled: attack and update are compiled.
    """

    parts: engine.Parts
    whole: data.Split
    held: data.Split
    tracked: data.Split | None
    bare: nn.Module
    checked: nn.Module
    evaluated: nn.Module
    threads: int
    compiled: bool

    def saved(self) -> dict[str, Any]:
        """What resume needs the state of, by name."""
        parts = self.parts
        known = {"model": self.bare, "optimizer": parts.optimizer, "interpolation": parts.interpolation}
        known |= {"ema": parts.ema, "swa": parts.swa, "scaler": parts.accelerator.scaler}
        known |= {"method": state.PerProcess(parts.method, parts.accelerator)}
        known |= {"data": state.SameData(data.training_digest(self.whole, parts.extra, parts.config))}
        return {name: part for name, part in known.items() if hasattr(part, "state_dict")}


def make_setup(config: TrainConfig, options: RunOptions, directory: Path, accelerator: Accelerator) -> Setup:
    """Build everything that a run needs; nothing is written.

    Args:
        config: settled.
        options: where and how the run happens.
        directory: the run's own, where a run that goes on keeps its weights.
        accelerator: as `make_accelerator` gives it.

    Raises:
        InputError: for whatever cannot work in the request.
    """
    method = checked_method(config)
    threads = set_threads(options.threads)
    config, whole, tracked, stream = load_images(config, options, accelerator)
    if config.holdout is None:
        config = dataclasses.replace(config, holdout=min(1000, len(whole) // 10))
    count = config.holdout or 0
    parted = (whole[count:], whole[:count]) if stream else data.hold_out(whole, count, config.train_size)
    split, held = (part.to(accelerator.device) for part in parted)
    stream = dataclasses.replace(stream, head=split) if stream else None
    extra = load_extra(config, split, options, accelerator)
    config = dataclasses.replace(config, extra_images=len(extra)) if extra else config
    batch = min(config.batch_size, config.epoch_size or len(split))
    *_, micro = data.shards(torch.arange(batch), accelerator.num_processes, config.accumulation).shape  # or InputError
    if config.mixing.blends and micro % 2:
        raise InputError(f"mixup and cutmix blend pairs, {micro} images at a time are odd; choose another --batch-size")

    torch.manual_seed(config.seed)
    begun = options.resume and state.written_states(directory)  # its weights come from there
    model: Any = make_backbone(dataclasses.replace(config, init_from=None) if begun else config, whole)
    if begun and config.init_from:
        model.pretrained_cfg |= origin_of(directory)
    known = seen_before(config, len(held), getattr(model, "begun_as", {}))
    whole = dataclasses.replace(whole, notes=(*whole.notes, *known)) if known else whole
    if config.bn_momentum is not None:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            raise InputError(f"{config.backbone} has no BatchNorm; give --bn-momentum none")
        for norm in norms:
            norm.momentum = config.bn_momentum
    class_count(model, whole)  # or InputError: a backbone that cannot take these images
    # convolutions run faster in channels_last; sums differ by rounding only
    model = model.to(accelerator.device).to(memory_format=torch.channels_last)
    checked = copy.deepcopy(model)
    if options.gradient_checkpointing:
        backbones.checkpoint_gradients(model)
    twin = Twin(model, data.to_unit(split.images[:2]), guards.HALF.get(accelerator.mixed_precision))
    ema = averages.EMA(model, config.ema, config.ema_bn) if config.ema is not None else None
    swa = averages.SWA(ema.copy if ema else model, config.swa_start) if config.swa is not None else None
    evaluated = swa.copy if swa else ema.copy if ema else model
    compiled = options.compile and accelerator.device.type != "cpu"
    if compiled:
        for part in (model, twin):
            part.compile(dynamic=False)
    wrapped, optimizer = engine.prepare(model, optimizers.make_optimizer(config, model), accelerator)
    bare = engine.unwrap(wrapped, accelerator)
    parts = engine.Parts(
        config=config,
        accelerator=accelerator,
        model=wrapped,
        optimizer=optimizer,
        method=method,
        attack=make_attack(config),
        split=split,
        twin=twin,
        interpolation=make_interpolation(config, bare),
        ema=ema,
        swa=swa,
        stream=stream,
        extra=extra,
    )
    return Setup(parts, whole, held, tracked, bare, checked, evaluated, threads, compiled)


def make_attack(config: TrainConfig) -> methods.Attack:
    """The attack that training crafts its examples with, its budget bound."""
    threat, crafting = config.threat_model, config.attack
    budget: dict[str, Any] = {"eps": threat.eps, "norm": threat.norm, "steps": crafting.steps}
    if crafting.crafting == "apgd":
        return partial(few_steps, **budget)
    return partial(ascend, **budget, step_size=config.step_size)


def settled(config: TrainConfig) -> TrainConfig:
    """The configuration with what needs no data decided: absolute paths, a step's length, what a stream holds out.

    Such a path means the same from everywhere, and no Hub id.

    Args:
        config: as given; a data set or start by the name of a folder that is there is that folder, but for our aliases.
    """
    attack = dataclasses.replace(config.attack, step_size=config.step_size)
    known = {*DATASETS, "digits", "imagenet"}
    keys = ("dataset", "extra_data", "init_from")
    named = {key: value for key in keys if (value := getattr(config, key)) and value not in known}
    folders: dict[str, Any] = {
        key: str(Path(value).resolve())
        for key, value in named.items()
        if Path(value).is_dir() or value.endswith(".npz")
    }
    if config.stream and config.epoch_size and config.holdout is None:
        folders["holdout"] = min(1000, config.epoch_size // 10)
    return dataclasses.replace(config, attack=attack, **folders)


def describe(setup: Setup, options: RunOptions) -> list[str]:
    """Where the training images are and what is compiled, in one line; one of the extra data; notes of the data; warnings.

    Args:
        setup: the run's parts.
        options: says the limit of decoded data, and whether to compile.
    """
    split, extra, mib, limit = setup.parts.split, setup.parts.extra, 2**20, f"{options.device_data_limit:g} GiB"
    if setup.parts.stream:
        size = f"{setup.parts.config.epoch_size:,} images an epoch"
        line = f"data: {size} are read through in shards, of which the first {len(setup.held):,} are held out"
    elif setup.parts.config.pictures.augment == "rrc":
        line = f"data: {len(split):,} pictures, of which each epoch sees random parts, at {split.shape[1]}x{split.shape[2]} pixels"
    elif isinstance(split.images, data.Encoded):
        size = f"{math.prod(setup.whole.images.shape) / mib:,.1f} MiB"
        line = f"data: {len(split):,} images are streamed; decoded, {split.name} takes {size}, the limit is {limit}"
    else:
        device, size = setup.parts.accelerator.device, f"{math.prod(split.images.shape) / mib:,.1f} MiB"
        line = f"data: {len(split):,} images on {device}, {size} decoded"
    if options.compile:
        line += "; attack and update are compiled" if setup.compiled else "; not compiled: on a CPU it does not pay"
    lines = [line, *setup.whole.notes]
    if extra:
        share, batch = setup.parts.config.extra_share, setup.parts.config.batch_size
        where = "decoded by workers" if isinstance(extra.images, data.Encoded) else f"on {extra.labels.device}"
        lines += [f"extra data: {len(extra):,} images {where}, {share} of every batch of {batch}", *extra.notes]
        shared = data.shared_images(extra, setup.held) if setup.held and setup.parts.accelerator.is_main_process else 0
        if shared is None:
            lines.append("the extra data were not searched for held-out images; see that there are none among them")
        elif shared:
            lines.append(
                f"warning: {shared} of the {len(setup.held):,} held-out images are among the extra data: held-out accuracy "
                "flatters, and with it the best epoch; take them out"
            )
    config, (height, width) = setup.parts.config, split.shape[1:]
    if config.swa is not None and config.swa_start == config.epochs:
        lines.append(
            f"warning: --swa {config.swa:g} averages the last of {config.epochs} epochs alone; lower it, 0.75 is usual"
        )
    if config.pictures.augment != "rrc" and not config.crop_shift and config.crop_pad >= min(height, width):
        lines.append(
            f"warning: --crop-pad {config.crop_pad} leaves nothing of some images of {height}x{width} pixels; lower it"
        )
    if config.pictures.augment is None and config.pictures.scale != PictureConfig().scale:
        lines.append("warning: --scale does nothing for images of one size; it goes with --augment rrc")
    if config.init_from not in (None, "imagenet") and config.clean_epochs is None and config.warmup:
        lines.append(
            f"warning: {config.warmup} clean epochs come first, and undo what robustness {config.init_from} has; "
            "--clean-epochs 0 leaves them out"
        )
    if config.mixed_precision == "bf16":
        lines += filter(None, [bf16_warning(setup.parts.accelerator.device)])
    return lines


def make_backbone(config: TrainConfig, split: data.Split) -> nn.Module:
    """The configured backbone for a data set's classes, channels and image size, with `init_from`'s weights.

    Args:
        config: names the backbone, and what it starts from.
        split: the training images.

    Raises:
        InputError: where it cannot be built, or those weights do not fit.
    """
    channels, height, width = split.shape
    timms = timm.is_model(config.backbone.partition(".")[0]) and not backbones.ours(config.backbone)
    if height != width and timms:
        raise InputError(
            f"{config.backbone} needs square images, {split.name} has {height}x{width}; resize them with --img-size"
        )
    shape: dict[str, Any] = {"num_classes": len(split.label_names), "in_chans": channels, "img_size": height}
    shape |= {"drop_path_rate": config.drop_path} if config.drop_path else {}
    if config.init_from == "imagenet":
        if backbones.ours(config.backbone):
            raise InputError(f"{config.backbone} is ours and has no ImageNet weights; choose one of timm's --backbone")
        return backbones.create_model(config.backbone, **shape, pretrained=True)
    if config.init_from and timms and (begun := from_timms_weights(config.backbone, config.init_from, **shape)):
        return begun
    model = backbones.create_model(config.backbone, **shape)
    if config.init_from:
        start_from(model, config.init_from, () if split.inferred else split.label_names)
    return model


def checked_method(config: TrainConfig) -> methods.Method:
    """`make_method`, of a configuration that can be trained as far as is known without data.

    Raises:
        InputError: for what cannot be trained, or would do nothing.
    """
    method = make_method(config)
    guards.refuse_idle(config)
    optimizers.check_optimizer(config)
    return method


def make_method(config: TrainConfig) -> methods.Method:
    """The configured method with its hyper-parameters, begun where it has state.

    Raises:
        InputError: for an unknown name, field or value, and for accumulation or AWP with a method that cannot have it.
    """
    cls = methods.get(config.method)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in config.method_args:
        if name not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise InputError(f"method {config.method} has no field {name!r}{nearest(name, known)}; {has}")
    method = cls(**config.method_args)
    if getattr(method, "replays", 1) > 1 and config.accumulation > 1:
        raise InputError(f"{config.method} replays each batch whole; leave out --accumulation {config.accumulation}")
    if getattr(method, "needs_batch", False) and config.accumulation > 1:
        raise InputError(
            f"{config.method} weighs the images of a batch by each other; leave out --accumulation {config.accumulation}"
        )
    if config.mixing.blends and getattr(method, "needs_class", False):
        raise InputError(
            f"{config.method} needs the class of each image, and mixup and cutmix give it two; "
            "give --mixup 0 --cutmix 0, or choose another --method"
        )
    if config.attack.crafting != "pgd" and getattr(method, "needs_pgd", False):
        raise InputError(
            f"{config.method} crafts in its own way, of which {config.attack.crafting} is not capable; give --crafting pgd"
        )
    if hasattr(method, "begin") and config.schedule.eps_rise(config.epochs):
        raise InputError(f"{config.method} keeps a budget of its own, which cannot rise; give --eps-warmup-epochs 0")
    return method.begin(config) if hasattr(method, "begin") else method


def make_interpolation(config: TrainConfig, model: nn.Module) -> ParameterInterpolation | None:
    """The configured ParameterInterpolation of the bare model, or None.

    Args:
        config: says the kind of interpolation, its law and its start.
        model: the bare module.
    """
    law = config.interpolation
    if law.kind == "none":
        return None
    constant = law.constant if law.kind == "constant" else None
    return ParameterInterpolation(
        model, a=law.a, b=law.b, c=law.c, d=law.d, constant=constant, start_epoch=law.start_epoch, bn=law.bn
    )


def make_accelerator(config: TrainConfig, options: RunOptions, directory: Path) -> Accelerator:
    """Accelerate as launched.

    Args:
        config: says the precision, the batch and its accumulation.
        options: says the tracker.
        directory: the run's own, where the tracker writes.

    Raises:
        InputError: for what interpolating whole weights in place cannot work with, and for a batch that cannot be
            divided.
    """
    # what the launcher says, before Accelerate looks for their packages
    for flag in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{flag}", "false").lower() in ("true", "1"):
            refuse_sharding(flag)
    see_cpu_processes()
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[PATIENCE],
        gradient_accumulation_plugin=GradientAccumulationPlugin(config.accumulation, sync_with_dataloader=False),
        log_with=None if options.tracker == "none" else options.tracker,
        project_dir=str(directory),
    )
    if config.mixed_precision == "fp16" and accelerator.scaler is None:
        raise InputError(
            f"mixed-precision fp16 is for GPUs, and this run's device is {accelerator.device}; leave it out, or give bf16"
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


def make_check(setup: Setup) -> Callable[[nn.Module, int], dict[str, float | None]]:
    """The check at each epoch's end: PGD-10 on a fixed training subset, clean and PGD-10 on held-out and test images.

    Args:
        setup: the run's parts.

    Returns:
        (model, epoch) -> accuracies in [0, 1] by their names in metrics.jsonl, None where there are no images; every
        process must call it.
    """
    config, accelerator, held = setup.parts.config, setup.parts.accelerator, setup.held
    threat, rank, world = config.threat_model, accelerator.process_index, accelerator.num_processes
    attack = partial(pgd, eps=threat.eps, step_size=threat.eps / 4, steps=10, norm=threat.norm, leave=True)
    subset = setup.parts.split[: len(held) or 1000]
    asked: dict[str, tuple[data.Split, Stage | None]] = {"train_pgd10_acc": (subset, attack)}
    asked |= {"holdout_clean_acc": (held, None), "holdout_pgd10_acc": (held, attack)}
    if setup.tracked:
        asked |= {"test_clean_acc": (setup.tracked, None), "test_pgd10_acc": (setup.tracked, attack)}

    def measure(model: nn.Module, split: data.Split, stage: Stage | None, epoch: int) -> float | None:
        if not len(split):
            return None
        with verdict_mode(model) as exact:
            seed = data.derived_seed(config.seed, epoch)
            at_a_time = images_at_a_time(accelerator.device)
            right = accuracy(exact, split, stage, batch_size=at_a_time, seed=seed, rank=rank, world=world)
        return float(accelerator.reduce(torch.tensor(float(right), device=accelerator.device))) / len(split)

    def check(model: nn.Module, epoch: int) -> dict[str, float | None]:
        return {name: measure(model, split, stage, epoch) for name, (split, stage) in asked.items()}

    return check
