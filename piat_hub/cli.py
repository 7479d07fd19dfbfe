"""The command line: argv in, lines out. Every flag is read off a configuration dataclass."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
import typing
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from piat_hub import recipes
from piat_hub.config import (
    WEIGHTS,
    Diverged,
    EvalConfig,
    InputError,
    RunOptions,
    TrainConfig,
    choices,
    lookup,
    nearest,
    number,
    scalar_type,
    show,
)

if TYPE_CHECKING:
    from piat_hub import run


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line with the nearest known flag."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse, and refuse what is left over with the nearest flag's name."""
        values, extra = self.parse_known_args(argv)
        if extra:
            flag = extra[0].split("=")[0]
            raise InputError(
                f"unknown argument {flag!r}{nearest(flag, self._option_string_actions)}; see {self.prog} --help"
            )
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
        doc += "" if value is None or value == "" else f" (default: {show(f, value)})"
        common: dict[str, Any] = {"dest": prefix + f.name, "default": argparse.SUPPRESS, "help": doc.replace("%", "%%")}
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction if value else "store_true", **common)
            continue
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
            changes[f.name] = given[prefix + f.name]
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
    # a method that replays each batch gets that many times fewer epochs, as its authors compare it
    config = dataclasses.replace(config, epochs=max(2, config.epochs // getattr(method(), "replays", 1)))
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
    """Train with a progress bar and a line per epoch; both on rank 0 only."""
    from tqdm import tqdm

    from piat_hub import card, engine, figures, run
    from piat_hub.card import percent

    main = os.environ.get("RANK", "0") == "0"
    directory = run.output_directory(config, options)
    bar: tqdm[NoReturn] = tqdm(unit="image", unit_scale=True, disable=None if main else True, desc=card.title(config))
    shown: dict[str, str] = {}
    event = None
    try:
        for event in run.train(config, options):
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
    finally:
        bar.close()
    if main:
        if event is None:
            print(f"nothing left to do: all {config.epochs} epochs are done")
        figures.save(figures.curves(run.read_metrics(directory), title=card.title(config)), directory / "curves.png")
        print(
            f"weights {directory / WEIGHTS['last']}\ncurves  {directory / 'curves.png'}\ncard    {card.write(directory)}"
        )


def evaluate(argv: Sequence[str], prog: str) -> None:
    """`evaluate.py MODEL [MODEL…] [flags]`."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} MODEL [MODEL …] [flags]",
        allow_abbrev=False,
        description="Measure clean and robust accuracy.",
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a run or model directory, a Hub id, or module:callable"
    )
    parser.add_argument(
        "--attacks",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="ATTACK",
        help="clean, pgdN, mimN, cwN, aa (default: clean pgd20)",
    )
    add_fields(parser, EvalConfig())
    given = vars(parser.parse_all(argv))
    models = given.pop("models")
    attacks = tuple(given.pop("attacks", EvalConfig().attacks))
    config = dataclasses.replace(with_flags(EvalConfig(), given), attacks=attacks)
    if config.output and len(models) > 1:
        raise InputError("--output takes the results of one MODEL; leave it out, or evaluate one at a time")

    from piat_hub import run

    # every request is checked before the first one runs
    prepared = [run.prepare_evaluation(model, config) for model in models]
    finished = [_evaluate_one(model, one, config) for model, one in zip(models, prepared, strict=True)]
    if len(finished) > 1:
        print(_comparison(finished))
    for done in finished:
        results, verdicts = run.evaluation.result_files(done.directory, done.results.checkpoint)
        print(f"results  {results}\nverdicts {verdicts}")
        if (card := done.directory / "README.md").exists():
            print(f"card     {card}")
        if (curves := done.directory / "curves.png").exists():
            print(f"curves   {curves}")


def _evaluate_one(model: str, done: run.Evaluation, config: EvalConfig) -> run.Evaluation:
    from tabulate import tabulate
    from tqdm import tqdm

    from piat_hub import run
    from piat_hub.card import HEADERS, percent, rows

    bar: tqdm[NoReturn] = tqdm(unit="image", disable=None, desc=model)
    attack = ""
    try:
        for event in done.measure(config):
            if attack != event.attack:
                attack = event.attack
                bar.reset(event.total)
                bar.set_description(f"{model} {attack}", refresh=False)
            bar.set_postfix_str(f"at most {percent(event.standing / event.n)}", refresh=False)
            bar.update(event.done - bar.n)
    finally:
        bar.close()
    results = done.results
    assumed = " (eps not given)" if config.eps is None and run.evaluation.trained_against(done.model) is None else ""
    images = f"{results.n} images of {results.dataset} ({results.split}), {results.checkpoint}"
    print(f"\n{model}: {results.threat_model}{assumed}, {images}")
    print(tabulate(rows(done.results.to_dict()), HEADERS, disable_numparse=True))
    for figures in done.results.attacks.values():
        if "changed" in figures:
            print(f"AutoAttack differs from the standard version: {figures['changed']}")
    return done


def _comparison(finished: Sequence[run.Evaluation]) -> str:
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


def list_recipes(argv: Sequence[str], prog: str) -> None:
    """`piat list`: recipes, methods and backbones."""
    Parser(prog=prog, allow_abbrev=False, description="List recipes, methods and backbones.").parse_all(argv)

    import timm

    from piat_hub import methods

    print(_recipe_help())
    print(
        f"\nmethods: {', '.join(methods.names())}\nbackbones: {', '.join(timm.list_models('cifar_*'))}, and timm's own"
    )


COMMANDS = {"train": train, "evaluate": evaluate, "card": card, "list": list_recipes}


def main(argv: Sequence[str] | None = None, prog: str = "piat", command: str | None = None) -> int:
    """Run a command; 0 when it worked, 2 for unusable input, 1 for a run that diverged, 130 for Ctrl-C: one line each."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with _quiet_dependencies():
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
        except KeyboardInterrupt:
            return _fail(prog, "stopped; what is finished is saved: go on with the same command and --resume", 130)
        except Diverged as error:
            return _fail(prog, error, 1)
    return 0


def _fail(prog: str, error: object, code: int) -> int:
    if os.environ.get("RANK", "0") == "0":
        print(f"{prog}: error: {error}", file=sys.stderr)
    return code


def _recipe_help() -> str:
    lines = [f"  {name:20} {(make.__doc__ or '').splitlines()[0]}" for name, make in recipes.RECIPES.items()]
    return "\n".join(["Recipes:", *lines])


@contextlib.contextmanager
def _quiet_dependencies() -> Iterator[None]:
    """Keep the libraries' notices off the user's screen; errors still come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("datasets", "huggingface_hub", "accelerate", "timm"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield
