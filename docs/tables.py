"""Fill the result tables in README.md and docs/*.md from what was recorded: `python docs/tables.py [NAME of a table to print …]`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; NAME is a function below, words after it are its arguments:
`<!-- table method_cost trades -->`. A test holds that the files on disk are what this writes, so no figure is typed by hand.
"""

import csv
import dataclasses
import itertools
import json
import re
import statistics
import sys
from pathlib import Path

from tabulate import tabulate

from piat_hub import config, methods as losses
from piat_hub.config import (
    AttackConfig,
    InputError,
    InterpolationConfig,
    MixingConfig,
    ScheduleConfig,
    recipes,
    show,
)
from piat_hub.figures import pictures
from piat_hub.hub import card
from piat_hub.records.advice import advice
from piat_hub.records.compare import compare
from piat_hub.records.files import load_arrays, read_json, read_lines
from piat_hub.records.groups import CURVES, mean_interval
from piat_hub.records.labels import HEADERS, attack_name, percent, rows
from piat_hub.records.published import paper
from piat_hub.records.results import read_record, read_results
from piat_hub.records.rundir import RunDirectory
from piat_hub.records.statistics import paired as paired_images
from piat_hub.study.table import between, table_text
from piat_hub.training.guards import collapsed
from piat_hub.training.setup import checked_method

DOCS = Path(__file__).parent
BENCHMARKS = DOCS.parent / "benchmarks" / "results"
CARDS = DOCS.parent / "model_cards"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
FILES = [DOCS.parent / "README.md", CARDS / "README.md", *PAGES]
METHODS = {  # name: (paper, loss, what the inner attack maximises and where it starts)
    "standard": ("", "CE(z, y)", "none"),
    "pgd_at": ("Madry et al. 2018", "CE(z', y)", "CE, uniform"),
    "alp": ("Kannan et al. 2018", "(CE(z, y) + CE(z', y)) / 2 + w mean (z - z')^2", "CE, uniform"),
    "trades": ("Zhang et al. 2019", "CE(z, y) + beta KL(p, p')", "KL(p, p'), x + 0.001 N"),
    "mart": ("Wang et al. 2020", "BCE(z', y) + beta KL(p, p') (1 - p_y)", "CE, x + 0.001 N"),
    "fat": ("Zhang et al. 2020", "CE(z', y)", "CE, uniform; stops tau steps after it misleads"),
    "gairat": ("Zhang et al. 2021", "CE(z', y), weighted by how soon the attack succeeds", "CE, uniform"),
    "free_at": ("Shafahi et al. 2019", "CE(f(x + delta), y), each batch m times", "the same, on the same backward"),
    "fgsm_rs": ("Wong et al. 2020", "CE(z', y)", "CE, uniform, one step of 1.25 eps"),
    "n_fgsm": ("de Jorge et al. 2022", "CE(z', y)", "CE, uniform in 2 eps, one step of eps, not clipped"),
    "las_at": ("Jia et al. 2022", "CE(z', y~)", "CE, uniform; a network chooses each image's eps, steps, step size"),
    "score": ("Pang et al. 2022", "(p - y~)^2 + beta (p - p')^2", "(p - p')^2, uniform"),
    "stat": ("Li et al. 2023", "CE(z, y) + beta symmetric KL(p_up, p_lo)", "symmetric KL of two twins, x + 0.001 N"),
    "nmse": ("He et al. 2023, Eqs. 5-6", "CE(z', y) + mu (1 - p_y) (z/norm z - z'/norm z')^2", "CE, uniform"),
}
KINDS = {"none": "", "piat": "PIAT"}
SEEDS = range(3)


def read(name):
    """One evaluation's results.json, as a Record."""
    return read_record(DOCS / "results" / f"{name}.json")


def on_digits(method):
    """A method's runs on digits by kind of interpolation, {seed: Record}: those that were measured; {} for none of them."""
    found = {
        kind: {
            s: read(name) for s in SEEDS if (DOCS / f"results/{(name := f'digits/{method}-{kind}-{s}')}.json").exists()
        }
        for kind in KINDS
    }
    return found if found["none"] else {}


def aa_on_digits(method, kind):
    """Its AutoAttack on 100 images of the first seed, or "" where it was not run."""
    name = f"digits-aa/{method}-{kind}-0"
    return cell(read(name), "aa") if (DOCS / f"results/{name}.json").exists() else ""


def cell(results, attack):
    """'82.50 % [78.47, 85.91]': accuracy and its 95 % Wilson interval; "" for a run that was not made."""
    if results is None:
        return ""
    figures = results.attacks[attack]
    low, high = (f"{100 * end:.2f}" for end in figures["ci95"])
    return f"{percent(figures['accuracy'])} [{low}, {high}]"


def mean(runs, attack):
    """The mean accuracy over runs; "" for none."""
    return percent(statistics.fmean(r.attacks[attack]["accuracy"] for r in runs)) if runs else ""


def pair_cells(p):
    """Of a Paired: B minus A in points, its 95 % interval, how many stand with one alone, McNemar's p."""
    interval = " to ".join(f"{100 * end:+.2f}" for end in p.ci95)
    return [f"{100 * p.difference:+.2f}", interval, f"{p.only_a} / {p.only_b}", f"{p.p_value:.2g}"]


def in_points(p):
    """Of a Paired: '+6.55 (+4.66 to +8.43)', B minus A and its 95 % interval."""
    difference, interval, *_ = pair_cells(p)
    return f"{difference} ({interval})"


def markdown(rows, headers):
    """A table as GitHub shows it."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def label(method, kind):
    """'PIAT+nmse' or 'nmse'."""
    return f"PIAT+{method}" if kind == "piat" else method


def digits():
    """README's short table: means over three seeds, and each seed's PGD-20 with its interval."""
    lines = []
    for method, kind in (("standard", "none"), ("pgd_at", "none"), ("pgd_at", "piat"), ("nmse", "piat")):
        runs = [read(f"digits/{method}-{kind}-{seed}") for seed in range(3)]
        lines.append([label(method, kind), mean(runs, "clean"), mean(runs, "pgd20"), *(cell(r, "pgd20") for r in runs)])
    return markdown(lines, ["method", "clean, mean", "PGD-20, mean", "PGD-20, seed 0", "seed 1", "seed 2"])


def gain_on_digits(runs, kind):
    """What PIAT adds to PGD-20 accuracy on the seeds that have both; "" without it."""
    seeds = [seed for seed in runs["piat"] if seed in runs["none"]]
    pairs = [[runs[k][seed] for seed in seeds] for k in ("piat", "none")]
    return difference(*pairs, "pgd20") if kind == "piat" and seeds else ""


def difference(with_, without, attack):
    """'-4.50': what interpolation adds, in points, to the mean over the same seeds."""
    gains = [a.attacks[attack]["accuracy"] - b.attacks[attack]["accuracy"] for a, b in zip(with_, without, strict=True)]
    return f"{100 * sum(gains) / len(gains):+.2f} ({', '.join(f'{100 * gain:+.2f}' for gain in gains)})"


def digits_methods():
    """Every method with and without PIAT, three seeds, AutoAttack on 100 images of the first."""
    lines = []
    for method in METHODS:
        runs = on_digits(method)
        for kind, each in runs.items():
            found = list(each.values())
            cells = [mean(found, "clean"), mean(found, "pgd20"), gain_on_digits(runs, kind)]
            cells += [*(cell(each.get(seed), "pgd20") for seed in SEEDS), aa_on_digits(method, kind)]
            lines.append([label(method, kind), *cells])
    headers = ["method", "clean, mean", "PGD-20, mean", "PIAT adds (each seed)", "PGD-20, seed 0", "seed 1", "seed 2"]
    return markdown(lines, [*headers, "AutoAttack, seed 0, n 100"])


def digits_clean():
    """Each seed's clean accuracy with its interval."""
    lines = [
        [label(method, kind), *(cell(each.get(seed), "clean") for seed in SEEDS)]
        for method in METHODS
        for kind, each in on_digits(method).items()
    ]
    return markdown(lines, ["method", "clean, seed 0", "seed 1", "seed 2"])


def collapse():
    """One-step methods on digits at eps 0.3: the worst epoch of each, and its end."""
    runs = {f"{m}-{k}": label(m, k) for m, k in (("fgsm_rs", "none"), ("n_fgsm", "none"), ("fgsm_rs", "piat"))}
    runs |= {"fgsm_rs-wide": "fgsm_rs, its step 2 eps, ResNet-20"}
    lines = []
    for file, who in runs.items():
        name = f"collapse/{file}"
        if (DOCS / f"results/{name}.json").exists():
            metrics, results = read_lines(DOCS / f"results/{name}-metrics.jsonl"), read(name)
            before, after = min(
                itertools.pairwise(metrics), key=lambda p: p[1]["holdout_pgd10_acc"] - p[0]["holdout_pgd10_acc"]
            )
            fall = " to ".join(percent(m["holdout_pgd10_acc"]) for m in (before, after))
            warned = ", ".join(str(m["epoch"]) for k, m in enumerate(metrics) if collapsed(metrics[: k + 1])) or "never"
            cells = [
                f"{fall} in epoch {after['epoch']}",
                warned,
                *(cell(results, attack) for attack in ("clean", "pgd20")),
            ]
            lines.append([who, *cells])
    return markdown(
        lines, ["method", "largest fall of held-out PGD-10", "warned in epoch", "clean at the end", "PGD-20"]
    )


def cifar10_jpeg():
    """The two ResNet-20 runs of 18 epochs on the JPEG-coded CIFAR-10."""
    lines = []
    for name, file in (("pgd_at", "pgd_at"), ("PIAT+nmse", "piat-nmse")):
        thousand, few = read(f"cifar10-jpeg/{file}"), read(f"cifar10-jpeg/{file}-aa")
        cells = [cell(thousand, attack) for attack in ("clean", "pgd20", "cw20")]
        lines.append([name, *cells, cell(few, "clean"), cell(few, "aa")])
    return markdown(lines, ["method", "clean", "PGD-20", "CW-20", "clean, n 200", "AutoAttack, n 200"])


PHOTOGRAPHS = {  # folder of docs/results/photographs: what was trained
    "standard": "ordinary",
    "apgd": "PGD-AT at 2/255, APGD of two steps",
    "two-steps": "PGD-AT at 2/255, two steps of 1.5/255",
    "pgd_at-e2": "PGD-AT at 2/255, five steps of 1/255",
    "nmse-piat-e2": "PIAT+NMSE at 2/255, five steps of 1/255",
    "pgd_at-e4": "PGD-AT at 4/255, five steps of 2/255",
    "nmse-piat-e4": "PIAT+NMSE at 4/255, five steps of 2/255",
}


def photographs():
    """The runs on photographs of clothing, at both budgets; what was not measured on all photographs says on how many."""
    lines = []
    for folder, name in PHOTOGRAPHS.items():
        cells = []
        for attack in ("clean", "pgd20", "fast", "aa"):
            for end in ("", "-4") if attack != "clean" else ("",):
                found = [read_or_none(f"photographs/{folder}{end}{kind}/results") for kind in ("", "-fast", "-aa")]
                record = next((r for r in found if r and attack in r.attacks), None)
                few = f", {'n' if record.listed else 'the first'} {record.n}" if record and record.n != 372 else ""
                cells.append(f"{cell(record, attack)}{few}" if record else "")
        lines.append([name, *cells])
    headers = ["", "clean", *(f"{a} at {eps}/255" for a in ("PGD-20", "fast", "AutoAttack") for eps in (2, 4))]
    return markdown(lines, headers)


def photographs_classes():
    """The recipe's network on photographs, accuracy class by class."""
    record, verdicts = read_results(DOCS / "results/photographs/apgd")
    names = ("clean", "pgd20", "fast")
    labels = load_arrays(DOCS / "results/photographs/apgd/verdicts.npz")["label"]
    lines = []
    for number, name in enumerate(record.label_names):
        of = labels == number
        lines.append([name, of.sum(), *(f"{verdicts[a][of].sum()} ({percent(verdicts[a][of].mean())})" for a in names)])
    return markdown(lines, ["", "photographs", *(attack_name(name) for name in names)])


def photographs_steps():
    """What withstands more and more of an attack, on the 200 photographs of 200.txt."""
    found = [read_or_none(f"photographs/pgd_at-e2-{end}/results") for end in ("steps", "aa")]
    attacks = {a: r for r in found if r for a in r.attacks}
    names = [a for a in ("clean", "pgd10", "pgd20", "pgd100", "fast", "aa") if a in attacks]
    lines = [[cell(attacks[name], name) for name in names]]
    return markdown(lines, [attack_name(name) for name in names])


def photographs_paired():
    """PIAT+NMSE minus PGD-AT, photograph by photograph."""
    lines = []
    for eps in (2, 4):
        cells = {}
        for against, end in ((2, ""), (4, "-4"), (eps, "-aa" if eps == 2 else "-4-aa")):
            of = [DOCS / "results/photographs" / f"{method}-e{eps}{end}" for method in ("pgd_at", "nmse-piat")]
            for p in compare(*of):
                cells.setdefault(p.attack if p.attack == "clean" else f"{p.attack} at {against}/255", in_points(p))
        columns = ["clean", *(f"{attack} at {at}/255" for attack in ("pgd20", "fast", "aa") for at in (2, 4))]
        lines.append([f"{eps}/255", *(cells.get(column, "") for column in columns)])
    headers = ["clean", *(f"{a} at {at}/255" for a in ("PGD-20", "fast", "AutoAttack, n 200,") for at in (2, 4))]
    return markdown(lines, ["trained at", *headers])


def read_or_none(name):
    """One evaluation's Record, or None where it was not made."""
    return read(name) if (DOCS / "results" / f"{name}.json").exists() else None


def best_epoch(metrics):
    """The epoch of model_best.safetensors: the first of the highest held-out PGD-10 accuracy."""
    return max(metrics, key=lambda m: (m["holdout_pgd10_acc"], -m["epoch"]))["epoch"]


EXTRA = {  # folder of docs/results/extra: what was trained
    "trades": "TRADES, 4,000 images",
    "extra-trades": "TRADES, and 45,000 pseudo-labelled",
    "nmse-piat": "PIAT+NMSE, 4,000 images",
    "extra-nmse-piat": "PIAT+NMSE, and 45,000 pseudo-labelled",
}


def extra_data():
    """Four trainings with and without pseudo-labelled images, last and best checkpoint, on test images."""
    return last_and_best("extra", EXTRA)


def extra_paired():
    """What the extra images change, and PIAT+NMSE beside TRADES, image by image, last checkpoint."""
    against = [("trades", "extra-trades"), ("nmse-piat", "extra-nmse-piat")]
    return image_by_image("extra", EXTRA, [*against, ("trades", "nmse-piat"), ("extra-trades", "extra-nmse-piat")])


def last_and_best(study, names):
    """Runs in docs/results/STUDY, {folder: name}: both checkpoints on test images, and AutoAttack on 300 where it was run."""
    lines = []
    for folder, who in names.items():
        metrics = read_lines(DOCS / f"results/{study}/{folder}/metrics.jsonl")
        for name, end, epoch in (("last", "", metrics[-1]["epoch"]), ("best", "_best", best_epoch(metrics))):
            if found := read_or_none(f"{study}/{folder}/results{end}"):
                cells = [cell(found, attack) for attack in ("clean", "pgd20", "cw20")]
                aa = read_or_none(f"{study}/{folder}/aa300/results{end}")
                lines.append([who, f"{name}, {epoch}", *cells, cell(aa, "aa")])
    headers = ["", "checkpoint, epoch", *(f"{attack}, n {found.n}" for attack in ("clean", "PGD-20", "CW-20"))]
    return markdown(lines, [*headers, "AutoAttack, n 300"])


def image_by_image(study, names, against):
    """B minus A in points for pairs (A, B) of such runs: last checkpoints, or the best one of "FOLDER best"."""
    lines, sizes = [], {}
    for pair in against:
        ends = [words.split() for words in pair]
        found = [p for few in ("", "aa300") for p in pairs(study, ends, few) if (p.attack == "aa") == bool(few)]
        a, b = (names[folder] + ("'s best" if of else "") for folder, *of in ends)
        lines.append([f"{b}, minus {a}", {p.attack: in_points(p) for p in found}])
        sizes |= {p.attack: p.n for p in found}
    headers = [f"{attack_name(attack)}, n {n}" for attack, n in sizes.items()]
    return markdown([[who, *(cells.get(attack, "") for attack in sizes)] for who, cells in lines], ["", *headers])


def pairs(study, ends, few):
    """Paired of two checkpoints, as in `both_ends`; [] without both."""
    _, before, after = both_ends(study, ends, few) or (None, {}, {})
    return [paired_images(name, before[name], after[name]) for name in before if name in after]


def both_ends(study, ends, few):
    """(images, verdicts of A, verdicts of B) of two checkpoints, each [FOLDER] or [FOLDER, "best"].

    As measured in the folder's own `few`; None where one of them was not.
    """
    sheets = [(DOCS / "results" / study / folder / few, *of) for folder, *of in ends]
    if not all((folder / f"results{'_best' if of else ''}.json").exists() for folder, *of in sheets):
        return None
    (one, before), (other, after) = (read_results(*sheet) for sheet in sheets)
    assert one.images == other.images
    return one.images, before, after


def extra_overfitting():
    """Held-out and training PGD-10 in two stretches of ten epochs, and the robust-overfitting gap."""
    lines = []
    for folder, who in EXTRA.items():
        metrics = read_lines(DOCS / f"results/extra/{folder}/metrics.jsonl")
        cells = [
            f"{100 * statistics.fmean(m[key] for m in metrics[first - 1 : first + 9]):.1f}"
            for key in ("holdout_pgd10_acc", "train_pgd10_acc", "holdout_clean_acc")
            for first in (21, 51)
        ]
        lines.append([who, *cells, f"{100 * CURVES['robust-overfitting gap'](metrics):.1f}"])
    stretches = ["held-out PGD-10, epochs 21-30", "51-60", "training PGD-10, 21-30", "51-60", "held-out clean, 21-30"]
    return markdown(lines, ["", *stretches, "51-60", "robust-overfitting gap"])


def cifar10_jpeg_methods():
    """Five methods with and without PIAT, 8 epochs of 4,000 images."""
    lines = []
    for method in ("pgd_at", "trades", "mart", "gairat", "nmse"):
        runs = {kind: read(f"cifar10-jpeg-methods/{method}-{kind}") for kind in KINDS}
        for kind, results in runs.items():
            gain = difference([results], [runs["none"]], "pgd20").split(" ")[0] if kind == "piat" else ""
            lines.append([label(method, kind), *(cell(results, attack) for attack in ("clean", "pgd20", "cw20")), gain])
    return markdown(lines, ["method", "clean", "PGD-20", "CW-20", "PIAT adds to PGD-20"])


def leaderboard():
    """The models in model_cards by what they were trained on, those that PGD-20 leaves most of first."""
    lines = []
    for folder in sorted(path.parent for path in CARDS.glob("*/config.json")):
        facts, run = card.summary(folder), RunDirectory.read(folder)
        cells = {"clean": "", "pgd20": "", "fast": "", "aa": ""}
        for record in [found.record for found in reversed(run.measured) if found.checkpoint == "last"]:
            cells |= {a: f"{cell(record, a)}, n {record.n}" for a in cells if a in record.attacks}
        name = f"[{folder.name}]({folder.name}/README.md)"
        hours = (
            sum(line["train_seconds"] + line["check_seconds"] for line in read_lines(folder / "timing.jsonl")) / 3600
        )
        budget = f"{run.config.epochs} ({hours:.1f} h)"
        if run.config.init_from:
            budget += f" from {Path(run.config.init_from).name}"
        images = f"{run.config.dataset}, {run.config.threat_model}"
        row = [name, images, facts["method"], facts["architecture"], budget, *cells.values()]
        lines.append((images, -facts.get("pgd20_acc", 0), row))
    attacks = ["clean", "PGD-20", "`fast`", "AutoAttack"]
    return markdown(
        [row for *_, row in sorted(lines)], ["model", "images", "method", "architecture", "epochs (time)", *attacks]
    )


def best_and_last():
    """Both checkpoints of the ResNet-20s in model_cards on the same images."""
    lines = []
    for folder in sorted(path.parent for path in CARDS.glob("resnet20-*/config.json")):
        metrics = read_lines(folder / "metrics.jsonl")
        best = best_epoch(metrics)
        for found in RunDirectory.read(folder).measured:
            if not found.folder:
                epoch = best if found.checkpoint == "best" else metrics[-1]["epoch"]
                figures = [cell(found.record, attack) for attack in ("clean", "pgd20")]
                lines.append([folder.name, found.checkpoint, epoch, *figures])
    return markdown(lines, ["model", "checkpoint", "of epoch", "clean", "PGD-20"])


def steadiness():
    """How much held-out PGD-10 accuracy changes from one epoch to the next, while the learning rate is constant and after."""
    lines = []
    for folder in sorted(path.parent for path in CARDS.glob("*/config.json")):
        metrics = read_lines(folder / "metrics.jsonl")
        first = metrics[0]["lr"]
        pairs = [
            (a, b) for a, b in itertools.pairwise(metrics) if a["epoch"] >= 5
        ]  # after the clean epochs and the first rise
        moves = {
            constant: [
                abs(b["holdout_pgd10_acc"] - a["holdout_pgd10_acc"]) for a, b in pairs if (b["lr"] == first) == constant
            ]
            for constant in (True, False)
        }
        if all(moves.values()):
            lines.append([folder.name, *(f"{100 * statistics.mean(m):.2f} (n {len(m)})" for m in moves.values())])
    return markdown(lines, ["model", "mean change at constant learning rate, points", "while it falls"])


def paired():
    """PIAT+NMSE against PGD-AT, image by image."""
    return shelf_pair("", "PIAT+NMSE")


def tuned_paired():
    """PGD-AT's network tuned on with TRADES against itself as it was, image by image."""
    return shelf_pair("-trades", "tuned on")


def shelf_pair(suffix, name):
    """A model of model_cards against the one of PGD-AT: both checkpoints, and AutoAttack."""
    a, b = (CARDS / f"resnet20-cifar10-jpeg{end}" for end in ("-pgd_at", suffix))
    few = [(p, "last") for p in compare(a / "aa1000", b / "aa1000") if p.attack == "aa"]
    pairs = [*((p, which) for which in ("last", "best") for p in compare(a, b, which)), *few]
    lines = [[f"{attack_name(p.attack)}, {which}, n {p.n}", *pair_cells(p)] for p, which in pairs]
    headers = ["", f"{name} minus PGD-AT, points", "95 % interval", f"only PGD-AT / only {name} stands", "McNemar's p"]
    return markdown(lines, headers)


def held_out():
    """The candidates for the shelf on the training images that they all left out, and the wide one paired with `-trades`."""
    names = {"resnet20-cifar10-jpeg-pgd_at": "PGD-AT", "resnet20-cifar10-jpeg-trades": "tuned on with TRADES"}
    names |= {"resnet20x2-cifar10-jpeg": "twice as wide, tuned on with N-FGSM"}
    found = {name: (read(f"held-out/{name}/results"), read(f"held-out/{name}-fast/results")) for name in names}
    attacks = {"clean": 0, "pgd20": 0, "cw20": 0, "fast": 1}
    lines = [[names[name], *(cell(sheets[at], a) for a, at in attacks.items())] for name, sheets in found.items()]
    _, narrow, wide = (DOCS / "results/held-out" / name for name in names)
    few = compare(narrow.with_name(f"{narrow.name}-fast"), wide.with_name(f"{wide.name}-fast"))
    both = {p.attack: in_points(p) for p in (*few, *compare(narrow, wide))}
    lines.append(["twice as wide minus TRADES, points", *(both[attack] for attack in attacks)])
    sheets = next(iter(found.values()))
    return markdown(lines, ["", *(f"{attack_name(a)}, n {sheets[at].n}" for a, at in attacks.items())])


def resnet18():
    """The ResNet-18 of 12 epochs on an H200, and paired with the shelf's `-trades` on the images that both have."""
    home, peer = DOCS / "results/resnet18", CARDS / "resnet20-cifar10-jpeg-trades"
    where = {"clean": ("", ""), "pgd20": ("", ""), "cw20": ("", ""), "fast": ("fast", None), "malt": ("fast", None)}
    lines, headers = [["ResNet-18"], ["minus `-trades`, points"]], [""]
    for attack, (folder, beside) in (where | {"aa": ("aa500", "aa1000")}).items():
        record, verdicts = read_results(home / folder)
        lines[0].append(cell(record, attack))
        headers.append(f"{attack_name(attack)}, n {record.n}")
        if beside is None:
            lines[1].append("")
        else:
            theirs = read_results(peer / beside)[1]
            labels = [load_arrays(at / "verdicts.npz")["label"] for at in (peer / beside, home / folder)]
            assert (labels[0][: record.n] == labels[1]).all()  # both begin with the split's first image
            lines[1].append(in_points(paired_images(attack, theirs[attack][: record.n], verdicts[attack])))
    return markdown(lines, headers)


def published():
    """The paper's rows for CIFAR-10 and RobustBench's, as published."""
    lines = []
    with (CARDS / "robustbench.csv").open(encoding="utf-8", newline="") as file:
        others = list(csv.DictReader(file))
    for row in [row for row in paper() if row["table"] in "12"] + others:
        if row["dataset"] == "cifar10":
            where = f"paper, table {row['table']}" if "table" in row else "RobustBench"
            cells = [f"{row[key]} %" if row.get(key) else "" for key in ("clean", "pgd20", "aa")]
            lines.append([where, row["method"], row["architecture"], row.get("training data", "CIFAR-10"), *cells])
    return markdown(lines, ["source", "method", "architecture", "training data", "clean", "PGD-20", "AutoAttack"])


def swept(name):
    """A study's table, from the rows that `piat study` wrote."""
    facts = read_json(DOCS / "results" / f"studies/{name}.json")
    attacks = [key for key in facts["rows"][0] if key in ("clean", "pgd20", "aa")]
    return table_text(name, facts["rows"], attacks, facts["failed"])


LONG = {  # what folders of docs/results/long begin with, before the seed: what was trained, each with seeds 0 and 1
    "pgd_at-none": "PGD-AT",
    "pgd_at-ema": "PGD-AT with EMA",
    "nmse-none": "NMSE",
    "trades-none": "TRADES",
    "pgd_at-piat": "PIAT",
    "nmse-piat": "PIAT+NMSE",
    "trades-piat": "PIAT+TRADES",
}
LONG_ATTACKS = {"clean": "clean, n 2000", "pgd20": "PGD-20, n 2000", "cw20": "CW-20, n 2000", "aa": "AutoAttack, n 300"}
LONG_PLACES = {"aa": "aa300"}  # in a run's folder
TESTED = ("clean", "pgd20", "cw20")


def overfitting():
    """Long training on 2,500 images: held-out and training PGD-10 in stretches of ten epochs, each run's mean."""
    columns = [("held-out PGD-10", "holdout_pgd10_acc", first) for first in (21, 73, 91, 111)]
    columns += [("training PGD-10", "train_pgd10_acc", first) for first in (73, 111)]
    columns += [("held-out clean", "holdout_clean_acc", first) for first in (73, 111)]
    lines = []
    for arm, who in LONG.items():
        runs = [read_lines(DOCS / f"results/long/{arm}-{seed}/metrics.jsonl") for seed in (0, 1)]
        tens = [
            [statistics.fmean(epoch[key] for epoch in run[first - 1 : first + 9]) for run in runs]
            for _, key, first in columns
        ]
        curves = [[CURVES[name](run) for run in runs] for name in ("robust-overfitting gap", "oscillation")]
        lines.append([who, *(" / ".join(f"{100 * value:.1f}" for value in values) for values in [*tens, *curves])])
    headers = [f"{what}, epochs {first}-{first + 9}" for what, _, first in columns]
    return markdown(lines, ["", *headers, "robust-overfitting gap", "oscillation"])


def long_tests():
    """The long runs on test images, last and best checkpoint of both seeds; AutoAttack where it was run."""
    lines, widest = [], {}
    for arm, who in LONG.items():
        metrics = [read_lines(DOCS / f"results/long/{arm}-{seed}/metrics.jsonl") for seed in (0, 1)]
        for name, end, epochs in (("last", "", [120]), ("best", "_best", [best_epoch(of) for of in metrics])):
            line = [who, f"{name}, {' / '.join(map(str, epochs))}"]
            for attack, head in LONG_ATTACKS.items():
                place = f"{LONG_PLACES.get(attack, '.')}/results{end}"
                found = [read_or_none(f"long/{arm}-{seed}/{place}") for seed in (0, 1)]
                assert all(record.n == int(head.split()[-1]) for record in found if record)
                figures = [record and record.attacks[attack] for record in found]
                line.append(
                    " / ".join(f"{100 * of['accuracy']:.2f}" if of else "–" for of in figures) if any(figures) else ""
                )
                for of in filter(None, figures):
                    low, high = of["ci95"]
                    wide = max(high - of["accuracy"], of["accuracy"] - low)
                    widest[of["n"]] = max(widest.get(of["n"], 0), 100 * wide)
            lines.append(line)
    text = markdown(lines, ["", "checkpoint, epoch", *LONG_ATTACKS.values()])
    spans = ", ".join(f"{wide:.1f} points with n {n}" for n, wide in widest.items())
    return f"{text}\n\nSeed 0 / seed 1, %. 95 % Wilson intervals reach no further than {spans}."


def long_paired():
    """The same against each other, image by image: last checkpoints, then what stopping early changes."""
    plain, ema, nmse, trades, piat, both, mixed = LONG
    against = [(plain, piat), (plain, both), (plain, nmse), (plain, ema), (plain, trades), (piat, both), (nmse, both)]
    against += [(ema, both), (trades, piat), (trades, both), (trades, mixed)]
    against += [(arm, f"{arm} best") for arm in LONG]
    against += [(f"{plain} best", arm) for arm in (f"{ema} best", f"{nmse} best", piat, both)]
    against += [(f"{ema} best", arm) for arm in (piat, both, trades)]
    against += [(f"{nmse} best", both), (plain, f"{ema} best")]
    lines = []
    for pair in against:
        a, b = (f"{LONG[arm]}, best" if of else LONG[arm] for arm, *of in map(str.split, pair))
        lines.append([f"{b}, minus {a}", *(of_seeds(pair, attack) for attack in LONG_ATTACKS)])
    return markdown(lines, ["", *LONG_ATTACKS.values()])


def of_seeds(pair, attack):
    """'+6.10, +7.00: +6.55 (+5.02 to +8.08)': B minus A with each seed, the mean, its 95 % interval over images.

    With one seed alone that one's difference and interval, and which seed it is; '' where neither has both.
    """
    found, images = {}, set()
    for seed in (0, 1):
        ends = [(f"{arm}-{seed}", *of) for arm, *of in map(str.split, pair)]
        if ran := both_ends("long", ends, LONG_PLACES.get(attack, "")):
            of_what, before, after = ran
            found[seed] = 100.0 * (after[attack].astype(float) - before[attack].astype(float))
            images.add(str(of_what))
    if not found:
        return ""
    assert len(images) == 1, images
    of_image = sum(found.values()) / len(found)
    mean, half = of_image.mean(), 1.96 * of_image.std(ddof=1) / len(of_image) ** 0.5
    begin = ", ".join(f"{one.mean():+.2f}" for one in found.values()) if len(found) > 1 else f"seed {next(iter(found))}"
    return f"{begin}: {mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def long_devices():
    """PIAT+NMSE with seed 0 on an H200 and on a CPU core: the last checkpoints, and the one minus the other."""
    homes = {"H200": "nmse-piat-0", "CPU core": "nmse-piat-0-cpu"}
    lines = [[who, *(cell(read(f"long/{home}/results"), attack) for attack in TESTED)] for who, home in homes.items()]
    found = {p.attack: in_points(p) for p in compare(*(DOCS / "results/long" / home for home in homes.values()))}
    lines.append(["CPU minus H200, points", *(found[attack] for attack in TESTED)])
    return markdown(lines, ["PIAT+NMSE, seed 0, last", *(LONG_ATTACKS[attack] for attack in TESTED)])


def study_lambda():
    """Constant lam and g(n) on digits, five seeds."""
    return swept("lambda")


def study_speed():
    """g(s n) for several s on digits at 30 epochs, five seeds."""
    return swept("speed")


def speed_held_out():
    """The same on held-out images, where a law would be chosen: PGD-10, the mean of the last ten epochs of each seed."""
    lines = []
    for law in ("none", "piat-0.0625n", "piat-0.25n", "piat-1n", "piat-4n"):
        runs = [read_lines(file) for file in sorted((DOCS / "results/studies/speed").glob(f"nmse-{law}-?.jsonl"))]
        found = [statistics.fmean(epoch["holdout_pgd10_acc"] for epoch in run[-10:]) for run in runs]
        lam = f"{runs[0][-1]['lam']:.2f}"
        lines.append([law.removeprefix("piat-"), lam, len(runs), between(mean_interval(found), ".2f")])
    return markdown(lines, ["law: none or g(s n)", "last lambda", "seeds", "held-out PGD-10, %, epochs 21-30"])


def study_averaging():
    """Averages of weights on digits, five seeds."""
    return swept("averaging")


def study_mu():
    """The weight of NMSE on digits, three seeds."""
    return swept("mu")


def study_clean_epochs():
    """Every adversarial method after clean epochs and without, on digits, one seed."""
    if not (DOCS / "results" / "studies/clean-epochs.json").exists():
        return "It has not been run yet."
    return swept("clean-epochs")


def vit():
    """PIAT+NMSE with a small vision transformer on CIFAR images, one seed."""
    results = read("vit/piat-nmse")
    return markdown([[cell(results, "clean"), cell(results, "pgd20")]], ["clean, n 500", "PGD-20, n 500"])


def lambda_resnet20():
    """Three schedules of lam with a ResNet-20 on CIFAR images, one seed."""
    lines = []
    for kind, name in (("none", "NMSE"), ("0.9", "lam=0.9+NMSE"), ("piat", "PIAT+NMSE")):
        results = read(f"cifar10-jpeg-lambda/nmse-{kind}")
        metrics = read_lines(DOCS / "results" / "cifar10-jpeg-lambda" / f"nmse-{kind}-metrics.jsonl")
        curves = [f"{100 * of(metrics):.2f}" for of in CURVES.values()]
        lines.append([name, f"{metrics[-1]['lam']:.2f}", *(cell(results, a) for a in ("clean", "pgd20")), *curves])
    return markdown(lines, ["", "last lam", "clean", "PGD-20", *(f"{name}, points" for name in CURVES)])


def steadier():
    """What PIAT changes over all adversarial methods of the methods study: the mean over methods, seed by seed."""
    rows = {
        row["label"]: row
        for row in read_json(DOCS / "results" / "studies/methods.json")["rows"]
        if "standard training" not in row["label"]
    }
    pairs = [
        (row, rows[{"PGD-AT": "PIAT"}.get(name, f"PIAT+{name}")]) for name, row in rows.items() if "PIAT" not in name
    ]
    pairs = [(row, piat) for row, piat in pairs if row["seeds"] == piat["seeds"]]
    lines = []
    for what in (*CURVES, "pgd20"):
        values = [[row[what]["each"] if what == "pgd20" else row[what] for row in pair] for pair in pairs]
        gains = [[b - a for a, b in zip(*pair, strict=True)] for pair in values]  # by method, by seed
        over = between(mean_interval([statistics.fmean(seed) for seed in zip(*gains, strict=True)]), "+.2f")
        fewer, count = sum(g < 0 for each in gains for g in each), sum(map(len, gains))
        lines.append([{"pgd20": "PGD-20 accuracy"}.get(what, what), over, f"{fewer} of {count}"])
    about = f"{len(pairs)} adversarial methods, {len(gains[0])} seeds, each run beside the one without PIAT:"
    return f"{about}\n\n{markdown(lines, ['', 'with PIAT minus without, points', 'lower with PIAT'])}"


def flatness():
    """The loss at the weights and around them: a run's landscape.json each."""
    lines = []
    for path in sorted((DOCS / "results" / "landscapes").glob("*.json")):
        surface = read_json(path)
        middle, edge = pictures.middle_and_edge(surface["losses"])
        how = "filter by filter" if surface["filterwise"] else "as long as the weights"
        name = path.stem.removesuffix("-filterwise")
        lines.append([how, name, f"{middle:.3f}", f"{edge:.3f}", f"{edge - middle:.3f}"])
    return markdown(sorted(lines), ["directions", "run", "loss at the weights", "mean at the edge", "rise"])


def faults():
    """The fault campaign: what was tried, and what was lost."""
    facts = json.loads((DOCS / "results" / "faults.json").read_text(encoding="utf-8"))
    lines = [[what, f"{tried:,}", f"{lost:,}"] for part in facts.values() for what, tried, lost in part["rows"]]
    return markdown(lines, ["what", "tried", "lost"])


def method_settings(name):
    """A method's hyper-parameters, read off its dataclass."""
    fields = dataclasses.fields(losses.get(name))
    if not fields:
        return "It has no hyper-parameters of its own."
    signs = {"above": ">", "least": ">=", "below": "<", "most": "<="}
    lines = []
    for f in fields:
        limits = ", ".join(f"{signs[rule]} {bound:g}" for rule, bound in f.metadata["limits"].items())
        default = f"{f.default:.4g}" if isinstance(f.default, float) else show(f, f.default)
        lines.append([f"`--method.{f.name.replace('_', '-')}`", default, limits or "any", f.metadata["doc"]])
    return markdown(lines, ["flag", "default", "range", "meaning"])


def method_cost(name):
    """What one weight update of a method costs beside PGD-AT's."""
    facts, by_name = method_costs()
    if name not in by_name:
        return "Not measured yet: `python benchmarks/methods.py` does."
    row = by_name[name]
    spread = f" ({row['lowest']:.2f} to {row['highest']:.2f} over {facts['rounds']} rounds)" if name != "pgd_at" else ""
    beside = "which the others are set beside" if name == "pgd_at" else f"{row['ratio']:.2f} times PGD-AT's{spread}"
    setting = f"{facts['backbone']}, batch {facts['batch_size']}, PGD-{facts['steps']}, {facts['device']}"
    return f"One weight update took {1000 * row['seconds']:.0f} ms, {beside}. Measured with {setting}."


def method_digits(name):
    """A method with and without PIAT on digits, three seeds."""
    runs, lines = on_digits(name), []
    for kind, each in runs.items():
        found, gain = list(each.values()), gain_on_digits(runs, kind)
        lines.append([label(name, kind), mean(found, "clean"), mean(found, "pgd20"), gain, aa_on_digits(name, kind)])
    headers = ["", "clean, mean", "PGD-20, mean", "PIAT adds (each seed)", "AutoAttack, seed 0, n 100"]
    return markdown(lines, headers)


def method_photographs(name):
    """A method with and without PIAT on 4,000 photographs, one seed."""
    lines = [
        [label(name, kind), *(cell(read(f"cifar10-jpeg-methods/{name}-{kind}"), a) for a in ("clean", "pgd20", "cw20"))]
        for kind in KINDS
    ]
    return markdown(lines, ["", "clean", "PGD-20", "CW-20"])


def shelf():
    """The models in model_cards, as the site shows them: without links into the repository."""
    return re.sub(r"\[([^\]]+)\]\([^)]+\) *", r"`\1` ", leaderboard())


def which():
    """Which model of model_cards to take for what, as `piat list` says it."""
    found = sorted(path.parent for path in CARDS.glob("*/config.json"))
    return "\n".join(f"- {said.replace(f'{CARDS}/', '')}." for said in advice(found))


def recipe_pages():
    """Every recipe as its docstring tells it, under a heading each."""
    parts = []
    for name in recipes.names():
        first, _, rest = recipes.told(name).partition("\n\n")
        command, _, rest = rest.partition("\n")
        rest = re.sub(r"--[a-z-]+(?: [\w/.]*\w)?", r"`\g<0>`", rest)
        command = command.removeprefix("Command: accelerate launch train.py").strip() or name
        parts.append(f"### {name}\n\n{first}\n\n```bash\npiat train {command}\n```\n\n{rest}\n")
    return "\n" + "\n".join(parts)


def settings(name):
    """The flags of one of the configurations, with defaults: what `--help` says."""
    lines = []

    def add(options, prefix):
        for f in dataclasses.fields(options):
            value = getattr(options, f.name)
            if dataclasses.is_dataclass(value):
                add(value, f.metadata.get("prefix", ""))
            elif f.metadata.get("flag", "") is not None:
                flag = f"`--{f.metadata.get('flag') or prefix + f.name.replace('_', '-')}`"
                default = "" if value in (None, "", (), False) else f"`{show(f, value)}`"
                unit = f" [{f.metadata['unit']}]" if f.metadata.get("unit") else ""
                lines.append([flag, default, f.metadata["doc"] + unit])

    add(getattr(config, name)(), "")
    return markdown(lines, ["flag", "default", "meaning"])


def measured(name):
    """What one of benchmarks/ wrote."""
    return json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))


def method_costs():
    """Measured seconds of one update, by name."""
    facts = measured("methods")
    return facts, {row["name"]: row for row in facts["rows"]}


def methods(link="`{0}`"):
    """README's table: what each method is, and what one of its updates costs beside PGD-AT's."""
    cost = method_costs()[1]
    ratios = {name: f"{cost[name]['ratio']:.2f}" if name in cost else "not measured" for name in METHODS}
    lines = [[link.format(name), *about, ratios[name]] for name, about in METHODS.items()]
    return markdown(lines, ["name", "paper", "loss", "inner attack: objective, start", "cost of an update"])


def goes_with():
    """What each method goes with, as a training would accept or refuse it."""
    alone = dataclasses.replace(recipes.get("resnet18-cifar10"), interpolation=InterpolationConfig(kind="none"))
    others = {
        "AWP": {"awp": 0.01},
        "`--accumulation`": {"accumulation": 2},
        "mixup, CutMix": {"mixing": MixingConfig(mixup=0.8)},
        "`--crafting apgd`": {"attack": AttackConfig(crafting="apgd", steps=2)},
        "`--eps-warmup-epochs`": {"schedule": ScheduleConfig(eps_warmup_epochs=5)},
    }
    lines = []
    for method in METHODS:
        cells = []
        for changes in others.values():
            try:
                checked_method(dataclasses.replace(alone, method=method, **changes))
                cells.append("yes")
            except InputError:
                cells.append("**no**")
        lines.append([f"[`{method}`](methods/{method}.md)", *cells])
    return markdown(lines, ["", *others])


def methods_linked():
    """The same with a link to each method's page."""
    return methods("[`{0}`](methods/{0}.md)")


def cost():
    """Every figure that benchmarks/methods.py measured."""
    facts, by_name = method_costs()
    lines = [
        [
            row["name"],
            f"{1000 * row['seconds']:.1f}",
            f"{row['ratio']:.3f}",
            f"{row['lowest']:.3f} to {row['highest']:.3f}",
        ]
        for row in by_name.values()
    ]
    setting = f"{facts['backbone']}, batch {facts['batch_size']}, PGD-{facts['steps']}, {facts['rounds']} rounds"
    table = markdown(lines, ["", "ms an update", "to PGD-AT", "lowest to highest"])
    return f"{setting}, {facts['device']}, torch {facts['torch']}:\n\n{table}"


def peers(kind):
    """The rows of benchmarks/evaluate.py on both data sets."""
    for data in ("digits", "cifar10-jpeg"):
        facts = read_json(DOCS / "results" / f"evaluation/{kind}-{data}.json")
        for row in facts["rows"]:
            yield [f"{data}, {facts['threat_model']}"], row


def autoattack():
    """Survivors of both AutoAttacks, over three seeds."""
    keys = ("seed", "n", "ours", "pyautoattack", "differ", "our_seconds", "their_seconds")
    lines = [[*name, *(str(row[key]) for key in keys)] for name, row in peers("autoattack")]
    return markdown(lines, ["images", "seed", "n", "ours", "pyautoattack", "differ", "our s", "their s"])


def union():
    """Two digits models under several threat models, and the union of these."""
    lines = []
    for name in ("standard", "demo"):
        told = read_json(DOCS / "results" / "union" / f"{name}.json")
        whole = told["union"] | {"seconds": told["seconds"]}
        for row in (*told["threat_models"], whole):
            threat = f"{row['norm']} eps {row['eps']}" if "norm" in row else "union"
            low, high = (f"{100 * end:.2f}" for end in row["ci95"])
            lines.append([name, threat, f"{percent(row['accuracy'])} [{low}, {high}]", f"{row['seconds']:.0f}"])
    return markdown(lines, ["model", "threat model", "APGD-CE and APGD-T", "s"])


def torchattacks():
    """Images that withstand PGD-20, by both."""
    lines = [
        [*name, *(str(row[k]) for k in ("n", "ours", "torchattacks", "differ"))] for name, row in peers("torchattacks")
    ]
    return markdown(lines, ["images", "n", "ours", "torchattacks", "differ"])


def suite_rows(facts):
    """A file of benchmarks/suites.py, a row a suite: what it leaves, and beside AutoAttack where that was run, for its card."""
    images = f"{facts['model']}, {facts['first'] + 1} to {facts['first'] + facts['n']}"
    for row in facts["rows"]:
        name = {"apgd": "AutoAttack without FAB-T, Square", "malt3": "MALT, three targets"}.get(row["attack"])
        beside = [row["missed"], row["more"]] if facts["aa"] is not None else ["", ""]
        yield [
            images,
            name or attack_name(row["attack"]),
            row["search"],
            facts["clean"],
            row["stand"],
            *beside,
            row["seconds"],
        ]
    if (DOCS / f"results/aa200/{facts['model']}").exists() and facts["n"] == 200:
        seconds = read(f"aa200/{facts['model']}/results").attacks["aa"]["seconds"]
        yield [images, "AutoAttack, by the clock", "fp32", facts["clean"], facts["aa"], 0, 0, seconds]


def thousand():
    """The models in model_cards under fast, MALT and AutoAttack: what stands, AutoAttack's breaks missed, seconds."""
    lines = []
    homes = {path.parent: read_record(path) for path in sorted(CARDS.glob("*/aa1000/results.json"))}
    homes = {home: record for home, record in homes.items() if "malt" in record.attacks}
    for home, record in homes.items():
        stand = read_results(home)[1]
        for attack in ("pgd20", "fast", "malt", "aa"):
            missed, more = (stand[attack] & ~stand["aa"]).sum(), (stand["aa"] & ~stand[attack]).sum()
            seconds = f"{record.attacks[attack]['seconds']:.1f}"
            name = home.parent.name
            lines.append([name, attack_name(attack), cell(record, attack), str(missed), str(more), seconds])
    table = markdown(lines, ["model", "attack", "stand", "AutoAttack's breaks missed", "others", "s"])
    (device,) = {record.environment["device"] for record in homes.values()}
    return f"{record.n} images of {record.dataset}, {device}:\n\n{table}"


SUITES = ["images", "attack", "search", "clean", "stand", "AutoAttack's breaks missed", "others", "CPU s"]


def suites(kind):
    """benchmarks/suites.py's, of the two ResNet-20s or of the photographs."""
    files = sorted(BENCHMARKS.glob(f"suites-{kind}*.json"))
    lines = [[*map(str, row)] for file in files for row in suite_rows(read_json(file))]
    facts = read_json(files[0])
    return f"{facts['dataset']}, {facts['threat_model']}, {machine(facts)}:\n\n{markdown(lines, SUITES)}"


def suite_stages():
    """Which stage of a suite broke how many of the images that stood before it."""
    lines = []
    for file in sorted(BENCHMARKS.glob("suites-*.json")):
        facts = read_json(file)
        for row in facts["rows"]:
            if row["search"] == "fp32" and len(row["stages"]) > 1:
                parts = [
                    f"{attack_name(s)}: {f['broken']} of {f['attacked']}, {f['seconds']} s"
                    for s, f in row["stages"].items()
                ]
                lines.append([f"{facts['model']}, n {facts['n']}", row["attack"], "; ".join(parts)])
    return markdown(lines, ["images", "suite", "broken of those attacked, CPU seconds"])


def nearest_examples():
    """FMN's curve beside PGD-20 at the same budgets, and AutoAttack at the one of the card."""
    found = read("evaluation/fmn-cifar10-jpeg")
    by_aa = read_results(DOCS / "results/aa200/resnet20-cifar10-jpeg-pgd_at")[1]["aa"][: found.n]
    at = {p["eps"]: p["attacks"] for p in found.sweep if "pgd20" in p["attacks"]} | {"8/255": found.attacks}
    lines = []
    for eps in sorted(at, key=config.number):
        stand = [str(at[eps][attack]["correct"]) for attack in ("fmn100", "pgd20")]
        lines.append([eps, *stand, str(by_aa.sum()) if eps == "8/255" else ""])
    spent = ", ".join(f"{attack_name(a)} {found.attacks[a]['seconds']} s" for a in ("fmn100", "pgd20"))
    table = markdown(lines, ["eps", "FMN-100, one run", "PGD-20, anew at each", "AutoAttack"])
    return f"What stands of {found.n} images of {found.dataset}, {found.environment['device']}; at 8/255 {spent}:\n\n{table}"


def machine(facts):
    """'CPU AMD EPYC, 2 threads, torch 2.15.0, 2026-11-22'."""
    return f"{facts['device']}, torch {facts['torch']}, {facts['date']}"


def spread(values):
    """'1.93 (1.88 to 2.01)': the median, the least and the most."""
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def step(device=""):
    """Every line of benchmarks/step.py; what needs a peer is a dash without one."""
    file = BENCHMARKS / f"step{device and '-' + device}.jsonl"
    every = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    machines = sorted({machine(facts) for facts in every})
    lines = []
    for facts in every:
        rate, peak = facts["images_per_second"], facts["peak"]["convolution"]
        cells = [facts["method"], facts["backbone"].removeprefix("cifar_"), facts["batch_size"]]
        how = {None: "", "default": ", compiled"}.get(facts["compile"], f", {facts['compile']}")
        cells += [{"no": "fp32"}.get(facts["precision"], facts["precision"]) + how]
        cells += [facts["date"]] * (len(machines) > 1) + [f"{rate['ours']:.1f}"]
        if "ratio" in facts:
            cells += [f"{rate['theirs']:.1f}", spread(facts["ratio"])]
            losses = f"{facts['loss']['ours']:.4f} / {facts['loss']['theirs']:.4f}"
            cells += [losses, f"{facts['gradient_deviation']:.1e}"]
        else:
            cells += ["-"] * 4
        lines.append([*map(str, cells), f"{facts['gflops']:.0f}", f"{facts['gflops'] / peak:.0%}"])
    headers = ["method", "backbone", "batch", "precision", *["day"] * (len(machines) > 1), "images/s", "authors'"]
    headers += ["ratio (least to most)", "loss, ours / theirs", "gradient", "GFLOP/s", "of convolution peak"]
    share = max(facts["interpolation_share"] for facts in every if facts["backbone"] == "cifar_resnet18")
    text = (
        f"{every[0]['rounds']} rounds, PGD-{every[0]['steps']}, {' and '.join(machines)}:\n\n{markdown(lines, headers)}"
    )
    return f"{text}\n\nPIAT's interpolation of a ResNet-18 takes {share:.5%} of an epoch of 50,000 such images."


def compiled():
    """The same update, plain and compiled."""
    lines = []
    for facts in map(json.loads, (BENCHMARKS / "compile.jsonl").read_text(encoding="utf-8").splitlines()):
        rate = facts["images_per_second"]["ours"]
        lines.append([facts["compile"] or "no", f"{rate:.1f}", f"{facts['gflops']:.0f}", machine(facts)])
    return markdown(lines, ["compile", "images/s", "GFLOP/s", "machine"])


def speed():
    """README's short table."""
    every = [json.loads(line) for line in (BENCHMARKS / "step.jsonl").read_text(encoding="utf-8").splitlines()]
    lines, rows = [], {}
    for facts in every:
        key = f"{facts['method']}, {facts['backbone'].removeprefix('cifar_')}, batch {facts['batch_size']}"
        rows.setdefault(key, {})[facts["precision"]] = spread(facts["ratio"]) if "ratio" in facts else "-"
    lines += [
        [
            f"training, {name}",
            "GAIRAT's code" if name.startswith("pgd_at") else "its authors' code",
            row["no"],
            row["bf16"],
        ]
        for name, row in rows.items()
    ]
    for kind, name in (("torchattacks", "PGD-20"), ("autoattack", "AutoAttack")):
        facts = measured(f"evaluate-{kind}")
        peer = {"autoattack": "pyautoattack"}.get(kind, kind)
        left = sum(row["ours"] for row in facts["rows"]) / sum(row["n"] for row in facts["rows"])
        lines.append([f"{name}, ResNet-20, {left:.0%} survive", peer, spread(ratios(facts)), ""])
    return f"{machine(every[0])}:\n\n{markdown(lines, ['what', 'beside', 'fp32', 'bf16'])}"


def bf16():
    """Three methods trained in fp32 and in bf16."""
    lines = []
    for method in ("pgd_at", "nmse", "trades"):
        for precision, folder in (("fp32", "cifar10-jpeg-methods"), ("bf16", "bf16")):
            results = read(f"{folder}/{method}-none")
            lines.append([method, precision, *(cell(results, attack) for attack in ("clean", "pgd20", "cw20"))])
    return markdown(lines, ["method", "precision", "clean", "PGD-20", "CW-20"])


def ratios(facts):
    """Median, least and most of an evaluation's turns."""
    each = [row["ratio"] for row in facts["rows"]]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def evaluation_speed():
    """Both peers of benchmarks/evaluate.py."""
    lines = []
    for kind, peer in (("torchattacks", "torchattacks"), ("autoattack", "pyautoattack")):
        facts = measured(f"evaluate-{kind}")
        for row in facts["rows"]:
            cells = [f"{kind}, {facts['threat_model']}", row["seed"], row["n"], row["ours"], row[peer], row["differ"]]
            lines.append([*map(str, cells), str(row["our_seconds"]), str(row["their_seconds"]), f"{row['ratio']:.2f}"])
    headers = ["beside", "turn", "n", "ours stand", "theirs stand", "differ", "our s", "their s", "ratio"]
    facts = measured("evaluate-torchattacks")
    return f"{facts['model']} on {facts['dataset']}, {machine(facts)}:\n\n{markdown(lines, headers)}"


def data():
    """benchmarks/data.py's."""
    facts = measured("data")
    lines = [
        [
            row["pass"],
            f"{1000 * row['seconds']:.1f}",
            f"{row['ratio']:.1f} ({row['lowest']:.1f} to {row['highest']:.1f})",
        ]
        for row in facts["rows"]
    ]
    table = markdown(lines, ["", "ms", "to ours from memory"])
    return f"{facts['images']} images of {facts['dataset']}, {facts['rounds']} rounds, {machine(facts)}:\n\n{table}"


def extra_feed():
    """benchmarks/data.py's, of mapped images."""
    facts = measured("extra-feed")
    lines = [
        [
            f"{row['images']:,}",
            f"{1000 * row['seconds']:.2f}",
            f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
            *(f"{row[key]:,.0f}" for key in ("file_mib", "computed_mib", "held_mib")),
            f"{row['first_batch_seconds']:.2f}",
            f"{row['convert_seconds']:.1f}",
        ]
        for row in facts["rows"]
    ]
    headers = [
        "extra images",
        "ms a batch",
        "to the first",
        "file, MiB",
        "held, computed",
        "held",
        "first batch, s",
        "converting, s",
    ]
    what = f"Batches of {facts['batch']}, {facts['extra']} of them extra, {facts['rounds']} rounds of {facts['steps']}"
    return f"{what}, {machine(facts)}:\n\n{markdown(lines, headers)}"


def photograph_feed():
    """benchmarks/photographs.py's."""
    facts = measured("photographs")
    lines = [
        [
            row["pass"],
            f"{row['images_per_second']:.0f}",
            f"{1 / row['ratio']:.2f} ({1 / row['highest']:.2f} to {1 / row['lowest']:.2f})",
        ]
        for row in facts["rows"]
    ]
    lines.append([f"PGD-2 and update, {facts['backbone']}", f"{facts['attack_images_per_second']:.0f}", ""])
    table = markdown(lines, ["", "images a second", "to ours"])
    before, after = facts["held_mib"]
    what = (
        f"{facts['images']} photographs of {facts['dataset']} at {facts['img_size']} pixels, {facts['workers']} workers"
    )
    memory = f"100,000 of them take {facts['decoded_mib']:,.0f} MiB decoded; training held {before:,.0f} MiB at its first batch"
    rounds = f"{what}, {facts['rounds']} rounds, {machine(facts)}"
    return f"{rounds}:\n\n{table}\n\n{memory} and {after:,.0f} MiB after 200 more, workers included."


def costs():
    """benchmarks/costs.py's."""
    lines = []
    for name in ("costs", "costs-imagenet"):
        for row in measured(name)["rows"]:
            cells = [f"{row['gflop']:.1f}", f"{row['gflop_checkpointed']:.1f}", f"{row['mib']:.2f}"]
            cells += [f"{row['mib_checkpointed']:.2f}", f"{row['gib_128']:.1f}", f"{row['gib_128_checkpointed']:.1f}"]
            lines.append([row["backbone"], row["method"], *cells, f"{row['weights_mib']:.1f}"])
    headers = ["backbone", "method", "GFLOP an image", "checkpointed", "MiB an image", "checkpointed"]
    return markdown(lines, [*headers, "GiB at batch 128", "checkpointed", "weights, MiB"])


def scaling():
    """benchmarks/scaling.py's."""
    facts = measured("scaling")
    lines = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in facts["rows"]]
    setting = f"{facts['backbone']}, {facts['method']}, global batch {facts['batch_size']}, PGD-{facts['steps']}"
    return f"{setting}, {machine(facts)}:\n\n{markdown(lines, list(facts['rows'][0]))}"


def epochs():
    """Seconds an epoch by the formula: measured here on a CPU, and at the assumed rate of a GPU."""
    nmse = {
        row["backbone"]: row
        for name in ("costs", "costs-imagenet")
        for row in measured(name)["rows"]
        if row["method"] == "nmse"
    }
    steps = [json.loads(line) for line in (BENCHMARKS / "step.jsonl").read_text(encoding="utf-8").splitlines()]
    here = {f["backbone"]: f["gflops"] for f in steps if f["precision"] == "bf16" and f["method"] == "trades"}
    rate, links, lines = 0.4 * 989e12, 100e9, []
    for backbone, row in nmse.items():
        images, flop = (1_281_167 if backbone == "resnet50" else 50_000), row["gflop"] * 1e9
        cpu = f"{images * flop / (here[backbone] * 1e9) / 3600:.1f} h" if backbone in here else "-"
        cells = [f"{rate / flop:,.0f}"]
        for devices in (1, 8, 64):
            volume = 2 * (devices - 1) / devices * row["weights_mib"] * 2**20
            seconds = images * flop / (devices * rate) + images / (128 * devices) * volume / links
            cells.append(f"{seconds:,.1f} s")
        lines.append([backbone, f"{images:,}", cpu, *cells])
    headers = ["backbone", "images", "this CPU, bf16", "assumed images/s a GPU", "1 GPU", "8 GPUs", "64 GPUs"]
    return markdown(lines, headers)


def demo():
    """How long `make demo` took, and what it measured."""
    results = read("demo/results")
    lines = (DOCS / "results" / "demo" / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    trained = sum(line["train_seconds"] + line["check_seconds"] for line in map(json.loads, lines))
    table = markdown(rows(results), HEADERS)
    took = f"Training took {trained:.0f} s and evaluation {results.seconds:.0f} s ({results.environment['device']})."
    return f"{took} It printed:\n\n{table}"


def demo_models():
    """What the two models of the page were measured to be."""
    found = {name: read(f"demo_models/{name}") for name in ("ordinary", "robust")}
    return markdown([[name, *row] for name, record in found.items() for row in rows(record)[:2]], ("model", *HEADERS))


def page_speed():
    """How soon the page is there, and an attack on it at its end."""
    facts = read_json(BENCHMARKS / "demo.json")
    told = {"first_paint": "first paint", "opening": "both models have answered the opening attack"}
    told |= {"attack": "20 steps on both, from a press of Attack"}
    table = markdown([[words, spread(facts["seconds"][key])] for key, words in told.items()], ("", "seconds"))
    return f"{machine(facts)}, beside other work (load average {facts['load']}):\n\n{table}"


def filled(text):
    """The text with every table between its markers written anew."""

    def table(match):
        name, *words = match[1].split()
        return f"<!-- table {match[1]} -->\n{globals()[name](*words)}\n<!-- end -->"

    return re.sub(r"<!-- table (\w[\w ]*) -->\n.*?<!-- end -->", table, text, flags=re.S)


if __name__ == "__main__":
    for file in FILES:
        file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
    for name in sys.argv[1:]:  # and print these
        print(f"\n{globals()[name]()}")
