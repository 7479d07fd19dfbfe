"""`piat train`."""

import argparse
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from piat_hub.cli import publish, signals
from piat_hub.cli.flags import Parser, add_fields, with_flags
from piat_hub.config import InputError, RunOptions, TrainConfig, recipes
from piat_hub.records.files import WEIGHTS, read_metrics
from piat_hub.records.labels import percent, title


def train(argv: Sequence[str], prog: str) -> None:
    """`train.py [RECIPE] [flags]`."""
    name = argv[0] if argv and not argv[0].startswith("-") else "digits"
    config = recipes.get(name)
    about = f"{name}: {recipes.told(name)}" if argv[:1] == [name] else recipes.described()
    parser = _parser(prog, name, config, about)
    known, rest = parser.parse_known_args(argv[argv[:1] == [name] :])
    flags = [word for word in rest if word.startswith("--") and word != "--help"]
    parser.refuse_unknown([flag for flag in flags if not flag.startswith("--method.")])

    from piat_hub import methods  # torch is loaded only after the flags that need no method have been read

    chosen = known.method if "method" in known else config.method
    method: Any = methods.get(chosen)()
    about += f"\n\nMethods: {', '.join(methods.names())}"
    parser = _parser(prog, name, config, about, add_help=True)
    parser.add_argument("recipe", nargs="?", default="digits", metavar="RECIPE", help="its name (default: digits)")
    add_fields(parser.add_argument_group(f"fields of method {chosen}"), method, "method.")
    given = vars(parser.parse_all(argv))
    if given["recipe"] != name:
        raise InputError(f"the recipe comes first: {prog} {given['recipe']} …")
    arguments = {k.removeprefix("method."): v for k, v in given.items() if k.startswith("method.")}
    inherited = config.method_args if chosen == config.method else {}
    config = with_flags(dataclasses.replace(config, method_args={**inherited, **arguments}), given)
    for warning in _idle(config, given) if os.environ.get("RANK", "0") == "0" else ():
        print(warning)
    run_training(config, with_flags(RunOptions(), given))


def _parser(prog: str, name: str, config: TrainConfig, about: str, **options: Any) -> Parser:
    """The flags of a recipe's configuration and of a run; those of its method are not among them."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} [RECIPE] [flags]",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **{"add_help": False} | options,
    )
    add_fields(parser.add_argument_group(f"what is learnt (defaults of {name})"), config)
    add_fields(parser.add_argument_group("where and how it runs"), RunOptions())
    return parser


def _idle(config: TrainConfig, given: Mapping[str, Any]) -> Iterator[str]:
    """A warning of each flag that was given and does nothing with the others; a recipe may well hold such a value."""
    law, own_steps = config.interpolation, config.method in ("fgsm_rs", "n_fgsm", "las_at", "free_at", "standard")
    averaged = law.kind != "none"
    useful: dict[str, tuple[bool, str]] = {  # flag -> whether it does something, and what it goes with
        **{f"interpolation.{letter}": (law.kind == "piat", "--interpolation piat") for letter in "abcd"},
        "interpolation.start_epoch": (averaged, "--interpolation piat or constant"),
        "interpolation.bn": (averaged, "--interpolation piat or constant"),
        "crop_pad": (not config.crop_shift and config.pictures.augment != "rrc", "--augment pad, and no --crop-shift"),
        "scale": (config.pictures.augment != "pad", "--augment rrc"),
        "steps": (not own_steps, "a method whose attack takes them, pgd_at say"),
        "step_size": (not own_steps and config.attack.crafting == "pgd", "--crafting pgd, and a method that takes it"),
        "eps_warmup_epochs": (config.method != "standard", "an adversarial method"),
        "warmup_lr": (config.schedule.rise(config.epochs) > 0, "--warmup-epochs"),
    }
    for flag, (works, goes_with) in useful.items():
        if flag in given and not works:
            yield f"warning: --{flag.replace('_', '-')} does nothing here; it goes with {goes_with}"


def run_training(config: TrainConfig, options: RunOptions) -> None:
    """Train with a progress bar and a line per epoch; both on rank 0 only.

    Args:
        config: what is learnt.
        options: where and how the run happens.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, once all is saved.
    """
    from tqdm import tqdm

    from piat_hub.training import engine, run

    main = os.environ.get("RANK", "0") == "0"
    if options.push_to_hub:
        from piat_hub.hub.push import check_push

        check_push(options.push_to_hub)
    bar: tqdm[NoReturn] = tqdm(unit="image", unit_scale=True, disable=None if main else True, desc=title(config))
    latest, worked, directory = "", False, run.output_directory(config, options)
    with bar, signals.noting_signals(lambda: (directory / "config.json").exists()) as noted:
        for event in run.train(config, options, lambda: bool(noted)):
            if isinstance(event, run.Stopped):
                where = f"after epoch {event.epochs} and {event.steps} steps of the next"
                raise signals.Interrupted(f"{where}; all of it is saved")
            if isinstance(event, run.Notice):
                line = event.text
            else:
                worked = True
                if isinstance(event, engine.Step):
                    _advance(bar, event, config.epochs, latest)
                    continue
                latest = _epoch(event.metrics)
                speed = f"{event.timing['images_per_second']:.0f} images/s"
                line = f"epoch {event.metrics['epoch']}/{config.epochs}: {latest}, {speed}"
            if main:
                bar.write(line)
    if main:
        if not worked:
            print(f"nothing left to do: all {config.epochs} epochs are done")
        _finish(config, options, directory)


def _advance(bar: Any, step: Any, epochs: int, latest: str) -> None:
    """Move the bar to a step of the engine's, with the last epoch's figures beside it."""
    images = ((step.epoch - 1) * step.steps + step.step) * step.images
    if bar.total is None:
        bar.total, bar.initial, bar.n = epochs * step.steps * step.images, images, images
    bar.set_postfix_str(
        f"epoch {step.epoch}, loss {step.loss:.3f}{f'; last {latest}' if latest else ''}", refresh=False
    )
    bar.update(images - bar.n)


def _epoch(metrics: dict[str, Any]) -> str:
    """An epoch's figures in a few words."""
    shown = {"loss": f"{metrics['train_loss']:.3f}", "lam": f"{metrics['lam']:.3f}"}
    if metrics["holdout_pgd10_acc"] is not None:
        shown |= {name: percent(metrics[f"holdout_{key}_acc"]) for name, key in HELD_OUT.items()}
    return ", ".join(f"{k} {v}" for k, v in shown.items())


HELD_OUT = {"held-out clean": "clean", "PGD-10": "pgd10"}


def _finish(config: TrainConfig, options: RunOptions, directory: Path) -> None:
    """Draw the curves, write the card, say where everything is, and publish it if that was asked for."""
    from piat_hub.figures import plots
    from piat_hub.figures.style import save
    from piat_hub.hub import card
    from piat_hub.records.lock import only_writer

    with only_writer(directory):
        save(plots.curves(read_metrics(directory), title=title(config)), directory / "curves.png")
        written = card.write(directory)
    print(f"weights {directory / WEIGHTS['last']}\ncurves  {directory / 'curves.png'}\ncard    {written}")
    if options.push_to_hub:
        try:
            publish.say_pushed(directory, options.push_to_hub, options.push)
        except InputError as error:
            again = f"piat push {directory} {options.push_to_hub}"
            raise InputError(f"{error} (the run is whole in {directory}; to push it: {again})") from error
