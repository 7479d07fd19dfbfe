"""`piat evaluate`."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from piat_hub.cli.flags import Parser, add_fields, with_flags
from piat_hub.config import SEVERITIES, EvalConfig, InputError, duration, pixels, shortened
from piat_hub.records.corruptions import Corruptions
from piat_hub.records.labels import (
    CORRUPTION_HEADERS,
    HEADERS,
    UNION_HEADERS,
    accuracies,
    by_attack,
    corruption_rows,
    percent,
    rows,
    said,
    table,
    union_rows,
)
from piat_hub.records.results import result_files
from piat_hub.records.union import Union

if TYPE_CHECKING:
    from piat_hub.evaluation.loop import Progress
    from piat_hub.evaluation.request import Evaluation


def evaluate(argv: Sequence[str], prog: str) -> None:
    """`evaluate.py MODEL [MODEL…] [flags]`."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} MODEL [MODEL …] [flags]",
        description="Measure clean and robust accuracy.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a run or model directory, a Hub id, hf-hub:ORG/NAME, local-dir:DIRECTORY, or module:callable",
    )
    add_fields(parser, EvalConfig())
    given = vars(parser.parse_all(argv))
    models = given.pop("models")
    config = with_flags(EvalConfig(), given)
    if config.output and len(models) > 1:
        raise InputError("--output takes the results of one MODEL; leave it out, or evaluate one at a time")

    from piat_hub import machine
    from piat_hub.evaluation import request

    # every request is checked before the first one runs
    ends = time.monotonic() + duration(config.time_budget) if config.time_budget else math.inf
    prepared = [(model, one) for model in models for one in request.prepare(model, config)]
    places = [one.directory.resolve() for _, one in prepared]
    if twice := [str(one.directory) for k, (_, one) in enumerate(prepared) if places[k] in places[:k]]:
        raise InputError(f"two of these would write to {twice[0]}; evaluate them one at a time, with an --output each")
    main = prepared[0][1].processes.rank == 0
    slow = machine.bf16_warning(machine.device_of(prepared[0][1].model)) if config.search_precision == "bf16" else ""
    if main and slow:
        print(slow)
    with contextlib.ExitStack() as held, Path(os.devnull).open("w") as nowhere:
        for _, one in prepared:
            held.enter_context(one.writing())
        held.enter_context(contextlib.redirect_stdout(sys.stdout if main else nowhere))
        finished = [_evaluate_one(model, one, ends) for model, one in prepared]
        if len(models) > 1:
            each = [(done.name, done.results) for done in finished]
            several = [f"{name}, {results.threat_model}" if config.threat_models else name for name, results in each]
            cells = [accuracies(results.attacks) for _, results in each]
            print("\n" + by_attack("model", list(zip(several, cells, strict=True))))
        if config.threat_models:
            for output, parts in itertools.groupby(finished, lambda done: done.output):
                _unite(output, list(parts))
        for done in finished:
            results, verdicts = result_files(done.directory, done.results.checkpoint)
            print(f"results  {results}\nverdicts {verdicts}")
            for what, path, written in (
                ("card    ", done.output / "README.md", done.of_run),
                ("curves  ", done.output / "curves.png", done.of_run),
                ("sweep   ", done.directory / "sweep.png", bool(done.results.sweep)),
                ("figure  ", done.output / "corruptions.png", bool(done.results.corruptions)),
            ):
                if written and path.exists():
                    print(what, path)


def follow(events: Iterable[Progress], model: str, at_a_time: int, *, quiet: bool = False) -> None:
    """Let a measurement go on, with a bar on a terminal that shows how far it is.

    Args:
        events: of the measurement.
        model: what it is called.
        at_a_time: images of a batch; where the device's memory takes fewer, that is said.
        quiet: show nothing.
    """
    attack = ""
    with tqdm(unit="image", disable=quiet or None, desc=model) as bar:
        for event in events:
            if event.at_a_time < at_a_time:
                at_a_time = event.at_a_time
                bar.write(f"{model}: the device's memory is short; {at_a_time} images at a time from here on")
            if attack != event.attack:
                attack = event.attack
                bar.reset(event.total)
                bar.set_description(f"{model} {attack}", refresh=False)
            bar.set_postfix_str(f"at most {percent(event.standing / event.n)}", refresh=False)
            bar.update(event.done - bar.n)


def _evaluate_one(model: str, done: Evaluation, ends: float) -> Evaluation:
    from piat_hub.evaluation.loop import trained_against

    config = done.config
    follow(done.measure(ends), model, done.batch_size, quiet=done.processes.rank != 0)
    results = done.results
    assumed = " (eps not given)" if config.eps is None and trained_against(done.model) is None else ""
    images = f"{results.n} images of {results.dataset} ({results.split}), {results.checkpoint}"
    print(f"\n{model}: {results.threat_model}{assumed}, {images}")
    print(table(rows(results), HEADERS))
    for sentence in said(results):
        print(f"note: {sentence}")
    if config.per_class:
        shares = {a: ["-" if s is None else percent(s) for s in each] for a, each in results.per_class.items()}
        classes = [(name, {a: each[k] for a, each in shares.items()}) for k, name in enumerate(results.label_names)]
        print("\n" + by_attack("class", classes))
    if unfinished := [a for a in config.attacks if a not in results.attacks]:
        now = results.running
        where = f"{now.attack} is under way, at most {percent(now.standing.mean())} stand; " if now else ""
        rest = ", ".join(a for a in unfinished if not now or a != now.attack)
        rest = f"not begun: {rest}; " if rest else ""
        print(f"the time budget of {config.time_budget} is spent: {where}{rest}go on with --resume")
        return done
    if config.corruptions and not _corruptions(model, done, ends):
        return done
    if (config.sweep_eps or results.reach.keys() & set(config.attacks)) and not _sweep(done, ends):
        return done
    if config.checks and not done.on_time(ends):
        print(f"the time budget of {config.time_budget} is spent: no check is begun; the same command goes on")
    elif config.checks:
        _checks(done)
    return done


def _unite(output: Path, parts: list[Evaluation]) -> None:
    """Write and print the union of one model's threat models, once all of it is measured."""
    if any(set(done.config.attacks) - set(done.results.attacks) for done in parts):
        return
    union = Union.of([done.results for done in parts])
    print(f"\n{parts[0].name}: the union of its threat models, an image standing where it withstands the worst of all")
    print(table(union_rows(union), UNION_HEADERS))
    if parts[0].processes.rank == 0:
        print(f"union    {union.save(output)}")
        parts[0].write_card()


def _corruptions(model: str, done: Evaluation, ends: float) -> bool:
    """Measure, print and draw accuracy under each corruption and severity; whether the time was enough for all of them."""
    from piat_hub.data import Corrupted
    from piat_hub.figures import breadth
    from piat_hub.figures.style import save

    images, known = Corrupted.open(str(done.config.corruptions), done.config.n), list(done.results.notes)
    with tqdm(unit="severity", total=SEVERITIES * len(images.images), disable=done.processes.rank != 0 or None) as bar:
        for event in done.corruptions(ends):
            bar.set_description(f"{model} {event.attack}", refresh=False)
            bar.update()
    found = done.results.corrupted or Corruptions(images.name, images.n)
    print(f"\n{model}: {images.n} images of {images.name} at each severity, {done.results.checkpoint}")
    print(table(corruption_rows(found.to_dict()), CORRUPTION_HEADERS))
    if left := [name for name in images.images if name not in found.whole]:
        print(
            f"the time budget of {done.config.time_budget} is spent: {shortened(left)} not done; the same command goes on"
        )
        return False
    for sentence in done.results.notes[len(known) :]:
        print(f"note: {sentence}")
    if images.missing:
        print(f"note: a mean is over the 15 common corruptions, and {images.name} lacks {images.missing}")
    if done.processes.rank == 0 and done.results.corruptions["mean"]:
        save(breadth.corruptions({done.name: done.results.corruptions}), done.output / "corruptions.png")
    return True


def _sweep(done: Evaluation, ends: float) -> bool:
    """Measure, print and draw accuracy against eps; whether the time was enough for every budget."""
    from piat_hub.figures import plots
    from piat_hub.figures.style import save

    deque(done.sweep(ends), maxlen=0)
    print("\n" + by_attack("eps", [(point["eps"], accuracies(point["attacks"])) for point in done.results.sweep]))
    if done.processes.rank == 0:
        save(plots.sweep(done.results.sweep, title=done.name), done.directory / "sweep.png")
    if left := [pixels(eps, done.results.threat_model.norm) for eps in done.config.sweep_eps if not done.swept(eps)]:
        print(
            f"the time budget of {done.config.time_budget} is spent: eps {', '.join(left)} not done; the same command goes on"
        )
    return not left


def _checks(done: Evaluation) -> None:
    """Run the honesty checks and print each as it is found."""
    print("\ncan the figures be believed?")
    for result in done.check():
        print(f"  {'passes ' if result['passed'] else 'WARNING'} {result['check']}: {result['found']}")
