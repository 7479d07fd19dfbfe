"""A sweep's members, trained and evaluated in processes of their own, several at a time."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from piat_hub import data
from piat_hub.config import InputError, StudyOptions, TrainConfig, as_decided, flags, lookup, recipes, to_dict
from piat_hub.evaluation.suites import suite
from piat_hub.machine import cores, wished_threads
from piat_hub.records import files, labels, lock
from piat_hub.records.results import Record
from piat_hub.records.rundir import RunDirectory
from piat_hub.study.studies import STUDIES
from piat_hub.training.setup import checked_method, settled


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        directory: of the run.
        config: what it is trained with.
        n: it is evaluated on the first n test images.
    """

    directory: Path
    config: TrainConfig
    n: int

    @property
    def log(self) -> Path:
        """What its commands printed."""
        return self.directory.with_name(self.directory.name + ".log")

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        metrics = self.directory / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    @property
    def trained(self) -> bool:
        """Whether its training came to its end, of which the card is the last that is written."""
        return self.epochs >= self.config.epochs and (self.directory / "README.md").exists()


@dataclass(frozen=True)
class Done:
    """A member came to its end: `failed` is "" or the last line it printed."""

    member: Member
    failed: str = ""


@dataclass(frozen=True)
class Busy:
    """Another process is at work on a member; the sweep comes back to it."""

    member: Member


def output_directory(bases: Sequence[TrainConfig], options: StudyOptions) -> Path:
    """The directory of the table: as asked, else runs/study, with the recipe's name where there is one."""
    return Path(options.output or (f"runs/study/{bases[0].recipe}" if len(bases) == 1 else "runs/study"))


def members_of(name: str, bases: Sequence[TrainConfig], attacks: Sequence[str], options: StudyOptions) -> list[Member]:
    """The runs of a study, checked before anything runs.

    Args:
        name: of the study.
        bases: the recipes to start from; for several, each has its own directory below the output.
        attacks: that every member is measured under.
        options: seeds, images and output.

    Raises:
        InputError: for what training or evaluation would refuse later, or recipes that are the same.
    """
    sweep, found = lookup("study", name, STUDIES), []
    for base in map(settled, bases):
        home = output_directory(bases, options) / (base.recipe if len(bases) > 1 else "")
        configs = {
            home / f"{key}-{seed}": dataclasses.replace(config, seed=seed)
            for key, config in sweep(base).items()
            for seed in range(base.seed, base.seed + options.seeds)
        }
        for directory, config in configs.items():
            _refuse_what_training_would(config, directory.name)
            _refuse_another(directory, config)
        columns = base.image_column, base.label_column
        test = data.load_encoded(base.dataset, "test", *columns).first(options.n)
        for attack in attacks:
            suite(attack, base.threat_model, len(test.label_names))
        for directory in configs:
            _refuse_other_results(directory, len(test))
        found += [Member(directory, config, len(test)) for directory, config in configs.items()]
    each = [to_dict(dataclasses.replace(member.config, recipe="")) for member in found]
    if any(one in each[:k] for k, one in enumerate(each)):
        raise InputError(f"{' and '.join(b.recipe for b in bases)} are the same under these flags; name one RECIPE")
    return found


def _refuse_what_training_would(config: TrainConfig, name: str) -> None:
    try:
        checked_method(config)
    except InputError as error:
        raise InputError(f"member {name} of the study cannot be trained: {error}") from error


def _refuse_another(directory: Path, config: TrainConfig) -> None:
    files.check_output(directory)
    if (directory / "config.json").exists():
        trained, asked = RunDirectory.read(directory).config, labels.public(config)
        if trained != (asked := as_decided(asked, trained)):
            words = " ".join(flags(trained, asked) or flags(asked, trained)) or "its method's fields"
            raise InputError(f"{directory} holds another run ({words}); name another --output")


def _record(run: RunDirectory) -> Record | None:
    """What was measured of the last weights on the run's own data, under its own threat model."""
    return next((found.record for found in run.results if (found.folder, found.checkpoint) == ("", "last")), None)


def _refuse_other_results(directory: Path, n: int) -> None:
    run = RunDirectory.read(directory) if (directory / "config.json").exists() else None
    record = run.record("last") if run else None
    if run and record and not _record(run):
        raise InputError(
            f"{directory} was measured on {record.dataset} ({record.split}), {record.threat_model}, this study is of "
            f"{run.benchmark}; move its results.json and verdicts.npz away"
        )
    if record and record.n != n:
        raise InputError(
            f"{directory} was measured on the first {record.n} images, this study on {n}; give --n {record.n}, or move its "
            "results.json and verdicts.npz away"
        )


def next_command(member: Member, attacks: Sequence[str], options: StudyOptions) -> list[str] | None:
    """What brings a member on: its training, then its evaluation; None once both are done.

    Args:
        member: as it lies on the disk now.
        attacks: that it is to be measured under.
        options: says how many run at a time, and whether test images are tracked.
    """
    python = [sys.executable, "-m", "piat_hub"]
    share = wished_threads() or max(1, cores() // jobs(options))
    threads = [] if torch.cuda.is_available() else ["--threads", str(share)]
    if not member.trained:
        resume = ["--resume"] if (member.directory / "config.json").exists() else []
        tracked = ["--track-test"] if options.track_test else []
        place = ["--output", str(member.directory)]
        return [*python, "train", *recipes.words(member.config), *place, *threads, *tracked, *resume]
    measured = _record(RunDirectory.read(member.directory))
    if measured and measured.n == member.n and set(attacks) <= set(measured.attacks):
        return None
    asked = ["--attacks", *attacks, "--n", str(member.n)]
    return [*python, "evaluate", str(member.directory), *asked, *threads, "--resume"]


def jobs(options: StudyOptions) -> int:
    """How many members run at a time: as asked, else one a GPU, or one."""
    return options.jobs or max(1, torch.cuda.device_count())


def devices() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; [""] where there is none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return (named.split(",") if named else list(map(str, range(count))))[:count] or [""]


def run_members(
    members: Sequence[Member], attacks: Sequence[str], options: StudyOptions
) -> Generator[Done | Busy | None]:
    """Train and evaluate every member, several at a time, each command in a process of its own.

    A member that another process is at work on, as one may be that a killed sweep started, has its turn when that ends.
    Closing the iterator stops them where they can go on.

    Args:
        members: what has been done of them is not done again.
        attacks: that each is measured under.
        options: says how many run at a time.

    Yields:
        Done for each that ends, Busy for one that another process works on, and None a few times a second.

    Raises:
        InputError: where a command calls its input unusable, which the other members share.
    """
    waiting, running = deque(members), dict[int, tuple[Member, subprocess.Popen[bytes], int]]()
    gpus, busy, ran = devices(), set(), dict[Path, list[str]]()
    try:
        while waiting or running:
            for slot in set(range(jobs(options))) - set(running):
                if not waiting:
                    break
                member = waiting.popleft()
                if lock.in_use(member.directory):
                    waiting.append(member)
                    if member.directory not in busy:
                        busy.add(member.directory)
                        yield Busy(member)
                    continue
                command = next_command(member, attacks, options)
                if command is None:
                    yield Done(member)
                elif command == ran.get(member.directory):  # once more would change nothing
                    yield Done(
                        member, failed=f"its command came to its end and left it undone: {last_line(member.log)}"
                    )
                else:
                    running[slot] = member, *start_command(member, command, gpus[slot % len(gpus)])
                    ran[member.directory] = command
            yield None
            time.sleep(0.2)
            for slot, (member, process, begun) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                if process.returncode == 2 and lock.IN_USE.encode() in member.log.read_bytes()[begun:]:
                    del ran[member.directory]  # another sweep's command was there first
                    waiting.append(member)
                elif process.returncode == 2:  # unusable input, for the others too
                    raise InputError(f"{last_line(member.log)} (all of it: {member.log})")
                elif process.returncode:
                    yield Done(member, failed=last_line(member.log) or f"exit code {process.returncode}")
                else:
                    waiting.appendleft(member)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()


def start_command(member: Member, command: Sequence[str], gpu: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command that appends to the member's log; returns its process, and how many bytes the log had before.

    Args:
        member: that it is for.
        command: its words.
        gpu: for CUDA_VISIBLE_DEVICES; "" leaves it as it is.
    """
    member.log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
    with member.log.open("ab") as log:
        before = log.tell()
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment), before


def last_line(log: Path) -> str:
    """The last line that a member's commands printed."""
    lines = [line for line in re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace")) if line.strip()]
    return lines[-1].strip() if lines else ""
