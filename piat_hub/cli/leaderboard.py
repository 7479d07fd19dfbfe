"""`piat leaderboard`."""

from collections.abc import Sequence
from pathlib import Path

from piat_hub.cli.flags import Parser
from piat_hub.config import InputError, ThreatModel
from piat_hub.records.files import check_output, write_text
from piat_hub.records.lock import only_writer


def leaderboard(argv: Sequence[str], prog: str) -> None:
    """`piat leaderboard SOURCE…`: models side by side on one page; `init DATASET`: a benchmark on the Hub."""
    if argv[:1] == ["init"]:
        return _init(argv[1:], f"{prog} init")
    parser = Parser(
        prog=prog,
        usage=f"{prog} SOURCE [SOURCE …] [--output DIR]; {prog} init DATASET --n N",
        description="Write one page, and its JSON, of robust models side by side; the folder is a static Space.",
    )
    sources = (
        "a run, a directory with results.json, a folder of these, a Hub id, or a text file with one of these a line"
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=sources)
    parser.add_argument("--output", default="leaderboard", help="the folder to write (default: leaderboard)")
    given = parser.parse_all(argv)
    check_output(Path(given.output))

    from piat_hub.leaderboard import page

    print(f"page     {page.write(given.sources, Path(given.output))}")
    return None


def _init(argv: Sequence[str], prog: str) -> None:
    """`piat leaderboard init DATASET`: the eval.yaml that makes a data set of the Hub a benchmark."""
    parser = Parser(prog=prog, description="Write eval.yaml, by which the Hub ranks pushed models on a data set.")
    parser.add_argument("dataset", metavar="DATASET", help="cifar10, cifar100, svhn, or a Hub id")
    parser.add_argument(
        "--n", type=int, required=True, help="the first n images of the split, which results must be of"
    )
    parser.add_argument("--split", default="test", help="of the data set (default: test)")
    attacks = ["clean", "pgd20", "aa"]
    parser.add_argument("--attacks", nargs="+", default=attacks, help="as in evaluate (default: clean pgd20 aa)")
    budgets = "such as Linf:8/255 L2:0.5 (default: Linf:8/255)"
    parser.add_argument("--threat-models", nargs="+", default=["Linf:8/255"], metavar="NORM:EPS", help=budgets)
    parser.add_argument("--output", default=".", help="the directory of the data set (default: this one)")
    given = parser.parse_all(argv)
    if given.n < 1:
        raise InputError(f"--n must be at least 1, got {given.n}; give the number of images that results are of")
    threats = [ThreatModel.parse(text) for text in given.threat_models]
    path = Path(given.output) / "eval.yaml"
    check_output(path.parent)
    if path.exists():
        raise InputError(f"{path} is there already; move it away, or name another --output")

    from piat_hub.leaderboard.benchmark import FRAMEWORK, eval_yaml

    content = eval_yaml(given.dataset, given.attacks, threats, given.n, given.split)
    with only_writer(path.parent):
        write_text(path, content)
    print(f"{path}: the Hub ranks nothing by it before it knows the framework {FRAMEWORK} and lists the data set")
