"""`piat leaderboard` and `piat verify`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from piat_hub.cli.evaluate import follow
from piat_hub.cli.flags import Parser
from piat_hub.config import InputError, Refuted, ThreatModel
from piat_hub.records.files import WEIGHTS, check_output, write_text
from piat_hub.records.labels import attack_name, measured_name, percent, said, table
from piat_hub.records.lock import only_writer
from piat_hub.records.results import verdicts_digest

if TYPE_CHECKING:
    from piat_hub.leaderboard.verification import Verification


def leaderboard(argv: Sequence[str], prog: str) -> None:
    """`piat leaderboard SOURCE…`: models side by side on one page; `init DATASET`: a benchmark on the Hub."""
    if argv[:1] == ["init"]:
        return _init(argv[1:], f"{prog} init")
    parser = Parser(
        prog=prog,
        usage=f"{prog} SOURCE [SOURCE …] [--output DIR]; {prog} init DATASET --n N",
        description="Write one page, and its JSON, of robust models side by side; the folder is a static Space.",
    )
    kinds = "a run, a directory with results.json, a folder of these, a Hub id, or a text file with one of these a line"
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=kinds)
    parser.add_argument("--output", default="leaderboard", help="the folder to write (default: leaderboard)")
    given = parser.parse_all(argv)
    check_output(Path(given.output))

    from piat_hub.leaderboard import board, page

    sources = tqdm(board.expanded(given.sources), unit="model", disable=None)
    print(f"page     {page.write([board.read(source) for source in sources], Path(given.output))}")
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


def verify(argv: Sequence[str], prog: str) -> None:
    """`piat verify MODEL`: measure a published claim again on some of its images, and say whether it stands."""
    does = "Measure a random sample of the images of a published claim again, by the same attack."
    parser = Parser(prog=prog, description=f"{does} The exit status is 1 where the claim does not stand.")
    parser.add_argument("model", metavar="MODEL", help="as in evaluate, with results.json and verdicts.npz beside it")
    parser.add_argument("--n", type=int, help="images drawn, without replacement (default: 200, or all of fewer)")
    parser.add_argument("--seed", type=int, help="of the draw (default: one that nobody knows before)")
    attacks = "of those claimed, beside clean (default: the one that leaves least)"
    parser.add_argument("--attacks", nargs="+", default=(), help=attacks)
    parser.add_argument("--checkpoint", choices=list(WEIGHTS), default="last")
    parser.add_argument("--claim", metavar="DIR", help="where results.json lies (default: in MODEL)")
    parser.add_argument("--dataset", help="where the images lie (default: the data the model was trained for)")
    given = vars(parser.parse_all(argv))
    if given["seed"] is None:
        given["seed"] = secrets.randbits(32)  # else a claim could be honest on the images of a known draw alone
    if given["seed"] < 0:
        raise InputError(f"--seed must be at least 0, got {given['seed']}; leave it out")

    from piat_hub.leaderboard import verification

    model = given.pop("model")
    found = verification.prepare(model, **given)
    claim, results = found.claim, found.results
    if found.other_weights:
        print(f"the claim is of other weights: sha256 {claim.weights or 'not recorded'}, these have {results.weights}")
    images = f"{results.n} of the {claim.n} images of {claim.dataset} ({claim.split})"
    print(f"{model}: {claim.threat_model}, {claim.checkpoint}, {images}, drawn with seed {given['seed']}", flush=True)
    follow(found.measure(), model, found.evaluation.batch_size)
    _say(found)
    if objections := found.objections():
        raise Refuted(f"the claim does not stand: {'; '.join(objections)}")
    points = 100 * verification.noticed(results.n)
    print(
        f"the claim stands; were it {points:.1f} points too high, 19 of 20 draws of {results.n} images would refute it, "
        "if nothing turned by chance"
    )


def _say(found: Verification) -> None:
    """Print the claim beside what was measured, and the digests by which others find the same."""
    claim, results = found.claim, found.results
    headers = ["attack", f"claimed of {claim.n}", "claimed of these", "measured", "95 % interval (Wilson)"]
    rows = [
        [
            measured_name(pair.attack, claim.attacks[pair.attack]),
            percent(claim.attacks[pair.attack]["accuracy"]),
            percent(pair.accuracy_a),
            percent(pair.accuracy_b),
            " to ".join(percent(end) for end in results.attacks[pair.attack]["ci95"]),
            f"{pair.only_a} / {pair.only_b}",
            f"{pair.p_value:.3g}",
        ]
        for pair in found.pairs
    ]
    print("\n" + table(rows, [*headers, "only claimed / only measured", "McNemar's p"]))
    print(f"\nweights  sha256 {results.weights}\nimages   sha256 {claim.images}")
    for attack in found.attacks:
        claimed, measured = (verdicts_digest(each[attack]) for each in (found.claimed, results.verdicts))
        beside = "as claimed" if measured == claimed else f"claimed {claimed}"
        print(f"verdicts sha256 {measured} under {attack_name(attack)}, {beside}")
    for sentence in dict.fromkeys((*said(claim), *said(results))):
        print(f"note: {sentence}")
