"""RobustBench (Croce et al. 2021, arXiv:2010.09670): what a submission needs, from a run and its results.

RobustBench ranks models on all test images of CIFAR-10 and CIFAR-100 under AutoAttack, or under common corruptions, and
takes only models with gradients, a deterministic forward pass and no optimisation inside it. The same is asked here before
anything is written.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from timm.models import register_model
from torch import nn

from piat_hub.config import InputError
from piat_hub.data import Split, named_by, to_unit
from piat_hub.evaluation import checks
from piat_hub.evaluation.model import images_for
from piat_hub.evaluation.verdict import accuracy, verdict_mode
from piat_hub.hub.load import check_id, from_pretrained
from piat_hub.leaderboard.claim import Claim, as_percent, log, unranked
from piat_hub.records import files, lock, published
from piat_hub.records.labels import percent
from piat_hub.records.results import Record
from piat_hub.records.rundir import RunDirectory

NAME = r"\w[\w.-]*(/\w[\w.-]*)?"  # of a data set, in paths and code
ISSUE = Path(__file__).with_name("issue_template.md")  # RobustBench's form
TITLE = "PIAT: Parameter Interpolation based Adversarial Training for Image Classification"
ARCHITECTURES = {  # ours -> (suffix of the id, name on the leaderboard, which counts the wide ones as their authors do)
    "cifar_resnet18": ("R18", "ResNet-18"),
    "cifar_resnet20": ("R20", "ResNet-20"),
    "cifar_resnet20x2": ("R20x2", "ResNet-20, twice as wide"),
    "cifar_resnet50": ("R50", "ResNet-50"),
    "cifar_preact_resnet18": ("PRN18", "PreActResNet-18"),
    "cifar_preact_resnet18_silu": ("PRN18", "PreActResNet-18"),
    "cifar_wrn_28_10_silu": ("WRN-28-10", "WideResNet-28-10"),
    "cifar_wrn_70_16_silu": ("WRN-70-16", "WideResNet-70-16"),
    "cifar_rawrn_70_16": ("RaWRN-70-16", "RaWideResNet-70-16"),
    "cifar_wrn_28_10": ("WRN-28-10", "WideResNet-28-10"),
    "cifar_wrn_32_10": ("WRN-32-10", "WideResNet-34-10"),
}


@dataclass(frozen=True)
class Paper:
    """What a submission says of its paper.

    Attributes:
        authors: "Kun He, Xin Liu".
        venue: with the year, "ICML 2023".
        link: the paper's address, https://….
        title: of the paper.

    Raises:
        InputError: for a venue without year, a link that is none, or authors or a title that begin with no letter.
    """

    authors: str
    venue: str
    link: str
    title: str = TITLE

    def __post_init__(self) -> None:
        if not re.search(r"(19|20)\d\d$", self.venue):
            raise InputError(
                f"venue {self.venue!r} must end with its year, as in 'ICML 2023': it goes into the model's id"
            )
        if not self.link.startswith(("https://", "http://")):
            raise InputError(f"link {self.link!r} must be an address, https://…, of the paper")
        for name in ("authors", "title"):
            if not re.match(r"\s*\w", getattr(self, name)):
                raise InputError(
                    f"{name} {getattr(self, name)!r} must begin with a name; it is shown on the leaderboard"
                )


def identifier(paper: Paper, architecture: str) -> str:
    """RobustBench's way to name a model: first author, year, first word of the title, architecture: He2023PIAT_R18.

    Args:
        paper: that it is from.
        architecture: ours, by timm's name.
    """
    author = re.sub(r"\W", "", re.split(",| and ", paper.authors)[0].split()[-1])
    word = re.sub(r"\W", "", paper.title.split()[0])
    suffix, _ = ARCHITECTURES.get(architecture, (architecture.replace("_", "-"), architecture))
    return f"{author}{paper.venue[-4:]}{word}_{suffix}"


def timm_name(name: str, dataset: str, norm: str) -> str:
    """What `robustbench.utils.load_model(name, dataset=…, threat_model=norm)` looks for among timm's models.

    Args:
        name: the model's id, see `identifier`.
        dataset: "cifar10" or "cifar100".
        norm: "Linf" or "L2".
    """
    return f"{name}_{dataset}_{norm}".lower().replace("-", "_")


def _measured(run: RunDirectory, checkpoint: str, attack: str) -> Record | None:
    """Of what was measured on the split's first images, clean and under this, that of the most images."""

    def has(record: Record) -> bool:
        under = {*record.attacks} | ({"corruptions"} if record.corruptions.get("mean") else set())
        return {"clean", attack} <= under and not record.listed

    found = [m.record for m in run.measured if m.checkpoint == checkpoint and has(m.record)]
    return max(found, key=lambda record: record.n, default=None)


def submit(
    run: str | Path,
    paper: Paper,
    output: Path,
    *,
    checkpoint: str = "last",
    draft: bool = False,
    dataset: str | None = None,
    repo_id: str | None = None,
    corruptions: bool = False,
) -> list[Path]:
    """Write a submission's files into `output` and return them: model_info/…/ID.json, issue.md, ID.py, evaluation.log.

    Args:
        run: directory with results of clean, and of aa or the corruptions.
        paper: that the model is from.
        output: directory for the files.
        checkpoint: "last" or "best".
        draft: write them although RobustBench would refuse (each file but the JSON says so).
        dataset: where its test images lie, to measure the clean accuracy again; by default where the model was trained
            for.
        repo_id: where the weights can be had, "ORG/NAME".
        corruptions: claim the accuracy under common corruptions, not that under AutoAttack.

    Returns:
        The paths of the files.

    Raises:
        InputError: before anything is written, with every reason why RobustBench would refuse.
    """
    home, found = Path(run), RunDirectory.read(run)
    if repo_id:
        check_id(repo_id)
    results = _measured(found, checkpoint, "corruptions" if corruptions else "aa")
    if results is None:
        which = "" if checkpoint == "last" else f" --checkpoint {checkpoint}"
        what, flags = ("corruption", "clean --corruptions CIFAR-10-C") if corruptions else ("AutoAttack", "clean aa")
        raise InputError(f"{run} has no clean and {what} accuracy: piat evaluate {run} --attacks {flags}{which}")
    claim = Claim.of_corruptions(results) if corruptions else Claim.of_attack(results)
    model: Any = from_pretrained(run, checkpoint=checkpoint)
    data, norm = results.dataset, claim.norm
    if not re.fullmatch(NAME, data, re.ASCII) or ".." in data:
        raise InputError(f"{run} was measured on {data!r}, which can be no part of a file's name; evaluate it again")
    columns = (model.piat.get(key) for key in ("image_column", "label_column"))
    source = dataset or named_by(home, model.piat["dataset"])
    split = images_for(model, source, results.split, *columns).first(results.n)
    reasons = [*unranked(results, claim), *accepts(model, split, results)]
    if reasons and not draft:
        raise InputError(f"{run} is no submission: {'; '.join(reasons)}; --draft writes the files all the same")
    architecture = found.model.backbone
    name = identifier(paper, architecture)
    built = ARCHITECTURES.get(architecture, ("", architecture))[1]
    extra = (
        found.config.extra_data is not None or found.config.init_from is not None
    )  # ImageNet's weights are of more images
    source = repo_id or str(home.resolve().name)
    texts = {
        f"model_info/{data}/{norm}/{name}.json": json.dumps(entry(results, claim, paper, built, extra), indent=2)
        + "\n",
        "issue.md": _marked(issue(name, results, claim, paper, built, extra, repo_id), "<!-- {} -->", reasons),
        f"{timm_name(name, data, norm)}.py": _marked(
            registration(name, data, norm, source, checkpoint), "# {}", reasons
        ),
        "evaluation.log": _marked("\n".join(log(results, claim)) + "\n", "{}", reasons),
    }
    with lock.only_writer(output):
        for path, text in texts.items():
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            files.write_text(output / path, text)
    return [output / path for path in texts]


def accepts(model: nn.Module, split: Split, results: Record) -> Iterator[str]:
    """Why RobustBench would not take this model: its own checks of clean accuracy, gradients and the forward pass.

    Args:
        model: maps images in [0, 1] to logits (B, K).
        split: the images that `results` is of, on the model's device.
        results: with "clean".

    Yields:
        Each reason, in words.
    """
    if split.digest() != results.images:
        yield "these are not the images that the results are of"
        return
    few = split[:100]
    x, y = to_unit(few.images[:]), few.labels
    with verdict_mode(model) as exact:
        again = accuracy(exact, split, batch_size=250, seed=0) / len(split)
        claimed = results.attacks["clean"]["accuracy"]
        if abs(again - claimed) > 0.0005:
            yield f"its clean accuracy is {percent(again)} here, not the {percent(claimed)} of the results"
        for found in (*checks.outputs(exact, x), checks.gradients(exact, x, y)):
            if not found["passed"] and found["check"] in ("randomness", "zero gradients"):
                yield found["found"]
        with mock.patch("torch.autograd.backward") as backward, mock.patch("torch.autograd.grad") as grad:
            exact(x)
        if backward.called or grad.called:
            yield "it optimises inside its forward pass"


def entry(results: Record, claim: Claim, paper: Paper, architecture: str, extra: bool) -> dict[str, Any]:
    """model_info's JSON: RobustBench's keys, accuracies as percent in text.

    Args:
        results: with "clean".
        claim: what is claimed of them.
        paper: that the model is from.
        architecture: its name on the leaderboard.
        extra: it was trained with more images than the data set's.
    """
    return {
        "link": paper.link,
        "name": paper.title,
        "authors": paper.authors,
        "additional_data": extra,
        "number_forward_passes": 1,
        "dataset": results.dataset,
        "venue": paper.venue,
        "architecture": architecture,
        "eps": claim.eps,
        "clean_acc": as_percent(results.attacks["clean"]["accuracy"]),
        "reported": as_percent(claim.accuracy),
        **claim.figures,
        "unreliable": False,
    }


def issue(
    name: str, results: Record, claim: Claim, paper: Paper, architecture: str, extra: bool, repo_id: str | None
) -> str:
    """The text for RobustBench's "New Model(s)" issue form; its first line is the issue's title.

    Args:
        name: the model's id, see `identifier`.
        results: with "clean".
        claim: what is claimed of them.
        paper: that the model is from.
        architecture: its name on the leaderboard.
        extra: it was trained with more images than the data set's.
        repo_id: where the weights can be had, "ORG/NAME".
    """
    weights = f"https://huggingface.co/{repo_id}" if repo_id else "(push the run, then give its address here)"
    return ISSUE.read_text(encoding="utf-8").format(
        name=name,
        **vars(paper),
        architecture=architecture,
        extra=str(extra).lower(),
        dataset=results.dataset,
        norm="Common Corruptions" if claim.norm == "corruptions" else claim.norm,
        eps=claim.eps or "N/A",
        clean=percent(results.attacks["clean"]["accuracy"]),
        robust=percent(claim.accuracy),
        method=claim.method,
        weights=weights,
    )


def registration(name: str, dataset: str, norm: str, source: str, checkpoint: str) -> str:
    """A module that, once imported, lets RobustBench load the model; and its row for RobustBench's model zoo.

    Args:
        name: the model's id, see `identifier`.
        dataset: "cifar10" or "cifar100".
        norm: "Linf" or "L2".
        source: MODEL that the module loads, a Hub id or a directory.
        checkpoint: "last" or "best".
    """
    found = timm_name(name, dataset, norm)
    return f'''"""{name} for RobustBench: with this module imported,

    robustbench.utils.load_model("{name}", dataset="{dataset}", threat_model="{norm}")

gives the model. The row for robustbench/model_zoo/{dataset}.py, among those of {norm}:

    ("{name}", {{"model": lambda: timm.create_model("{found}", pretrained=True), "gdrive_id": None}}),
"""

from piat_hub import leaderboard

leaderboard.register("{found}", {json.dumps(source)}, "{checkpoint}")  # a Hub id, or the model's directory
'''


def _marked(text: str, comment: str, reasons: list[str]) -> str:
    return text if not reasons else comment.format(f"DRAFT, no submission: {'; '.join(reasons)}") + "\n" + text


def register(name: str, model: str, checkpoint: str = "last") -> None:
    """Make `timm.create_model(name, pretrained=True)` load MODEL, as RobustBench does.

    Args:
        name: new among timm's models, see `timm_name`.
        model: MODEL, a directory or a Hub id; loaded only when asked for.
        checkpoint: "last" or "best".
    """

    def entrypoint(pretrained: bool = False, num_classes: int | None = None, **_: Any) -> nn.Module:
        loaded: Any = from_pretrained(model, checkpoint=checkpoint)
        if num_classes not in (None, loaded.num_classes):
            raise InputError(
                f"{name} has {loaded.num_classes} classes, not {num_classes}; fine-tune it with --init-from"
            )
        return loaded

    entrypoint.__name__ = name
    register_model(entrypoint)


for _model, _row in published.PUBLISHED.items():
    if "robustbench" in _row:
        register(timm_name(_row["robustbench"], _row["dataset"], _row["threat_model"]["norm"]), _model)
