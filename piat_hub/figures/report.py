"""One self-contained page of a set of runs: what they are, what was measured, every figure, and what to believe of it."""

import dataclasses
import datetime
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

import piat_hub
from piat_hub.config import InputError, flat, to_dict
from piat_hub.figures import gallery, style
from piat_hub.records.compare import compare
from piat_hub.records.groups import CURVES, benchmarks, beside, common_attacks, grouped, mean_accuracy
from piat_hub.records.labels import attack_name, command, method_name, percent, place, said, title
from piat_hub.records.published import PAPER_ATTACKS
from piat_hub.records.rundir import RunDirectory

TEMPLATE = Path(__file__).with_name("report_template.html")
INK = ("#000000", "#222222", "#444444")  # what takes the page's own colour of text


def render(runs: Sequence[RunDirectory], drawn: Mapping[str, Sequence[gallery.Drawn]]) -> str:
    """The page as text: HTML with its style and figures inside, nothing fetched.

    Args:
        runs: as `records.groups.read_run` gives them.
        drawn: the figures of each of `records.groups.benchmarks`, by its name.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "attack": attack_name}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    prefixes = (f"f{number}-" for number in itertools.count(1))
    told = [about(run) for run in runs]
    return template.render(
        benchmarks=[benchmark(name, group, drawn.get(name, ()), prefixes) for name, group in benchmarks(runs).items()],
        runs=told,
        environment=list(dict.fromkeys(name for one in told for name in one["environment"])),
        elsewhere=elsewhere(runs),
        differing=differing(runs),
        date=datetime.date.today().isoformat(),
        version=piat_hub.__version__,
        colours={f"--series{k}": colour for k, colour in enumerate(style.COLOURS)},
    )


def benchmark(
    name: str, runs: Sequence[RunDirectory], drawn: Sequence[gallery.Drawn], prefixes: Iterator[str]
) -> dict[str, Any]:
    """What the page says of one benchmark.

    Args:
        name: of the benchmark.
        runs: that belong to it.
        drawn: its figures.
        prefixes: each figure takes the next for its ids.
    """
    attacks, several = columns(runs), configurations(runs)
    return {
        "name": name,
        "attacks": attacks,
        "groups": several,
        "shared": [attack for attack in attacks if any(attack in row["attacks"] for row in several)],
        "rows": table(runs),
        "pairs": pairs(runs),
        "pictures": [
            {"svg": inline(one.figure, next(prefixes)), "caption": one.figure.get_label()}
            for one in drawn
            if one.figure is not None
        ],
        "left_out": [one for one in drawn if one.figure is None],
    }


@style.styled
def inline(figure: Figure, prefix: str) -> str:
    """The figure as SVG for a page, its colours those of the page's light or dark theme.

    Args:
        figure: drawn in the house's style.
        prefix: makes its ids unique in the page.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)
    for ink in INK:
        svg = svg.replace(ink, "currentColor")
    for k, colour in enumerate(style.COLOURS):
        svg = re.sub(colour, f"var(--series{k})", svg, flags=re.I)
    return svg


def columns(runs: Sequence[RunDirectory]) -> list[str]:
    """Every attack that was measured on any of the runs, clean first, then those of the paper's rows beside them."""
    every = [attack for run in runs for found in run.results for attack in found.record.attacks]
    every += [attack for run in runs for attack in beside(run.config)]
    return sorted(dict.fromkeys(every), key=lambda attack: attack != "clean")


def measured(run: RunDirectory) -> list[dict[str, Any]]:
    """A row for each results file of a run, on its own test images under its own threat model."""
    about = {"name": run_name(run), "run": place(run.directory)}
    rows = [about | {"what": found.name, "n": found.record.n, "attacks": found.record.attacks} for found in run.results]
    return rows or [about | {"what": "not evaluated", "n": "", "attacks": {}}]


def table(runs: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """The rows of all runs, each method's own row in the paper after its last run where the data are the paper's."""
    rows = []
    for group in grouped(runs).values():
        rows += [row for run in group for row in measured(run)]
        if published := beside(group[0].config):
            cells = {
                attack: {"accuracy": published[attack]} for attack in PAPER_ATTACKS.values() if attack in published
            }
            rows.append({"name": f"{method_name(group[0].config)}, as published", "run": "", "attacks": cells})
    return rows


def elsewhere(runs: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """What was measured on other images or under another threat model than the run's own: a row each, with the question."""
    rows = []
    for run in runs:
        for found in run.elsewhere:
            threat, record = found.record.threat_model, found.record
            question = f"{record.dataset} ({record.split}), {threat}"
            for attack, figures in record.attacks.items():
                about = {"name": run_name(run), "run": place(run.directory), "what": found.name, "on": question}
                rows.append(about | {"attack": attack} | figures)
    return rows


def run_name(run: RunDirectory) -> str:
    """'PIAT+NMSE, seed 0'."""
    return f"{method_name(run.config)}, seed {run.config.seed}"


def configurations(runs: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """A row for each group of several seeds: mean and interval under the attacks measured on all, and its curves' figures."""
    rows = []
    for label, group in grouped(runs).items():
        if len(group) > 1:
            cells = {attack: mean_accuracy(group, attack) for attack in common_attacks(group)}
            curves = {name: [of(run.metrics) for run in group] for name, of in CURVES.items()}
            means = {k: None if None in v else sum(v) / len(v) for k, v in curves.items()}  # type: ignore[arg-type]
            rows.append({"name": label, "seeds": len(group), "attacks": cells, "curves": means})
    return rows


def pairs(runs: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """Each run paired image by image with the first, where both were measured on the same images."""
    found = []
    for run in runs[1:]:
        if not all(any(found.name == "last" for found in one.results) for one in (runs[0], run)):
            continue
        try:
            compared = compare(runs[0].directory, run.directory)
        except InputError:
            continue
        found += [{"a": run_name(runs[0]), "b": run_name(run)} | dataclasses.asdict(one) for one in compared]
    return found


def about(run: RunDirectory) -> dict[str, Any]:
    """What a run is, where and with what it was trained and measured, and its honesty checks."""
    latest = run.results[0].record.environment if run.results else {}
    return {
        "title": title(run.config),
        "directory": place(run.directory),
        "seed": run.config.seed,
        "command": command(run.config),
        "config": flat(to_dict(run.config)),
        "training": run.training,
        "epochs": len(run.metrics),
        "checks": [(found.name, found.record.checks) for found in run.results if found.record.checks],
        "notes": [note for found in run.results for note in said(found.record)],
        "environment": {"device": latest.get("device"), "git": latest.get("git")} | (latest.get("versions") or {}),
    }


def differing(runs: Sequence[RunDirectory]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) for the settings in which the runs differ; [] for more than eight runs."""
    each = [flat(to_dict(run.config)) for run in runs]
    names = dict.fromkeys(name for one in each for name in one)
    rows = [(name, [str(one.get(name, "")) for one in each]) for name in names]
    return [row for row in rows if len(set(row[1])) > 1] if len(runs) <= 8 else []
