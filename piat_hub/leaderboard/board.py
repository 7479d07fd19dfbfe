"""Robust models side by side: what their records say, a table for each threat model and the same images."""

import dataclasses
import datetime
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from piat_hub.config import InputError, TrainConfig, printable, to_dict
from piat_hub.hub.remote import Remote
from piat_hub.records import tensors
from piat_hub.records.claims import HOW, Figures
from piat_hub.records.files import WEIGHTS, own
from piat_hub.records.labels import measured_name, method_name, place, said
from piat_hub.records.model_config import ModelConfig
from piat_hub.records.results import grouping, read_results, verdicts_digest
from piat_hub.records.rundir import Measured, RunDirectory, digests_in, measured_in
from piat_hub.records.statistics import paired

Way = tuple[str, ...]  # an attack as it was run: its name, then what its figures say under HOW
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # tensors of BatchNorm that are no parameters


@dataclass(frozen=True)
class Model:
    """What the board says of a model beside what was measured on it.

    Attributes:
        name: the directory as it was named, or "ORG/NAME".
        directory: holds the records.
        measured: on the weights that lie there.
        facts: "hub" ("ORG/NAME@commit"), "method", "architecture", "parameters", "extra_data" and "training"; None for what
            is not recorded.
    """

    name: str
    directory: Path
    measured: list[Measured]
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Row:
    """A model's results on the images of one table, with the verdicts by attack, (n,) bool."""

    model: Model
    measured: Measured
    verdicts: dict[str, np.ndarray] = field(repr=False)

    def under(self, way: Way) -> Figures | None:
        """The figures under an attack that was run this way; None where it was not."""
        figures = self.measured.record.attacks.get(way[0])
        return figures if figures and way == _way(way[0], figures) else None


def expanded(sources: Sequence[str]) -> list[str]:
    """Sources one by one: a text file stands for those that it lists, a directory of models for these; each once.

    Args:
        sources: run directories, directories of them, Hub ids, or text files with one of these a line.

    Raises:
        InputError: for a file that is no text.
    """
    found: list[str] = []
    for source in sources:
        found += _listed(Path(source)) if Path(source).is_file() else [source]
    once: dict[str, str] = {}
    for one in (one for source in found for one in _below(source)):
        once.setdefault(str(Path(one).resolve()) if Path(one).is_dir() else one, one)
    return list(once.values())


def _listed(file: Path) -> list[str]:
    """The lines of a text file, without empty ones and those that begin with #."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no list of models ({error}); write a directory or a Hub id a line") from error
    return [line for line in lines if line and not line.startswith("#")]


def _below(source: str) -> list[str]:
    """The source itself, or the models in a directory that is none itself."""
    directory = Path(source)
    if not directory.is_dir() or _is_model(directory):
        return [source]
    below = [str(path) for path in sorted(directory.iterdir()) if path.is_dir() and _is_model(path)]
    if not below:
        raise InputError(f"{source} holds no model, nor do the folders in it; evaluate one, or leave it out")
    return below


def _is_model(directory: Path) -> bool:
    return (directory / "config.json").is_file() or any(directory.glob("results*.json"))


def read(source: str) -> Model:
    """What one source says.

    Args:
        source: a run, another directory with results.json, or a Hub id, also with @revision.

    Raises:
        InputError: for no such model, a damaged one, or one without results on the weights that lie there.
    """
    if not printable(source):
        raise InputError(f"{source!a} is no printable name, which a page could not show; rename it")
    remote = None if Path(source).is_dir() else Remote.fetch(source)
    directory = remote.directory if remote else Path(source)
    facts: dict[str, Any] = dict.fromkeys(("hub", "method", "architecture", "parameters", "extra_data", "training"))
    if remote:
        facts["hub"] = f"{remote.repo_id}@{remote.revision}"
    weights = None
    if (path := own(directory, "config.json")).is_file():
        config, weights = ModelConfig.read(path), remote.weights if remote else digests_in(directory)
        facts["architecture"] = config.backbone
        if "last" in weights:
            facts["parameters"] = _parameters(remote or directory)
        if config.piat is not None:
            run = RunDirectory.read(directory)
            facts |= {
                "method": method_name(run.config),
                "training": run.training,
                "extra_data": _extra_data(run.config),
            }
        elif origin := config.origin:
            facts |= {"method": f"of {origin.authors}", "extra_data": "some" if origin.extra_data else "none"}
    if not (measured := measured_in(directory, weights)):
        raise InputError(f"{source} has no results on the weights that lie there; evaluate it, or leave it out")
    return Model(remote.repo_id if remote else place(directory), directory, measured, facts)


def _parameters(model: Remote | Path) -> int:
    """How many numbers the last weights hold, without BatchNorm's statistics."""
    if isinstance(model, Remote):
        shapes = model.shapes()
    else:
        shapes = {name: shape for name, (_, shape) in tensors.shapes(own(model, WEIGHTS["last"])).items()}
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(STATISTICS))


def _extra_data(config: TrainConfig) -> str:
    """What it learnt from beside its data set, in words, or "none"."""
    count = f", {config.extra_images:,} images" if config.extra_images else ""
    told = [f"{config.extra_data}{count}"] if config.extra_data else []
    told += [f"weights of {config.init_from}"] if config.init_from else []
    return "; ".join(told) or "none"


def content(models: Iterable[Model]) -> dict[str, Any]:
    """What board.json holds: "tables", each of one threat model and the same images, and in them "models" in their order.

    Args:
        models: as `read` gives them.

    Raises:
        InputError: where a model's results and verdicts do not tell the same, or two models would have one name.
    """
    tables: dict[tuple[Any, ...], list[Row]] = {}
    called: dict[str, Path] = {}
    for model in models:
        if not model.facts["hub"] and called.setdefault(model.name, model.directory) != model.directory:
            raise InputError(
                f"{called[model.name]} and {model.directory} would both be called {model.name}, as a page shows no whole "
                "path; name them from a folder above both"
            )
        for one in model.measured:
            record = one.record
            _, verdicts = read_results(model.directory / one.folder, one.checkpoint)
            classes = grouping(model.directory / one.folder, one.checkpoint)
            key = (record.dataset, record.split, str(record.threat_model), -record.n, record.images, classes)
            tables.setdefault(key, []).append(Row(model, one, verdicts))
    written = datetime.date.today().isoformat()
    return {"schema": 1, "written": written, "tables": [_table(tables[key]) for key in sorted(tables)]}


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    """One table of the board; its rows are of the same images, or say that it is not known of which."""
    record, names, by = rows[0].measured.record, ways(rows), _ranked_by(rows)
    ranked = _ranked(rows, by) if by else {}
    last = {"rank": None, "beside_the_first": None}
    rest = {row: last for row in rows if row not in ranked}
    return {
        "dataset": {"name": record.dataset, "split": record.split, "n": record.n},
        "threat_model": to_dict(record.threat_model),
        "images_sha256": record.images,
        "ranked_by": names[by] if by else None,
        "attacks": list(names.values()),
        "models": [_told(row, names) | standing for row, standing in (ranked | rest).items()],
    }


def _ranked(rows: Sequence[Row], way: Way) -> dict[Row, dict[str, Any]]:
    """The rows that were measured under an attack, the best first: the rank of each, and the row paired with the first."""
    found = {row: figures["correct"] for row in rows if (figures := row.under(way))}
    order = sorted(found, key=lambda row: -found[row])
    counts = [found[row] for row in order]
    ranked: dict[Row, dict[str, Any]] = {order[0]: {"rank": 1, "beside_the_first": None}}
    for row in order[1:]:
        pair = paired(way[0], order[0].verdicts[way[0]], row.verdicts[way[0]])
        ranked[row] = {"rank": counts.index(found[row]) + 1, "beside_the_first": dataclasses.asdict(pair)}
    return ranked


def _told(row: Row, names: Mapping[Way, str]) -> dict[str, Any]:
    """What the board says of a row, wherever it stands."""
    record = row.measured.record
    attacks = {
        name: {**figures, "verdicts_sha256": verdicts_digest(row.verdicts[way[0]])}
        for way, name in names.items()
        if (figures := row.under(way))
    }
    return {
        "model": row.model.name,
        "weights": row.measured.name,
        **row.model.facts,
        "attacks": attacks,
        "worst_case": record.worst_case and {"attacks": list(record.attacks), **record.worst_case},
        "checks": record.checks,
        "notes": said(record),
        "weights_sha256": record.weights,
        "seconds": record.seconds,
        "device": record.environment.get("device"),
    }


def _way(attack: str, figures: Figures) -> Way:
    return (attack, *(f"{how} {figures[how]}" for how in HOW if how in figures))  # type: ignore[literal-required]


def ways(rows: Sequence[Row]) -> dict[Way, str]:
    """The attacks of a table with a name each, "clean" first: an attack that was run in two ways is two.

    Args:
        rows: of the table.
    """
    found: dict[Way, str] = {}
    for row in rows:
        found |= {_way(a, figures): measured_name(a, figures) for a, figures in row.measured.record.attacks.items()}
    counts = Counter(found.values())
    names = {way: ", ".join([name, *(way[1:] if counts[name] > 1 else ())]) for way, name in found.items()}
    return dict(sorted(names.items(), key=lambda item: item[1] != "clean"))


def _ranked_by(rows: Sequence[Row]) -> Way | None:
    """The attack that most of the rows were measured under, of several the one that leaves least, at best AutoAttack.

    None where nothing but clean images was measured, and where it is not known whether the images are the same.
    """
    if not rows[0].measured.record.images:
        return None

    def weight(way: Way) -> tuple[int, float, bool]:
        found = [figures["accuracy"] for row in rows if (figures := row.under(way))]
        return len(found), -statistics.fmean(found), way[0] == "aa"

    return max((way for way in ways(rows) if way[0] != "clean"), key=weight, default=None)
