"""The paper's comparisons as sweeps: every member is a run directory that train and evaluate make, and one table ends it.

    piat study lambda digits --seeds 5

A member goes to OUTPUT/NAME-SEED and says its output to OUTPUT/NAME-SEED.log. Names tell the configuration, so studies of
one recipe that share an output share members, and a sweep that was killed goes on where it stood.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from piat_hub import card, data, evaluation, methods, recipes, records, run
from piat_hub.config import InputError, StudyOptions, TrainConfig, flags, lookup, to_dict
from piat_hub.files import write_text
from piat_hub.published import PAPER_ATTACKS, paper

Sweep = dict[str, TrainConfig]
Group = Sequence[records.Run]  # runs that differ by their seed alone


def constant(config: TrainConfig, lam: float) -> TrainConfig:
    """The same with lam in place of g(n); without interpolation for 0."""
    kind: Any = {"kind": "constant", "constant": lam} if lam else {"kind": "none"}
    return dataclasses.replace(config, interpolation=dataclasses.replace(config.interpolation, **kind))


def with_method(config: TrainConfig, method: str, kind: Any) -> TrainConfig:
    """The same with another method, of default fields, and interpolation "none" or "piat"."""
    law = dataclasses.replace(config.interpolation, kind=kind)
    fields = config.method_args if method == config.method else {}
    return dataclasses.replace(config, method=method, method_args=fields, interpolation=law)


def lambda_(base: TrainConfig) -> Sweep:
    """Interpolation by a constant lam of 0 to .9, and by g(n) (Fig. 4)."""
    return {
        f"{base.method}-none": constant(base, 0),
        **{f"{base.method}-{lam}": constant(base, lam) for lam in (0.1, 0.3, 0.5, 0.7, 0.9)},
        f"{base.method}-piat": with_method(base, base.method, "piat"),
    }


def mu(base: TrainConfig) -> Sweep:
    """The weight mu of NMSE, under PIAT (Fig. 5)."""
    default = methods.get("nmse")().mu  # type: ignore[attr-defined]
    piat = with_method(base, "nmse", "piat")
    return {
        "nmse-piat" if m == default else f"nmse-piat-mu{m}": dataclasses.replace(
            piat, method_args={} if m == default else {"mu": float(m)}
        )
        for m in (3, 4, 5, 6)
    }


def methods_(base: TrainConfig) -> Sweep:
    """Every method with and without PIAT (Figs. 2 and 3)."""
    return {
        f"{m}-{kind}": with_method(of_updates(base, m), m, kind) for m in methods.names() for kind in ("none", "piat")
    }


def of_updates(base: TrainConfig, method: str) -> TrainConfig:
    """The same with fewer epochs where the method replays each batch, so that all methods have as many updates."""
    replays = getattr(methods.get(method)(), "replays", 1)
    return dataclasses.replace(base, epochs=max(1, base.epochs // replays))


def nmse_vs_alp(base: TrainConfig) -> Sweep:
    """NMSE against ALP, each with and without PIAT (Table 4)."""
    return {f"{m}-{kind}": with_method(base, m, kind) for m in ("alp", "nmse") for kind in ("none", "piat")}


def averaging(base: TrainConfig) -> Sweep:
    """Averages of weights: PIAT with BatchNorm's statistics interpolated, copied and recalibrated, EMA, SWA, none."""
    none, piat = (with_method(base, base.method, kind) for kind in ("none", "piat"))
    law = piat.interpolation
    return {
        f"{base.method}-none": none,
        f"{base.method}-piat": piat,
        **{
            f"{base.method}-piat-bn-{bn}": dataclasses.replace(piat, interpolation=dataclasses.replace(law, bn=bn))
            for bn in ("copy", "recalibrate")
        },
        f"{base.method}-ema": dataclasses.replace(none, ema=0.999),
        f"{base.method}-swa": dataclasses.replace(none, swa=0.5),
    }


def table(number: int) -> Callable[[TrainConfig], Sweep]:
    """The methods of one of the paper's tables."""

    def sweep(base: TrainConfig) -> Sweep:
        names = dict.fromkeys(row["method"] for row in paper() if row["table"] == str(number))
        return {f"{m}-{kind}": with_method(base, m, kind) for m, kind in map(records.method_of, names)}

    sweep.__doc__ = f"The methods of the paper's Table {number}, beside its numbers where the data are the paper's."
    return sweep


STUDIES: dict[str, Callable[[TrainConfig], Sweep]] = {
    "lambda": lambda_,
    "mu": mu,
    "methods": methods_,
    "nmse-vs-alp": nmse_vs_alp,
    "averaging": averaging,
    **{f"table{n}": table(n) for n in (1, 2, 3, 5)},
}


def default_recipes(name: str) -> list[str]:
    """Where a study starts from when no recipe is named: digits, or the architectures and data of the paper's table."""
    if not name.startswith("table"):
        return ["digits"]
    rows = [row for row in paper() if row["table"] == name.removeprefix("table")]
    return list(dict.fromkeys(f"{row['architecture']}-{row['dataset']}" for row in rows))


def default_attacks(name: str) -> tuple[str, ...]:
    """clean and PGD-20, or the columns of the paper's table."""
    rows = [row for row in paper() if row["table"] == name.removeprefix("table")]
    return tuple(a for key, a in PAPER_ATTACKS.items() if any(row[key] for row in rows)) or ("clean", "pgd20")


@dataclass(frozen=True)
class Member:
    """One run of a sweep, to be evaluated on the first n test images."""

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


def output(bases: Sequence[TrainConfig], options: StudyOptions) -> Path:
    """The directory of the table: as asked, else runs/study, with the recipe's name where there is one."""
    return Path(options.output or (f"runs/study/{bases[0].recipe}" if len(bases) == 1 else "runs/study"))


def members(name: str, bases: Sequence[TrainConfig], attacks: Sequence[str], options: StudyOptions) -> list[Member]:
    """The runs of a study. InputError, before anything runs, for what training or evaluation would refuse later."""
    sweep, found = lookup("study", name, STUDIES), []
    for base in map(run.settled, bases):
        home = output(bases, options) / (base.recipe if len(bases) > 1 else "")
        configs = {
            home / f"{key}-{seed}": dataclasses.replace(config, seed=seed)
            for key, config in sweep(base).items()
            for seed in range(base.seed, base.seed + options.seeds)
        }
        for directory, config in configs.items():
            _refuse_another(directory, config)
        columns = base.image_column, base.label_column
        test = data.load(base.dataset, "test", *columns, base.img_size).first(options.n)
        for attack in attacks:
            evaluation.suite(attack, base.threat_model, len(test.label_names))
        found += [Member(directory, config, len(test)) for directory, config in configs.items()]
    each = [to_dict(dataclasses.replace(member.config, recipe="")) for member in found]
    if any(one in each[:k] for k, one in enumerate(each)):
        raise InputError(f"{' and '.join(b.recipe for b in bases)} are the same under these flags; name one RECIPE")
    return found


def _refuse_another(directory: Path, config: TrainConfig) -> None:
    run.check_output(directory)
    if (directory / "config.json").exists():
        trained, asked = card.read(directory)[1], card.public(config)
        if trained != asked:
            words = " ".join(flags(trained, asked) or flags(asked, trained)) or "its method's fields"
            raise InputError(f"{directory} holds another run ({words}); name another --output")


def next_command(member: Member, attacks: Sequence[str], options: StudyOptions) -> list[str] | None:
    """What brings a member on: its training, then its evaluation; None once both are done."""
    python = [sys.executable, "-m", "piat_hub"]
    threads = [] if torch.cuda.is_available() else ["--threads", str(max(1, data.cores() // jobs(options)))]
    if not member.trained:
        resume = ["--resume"] if (member.directory / "config.json").exists() else []
        tracked = ["--track-test"] if options.track_test else []
        place = ["--output", str(member.directory)]
        return [*python, "train", *recipes.words(member.config), *place, *threads, *tracked, *resume]
    measured = card.measured(member.directory).get("last")
    if measured and measured["dataset"]["n"] == member.n and set(attacks) <= set(measured["attacks"]):
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


def sweep(members: Sequence[Member], attacks: Sequence[str], options: StudyOptions) -> Generator[Done | Busy | None]:
    """Train and evaluate every member, several at a time; yields Done for each that ends, and None a few times a second.

    Each command is a process of its own. While it runs it holds a lock on the member's log, even when this process is
    killed, so a sweep begun again waits for it. Closing the iterator stops them where they can go on.
    """
    waiting, running = deque(members), dict[int, tuple[Member, subprocess.Popen[bytes]]]()
    gpus, busy, ran = devices(), set(), dict[Path, list[str]]()
    try:
        while waiting or running:
            for slot in set(range(jobs(options))) - set(running):
                if not waiting:
                    break
                member = waiting.popleft()
                command = next_command(member, attacks, options)
                if command is None:
                    yield Done(member)
                elif command == ran.get(member.directory):  # once more would change nothing
                    yield Done(
                        member, failed=f"its command came to its end and left it undone: {last_line(member.log)}"
                    )
                elif process := start(member, command, gpus[slot % len(gpus)]):
                    running[slot], ran[member.directory] = (member, process), command
                else:
                    waiting.append(member)
                    if member.directory not in busy:
                        busy.add(member.directory)
                        yield Busy(member)
            yield None
            time.sleep(0.2)
            for slot, (member, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                if process.returncode == 2:  # unusable input, for the others too
                    raise InputError(f"{last_line(member.log)} (all of it: {member.log})")
                if process.returncode:
                    yield Done(member, failed=last_line(member.log) or f"exit code {process.returncode}")
                else:
                    waiting.appendleft(member)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def start(member: Member, command: Sequence[str], gpu: str) -> subprocess.Popen[bytes] | None:
    """Start a command that appends to the member's log; None while another process is at work on that member."""
    member.log.parent.mkdir(parents=True, exist_ok=True)
    with member.log.open("ab") as log:
        try:
            import fcntl

            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except BlockingIOError:
            return None
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def last_line(log: Path) -> str:
    """The last line that a member's commands printed."""
    lines = [line for line in re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace")) if line.strip()]
    return lines[-1].strip() if lines else ""


def rows(
    name: str, members: Sequence[Member], attacks: Sequence[str], failed: Sequence[Done] = ()
) -> list[dict[str, Any]]:
    """A row for each group of members that differ by their seed alone: its figures, and what its curves say."""
    gone = {done.member.directory for done in failed}
    runs = {m.directory: records.read(m.directory) for m in members if m.directory not in gone}
    groups = records.grouped(list(runs.values()))
    found = []
    for label, group in groups.items():
        row: dict[str, Any] = {
            "label": label,
            "recipe": group[0].config.recipe,
            "seeds": [r.config.seed for r in group],
        }
        row["command"] = card.command(dataclasses.replace(group[0].config, seed=0))
        for attack in attacks:
            each = [f for r in group if (f := r.figures(attack))]
            mean, low, high = records.accuracy(group, attack) or (math.nan,) * 3
            row[attack] = {
                "each": [f["accuracy"] for f in each],
                "n": each[0]["n"],
                "mean": mean,
                "low": low,
                "high": high,
            }
        for what, of in records.CURVES.items():
            values = [of(r.metrics) for r in group]
            row[what] = None if None in values else values
        row["gain"] = gain(group, reference(group, list(groups.values())), attacks[-1])
        row["paper"] = records.beside(group[0].config, name.removeprefix("table"))
        found.append(row)
    return found


def reference(group: Group, groups: Sequence[Group]) -> Group:
    """What a group is compared with: the same without interpolation, else the first of the same method; itself is possible."""
    alike = [other for other in groups if other[0].config.method == group[0].config.method]
    plain = [other for other in alike if other[0].config.interpolation.kind == "none"]
    same = [other for other in plain if records.same_but_law(other[0].config, group[0].config)]
    # a side copy is compared with its method's first row, not with itself
    return (same if same and same[0] is not group else alike)[0]


def gain(group: Group, to: Group, attack: str) -> tuple[float, float, float] | None:
    """(mean, low, high) of what a group adds to another's accuracy, seed by seed; None for itself, or for one seed."""
    figures = {run.config.seed: run.figures(attack) for run in to if run.benchmark == group[0].benchmark}
    pairs = [(run.figures(attack), figures.get(run.config.seed)) for run in group]
    gains = [a["accuracy"] - b["accuracy"] for a, b in pairs if a and b]
    return records.mean_interval(gains) if len(gains) > 1 and group is not to else None


def write(
    directory: Path, name: str, rows: Sequence[dict[str, Any]], attacks: Sequence[str], failed: Sequence[Done]
) -> Path:
    """Write NAME.md, the table, and NAME.json, its rows with each seed's figures; returns the table's path."""
    directory.mkdir(parents=True, exist_ok=True)
    lost = {done.member.directory.name: done.failed for done in failed}
    texts = {
        "json": json.dumps({"study": name, "rows": rows, "failed": lost}, indent=1) + "\n",
        "md": markdown(name, rows, attacks, lost),
    }
    for suffix, text in texts.items():
        write_text(directory / f"{name}.{suffix}", text)
    return directory / f"{name}.md"


def markdown(name: str, rows: Sequence[dict[str, Any]], attacks: Sequence[str], lost: Mapping[str, str]) -> str:
    """The study's table: means over seeds with 95 % intervals, the curves' figures in points, the paper's beside ours.

    lost: the members that failed, and why.
    """
    published, gains, lines = any(row["paper"] for row in rows), any(row["gain"] for row in rows), []
    for row in rows:
        cells = [row["label"], len(row["seeds"])]
        for attack in attacks:
            cells.append(between([row[attack][key] for key in ("mean", "low", "high")], ".2f"))
            if published:
                cells.append(f"{100 * row['paper'][attack]:.2f}" if attack in row["paper"] else "")
        cells += [between(row["gain"], "+.2f")] if gains else []
        cells += [f"{100 * statistics.fmean(row[c]):.2f}" if row[c] else "" for c in records.CURVES]
        lines.append(cells)
    heads = [h for a in attacks for h in (f"{card.attack_name(a)}, %", *(["paper's"] if published else []))]
    heads += [f"{card.attack_name(attacks[-1])} minus the reference's, points"] if gains else []
    headers = ["", "seeds", *heads, *(f"{c}, points" for c in records.CURVES)]
    sizes = ", ".join(f"{card.attack_name(a)} on {n}" for a in attacks for n in sorted({row[a]["n"] for row in rows}))
    over = records.intervals([row["seeds"] for row in rows])
    about = (
        f"Study {name}. Test images: {sizes}; 95 % intervals {over}; last checkpoint; curves are of held-out PGD-10."
    )
    about += " The reference is the same without interpolation, else the method's first row." if gains else ""
    text = f"{about}\n\n{tabulate(lines, headers, tablefmt='github', disable_numparse=True)}\n"
    if lost:
        text += "\nFailed, and in no row:\n\n" + "".join(f"- {member}: {why}\n" for member, why in lost.items())
    return text if published or not name.startswith("table") else f"{text}\n{published_table(name)}"


def between(values: Sequence[float] | None, form: str) -> str:
    """'80.00 [78.00, 82.00]': a mean and its interval in percent; "" for None."""
    mean, low, high = (f"{100 * value:{form}}" for value in values) if values else ("", "", "")
    return f"{mean} [{low}, {high}]" if values else ""


def published_table(name: str) -> str:
    """The paper's table as it stands there, and why no row of it stands beside ours."""
    found = [row for row in paper() if row["table"] == name.removeprefix("table")]
    columns = [key for key in found[0] if key != "table" and any(row[key] for row in found)]
    table = tabulate([[row[c] for c in columns] for row in found], columns, tablefmt="github", disable_numparse=True)
    why = "on other images, or under another threat model, so no row above can be compared with one below"
    return f"The paper's Table {name.removeprefix('table')}, {why}:\n\n{table}\n"
