"""The run directory: a training run's configuration, weights, metrics and state."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from piat_hub import data, machine
from piat_hub.config import Diverged, InputError, RunOptions, TrainConfig, flat, to_dict
from piat_hub.hub.load import origin_of
from piat_hub.hub.save import save_config, save_weights
from piat_hub.records.files import RECORDS, WEIGHTS, append, check_output, checksum, read_lines, sealed, write_text
from piat_hub.records.lock import only_writer
from piat_hub.training import engine, optimizers
from piat_hub.training.guards import advise, collapsed, not_finite, refuse_not_finite, underflowing
from piat_hub.training.setup import Setup, describe, make_accelerator, make_check, make_setup, settled
from piat_hub.training.state import Done, State


@dataclass(frozen=True)
class EpochDone:
    """An epoch is trained, checked and saved.

    Attributes:
        metrics: its line of metrics.jsonl.
        timing: its line of timing.jsonl, but for the checksums.
    """

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

    Args:
        config: what is learnt.
        options: where and how; by default in runs/RECIPE, from the beginning.
        stopping: asked after every step, or as `agreed` says; at a yes the state is saved, and Stopped is the last
            event.

    Yields:
        A Notice for people, a Step once it is launched, an EpochDone once the epoch is saved, or Stopped.

    Raises:
        InputError: before anything is written, for a request that cannot work or a state of another one; InUse, while
            another process writes in the run's directory.
        Diverged: naming the last good state, if the loss, a gradient or a weight stops being finite.
        Broken: if a file cannot be written.
    """
    options, config = options or RunOptions(), settled(config)
    directory = output_directory(config, options)
    check_output(directory)
    accelerator = make_accelerator(config, options, directory)
    with only_writer(directory, launch=True):
        if machine.restarted() and (directory / "config.json").exists():
            options = dataclasses.replace(options, resume=True)
        if not options.resume:
            refuse_overwrite(directory)
        yield from _train(make_setup(config, options, directory, accelerator), options, directory, stopping)


def _train(
    setup: Setup, options: RunOptions, directory: Path, stopping: Callable[[], bool]
) -> Iterator[Notice | engine.Step | EpochDone | Stopped]:
    """`train`, once the run is this launch's alone and its parts are built."""
    accelerator, config = setup.parts.accelerator, setup.parts.config
    state = State(directory, config, setup.saved())
    done, warning = state.load() if options.resume else (Done(), "")
    optimizers.align_state(setup.parts.optimizer)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        begin_directory(directory, setup, done)
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
    for line in describe(setup, options):
        yield Notice(line)
    check = make_check(setup)
    began = time.monotonic() - done.seconds  # of the epoch under way
    resume: dict[str, Any] = {"epochs_done": done.epochs, "steps_done": done.steps, "losses_done": done.losses}
    try:
        for event in engine.train(setup.parts, **resume):
            if isinstance(event, engine.Step):
                yield event
                at_stop = agreed(stopping, event, accelerator)
                if at_stop or (options.save_every_steps and event.step % options.save_every_steps == 0):
                    refuse_not_finite((setup.bare, setup.evaluated), f"epoch {event.epoch}, step {event.step}")
                    done.steps, done.losses, done.seconds = event.step, event.losses.all(), time.monotonic() - began
                    save(state, done, accelerator)
                if at_stop:
                    yield Stopped(done.epochs, done.steps)
                    return
            else:
                done, finished = end_epoch(setup, state, done, event, check, began)
                yield finished
                for warning in (collapsed(done.metrics), underflowing(accelerator)):
                    if warning:
                        yield Notice(f"warning: {warning}")
                began = time.monotonic()
    except Diverged as error:
        raise Diverged(explained(error, setup, state, done)) from None
    finally:
        accelerator.end_training()


def begin_directory(directory: Path, setup: Setup, done: Done) -> None:
    """Write config.json, and of a run that goes on its lines and last weights as its state knows them.

    Args:
        directory: made if there is none.
        setup: the run's parts.
        done: how far its state is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    keep_epochs(directory, done)
    whole, config = setup.whole, setup.parts.config
    fit = data.Fit.trained(whole.shape[1:], config.pictures.crop_pct)
    facts: dict[str, Any] = {"label_names": whole.label_names, "input_size": whole.shape, "preprocessing": fit.words()}
    facts["license"] = origin_of(directory)["license"]  # that `piat card` wrote there
    save_config(setup.checked, directory, config=config, **facts)
    if done.epochs and not done.steps:  # it may have been killed after its state was saved and before its weights were
        save_weights(setup.evaluated, directory / WEIGHTS["last"])


def end_epoch(
    setup: Setup,
    state: State,
    done: Done,
    epoch: engine.Epoch,
    check: Callable[[nn.Module, int], dict[str, float | None]],
    began: float,
) -> tuple[Done, EpochDone]:
    """Measure and save what an epoch made of the model; returns how far the run is now, and the epoch's lines.

    In this order a kill at any point loses nothing: see State.load. Every process calls it; the first one writes.

    Args:
        setup: the run's parts.
        state: what resume needs.
        done: how far the run was before this epoch.
        epoch: what the engine said of it.
        check: (model, epoch) -> accuracies by their names in metrics.jsonl.
        began: the `time.monotonic()`, in seconds, when the epoch began.

    Raises:
        Diverged: if a weight, buffer or gradient is not finite; nothing is then written.
    """
    directory, accelerator, config = state.directory, setup.parts.accelerator, setup.parts.config
    refuse_not_finite((setup.bare, setup.evaluated), f"the end of epoch {epoch.epoch}")
    trained = time.monotonic()
    setup.checked.load_state_dict(setup.evaluated.state_dict())
    metrics = dataclasses.asdict(epoch) | check(setup.checked, epoch.epoch)
    better = setup.held and (done.best is None or metrics["holdout_pgd10_acc"] > done.best["holdout_pgd10_acc"])
    size = setup.parts.epoch_size
    images = data.steps_per_epoch(size, config.batch_size) * min(config.batch_size, size)
    timing = {
        "epoch": epoch.epoch,
        "train_seconds": round(trained - began, 3),
        "check_seconds": round(time.monotonic() - trained, 3),
        "images_per_second": round(images / (trained - began), 2),
        "processes": accelerator.num_processes,
        "threads": setup.threads,
        "peak_memory_gib": machine.peak_memory(accelerator.device),
        **machine.environment(accelerator.device),
    }
    best = metrics if better else done.best
    done = Done(epoch.epoch, [*done.metrics, metrics], best, processes=done.processes)
    if accelerator.is_main_process:
        if better:
            save_weights(setup.checked, directory / WEIGHTS["best"])
        append(directory / "metrics.jsonl", metrics)
        append(directory / "timing.jsonl", sealed(timing | {"metrics": checksum(metrics)}))
    save(state, done, accelerator)
    if accelerator.is_main_process:
        save_weights(setup.checked, directory / WEIGHTS["last"])
    accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=epoch.epoch)
    return done, EpochDone(metrics, timing)


def explained(error: Diverged, setup: Setup, state: State, done: Done) -> str:
    """What diverged and where, from where the run can go on, and what to do about it, in one line.

    Args:
        error: the engine's.
        setup: the run's parts, as they are now.
        state: what resume needs.
        done: how far the last saved state is.
    """
    culprit = not_finite(setup.bare)
    named = f": {culprit} holds NaN or Inf" if culprit and culprit not in str(error) else ""
    setup.checked.load_state_dict(setup.bare.state_dict())
    few = data.to_unit(setup.parts.split.images[: setup.parts.config.batch_size])
    advice = advise(setup.checked, few, setup.parts.accelerator.mixed_precision)
    return f"{error}{named}; the last good state is {last_state(state, done)}. {advice}"


def last_state(state: State, done: Done) -> str:
    """Where a run can go on from, in words."""
    within = f", step {done.steps} of the next" if done.steps else ""
    return f"{state.path}, of epoch {done.epochs}{within}" if state.path.exists() else "none, no epoch was finished"


def save(state: State, done: Done, accelerator: Accelerator) -> None:
    """Collect the state on every process and write it on the first.

    Args:
        state: what resume needs.
        done: how far the run is.
        accelerator: as launched.
    """
    collected = state.collect()
    if accelerator.is_main_process:
        state.save(done, collected)


def agreed(stopping: Callable[[], bool], at: engine.Step, accelerator: Accelerator) -> bool:
    """Whether any process is to stop; several are asked every tenth step and at the last, as it waits for the device.

    Args:
        stopping: this process's answer.
        at: the step just launched.
        accelerator: as launched; every process must call this.
    """
    if accelerator.num_processes == 1:
        return stopping()
    if at.step % 10 and at.step < at.steps:
        return False
    return bool(accelerator.reduce(torch.tensor(float(stopping()), device=accelerator.device)))


def refuse_overwrite(directory: Path) -> None:
    """InputError if the directory already holds a run, or a file that a run would overwrite."""
    if (directory / "config.json").exists() or (directory / "state").exists():
        raise InputError(f"{directory} already holds a run; add --resume to go on with it, or name another --output")
    for name in RECORDS:
        if (directory / name).exists():
            raise InputError(f"{directory} already holds a {name}, which a run would overwrite; name another --output")


def keep_epochs(directory: Path, done: Done) -> None:
    """Cut timing.jsonl back to the epochs that are done, and write metrics.jsonl from the state's own copy.

    Args:
        directory: of the run.
        done: how far its state is.
    """
    timing = [
        line
        for line in read_lines(directory / "timing.jsonl", strict=False)
        if line.get("epoch", math.inf) <= done.epochs
    ]
    for name, lines in (("timing.jsonl", [sealed(line) for line in timing]), ("metrics.jsonl", done.metrics)):
        if lines or (directory / name).exists():
            write_text(directory / name, "".join(json.dumps(line) + "\n" for line in lines))
