"""Fill the result tables in README.md and docs/*.md from docs/results: `python docs/tables.py`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; NAME is a function below. A test holds that the files
on disk are what this writes, so no figure in them is typed by hand.
"""

import json
import re
from pathlib import Path

from tabulate import tabulate

from piat_hub.card import HEADERS, percent, rows

DOCS = Path(__file__).parent
FILES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
METHODS = {"standard": "standard training", "pgd_at": "PGD-AT", "piat-nmse": "PIAT+NMSE"}


def read(name):
    """One evaluation's results.json."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))


def cell(results, attack):
    """'82.50 % [78.47, 85.91]': accuracy and its 95 % Wilson interval."""
    figures = results["attacks"][attack]
    low, high = (f"{100 * end:.2f}" for end in figures["ci95"])
    return f"{percent(figures['accuracy'])} [{low}, {high}]"


def mean(runs, attack):
    """The mean accuracy over runs."""
    return percent(sum(r["attacks"][attack]["accuracy"] for r in runs) / len(runs))


def markdown(rows, headers):
    """A table as GitHub shows it."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def digits():
    """Means over three seeds, and each seed's PGD-20 with its interval."""
    lines = []
    for method, name in METHODS.items():
        runs = [read(f"digits/{method}-{seed}") for seed in range(3)]
        lines.append([name, mean(runs, "clean"), mean(runs, "pgd20"), *(cell(r, "pgd20") for r in runs)])
    return markdown(lines, ["method", "clean, mean", "PGD-20, mean", "PGD-20, seed 0", "seed 1", "seed 2"])


def digits_clean():
    """Each seed's clean accuracy with its interval."""
    lines = [[name, *(cell(read(f"digits/{m}-{s}"), "clean") for s in range(3))] for m, name in METHODS.items()]
    return markdown(lines, ["method", "clean, seed 0", "seed 1", "seed 2"])


def cifar10_jpeg():
    """The two ResNet-20 runs on the JPEG-coded CIFAR-10."""
    lines = []
    for method in ("pgd_at", "piat-nmse"):
        thousand, few = read(f"cifar10-jpeg/{method}"), read(f"cifar10-jpeg/{method}-aa")
        cells = [cell(thousand, attack) for attack in ("clean", "pgd20", "cw20")]
        lines.append([METHODS[method], *cells, cell(few, "clean"), cell(few, "aa")])
    return markdown(lines, ["method", "clean", "PGD-20", "CW-20", "clean, n 200", "AutoAttack, n 200"])


def demo():
    """How long `make demo` took, and what it measured."""
    results = read("demo/results")
    lines = (DOCS / "results" / "demo" / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    trained = sum(line["train_seconds"] + line["check_seconds"] for line in map(json.loads, lines))
    table = markdown(rows(results), HEADERS)
    took = f"Training took {trained:.0f} s and evaluation {results['seconds']:.0f} s ({results['device']})."
    return f"{took} It printed:\n\n{table}"


def filled(text):
    """The text with every table between its markers written anew."""

    def table(match):
        return f"<!-- table {match[1]} -->\n{globals()[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", table, text, flags=re.S)


if __name__ == "__main__":
    for file in FILES:
        file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
