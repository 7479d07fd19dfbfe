"""The command line: argv in, lines out. Every flag is read off a configuration dataclass."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from piat_hub import recipes
from piat_hub.config import (
    WEIGHTS,
    Broken,
    Diverged,
    EvalConfig,
    InputError,
    PushOptions,
    RunOptions,
    StudyOptions,
    TrainConfig,
    choices,
    duration,
    lookup,
    nearest,
    number,
    scalar_type,
    show,
)

if TYPE_CHECKING:
    from piat_hub import request
    from piat_hub.gallery import Drawn
    from piat_hub.records import Run
    from piat_hub.results import Results
    from piat_hub.study import Done, Member


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line with the nearest known flag."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse, and refuse what is left over with the nearest flag's name."""
        values, extra = self.parse_known_args(argv)
        if extra:
            flag = extra[0].split("=")[0]
            family, dot, _ = flag.rpartition(".")  # of --method.FIELD
            known = [name for name in self._option_string_actions if name.startswith(family + dot)]
            there = (
                f"; there is {', '.join(known)}"
                if dot and known
                else nearest(flag, known or self._option_string_actions)
            )
            raise InputError(f"unknown argument {flag!r}{there}; see {self.prog} --help")
        return values


def add_fields(parser: argparse.ArgumentParser, config: Any, prefix: str = "") -> None:
    """A flag for every field of a dataclass instance, its values as defaults; nested dataclasses by their prefix."""
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value, kind = getattr(config, f.name), scalar_type(hints[f.name])
        if dataclasses.is_dataclass(value):
            add_fields(parser, value, f.metadata.get("prefix", ""))
            continue
        flag = f.metadata.get("flag", "")
        if flag is None:
            continue
        name = f"--{flag or prefix + f.name.replace('_', '-')}"
        doc = f.metadata.get("doc", "") + (f" [{f.metadata['unit']}]" if f.metadata.get("unit") else "")
        doc += "" if value in (None, "", ()) else f" (default: {show(f, value)})"
        common: dict[str, Any] = {"dest": prefix + f.name, "default": argparse.SUPPRESS, "help": doc.replace("%", "%%")}
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction if value else "store_true", **common)
            continue
        if typing.get_origin(kind) is tuple:
            kind, common = typing.get_args(kind)[0], common | {"nargs": "+"}
        names = choices(hints[f.name])
        metavar = "{" + ",".join(names) + "}" if names else kind.__name__.upper()
        parser.add_argument(name, type=fraction if kind is float else kind, metavar=metavar, **common)


def fraction(text: str) -> float:
    """`number`, with its own message kept by argparse."""
    try:
        return number(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def with_flags(config: Any, given: dict[str, Any], prefix: str = "") -> Any:
    """The dataclass with the flags that were given; nested ones likewise. Validates by construction."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            changes[f.name] = with_flags(value, given, f.metadata.get("prefix", ""))
        elif prefix + f.name in given:
            found = given[prefix + f.name]
            changes[f.name] = tuple(found) if isinstance(found, list) else found
    return dataclasses.replace(config, **changes)


def train(argv: Sequence[str], prog: str) -> None:
    """`train.py [RECIPE] [flags]`."""
    name = argv[0] if argv and not argv[0].startswith("-") else "digits"
    config = recipes.get(name)
    first = Parser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--method", default=config.method)
    chosen = first.parse_known_args(argv)[0].method

    from piat_hub import methods

    method = methods.get(chosen)
    parser = Parser(
        prog=prog,
        usage=f"{prog} [RECIPE] [flags]",
        allow_abbrev=False,
        description=f"{_recipe_help()}\n\nMethods: {', '.join(methods.names())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipe", nargs="?", default="digits", metavar="RECIPE", help="a recipe's name (default: digits)"
    )
    add_fields(parser.add_argument_group(f"what is learnt (defaults of {name})"), config)  # type: ignore[arg-type]
    add_fields(parser.add_argument_group(f"fields of method {chosen}"), method(), "method.")  # type: ignore[arg-type]
    add_fields(parser.add_argument_group("where and how it runs"), RunOptions())  # type: ignore[arg-type]
    given = vars(parser.parse_all(argv))
    if given["recipe"] != name:
        raise InputError(f"the recipe comes first: {prog} {given['recipe']} …")
    arguments = {k.removeprefix("method."): v for k, v in given.items() if k.startswith("method.")}
    inherited = config.method_args if chosen == config.method else {}
    config = with_flags(dataclasses.replace(config, method_args={**inherited, **arguments}), given)
    run_training(config, with_flags(RunOptions(), given))


def run_training(config: TrainConfig, options: RunOptions) -> None:
    """Train with a progress bar and a line per epoch; both on rank 0 only. Raises Stopped after Ctrl-C or SIGTERM."""
    from tqdm import tqdm

    from piat_hub import card, engine, figures, files, hub, run
    from piat_hub.card import percent

    main = os.environ.get("RANK", "0") == "0"
    directory = run.output_directory(config, options)
    if options.push_to_hub:
        hub.check_push(options.push_to_hub)
    bar: tqdm[NoReturn] = tqdm(unit="image", unit_scale=True, disable=None if main else True, desc=card.title(config))
    shown: dict[str, str] = {}
    worked = False
    with bar, _noting_signals() as noted:
        for event in run.train(config, options, lambda: bool(noted)):
            if isinstance(event, run.Stopped):
                raise Stopped(
                    f"after epoch {event.epochs} and {event.steps} steps of the next; all of it is saved: {GO_ON}"
                )
            if isinstance(event, run.Notice):
                if main:
                    bar.write(event.text)
                continue
            worked = True
            if isinstance(event, engine.Step):
                images = ((event.epoch - 1) * event.steps + event.step) * event.images
                if bar.total is None:
                    bar.total, bar.initial, bar.n = config.epochs * event.steps * event.images, images, images
                bar.set_postfix({"epoch": event.epoch} | shown | {"loss": f"{event.loss:.3f}"}, refresh=False)
                bar.update(images - bar.n)
                continue
            m, t = event.metrics, event.timing
            shown = {"loss": f"{m['train_loss']:.3f}", "lam": f"{m['lam']:.3f}"}
            if m["holdout_pgd10_acc"] is not None:
                shown |= {"held-out clean": percent(m["holdout_clean_acc"]), "PGD-10": percent(m["holdout_pgd10_acc"])}
            line = ", ".join(f"{k} {v}" for k, v in shown.items())
            if main:
                bar.write(f"epoch {m['epoch']}/{config.epochs}: {line}, {t['images_per_second']:.0f} images/s")
    if main:
        if not worked:
            print(f"nothing left to do: all {config.epochs} epochs are done")
        figures.save(figures.curves(files.read_metrics(directory), title=card.title(config)), directory / "curves.png")
        print(
            f"weights {directory / WEIGHTS['last']}\ncurves  {directory / 'curves.png'}\ncard    {card.write(directory)}"
        )
        if options.push_to_hub:
            try:
                _push(directory, options.push_to_hub, options.push)
            except InputError as error:
                again = f"piat push {directory} {options.push_to_hub}"
                raise InputError(f"{error} (the run is whole in {directory}; to push it: {again})") from error


def _push(run: Path, repo_id: str, options: PushOptions) -> None:
    from piat_hub import hub

    pushed = hub.push_to_hub(run, repo_id, **dataclasses.asdict(options))
    print(f"{'pushed ' if pushed.changed else 'nothing new at'} {pushed.url}")


def evaluate(argv: Sequence[str], prog: str) -> None:
    """`evaluate.py MODEL [MODEL…] [flags]`."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} MODEL [MODEL …] [flags]",
        allow_abbrev=False,
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

    from piat_hub import request
    from piat_hub.results import result_files

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


def _evaluate_one(model: str, done: request.Evaluation, ends: float) -> request.Evaluation:
    from tabulate import tabulate
    from tqdm import tqdm

    from piat_hub.card import HEADERS, percent, rows
    from piat_hub.evaluation import trained_against

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
    print(tabulate(rows(results.to_dict()), HEADERS, disable_numparse=True))
    for name, figures in results.attacks.items():
        if "changed" in figures:
            print(f"{name} differs from AutoAttack's standard version: {figures['changed']}")
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

    from piat_hub.card import attack_name, percent

    classes = results.to_dict()["per_class"]
    names = classes.pop("label_names")
    table = [
        [name, *("-" if a[k] is None else percent(a[k]) for a in classes.values())] for k, name in enumerate(names)
    ]
    return tabulate(table, ["class", *map(attack_name, classes)], disable_numparse=True)


def _sweep(done: request.Evaluation) -> None:
    """Measure, print and draw accuracy against eps."""
    from tabulate import tabulate

    from piat_hub import figures
    from piat_hub.card import attack_name, percent

    points = list(done.sweep())
    attacks = list(dict.fromkeys(a for point in points for a in point["attacks"]))
    table = [[p["eps"], *(percent(p["attacks"][a]["accuracy"]) for a in attacks)] for p in points]
    print("\n" + tabulate(table, ["eps", *map(attack_name, attacks)], disable_numparse=True))
    if done.processes.rank == 0:
        figures.save(figures.sweep(done.results.sweep, title=done.name), done.directory / "sweep.png")


def _checks(done: request.Evaluation) -> None:
    """Run the honesty checks and print each as it is found."""
    print("\ncan the figures be believed?")
    for result in done.check():
        print(f"  {'passes ' if result['passed'] else 'WARNING'} {result['check']}: {result['found']}")


def _comparison(finished: Sequence[request.Evaluation]) -> str:
    from tabulate import tabulate

    from piat_hub.card import attack_name, percent

    attacks = list(dict.fromkeys(a for done in finished for a in done.results.attacks))
    table = [
        [d.name, *(percent(d.results.attacks[a]["accuracy"]) if a in d.results.attacks else "" for a in attacks)]
        for d in finished
    ]
    return "\n" + tabulate(table, ["model", *map(attack_name, attacks)], disable_numparse=True)


def card(argv: Sequence[str], prog: str) -> None:
    """`piat card RUN`: write the card anew from what is measured."""
    parser = Parser(prog=prog, allow_abbrev=False, description="Write RUN/README.md from config.json and results.json.")
    parser.add_argument("run", metavar="RUN", help="a run directory")

    from piat_hub import card as cards

    print(cards.write(Path(parser.parse_all(argv).run)))


def push(argv: Sequence[str], prog: str) -> None:
    """`piat push RUN ORG/NAME`: publish a run on the Hub, in one commit."""
    parser = Parser(prog=prog, allow_abbrev=False, description="Publish weights, card and results on the Hub.")
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("name", metavar="ORG/NAME", help="a model repository, made if there is none")
    add_fields(parser, PushOptions())
    given = vars(parser.parse_all(argv))
    _push(Path(given["run"]), given["name"], with_flags(PushOptions(), given))


def export(argv: Sequence[str], prog: str) -> None:
    """`piat export MODEL`: model.pt2 for torch alone, model.onnx."""
    description = "Write the model for where there is no piat_hub: model.pt2 (torch.export) and model.onnx."
    parser = Parser(prog=prog, allow_abbrev=False, description=description)
    parser.add_argument("model", metavar="MODEL", help="a run or model directory, or a Hub id")
    formats = ["pt2", "onnx"]
    parser.add_argument("--formats", nargs="+", choices=formats, default=formats)
    parser.add_argument("--checkpoint", choices=list(WEIGHTS), default="last")
    parser.add_argument("--output", help="the directory to write to (default: MODEL, where that is one)")
    given = parser.parse_all(argv)

    from piat_hub import export as exports
    from piat_hub import hub, run

    directory = given.output or (given.model if Path(given.model).is_dir() else given.model.replace("/", "-"))
    run.check_output(Path(directory))
    model, name = hub.from_pretrained(given.model, checkpoint=given.checkpoint), Path(WEIGHTS[given.checkpoint]).stem
    for path in exports.export(model, Path(directory), given.formats, name):
        print(path)


def import_checkpoint(argv: Sequence[str], prog: str) -> None:
    """`piat import FILE --layout LAYOUT`: another project's checkpoint as a model directory."""
    description = "Convert a checkpoint of RobustBench's zoo to config.json and safetensors; only tensors are read."
    parser = Parser(prog=prog, allow_abbrev=False, description=description)
    parser.add_argument("file", metavar="FILE", help="the checkpoint")
    parser.add_argument(
        "--layout", required=True, help="whose model it is: robustbench-wrn, …; an unknown name lists them"
    )
    numbers: dict[str, Any] = {"nargs": "+", "type": fraction, "default": (), "metavar": "FLOAT"}
    parser.add_argument("--mean", help="of the normalisation that belongs to it, where the file lacks it", **numbers)
    parser.add_argument("--std", help="the same, one number per channel", **numbers)
    parser.add_argument("--output", help="the directory to write (default: runs/FILE's name)")
    given = parser.parse_all(argv)

    from piat_hub import layouts, run

    output = Path(given.output or Path("runs") / Path(given.file).stem)
    run.check_output(output)
    print(layouts.import_checkpoint(given.file, given.layout, output, mean=tuple(given.mean), std=tuple(given.std)))


def robustbench(argv: Sequence[str], prog: str) -> None:
    """`piat robustbench RUN`: the files of a submission to RobustBench."""
    description = "Check a run as RobustBench would, and write what a submission needs."
    parser = Parser(prog=prog, allow_abbrev=False, description=description)
    parser.add_argument("run", metavar="RUN", help="a run directory with clean and aa measured on all test images")
    parser.add_argument("--authors", required=True, help="of the paper: 'Kun He, Xin Liu'")
    parser.add_argument("--venue", required=True, help="with its year: 'ICML 2023'")
    parser.add_argument("--link", required=True, help="the paper's address")
    parser.add_argument("--title", default=None, help="the paper's title (default: PIAT's)")
    parser.add_argument("--model", metavar="ORG/NAME", help="the Hub repository that holds the weights")
    parser.add_argument("--dataset", help="where the test images lie (default: the data the model was trained for)")
    parser.add_argument("--checkpoint", choices=list(WEIGHTS), default="last")
    parser.add_argument("--draft", action="store_true", help="write the files although RobustBench would refuse")
    parser.add_argument("--output", help="the directory to write to (default: RUN/robustbench)")
    given = parser.parse_all(argv)

    from piat_hub import leaderboard, run

    paper = leaderboard.Paper(given.authors, given.venue, given.link, given.title or leaderboard.TITLE)
    output = Path(given.output or Path(given.run) / "robustbench")
    run.check_output(output)
    options = {"checkpoint": given.checkpoint, "draft": given.draft, "dataset": given.dataset, "repo_id": given.model}
    for path in leaderboard.submit(given.run, paper, output, **options):
        print(path)


def list_known(argv: Sequence[str], prog: str) -> None:
    """`piat list`: models with their robust accuracy, recipes, methods and backbones."""
    description = "List trained models (published, and those in model_cards/), recipes, methods and backbones."
    Parser(prog=prog, allow_abbrev=False, description=description).parse_all(argv)

    import timm
    from tabulate import tabulate

    from piat_hub import hub, methods
    from piat_hub.card import percent

    models = hub.list_pretrained()
    accuracies = ("clean_acc", "pgd20_acc", "aa_acc")
    table = [
        [m["model"], m["architecture"], m["dataset"], m["method"]]
        + ["{norm} {eps}".format(**m["threat_model"]) if m["threat_model"] else "not measured"]
        + [f"{percent(m[a])} of {m['n'][a.removesuffix('_acc')]}" if a in m else "" for a in accuracies]
        for m in models
        if "problem" not in m
    ]
    headers = ("model", "architecture", "data", "method", "threat model", "clean", "PGD-20", "AutoAttack")
    print(
        tabulate(table, headers, disable_numparse=True)
        if table
        else "no model is published yet, and none lies in model_cards/"
    )
    for m in models:
        if "problem" in m:
            print(f"{m['model']}: {m['problem']}")
    print(f"\n{_recipe_help()}")
    print(
        f"\nmethods: {', '.join(methods.names())}\nbackbones: {', '.join(timm.list_models('cifar_*'))}, and timm's own"
    )


def compare(argv: Sequence[str], prog: str) -> None:
    """`piat compare A B`: pair two evaluated models on the same images."""
    parser = Parser(prog=prog, allow_abbrev=False, description="Pair two evaluated directories image by image.")
    parser.add_argument("a", metavar="A", help="a directory with results.json and verdicts.npz")
    parser.add_argument("b", metavar="B", help="another, of the same images and threat model")
    parser.add_argument("--checkpoint", choices=list(WEIGHTS), default="last")
    given = parser.parse_all(argv)

    from tabulate import tabulate

    from piat_hub import results
    from piat_hub.card import attack_name, percent

    table = [
        [
            attack_name(p.attack),
            percent(p.accuracy_a),
            percent(p.accuracy_b),
            f"{100 * p.difference:+.2f}",
            " to ".join(f"{100 * end:+.2f}" for end in p.ci95),
            f"{p.only_a} / {p.only_b}",
            f"{p.p_value:.3g}",
        ]
        for p in results.compare(Path(given.a), Path(given.b), given.checkpoint)
    ]
    headers = ["attack", "A", "B", "B - A, points", "95 % interval", "only A / only B stands", "McNemar's p"]
    print(f"A {given.a}\nB {given.b}\n\n{tabulate(table, headers, disable_numparse=True)}")


def predict(argv: Sequence[str], prog: str) -> None:
    """`piat predict MODEL IMAGE…`: class names and probabilities."""
    parser = Parser(prog=prog, allow_abbrev=False, description="Classify image files.")
    parser.add_argument("model", metavar="MODEL", help="as in evaluate")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, resized to what the model takes")
    parser.add_argument("--checkpoint", choices=list(WEIGHTS), default="last")
    parser.add_argument("--top", type=int, default=3, help="classes to show (default: 3)")
    given = parser.parse_all(argv)
    if given.top < 1:
        raise InputError(f"--top must be at least 1, got {given.top}; leave it out for the likeliest three")

    from piat_hub import request
    from piat_hub.card import percent

    for image, classes in request.predict(given.model, given.images, given.checkpoint):
        print(f"{image}: " + ", ".join(f"{name} {percent(p)}" for name, p in classes[: given.top]))


def study(argv: Sequence[str], prog: str) -> None:
    """`piat study NAME [RECIPE]`: one of the paper's comparisons as a sweep, with a table at its end."""
    from piat_hub import study as studies

    description = "\n".join(f"  {n:12} {(f.__doc__ or '').splitlines()[0]}" for n, f in studies.STUDIES.items())
    parser = Parser(
        prog=prog,
        usage=f"{prog} NAME [RECIPE] [flags]",
        allow_abbrev=False,
        description=f"Studies:\n{description}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a study")
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="digits, or for a table the paper's, unless named")
    add_fields(parser.add_argument_group("the sweep"), StudyOptions())  # type: ignore[arg-type]
    known = studies.default_recipes(argv[0])[0] if argv and argv[0] in studies.STUDIES else "digits"
    named = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else known
    shared = parser.add_argument_group(f"what all its members share (defaults of {named})")
    add_fields(shared, recipes.get(named))  # type: ignore[arg-type]
    given = vars(parser.parse_all(argv))
    name, options = given["name"], with_flags(StudyOptions(), given)
    lookup("study", name, studies.STUDIES)
    recipe = given.pop("recipe")
    chosen = [recipe] if recipe else studies.default_recipes(name)
    attacks = options.attacks or studies.default_attacks(name)
    bases = [with_flags(recipes.get(r), given) for r in chosen]
    members = studies.members(name, bases, attacks, options)
    failed = _run_sweep(name, members, attacks, options)
    rows = studies.rows(name, members, attacks, failed)
    table = studies.write(studies.output(bases, options), name, rows, attacks, failed)
    print(f"\n{table.read_text(encoding='utf-8')}\ntable    {table}\nrows     {table.with_suffix('.json')}")


def _run_sweep(name: str, members: Sequence[Member], attacks: Sequence[str], options: StudyOptions) -> list[Done]:
    """Run a sweep with a bar of its epochs; returns the members that failed. Raises Broken if all did."""
    from tqdm import tqdm

    from piat_hub import study as studies

    total, failed = sum(member.config.epochs for member in members), list[studies.Done]()
    events = studies.sweep(members, attacks, options)
    with tqdm(total=total, unit="epoch", desc=name, disable=None) as bar, _noting_signals() as noted:
        bar.update(sum(member.epochs for member in members))
        with contextlib.closing(events):
            for turn, done in enumerate(events):
                if noted:
                    events.close()
                    raise Stopped("every member is saved: go on with the same command")
                if isinstance(done, studies.Busy):
                    bar.write(
                        f"{done.member.directory}: another process is at work on it; its turn comes when that ends"
                    )
                elif done and done.failed:
                    failed.append(done)
                    bar.write(f"{done.member.directory} failed: {done.failed} (all of it: {done.member.log})")
                elif done:
                    bar.write(f"{done.member.directory} is done")
                if turn % 10 == 0:
                    bar.update(sum(member.epochs for member in members) - bar.n)
        bar.update(total - bar.n)
    if len(failed) == len(members):
        raise Broken(f"every member of the study failed; see {members[0].log}")
    return failed


def figures(argv: Sequence[str], prog: str) -> None:
    """`piat figures RUN…`: draw what the runs recorded, as SVG and PNG."""
    from piat_hub import figures as drawing
    from piat_hub import records, run

    parser = Parser(
        prog=prog, allow_abbrev=False, description="Draw every figure that these runs allow, as SVG and PNG."
    )
    given, runs = _drawing(parser, argv, "figures", "the directory to write to", run.check_output)
    output, several = Path(given.output), len(records.benchmarks(runs)) > 1
    output.mkdir(parents=True, exist_ok=True)
    for place, drawn in _gallery(runs, given):
        if drawn.figure is None:
            print(f"{drawn.name}: not drawn: {drawn.why}")
            continue
        where = output / re.sub(r"[^\w.-]+", "-", place) if several else output
        where.mkdir(exist_ok=True)
        for suffix in ("svg", "png"):
            drawing.save(drawn.figure, where / f"{drawn.name}.{suffix}")
        print(f"{where / drawn.name}.svg, .png")


def report(argv: Sequence[str], prog: str) -> None:
    """`piat report RUN…`: one self-contained page of tables, figures and checks."""
    from piat_hub import report as page
    from piat_hub import run

    parser = Parser(prog=prog, allow_abbrev=False, description="Write one self-contained HTML page about these runs.")

    def check(output: Path) -> None:
        run.check_output(output.parent)
        if output.is_dir():
            raise InputError(f"{output} is a directory; name a file with --output")

    given, runs = _drawing(parser, argv, "report.html", "the file to write", check)
    output, drawn = Path(given.output), dict[str, list[Any]]()
    for place, one in _gallery(runs, given):
        drawn.setdefault(place, []).append(one)
    output.parent.mkdir(parents=True, exist_ok=True)
    page.write(output, runs, drawn)
    print(f"report   {output}")


def _drawing(
    parser: Parser, argv: Sequence[str], default: str, what: str, check: Callable[[Path], None]
) -> tuple[argparse.Namespace, list[Run]]:
    """What figures and report share: their flags, the output once it is checked, and the runs, read."""
    from piat_hub import gallery, records, run

    runs_help = "run directories; one or two of a kind also give landscape and images"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=runs_help)
    parser.add_argument("--output", default=default, help=f"{what} (default: {default})")
    parser.add_argument(
        "--only", nargs="+", choices=gallery.NAMES, default=gallery.NAMES, help="leave out other figures"
    )
    filterwise = "scale the landscape's directions filter by filter (Li et al. 2018)"
    parser.add_argument("--filterwise", action="store_true", help=filterwise)
    parser.add_argument("--dataset", help="where the test images lie (default: the data the model was trained for)")
    parser.add_argument("--threads", type=int, default=argparse.SUPPRESS, help="CPU threads (default: all cores)")
    given = parser.parse_all(argv)
    check(Path(given.output))
    run.set_threads(RunOptions(threads=vars(given).get("threads")).threads)
    once = {Path(one).resolve(): one for one in reversed(given.runs)}  # a run named twice is one run
    return given, [records.read(one) for one in reversed(once.values())]


def _gallery(runs: Sequence[Run], given: argparse.Namespace) -> Iterator[tuple[str, Drawn]]:
    """(benchmark, figure) as they are drawn, with a bar while a landscape is measured."""
    from tqdm import tqdm

    from piat_hub import gallery, records

    with tqdm(unit="point", desc="landscape", disable=None) as bar:
        options = {"filterwise": given.filterwise, "dataset": given.dataset, "on_point": bar.update}
        for name, group in records.benchmarks(runs).items():
            bar.total = gallery.SETTINGS["points"] ** 2 * len(group)
            for drawn in gallery.draw(group, given.only, **options):
                yield name, drawn


COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "predict": predict,
    "card": card,
    "push": push,
    "export": export,
    "import": import_checkpoint,
    "robustbench": robustbench,
    "study": study,
    "figures": figures,
    "report": report,
    "list": list_known,
}


GO_ON = "go on with the same command and --resume"


class Stopped(KeyboardInterrupt):
    """The work ended early, by a signal, at a place from which it can go on."""


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted in a list, for the work to stop where it can be saved; again a second later, they interrupt.

    A launcher passes on a Ctrl-C that its processes have had from the terminal already.
    """
    noted: list[int] = []
    since = 0.0

    def note(number: int, _: Any) -> None:
        nonlocal since
        if noted and time.monotonic() - since > 1:
            raise KeyboardInterrupt
        noted.append(number)
        since = time.monotonic()

    with _handling({signal.SIGINT: note, signal.SIGTERM: note}):
        yield noted


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """These signal handlers inside the block, where Python allows it: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, _: Any) -> NoReturn:
    raise Stopped("")


def main(argv: Sequence[str] | None = None, prog: str = "piat", command: str | None = None) -> int:
    """Run a command; 0 when it worked, 2 for unusable input, 1 for a run that diverged or broke, 130 for Ctrl-C: one line each."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with _quiet_dependencies(), _handling({signal.SIGTERM: _terminate}):
        try:
            if command is None:
                if not argv or argv[0] in ("-h", "--help"):
                    print(
                        f"usage: {prog} {{{','.join(COMMANDS)}}} …\n\n"
                        + "\n".join(f"  {(f.__doc__ or '').splitlines()[0]}" for f in COMMANDS.values())
                    )
                    return 0 if argv else 2
                command, argv = argv[0], argv[1:]
                prog = f"{prog} {command}"
            lookup("command", command, COMMANDS)(argv, prog)
        except InputError as error:
            return _fail(prog, error, 2)
        except KeyboardInterrupt as stop:
            kept = f"what is finished is saved: {GO_ON}" if command in ("train", "evaluate") else "start it again"
            return _fail(prog, f"stopped, {str(stop) or kept}", 130)
        except BrokenPipeError:  # who reads our lines, as `head` does, has had enough of them
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except (Diverged, Broken, OSError) as error:
            return _fail(prog, error, 1)
        except RuntimeError as error:
            if not (said := _from_outside(error, command)):
                raise
            return _fail(prog, Broken(said), 1)
    return 0


def _from_outside(error: RuntimeError, command: str | None) -> str:
    """What torch says of a lost connection between processes, or of memory, in a few words; "" for any other error."""
    line, kind = next((line for line in str(error).splitlines() if line.strip()), ""), type(error).__name__
    said = re.sub(r"^\[\S*\] ", "", line).split(". ")[0]
    if "gloo" in line.lower() or kind.startswith("Dist"):  # NCCL's errors are of such types
        return f"another process has ended ({said}); what is finished is saved: {GO_ON}"
    if kind == "OutOfMemoryError":
        less = "take fewer or smaller images"
        if command == "train":
            less = (
                "--gradient-checkpointing, --accumulation, --mixed-precision bf16 or a smaller --batch-size needs less"
            )
        return f"the device's memory is used up ({said}); {less}"
    return ""


def _fail(prog: str, error: object, code: int) -> int:
    """Tell it once on every machine; what can happen to one of several processes alone, from each that it happens to."""
    rank, local = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    if local == "0" or isinstance(error, Broken | OSError):
        print(f"{prog}: error{f' (process {rank})' if rank != '0' else ''}: {error}", file=sys.stderr)
    return code


def _recipe_help() -> str:
    lines = [f"  {name:20} {(make.__doc__ or '').splitlines()[0]}" for name, make in recipes.RECIPES.items()]
    return "\n".join(["Recipes:", *lines])


@contextlib.contextmanager
def _quiet_dependencies() -> Iterator[None]:
    """Keep the libraries' notices off the user's screen; errors still come through."""
    import huggingface_hub

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("datasets", "huggingface_hub", "accelerate", "timm"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
            huggingface_hub.utils.disable_progress_bars()
        yield
