"""Commands that look and change nothing: list, compare, predict."""

from collections.abc import Sequence
from pathlib import Path

from piat_hub.cli.flags import Parser
from piat_hub.config import InputError, recipes
from piat_hub.records.files import UNIONS, WEIGHTS
from piat_hub.records.labels import attack_name, percent, said, table


def list_known(argv: Sequence[str], prog: str) -> None:
    """`piat list`: models with their robust accuracy, recipes, methods, backbones and attacks."""
    description = "List trained models (published, and those in model_cards/), recipes, methods, backbones and attacks."
    Parser(prog=prog, description=description).parse_all(argv)

    import timm

    from piat_hub import backbones, methods
    from piat_hub.evaluation import suites
    from piat_hub.hub.load import list_pretrained
    from piat_hub.records.advice import advice

    models = list_pretrained()
    accuracies = ("clean_acc", "pgd20_acc", "aa_acc")
    known = [
        [m["model"], m["architecture"], m["dataset"], m["method"]]
        + ["{norm} {eps}".format(**m["threat_model"]) if m["threat_model"] else "not measured"]
        + [f"{percent(m[a])} of {m['n'][a.removesuffix('_acc')]}" if a in m else "" for a in accuracies]
        for m in models
        if "problem" not in m
    ]
    headers = ("model", "architecture", "data", "method", "threat model", "clean", "PGD-20", "AutoAttack")
    print(table(known, headers) if known else "no model is published yet, and none lies in model_cards/")
    for m in models:
        for sentence in (*m.get("notes", ()), *([m["problem"]] if "problem" in m else ())):
            print(f"{m['model']}: {sentence}")
    local = [m["model"] for m in models if "problem" not in m and Path(m["model"]).is_dir()]
    if sentences := advice(local):
        print("\nWhich of those that lie here to take, by their last checkpoints:\n  " + "\n  ".join(sentences))
    print(f"\n{recipes.described()}")
    print(f"\nmethods: {', '.join(methods.names())}")
    print(f"backbones: {', '.join(timm.list_models(backbones.OURS))}, and timm's own")
    print(f"attacks: {', '.join(suites.names())}, and your own as module:callable")


def compare(argv: Sequence[str], prog: str) -> None:
    """`piat compare A B`: pair two evaluated models on the same images."""
    parser = Parser(prog=prog, description="Pair two evaluated directories image by image.")
    parser.add_argument("a", metavar="A", help="a directory with results.json and verdicts.npz")
    parser.add_argument("b", metavar="B", help="another, of the same images and threat model")
    parser.add_argument("--checkpoint", choices=list(WEIGHTS), default="last")
    given = parser.parse_all(argv)

    from piat_hub.records import compare as paired
    from piat_hub.records.results import read_results, result_files
    from piat_hub.records.union import Union

    a, b = Path(given.a), Path(given.b)
    several = all((path / UNIONS[given.checkpoint]).exists() for path in (a, b))
    alone = not several or all(result_files(path, given.checkpoint)[0].exists() for path in (a, b))
    found = [(attack_name(p.attack), p) for p in paired.compare(a, b, given.checkpoint)] if alone else []
    found += [(p.attack, p) for p in paired.unions(a, b, given.checkpoint)] if several else []
    pairs = [
        [
            name,
            percent(p.accuracy_a),
            percent(p.accuracy_b),
            f"{100 * p.difference:+.2f}",
            " to ".join(f"{100 * end:+.2f}" for end in p.ci95),
            f"{p.only_a} / {p.only_b}",
            f"{p.p_value:.3g}",
        ]
        for name, p in found
    ]
    headers = ["attack", "A", "B", "B - A, points", "95 % interval", "only A / only B stands", "McNemar's p"]
    print(f"A {given.a}\nB {given.b}\n\n{table(pairs, headers)}")
    if alone and all(read_results(path, given.checkpoint)[0].corruptions for path in (a, b)):
        print(f"\n{_under_corruptions(a, b, given.checkpoint)}")
    for letter, path in (("A", a), ("B", b)):
        records = [read_results(path, given.checkpoint)[0]] if alone else []
        records += Union.read(path, given.checkpoint).parts.values() if several else []
        for sentence in dict.fromkeys(sentence for record in records for sentence in said(record)):
            print(f"note on {letter}: {sentence}")


def _under_corruptions(a: Path, b: Path, checkpoint: str) -> str:
    """The two paired under each common corruption, as a table; or why they cannot be."""
    from piat_hub.records.compare import corruptions

    try:
        found = corruptions(a, b, checkpoint)
    except InputError as error:
        return f"corruptions are not paired: {error}"
    rows = [
        [
            name.replace("_", " "),
            percent(one),
            percent(other),
            *(f"{100 * points:+.2f}" for points in (gain, low, high)),
        ]
        for name, one, other, gain, (low, high) in found
    ]
    return table(rows, ["corruption", "A", "B", "B - A, points", "95 % from", "to"])


def predict(argv: Sequence[str], prog: str) -> None:
    """`piat predict MODEL IMAGE…`: class names and probabilities."""
    parser = Parser(prog=prog, description="Classify image files.")
    parser.add_argument("model", metavar="MODEL", help="as in evaluate")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, or folders of them; resized to what the model takes"
    )
    parser.add_argument("--checkpoint", choices=list(WEIGHTS), default="last")
    parser.add_argument("--top", type=int, default=3, help="classes to show (default: 3)")
    given = parser.parse_all(argv)
    if given.top < 1:
        raise InputError(f"--top must be at least 1, got {given.top}; leave it out for the likeliest three")

    from piat_hub.evaluation import model as models

    for image, classes in models.predict(given.model, given.images, given.checkpoint):
        print(f"{image}: " + ", ".join(f"{name} {percent(p)}" for name, p in classes[: given.top]))
