"""Measured accuracies in the form that the Hub reads from model repositories, `.eval_results/*.yaml`.

The Hub shows such an entry on the model's page, and ranks it in the task of a benchmark data set that it names
(https://huggingface.co/docs/hub/eval-results). It has no fields for what an accuracy means here, so a task of ours is an
attack under a threat model on so many images, and the rest stands in the notes. `verifyToken` is for the Hub's own jobs to
sign: verdicts are verified by the sha256 in the notes. The card's model-index holds the same and more.
"""

import re
from math import isclose

from huggingface_hub import EvalResultEntry, constants, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from piat_hub.config import DATASETS, InputError, ThreatModel, number
from piat_hub.hub.load import check_id
from piat_hub.records import labels
from piat_hub.records.claims import Figures
from piat_hub.records.results import Record, read_results, verdicts_digest
from piat_hub.records.rundir import ModelDirectory

OURS = ".eval_results/piat-"  # begins the path of every such file that a push writes; others are not ours to delete


def entries(run: ModelDirectory, repo_id: str) -> dict[str, bytes]:
    """The files of a run or an imported model: path in the repository -> YAML with the one entry of an attack.

    Of the last weights, which a loader gets; of data that is on the Hub, where a benchmark can be; not of images that
    a list chose. A task that was measured twice is given as it was on the run's own images.

    Args:
        run: as it was read.
        repo_id: "ORG/NAME", whose verdicts an entry links to; "" for no link.

    Raises:
        InputError: where results and verdicts do not tell the same.
    """
    found: dict[str, bytes] = {}
    for measured in run.measured:
        record = measured.record
        if measured.checkpoint != "last" or record.listed or not (data := hub_id(record.dataset)):
            continue
        _, verdicts = read_results(run.directory / measured.folder)
        link = f"{constants.ENDPOINT}/{repo_id}/blob/main/{measured.verdicts}" if repo_id else None
        for attack, figures in record.attacks.items():
            name = labels.measured_name(attack, figures)
            task = task_id(" ".join([name, *_unlike(figures, record)]), record.threat_model, record.n, record.split)
            entry = EvalResultEntry(
                dataset_id=data,
                task_id=task,
                value=figures["accuracy"],
                source_url=link,
                source_name="verdicts image by image" if link else None,
                notes=_notes(name, figures, record, verdicts_digest(verdicts[attack])),
            )
            path = f"{OURS}{data.replace('/', '--')}-{task}.yaml"
            found.setdefault(path, yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False).encode())
    return found


def task_id(attack: str, threat_model: ThreatModel, n: int, split: str = "test") -> str:
    """A benchmark's task: 'pgd-20-linf-eps-8-255-first-1000'. Results of other images or attacks are never in one.

    Args:
        attack: as people call it, "PGD-20"; "clean" has no threat model.
        threat_model: norm and eps.
        n: the first so many images of the split.
        split: of the data set.
    """
    words = [attack] if attack == "clean" else [attack, str(threat_model)]
    words += [split] if split != "test" else []
    return re.sub(r"[^\w.]+", "-", f"{' '.join(words)} first {n}".lower()).strip("-")


def _unlike(figures: Figures, record: Record) -> list[str]:
    """How an attack was run, where that is not as it is unless told: another step than eps/4, restarts, code of one's own."""
    found = []
    if "step_size" in figures and not isclose(number(figures["step_size"]), record.threat_model.eps / 4, rel_tol=1e-6):
        found.append(f"step {figures['step_size']}")
    if (restarts := figures.get("restarts", 1)) > 1:
        found.append(f"{restarts} restarts")
    return [*found, *([f"code {figures['code']}"] if "code" in figures else [])]


def hub_id(dataset: str) -> str:
    """The Hub id of a data set, by its alias or its own; "" for one that is not there.

    Args:
        dataset: as results call it.
    """
    known = DATASETS.get(dataset, (dataset,))[0]
    try:
        check_id(known)
    except InputError:
        return ""
    return known


def _notes(name: str, figures: Figures, record: Record, digest: str) -> str:
    """All that an accuracy must not be read without."""
    low, high = (labels.percent(end) for end in figures["ci95"])
    how = "" if name == "clean" else f" under {record.threat_model}"
    told = [
        f"{name} accuracy{how}: {figures['correct']} of the first {figures['n']} images, 95 % interval {low} to {high}",
        *([f"{figures['steps']} steps of {figures['step_size']}"] if {"steps", "step_size"} <= figures.keys() else []),
        f"attack seed {record.seed}",
        f"verdicts sha256 {digest}",
        f"images sha256 {record.images or 'not recorded'}",
        *labels.said(record),
    ]
    return "; ".join(told)
