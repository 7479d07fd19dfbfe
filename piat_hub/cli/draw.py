"""`piat figures` and `piat report`."""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piat_hub.cli.flags import Parser
from piat_hub.config import InputError, RunOptions
from piat_hub.figures import NAMES
from piat_hub.records.files import check_output, write_text
from piat_hub.records.rundir import RunDirectory

if TYPE_CHECKING:
    from piat_hub.figures.gallery import Drawn


def figures(argv: Sequence[str], prog: str) -> None:
    """`piat figures RUN…`: draw what the runs recorded, as SVG and PNG."""
    parser = Parser(prog=prog, description="Draw every figure that these runs allow, as SVG and PNG.")
    given, runs = _read(parser, argv, "figures", "the directory to write to", check_output)

    from piat_hub.figures.style import save
    from piat_hub.records.groups import benchmarks
    from piat_hub.records.lock import only_writer

    output, several = Path(given.output), len(benchmarks(runs)) > 1
    with only_writer(output):
        for place, drawn in _gallery(runs, given):
            if drawn.figure is None:
                print(f"{drawn.name}: not drawn: {drawn.why}")
                continue
            where = output / re.sub(r"[^\w.-]+", "-", place) if several else output
            where.mkdir(exist_ok=True)
            for suffix in ("svg", "png"):
                save(drawn.figure, where / f"{drawn.name}.{suffix}")
            print(f"{where / drawn.name}.svg, .png")


def report(argv: Sequence[str], prog: str) -> None:
    """`piat report RUN…`: one self-contained page of tables, figures and checks."""
    parser = Parser(prog=prog, description="Write one self-contained HTML page about these runs.")

    def check(output: Path) -> None:
        check_output(output.parent)
        if output.is_dir():
            raise InputError(f"{output} is a directory; name a file with --output")

    given, runs = _read(parser, argv, "report.html", "the file to write", check)

    from piat_hub.figures import report as page
    from piat_hub.records.lock import only_writer

    output, drawn = Path(given.output), dict[str, list[Any]]()
    for place, one in _gallery(runs, given):
        drawn.setdefault(place, []).append(one)
    with only_writer(output.parent):
        write_text(output, page.render(runs, drawn))
    print(f"report   {output}")


def _read(
    parser: Parser, argv: Sequence[str], default: str, what: str, check: Callable[[Path], None]
) -> tuple[argparse.Namespace, list[RunDirectory]]:
    """What figures and report share: their flags, the output once it is checked, and the runs, read."""
    runs_help = "run directories; one or two of a kind also give landscape and images"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=runs_help)
    parser.add_argument("--output", default=default, help=f"{what} (default: {default})")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="leave out other figures")
    filterwise = "scale the landscape's directions filter by filter (Li et al. 2018)"
    parser.add_argument("--filterwise", action="store_true", help=filterwise)
    parser.add_argument("--dataset", help="where the test images lie (default: the data the model was trained for)")
    threads = "CPU threads (default: OMP_NUM_THREADS, else all cores)"
    parser.add_argument("--threads", type=int, default=argparse.SUPPRESS, help=threads)
    given = parser.parse_all(argv)
    if given.filterwise and "landscape" not in given.only:
        raise InputError("--filterwise is of the landscape, which --only leaves out; name it there too")
    check(Path(given.output))
    asked = RunOptions(threads=vars(given).get("threads"))  # or InputError

    from piat_hub.machine import set_threads
    from piat_hub.records.groups import read_run

    set_threads(asked.threads)
    once = {Path(one).resolve(): one for one in reversed(given.runs)}  # a run named twice is one run
    return given, [read_run(one) for one in reversed(once.values())]


def _gallery(runs: Sequence[RunDirectory], given: argparse.Namespace) -> Iterator[tuple[str, Drawn]]:
    """(benchmark, figure) as they are drawn, with a bar while a landscape is measured, and how long that will take."""
    from tqdm import tqdm

    from piat_hub.figures import gallery
    from piat_hub.records.groups import benchmarks

    points = list[float]()

    def on_point() -> None:
        points.append(time.monotonic())
        bar.update()
        if len(points) == 2:
            each = f"each PGD-{gallery.SETTINGS['steps']} on {gallery.IMAGES['landscape']} images"
            minutes = math.ceil((points[1] - points[0]) * (bar.total or 0) / 60)
            bar.write(
                f"landscape: {bar.total} points, {each}: about {minutes} min; --only leaves it out", file=sys.stderr
            )

    with tqdm(unit="point", desc="landscape", disable=None) as bar:
        options = {"filterwise": given.filterwise, "dataset": given.dataset, "on_point": on_point}
        for name, group in benchmarks(runs).items():
            bar.total = gallery.SETTINGS["points"] ** 2 * len(group)
            for drawn in gallery.draw(group, given.only, **options):
                yield name, drawn
