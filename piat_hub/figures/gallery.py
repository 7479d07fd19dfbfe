"""Every figure that a set of run directories allows, from their records, and from their weights where one or two are given."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from piat_hub import data
from piat_hub.config import Broken, EvalConfig, InputError, InUse
from piat_hub.evaluation import request, verdict
from piat_hub.evaluation.model import load_model, weights_digest
from piat_hub.figures import NAMES, breadth, pictures, plots, probes
from piat_hub.machine import device_of
from piat_hub.records.files import own, read_json, sealed, write_text
from piat_hub.records.groups import grouped
from piat_hub.records.lock import only_writer
from piat_hub.records.rundir import RunDirectory

FROM_RECORDS: dict[str, Callable[[Sequence[RunDirectory]], Figure]] = {
    "epochs": plots.epochs,
    "interpolation": plots.interpolation,
    "lambda": plots.lambdas,
    "mu": plots.mus,
    "gaps": plots.gaps,
    "scatter": plots.scatter,
    "union": breadth.union,
    "corruptions": breadth.of_runs,
}
SETTINGS: dict[str, Any] = {"points": 17, "span": 0.5, "steps": 10, "seed": 0}
IMAGES = {"landscape": 100, "images": 6}  # of the test split


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure by its name, or why these runs allow none.

    Attributes:
        name: one of `figures.NAMES`.
        figure: None where there is none.
        why: "" where there is one.
    """

    name: str
    figure: Figure | None
    why: str = ""


def draw(
    runs: Sequence[RunDirectory],
    names: Sequence[str] = NAMES,
    *,
    filterwise: bool = False,
    dataset: str | None = None,
    on_point: Callable[[], Any] = lambda: None,
) -> Iterator[Drawn]:
    """Draw the named figures of these runs; yields each, or the reason why it cannot be drawn.

    Args:
        runs: of one benchmark, as `records.groups.read_run` gives them; for "landscape" and "images" one or two.
        names: some of `figures.NAMES`.
        filterwise: scale the landscape's directions filter by filter.
        dataset: where the test images lie, if not where the model was trained for.
        on_point: called after each of the landscape's points.

    Yields:
        A Drawn for each name.
    """
    for name in names:
        try:
            if name in FROM_RECORDS:
                yield Drawn(name, FROM_RECORDS[name](runs))
                continue
            if len(runs) > 2:
                raise InputError(f"it is of one or two runs, and {len(runs)} are given")
            if name == "landscape":
                found = {label: surface(run, filterwise, dataset, on_point) for label, run in _labelled(runs)}
                yield Drawn(name, pictures.landscape(found))
            else:
                yield Drawn(name, _images(runs, dataset))
        except InputError as error:
            yield Drawn(name, None, str(error))


def _images(runs: Sequence[RunDirectory], dataset: str | None) -> Figure:
    """Some test images before and after the attack: of one run with the perturbation, of two beside each other."""
    shown, label_names = dict[str, probes.Examples](), tuple[str, ...]()
    for label, run in _labelled(runs):
        model, split = opened(run, IMAGES["images"], dataset)
        label_names = split.label_names
        with verdict.verdict_mode(model) as exact:
            shown[label] = probes.examples(exact, *whole(split), run.config.threat_model)
    if len(shown) > 1:
        return pictures.beside(shown, label_names)
    ((label, examples),) = shown.items()
    return pictures.images(examples, label_names, label)


def _labelled(runs: Sequence[RunDirectory]) -> list[tuple[str, RunDirectory]]:
    """Each run with its group's label, and its seed where the label alone would not tell two apart."""
    pairs = [(label, run) for label, group in grouped(runs).items() for run in group]
    labels = [label for label, _ in pairs]
    return [(f"{one}, seed {run.config.seed}" if labels.count(one) > 1 else one, run) for one, run in pairs]


def opened(run: RunDirectory, n: int, dataset: str | None) -> tuple[Any, data.Split]:
    """(the run's last weights as a model, n of its test images to show), on one device.

    Args:
        run: as it was read.
        n: images.
        dataset: where they lie, if not where the model was trained for.

    Raises:
        InputError: for images that the model cannot take, or too few.
    """
    model: Any = load_model(str(run.directory))[0]
    split = request.evaluation_data(str(run.directory), EvalConfig(dataset=dataset), model).samples(n)
    verdict.class_count(model, split)  # or InputError: images of another kind
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, split.to(device_of(model))


def whole(split: data.Split) -> tuple[Tensor, Tensor]:
    """(images (B, C, H, W) in [0, 1], labels) of a small split."""
    return data.to_unit(split.images[torch.arange(len(split))]), split.labels


def surface(
    run: RunDirectory, filterwise: bool, dataset: str | None = None, on_point: Callable[[], Any] = lambda: None
) -> probes.Surface:
    """The run's loss landscape: from RUN/landscape.json where it was measured on these weights, else measured and kept.

    Args:
        run: as it was read.
        filterwise: scale the directions filter by filter; kept in a file of its own.
        dataset: where the test images lie, if not where the model was trained for.
        on_point: called after each point that is measured.
    """
    path = own(run.directory, f"landscape{'-filterwise' if filterwise else ''}.json")
    model, split = opened(run, IMAGES["landscape"], dataset)
    of = SETTINGS | {"weights_sha256": weights_digest(model), "images_sha256": split.digest()}
    try:
        kept = read_json(path)
        side = len(kept["at"])
        if kept.pop("of") == of and np.array(kept["losses"], dtype=float).shape == (side, side):
            return probes.Surface(**kept)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or one that is damaged: it is measured anew
    with verdict.verdict_mode(model) as exact:
        threat = run.config.threat_model
        found = probes.surface(exact, *whole(split), threat, filterwise=filterwise, on_point=on_point, **SETTINGS)
    text = json.dumps(sealed({"of": of} | dataclasses.asdict(found))) + "\n"
    with contextlib.suppress(Broken, InUse), only_writer(run.directory):  # one that cannot be kept can still be drawn
        write_text(path, text)
    return found
