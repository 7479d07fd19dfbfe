"""The table that ends a study."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from piat_hub.records import files, groups as recorded, lock
from piat_hub.records.labels import attack_name, command, table
from piat_hub.records.published import paper
from piat_hub.records.rundir import RunDirectory
from piat_hub.study.sweep import Done, Member

Group = Sequence[RunDirectory]  # runs that differ by their seed alone


def table_rows(
    name: str, members: Sequence[Member], attacks: Sequence[str], failed: Sequence[Done] = ()
) -> list[dict[str, Any]]:
    """A row for each group of members that differ by their seed alone: its figures, and what its curves say.

    Args:
        name: of the study.
        members: trained and evaluated, but for the failed ones.
        attacks: columns; the gain is under the last one.
        failed: members that are in no row.

    Returns:
        Rows as NAME.json holds them; accuracies, gaps and gains are fractions.
    """
    gone = {done.member.directory for done in failed}
    groups = recorded.grouped([recorded.read_run(m.directory) for m in members if m.directory not in gone])
    found = []
    for label, group in groups.items():
        row: dict[str, Any] = {
            "label": label,
            "recipe": group[0].config.recipe,
            "seeds": [r.config.seed for r in group],
        }
        row["command"] = command(dataclasses.replace(group[0].config, seed=0))
        for attack in attacks:
            each = [f for r in group if (f := r.figures(attack))]
            interval = recorded.mean_accuracy(group, attack) or (math.nan,) * 3
            row[attack] = {"each": [f["accuracy"] for f in each], "n": each[0]["n"]}
            row[attack] |= dict(zip(("mean", "low", "high"), interval, strict=True))
        for what, of in recorded.CURVES.items():
            values = [of(r.metrics) for r in group]
            row[what] = None if None in values else values
        row["gain"] = gain(group, reference(group, list(groups.values())), attacks[-1])
        row["paper"] = recorded.beside(group[0].config, name.removeprefix("table"))
        found.append(row)
    return found


def reference(group: Group, groups: Sequence[Group]) -> Group:
    """What a group is compared with: the same without interpolation, else its method's first, maybe itself.

    Args:
        group: runs that differ by their seed alone.
        groups: all groups of the study, in its order.
    """
    alike = [other for other in groups if other[0].config.method == group[0].config.method]
    plain = [other for other in alike if other[0].config.interpolation.kind == "none"]
    same = [other for other in plain if recorded.same_but_law(other[0].config, group[0].config)]
    # a side copy is compared with its method's first row, not with itself
    return (same if same and same[0] is not group else alike)[0]


def gain(group: Group, to: Group, attack: str) -> tuple[float, float, float] | None:
    """(mean, low, high) of what a group adds to another's accuracy, seed by seed; None for itself, or for one seed.

    Args:
        group: runs that differ by their seed alone.
        to: the other group; its runs of the same benchmark and seed are compared with.
        attack: under which both were measured.

    Returns:
        Fractions, the interval being Student's t over seeds.
    """
    figures = {run.config.seed: run.figures(attack) for run in to if run.benchmark == group[0].benchmark}
    pairs = [(run.figures(attack), figures.get(run.config.seed)) for run in group]
    gains = [a["accuracy"] - b["accuracy"] for a, b in pairs if a and b]
    return recorded.mean_interval(gains) if len(gains) > 1 and group is not to else None


def write_table(
    directory: Path, name: str, rows: Sequence[dict[str, Any]], attacks: Sequence[str], failed: Sequence[Done]
) -> Path:
    """Write NAME.md, the table, and NAME.json, its rows with each seed's figures; returns the table's path.

    Args:
        directory: made if there is none.
        name: of the study.
        rows: as `table_rows` gives them.
        attacks: columns.
        failed: members that are in no row.
    """
    lost = {done.member.directory.name: done.failed for done in failed}
    texts = {
        "json": json.dumps({"study": name, "rows": rows, "failed": lost}, indent=1) + "\n",
        "md": table_text(name, rows, attacks, lost),
    }
    with lock.only_writer(directory):
        for suffix, text in texts.items():
            files.write_text(directory / f"{name}.{suffix}", text)
    return directory / f"{name}.md"


def table_text(name: str, rows: Sequence[dict[str, Any]], attacks: Sequence[str], lost: Mapping[str, str]) -> str:
    """The study's table: means over seeds with 95 % intervals, the curves' figures in points, the paper's beside ours.

    Args:
        name: of the study.
        rows: as `table_rows` gives them.
        attacks: columns.
        lost: the members that failed, and why.
    """
    published, gains, lines = any(row["paper"] for row in rows), any(row["gain"] for row in rows), []
    for row in rows:
        cells = [row["label"], len(row["seeds"])]
        for attack in attacks:
            cells.append(between([row[attack][key] for key in ("mean", "low", "high")], ".2f"))
            if published:
                cells.append(f"{100 * row['paper'][attack]:.2f}" if attack in row["paper"] else "")
        cells += [between(row["gain"], "+.2f")] if gains else []
        cells += [f"{100 * statistics.fmean(row[c]):.2f}" if row[c] else "" for c in recorded.CURVES]
        lines.append(cells)
    heads = [h for a in attacks for h in (f"{attack_name(a)}, %", *(["paper's"] if published else []))]
    heads += [f"{attack_name(attacks[-1])} minus the reference's, points"] if gains else []
    headers = ["", "seeds", *heads, *(f"{c}, points" for c in recorded.CURVES)]
    sizes = ", ".join(f"{attack_name(a)} on {n}" for a in attacks for n in sorted({row[a]["n"] for row in rows}))
    over = recorded.intervals([row["seeds"] for row in rows])
    about = (
        f"Study {name}. Test images: {sizes}; 95 % intervals {over}; last checkpoint; curves are of held-out PGD-10."
    )
    about += " The reference is the same without interpolation, else the method's first row." if gains else ""
    text = f"{about}\n\n{table(lines, headers, 'github')}\n"
    if lost:
        text += "\nFailed, and in no row:\n\n" + "".join(f"- {member}: {why}\n" for member, why in lost.items())
    return text if published or not name.startswith("table") else f"{text}\n{published_table(name)}"


def between(values: Sequence[float] | None, form: str) -> str:
    """'80.00 [78.00, 82.00]': a mean and its interval in percent; "" for None.

    Args:
        values: mean, low and high end, as fractions.
        form: of each, ".2f".
    """
    mean, low, high = (f"{100 * value:{form}}" for value in values) if values else ("", "", "")
    return f"{mean} [{low}, {high}]" if values else ""


def published_table(name: str) -> str:
    """The paper's table as it stands there, and why no row of it stands beside ours."""
    found = [row for row in paper() if row["table"] == name.removeprefix("table")]
    columns = [key for key in found[0] if key != "table" and any(row[key] for row in found)]
    rows = table([[row[c] for c in columns] for row in found], columns, "github")
    why = "on other images, or under another threat model, so no row above can be compared with one below"
    return f"The paper's Table {name.removeprefix('table')}, {why}:\n\n{rows}\n"
