"""`piat evaluate`."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from piat_hub.cli.flags import Parser, add_fields, with_flags
from piat_hub.config import EvalConfig, InputError, duration

if TYPE_CHECKING:
    from piat_hub.evaluation.request import Evaluation
    from piat_hub.records.results import Results


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
        help="a run or model directory, a Hub id, hf-hub:ORG/NAME, or module:callable",
    )
    add_fields(parser, EvalConfig())
    given = vars(parser.parse_all(argv))
    models = given.pop("models")
    config = with_flags(EvalConfig(), given)
    if config.output and len(models) > 1:
        raise InputError("--output takes the results of one MODEL; leave it out, or evaluate one at a time")

    from piat_hub.evaluation import request
    from piat_hub.records.results import result_files

    # every request is checked before the first one runs
    ends = time.monotonic() + duration(config.time_budget) if config.time_budget else math.inf
    prepared = [request.prepare_evaluation(model, config) for model in models]
    main = prepared[0].processes.rank == 0
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(sys.stdout if main else nowhere):
        finished = [_evaluate_one(model, one, ends) for model, one in zip(models, prepared, strict=True)]
        if len(finished) > 1:
            print(_comparison(finished))
        for done in finished:
            results, verdicts = result_files(done.directory, done.results.checkpoint)
            print(f"results  {results}\nverdicts {verdicts}")
            for what, name in (("card    ", "README.md"), ("curves  ", "curves.png"), ("sweep   ", "sweep.png")):
                if (done.directory / name).exists():
                    print(what, done.directory / name)


def _evaluate_one(model: str, done: Evaluation, ends: float) -> Evaluation:
    from tabulate import tabulate
    from tqdm import tqdm

    from piat_hub.evaluation.loop import trained_against
    from piat_hub.records.labels import HEADERS, percent, rows, said

    config, quiet = done.config, None if done.processes.rank == 0 else True
    bar: tqdm[NoReturn] = tqdm(unit="image", disable=quiet, desc=model)
    attack, at_a_time = "", done.batch_size
    try:
        for event in done.measure(ends):
            if event.at_a_time < at_a_time:
                at_a_time = event.at_a_time
                bar.write(f"{model}: the device's memory is short; {at_a_time} images at a time from here on")
            if attack != event.attack:
                attack = event.attack
                bar.reset(event.total)
                bar.set_description(f"{model} {attack}", refresh=False)
            bar.set_postfix_str(f"at most {percent(event.standing / event.n)}", refresh=False)
            bar.update(event.done - bar.n)
    finally:
        bar.close()
    results = done.results
    assumed = " (eps not given)" if config.eps is None and trained_against(done.model) is None else ""
    images = f"{results.n} images of {results.dataset} ({results.split}), {results.checkpoint}"
    print(f"\n{model}: {results.threat_model}{assumed}, {images}")
    print(tabulate(rows(results), HEADERS, disable_numparse=True))
    for sentence in said(results):
        print(f"note: {sentence}")
    if config.n and (missing := _missing_of_sorted(results)):
        print(
            f"warning: these images are sorted by class and hold none of {missing}; leave out --n, or shuffle the data"
        )
    if config.per_class:
        print("\n" + _class_table(results))
    if unfinished := [a for a in config.attacks if a not in results.attacks]:
        now = results.running
        where = f"{now.attack} is under way, at most {percent(now.standing.mean())} stand; " if now else ""
        rest = ", ".join(a for a in unfinished if not now or a != now.attack)
        rest = f"not begun: {rest}; " if rest else ""
        print(f"the time budget of {config.time_budget} is spent: {where}{rest}go on with --resume")
        return done
    if config.sweep_eps:
        _sweep(done)
    if config.checks:
        _checks(done)
    return done


def _missing_of_sorted(results: Results) -> str:
    """The classes that images in the order of their classes lack, as the first n of a folder may; "" for others."""
    labels = results.labels
    if len(labels) < 10 or (labels[1:] < labels[:-1]).any():
        return ""
    missing = [name for k, name in enumerate(results.label_names) if k not in labels]
    return ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")


def _class_table(results: Results) -> str:
    from tabulate import tabulate

    from piat_hub.records.labels import attack_name, percent

    classes = results.per_class
    table = [
        [name, *("-" if (share := accuracies[k]) is None else percent(share) for accuracies in classes.values())]
        for k, name in enumerate(results.label_names)
    ]
    return tabulate(table, ["class", *map(attack_name, classes)], disable_numparse=True)


def _sweep(done: Evaluation) -> None:
    """Measure, print and draw accuracy against eps."""
    from tabulate import tabulate

    from piat_hub.figures import plots
    from piat_hub.figures.style import save
    from piat_hub.records.labels import attack_name, percent

    points = list(done.sweep())
    attacks = list(dict.fromkeys(a for point in points for a in point["attacks"]))
    table = [[p["eps"], *(percent(p["attacks"][a]["accuracy"]) for a in attacks)] for p in points]
    print("\n" + tabulate(table, ["eps", *map(attack_name, attacks)], disable_numparse=True))
    if done.processes.rank == 0:
        save(plots.sweep(done.results.sweep, title=done.name), done.directory / "sweep.png")


def _checks(done: Evaluation) -> None:
    """Run the honesty checks and print each as it is found."""
    print("\ncan the figures be believed?")
    for result in done.check():
        print(f"  {'passes ' if result['passed'] else 'WARNING'} {result['check']}: {result['found']}")


def _comparison(finished: Sequence[Evaluation]) -> str:
    from tabulate import tabulate

    from piat_hub.records.labels import attack_name, percent

    attacks = list(dict.fromkeys(a for done in finished for a in done.results.attacks))
    table = [
        [d.name, *(percent(d.results.attacks[a]["accuracy"]) if a in d.results.attacks else "" for a in attacks)]
        for d in finished
    ]
    return "\n" + tabulate(table, ["model", *map(attack_name, attacks)], disable_numparse=True)
