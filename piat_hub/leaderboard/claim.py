"""What a submission to RobustBench claims: a robust accuracy under AutoAttack, or under common corruptions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from piat_hub.config import to_dict
from piat_hub.records.claims import Figures
from piat_hub.records.labels import percent
from piat_hub.records.results import Record

IMAGES = 10_000  # of a test split; fewer are a draft
RANKED = {  # data set -> threat model -> eps
    "cifar10": {"Linf": "8/255", "L2": "0.5", "corruptions": None},
    "cifar100": {"Linf": "8/255", "corruptions": None},
}


@dataclass(frozen=True)
class Claim:
    """What a submission claims of a model's robustness.

    Attributes:
        norm: RobustBench's threat model, "Linf", "L2" or "corruptions".
        eps: as text; None under corruptions.
        accuracy: the robust accuracy, a fraction.
        n: images that it is of; under corruptions of each severity.
        method: how it was measured, in words.
        figures: RobustBench's keys for it, and the values as text.
    """

    norm: str
    eps: str | None
    accuracy: float
    n: int
    method: str
    figures: dict[str, str]

    @classmethod
    def of_attack(cls, results: Record) -> Self:
        """What AutoAttack left, which `results` must have."""
        attack, threat = results.attacks["aa"], to_dict(results.threat_model)
        method = f"AutoAttack, {attack['version']} version, on {attack['n']} test images: see evaluation.log"
        figures = {"autoattack_acc": as_percent(attack["accuracy"])}
        return cls(threat["norm"], threat["eps"], attack["accuracy"], attack["n"], method, figures)

    @classmethod
    def of_corruptions(cls, results: Record) -> Self:
        """The mean over the 15 corruptions at five severities, which `results` must have."""
        found = results.corruptions
        accuracy, n = found["mean"]["accuracy"], found["dataset"]["n"]
        method = f"15 corruptions at 5 severities, the first {n} images of each: see evaluation.log"
        figures = {"corruptions_acc": as_percent(accuracy)}
        figures |= {"corruptions_mce": as_percent(found["mce"])} if found["mce"] is not None else {}
        return cls("corruptions", None, accuracy, n, method, figures)


def as_percent(share: float) -> str:
    """A share as RobustBench writes it: percent with at most two decimals, without a sign."""
    return str(round(100 * share, 2))


def unranked(results: Record, claim: Claim) -> Iterator[str]:
    """Why RobustBench would not rank these results, whatever the model.

    Args:
        results: with "clean", and what is claimed.
        claim: what is claimed of them.

    Yields:
        Each reason, in words.
    """
    ranked = RANKED.get(results.dataset, {})
    if not ranked:
        yield f"it ranks {' and '.join(RANKED)}, not {results.dataset}"
    elif ranked.get(claim.norm, "none") != claim.eps:
        known = " and ".join(f"{norm} {eps or ''}".strip() for norm, eps in ranked.items())
        yield f"on {results.dataset} it ranks {known}, not {claim.norm} {claim.eps or ''}".strip()
    if claim.norm == "corruptions":
        if results.split != "test" or {claim.n, results.n} != {IMAGES}:
            yield f"{claim.n} images were taken of each severity and {results.n} clean ones, it takes all {IMAGES} of test"
        return
    attack = results.attacks["aa"]
    if results.split != "test" or attack["n"] != IMAGES:
        yield f"AutoAttack was run on {attack['n']} images of the {results.split} split, it takes all {IMAGES} of test"
    if attack.get("version") != "standard" or "changed" in attack:
        yield f"AutoAttack was not the standard version ({attack.get('changed', attack.get('version'))})"


def log(results: Record, claim: Claim) -> Iterator[str]:
    """The evaluation, a line for each thing it did.

    Args:
        results: with "clean", and what is claimed.
        claim: what is claimed of them.
    """
    known = results.environment
    against = "common corruptions" if claim.eps is None else f"{claim.norm} eps {claim.eps}, seed {results.seed}"
    yield f"{results.n} images of {results.dataset} ({results.split}), {against}"
    yield f"weights sha256 {results.weights}, images sha256 {results.images}"
    yield (
        ", ".join(f"{name} {version}" for name, version in known["versions"].items() if version)
        + f"; {known['device']}"
    )
    yield f"initial accuracy: {percent(results.attacks['clean']['accuracy'])}"
    yield from _severities(results) if claim.norm == "corruptions" else _stages(results.attacks["aa"])
    yield f"robust accuracy: {percent(claim.accuracy)}"


def _severities(results: Record) -> Iterator[str]:
    """What each corruption left, at its severities from 1 to 5."""
    for corruption, figures in results.corruptions["severities"].items():
        yield f"{corruption}: {', '.join(percent(each['accuracy']) for each in figures)}"


def _stages(attack: Figures) -> Iterator[str]:
    """What each part of AutoAttack left."""
    stages = attack.get("per_attack", {})
    standing = attack["correct"] + sum(stage["broken"] for stage in stages.values())
    for name, stage in stages.items():
        standing -= stage["broken"]
        misled = f"{stage['broken']} of {stage['attacked']} misled, {stage['seconds']} s"
        yield f"robust accuracy after {name.upper()}: {percent(standing / attack['n'])} ({misled})"
