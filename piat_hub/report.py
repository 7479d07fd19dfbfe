"""One self-contained page of a set of runs: what they are, what was measured, every figure, and what to believe of it."""

from __future__ import annotations

import dataclasses
import datetime
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

import piat_hub
from piat_hub import card, records, results
from piat_hub.card import attack_name, percent
from piat_hub.config import InputError, flat, to_dict
from piat_hub.figures import COLOURS, styled
from piat_hub.files import write_text
from piat_hub.gallery import Drawn
from piat_hub.published import PAPER_ATTACKS
from piat_hub.records import Run

TEMPLATE = Path(__file__).with_name("report_template.html")
INK = ("#000000", "#222222", "#444444")  # what takes the page's own colour of text


def write(path: Path, runs: Sequence[Run], drawn: Mapping[str, Sequence[Drawn]]) -> None:
    """Write the page; it appears whole. drawn: the figures of each of `records.benchmarks`."""
    write_text(path, render(runs, drawn))


def render(runs: Sequence[Run], drawn: Mapping[str, Sequence[Drawn]]) -> str:
    """The page as text: HTML with its style and figures inside, nothing fetched."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "attack": attack_name}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    number = 0
    benchmarks = []
    for name, group in records.benchmarks(runs).items():
        pictures = []
        for one in drawn.get(name, ()):
            if one.figure is not None:
                number += 1
                pictures.append({"svg": inline(one.figure, f"f{number}-"), "caption": one.figure.get_label()})
        attacks, groups = columns(group), configurations(group)
        benchmarks.append(
            {
                "name": name,
                "attacks": attacks,
                "groups": groups,
                "shared": [attack for attack in attacks if any(attack in row["attacks"] for row in groups)],
                "rows": table(group),
                "pairs": pairs(group),
                "pictures": pictures,
                "left_out": [one for one in drawn.get(name, ()) if one.figure is None],
            }
        )
    told = [about(run) for run in runs]
    return template.render(
        benchmarks=benchmarks,
        runs=told,
        environment=list(dict.fromkeys(name for one in told for name in one["environment"])),
        elsewhere=elsewhere(runs),
        differing=differing(runs),
        date=datetime.date.today().isoformat(),
        version=piat_hub.__version__,
        colours={f"--series{k}": colour for k, colour in enumerate(COLOURS)},
    )


@styled
def inline(figure: Figure, prefix: str) -> str:
    """The figure as SVG for a page: its ids made unique by the prefix, its colours those of the page's light or dark theme."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)
    for ink in INK:
        svg = svg.replace(ink, "currentColor")
    for k, colour in enumerate(COLOURS):
        svg = re.sub(colour, f"var(--series{k})", svg, flags=re.I)
    return svg


def columns(runs: Sequence[Run]) -> list[str]:
    """Every attack that was measured on any of the runs, clean first, then those of the paper's rows beside them."""
    every = [attack for run in runs for found in run.results.values() for attack in found["attacks"]]
    every += [attack for run in runs for attack in records.beside(run.config)]
    return sorted(dict.fromkeys(every), key=lambda attack: attack != "clean")


def measured(run: Run) -> list[dict[str, Any]]:
    """A row for each results file of a run, on its own test images under its own threat model."""
    about = {"name": named(run), "run": place(run)}
    rows = [
        about | {"what": key, "n": found["dataset"]["n"], "attacks": found["attacks"]}
        for key, found in run.results.items()
    ]
    return rows or [about | {"what": "not evaluated", "n": "", "attacks": {}}]


def table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of all runs, each method's own row in the paper after its last run where the data are the paper's."""
    rows = []
    for group in records.grouped(runs).values():
        rows += [row for run in group for row in measured(run)]
        if published := records.beside(group[0].config):
            cells = {
                attack: {"accuracy": published[attack]} for attack in PAPER_ATTACKS.values() if attack in published
            }
            rows.append({"name": f"{card.method_name(group[0].config)}, as published", "run": "", "attacks": cells})
    return rows


def elsewhere(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What was measured on other images or under another threat model than the run's own: a row each, with the question."""
    rows = []
    for run in runs:
        for key, found in run.elsewhere.items():
            threat, where = found["threat_model"], found["dataset"]
            question = f"{where['name']} ({where['split']}), {threat['norm']} eps {threat['eps']}"
            for attack, figures in found["attacks"].items():
                rows.append(
                    {"name": named(run), "run": place(run), "what": key, "on": question, "attack": attack} | figures
                )
    return rows


def named(run: Run) -> str:
    """'PIAT+NMSE, seed 0'."""
    return f"{card.method_name(run.config)}, seed {run.config.seed}"


def place(run: Run) -> str:
    """The run's directory as it was named; of a path from the root only the last part."""
    return run.directory.name if run.directory.is_absolute() else str(run.directory)


def configurations(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each group of several seeds: mean and interval under the attacks measured on all, and its curves' figures."""
    rows = []
    for label, group in records.grouped(runs).items():
        if len(group) > 1:
            cells = {attack: records.accuracy(group, attack) for attack in records.attacks(group)}
            curves = {name: [of(run.metrics) for run in group] for name, of in records.CURVES.items()}
            means = {k: None if None in v else sum(v) / len(v) for k, v in curves.items()}  # type: ignore[arg-type]
            rows.append({"name": label, "seeds": len(group), "attacks": cells, "curves": means})
    return rows


def pairs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each run paired image by image with the first, where both were measured on the same images."""
    found = []
    for run in runs[1:]:
        if not all("last" in one.results for one in (runs[0], run)):
            continue
        try:
            compared = results.compare(runs[0].directory, run.directory)
        except InputError:
            continue
        found += [{"a": named(runs[0]), "b": named(run)} | dataclasses.asdict(one) for one in compared]
    return found


def about(run: Run) -> dict[str, Any]:
    """What a run is, where and with what it was trained and measured, and its honesty checks."""
    latest = next(iter(run.results.values()), {})
    return {
        "title": card.title(run.config),
        "directory": place(run),
        "seed": run.config.seed,
        "command": card.command(run.config),
        "config": flat(to_dict(run.config)),
        "training": card.training(run.directory),
        "epochs": len(run.metrics),
        "checks": [(key, found["checks"]) for key, found in run.results.items() if found.get("checks")],
        "notes": [f["changed"] for r in run.results.values() for f in r["attacks"].values() if "changed" in f],
        "environment": {"device": latest.get("device"), "git": latest.get("git")} | (latest.get("versions") or {}),
    }


def differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) for the settings in which the runs differ; [] for more than eight runs."""
    each = [flat(to_dict(run.config)) for run in runs]
    names = dict.fromkeys(name for one in each for name in one)
    rows = [(name, [str(one.get(name, "")) for one in each]) for name in names]
    return [row for row in rows if len(set(row[1])) > 1] if len(runs) <= 8 else []
