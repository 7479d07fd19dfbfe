"""Commands that bring a model to other people and back: card, push, export, import, robustbench."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from piat_hub.cli.flags import Parser, add_fields, fraction, with_flags
from piat_hub.config import EvalConfig, PushOptions
from piat_hub.records.files import WEIGHTS, check_output


def card(argv: Sequence[str], prog: str) -> None:
    """`piat card RUN`: write the card anew from what is measured."""
    parser = Parser(prog=prog, description="Write RUN/README.md from config.json and results.json.")
    parser.add_argument("run", metavar="RUN", help="a run directory")
    chosen = "of your weights, such as mit; kept in config.json (default: that of weights they began with, else none)"
    parser.add_argument("--license", help=chosen)
    given = parser.parse_all(argv)

    from piat_hub.hub import card as cards

    if given.license is not None:
        cards.license_as(Path(given.run), given.license)
    print(cards.write(Path(given.run)))


def push(argv: Sequence[str], prog: str) -> None:
    """`piat push RUN ORG/NAME`: publish a run on the Hub, in one commit."""
    parser = Parser(prog=prog, description="Publish weights, card and results on the Hub.")
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("name", metavar="ORG/NAME", help="a model repository, made if there is none")
    add_fields(parser, PushOptions())
    given = vars(parser.parse_all(argv))
    say_pushed(Path(given["run"]), given["name"], with_flags(PushOptions(), given))


def say_pushed(run: Path, repo_id: str, options: PushOptions) -> None:
    """Publish a run, and print where it went."""
    from piat_hub.hub.push import push_to_hub

    pushed = push_to_hub(run, repo_id, **dataclasses.asdict(options))
    print(f"{'pushed ' if pushed.changed else 'nothing new at'} {pushed.url}")


def export(argv: Sequence[str], prog: str) -> None:
    """`piat export MODEL`: model.pt2 for torch alone, model.onnx."""
    description = "Write the model for where there is no piat_hub: model.pt2 (torch.export) and model.onnx."
    parser = Parser(prog=prog, description=description)
    parser.add_argument("model", metavar="MODEL", help="a run or model directory, or a Hub id")
    formats = ["pt2", "onnx"]
    parser.add_argument("--formats", nargs="+", choices=formats, default=formats)
    parser.add_argument("--checkpoint", choices=list(WEIGHTS), default="last")
    parser.add_argument("--output", help="the directory to write to (default: MODEL, where that is one)")
    given = parser.parse_all(argv)

    from piat_hub.hub import export as exports
    from piat_hub.hub.load import from_pretrained

    directory = given.output or (given.model if Path(given.model).is_dir() else given.model.replace("/", "-"))
    check_output(Path(directory))
    model, name = from_pretrained(given.model, checkpoint=given.checkpoint), Path(WEIGHTS[given.checkpoint]).stem
    for path in exports.export(model, Path(directory), given.formats, name):
        print(path)


def import_checkpoint(argv: Sequence[str], prog: str) -> None:
    """`piat import FILE --layout LAYOUT`: another project's checkpoint as a model directory."""
    description = "Convert somebody's checkpoint to config.json and safetensors; only tensors are read."
    parser = Parser(prog=prog, description=description)
    parser.add_argument("file", metavar="FILE", help="the checkpoint")
    name = "which model of RobustBench's zoo it is, cifar10/Linf/Rice2020Overfitting: says all of the rest, and who trained it"
    parser.add_argument("--name", metavar="DATASET/NORM/ID", help=name)
    parser.add_argument("--zoo", metavar="TOML", help="more models for --name, in the form of piat_hub/hub/zoo.toml")
    layout = "whose names its tensors have: robustbench-wrn, … (an unknown name lists them), or a timm model's"
    parser.add_argument("--layout", help=layout)
    numbers: dict[str, Any] = {"nargs": "+", "type": fraction, "default": (), "metavar": "FLOAT"}
    parser.add_argument("--mean", help="of the normalisation that belongs to it, where the file lacks it", **numbers)
    parser.add_argument("--std", help="the same, one number per channel", **numbers)
    size = "pixels a side of a timm model's images (default: the model's usual)"
    parser.add_argument("--img-size", type=int, metavar="INT", help=size)
    parser.add_argument("--output", help="the directory to write (default: runs/FILE's name)")
    given = parser.parse_all(argv)
    asked = {"mean": tuple(given.mean), "std": tuple(given.std), "img_size": given.img_size}
    EvalConfig(img_size=given.img_size)  # or InputError
    if bool(given.name) == bool(given.layout) or (given.name and any(asked.values())):
        parser.error("give --name, which says all of the rest, or --layout with what belongs to it")

    if given.zoo and not given.name:
        parser.error("--zoo goes with --name; give it too, or leave --zoo out")

    from piat_hub.hub import layouts

    output = Path(given.output or Path("runs") / Path(given.file).stem)
    check_output(output)
    if given.name:
        print(layouts.import_known(given.file, given.name, output, given.zoo))
    else:
        print(layouts.import_checkpoint(given.file, given.layout, output, **asked))


def robustbench(argv: Sequence[str], prog: str) -> None:
    """`piat robustbench RUN`: the files of a submission to RobustBench."""
    description = "Check a run as RobustBench would, and write what a submission needs."
    parser = Parser(prog=prog, description=description)
    parser.add_argument("run", metavar="RUN", help="a run directory with clean and aa measured on all test images")
    corruptions = "submit to the board of common corruptions: what evaluate --corruptions measured, not aa"
    parser.add_argument("--corruptions", action="store_true", help=corruptions)
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

    from piat_hub.leaderboard import submission as leaderboard

    paper = leaderboard.Paper(given.authors, given.venue, given.link, given.title or leaderboard.TITLE)
    output = Path(given.output or Path(given.run) / "robustbench")
    check_output(output)
    options = {"checkpoint": given.checkpoint, "draft": given.draft, "dataset": given.dataset, "repo_id": given.model}
    options["corruptions"] = given.corruptions
    for path in leaderboard.submit(given.run, paper, output, **options):
        print(path)
