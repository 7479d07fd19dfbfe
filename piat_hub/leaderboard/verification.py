"""A published claim measured again on a random sample of its images.

The claim's own verdicts on the sampled images are known, so the two are paired image by image, and how lucky the sample is
does not matter. Digests say whether it is the model and the images that the claim is of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from piat_hub.config import EvalConfig, InputError, number
from piat_hub.evaluation import loop
from piat_hub.evaluation.request import Evaluation, prepare_evaluation
from piat_hub.hub.remote import Remote
from piat_hub.records.claims import HOW, precision_of
from piat_hub.records.labels import attack_name
from piat_hub.records.results import Record, Results, read_results
from piat_hub.records.rundir import measured_in
from piat_hub.records.statistics import Paired, paired

LEVEL = 0.05  # of McNemar's p: attacks begin at random, and turn some images either way
NOTICED = 6  # images that all differ one way have such a p
ROUNDED = 0.01  # share of clean answers that the rounding of another machine may turn, though it turns fewer


@dataclass(frozen=True)
class Verification:
    """A claim, and the same attacks on some of its images.

    Attributes:
        claim: what is claimed, of all images.
        claimed: its verdicts on the sampled images by attack, (n,) bool.
        evaluation: the model and the sampled images; its results are filled in by `measure`.
        attacks: names, "clean" first.
        index: which images of the claim's were sampled, (n,), ascending.
    """

    claim: Record
    claimed: dict[str, np.ndarray] = field(repr=False)
    evaluation: Evaluation
    attacks: tuple[str, ...]
    index: np.ndarray = field(repr=False)

    @property
    def results(self) -> Results:
        """What is measured on the sampled images."""
        return self.evaluation.results

    def measure(self) -> Iterator[loop.Progress]:
        """Run the attacks as the claim says that they were run.

        Yields:
            How far the attack under way is, after each of its batches.
        """
        asked = self.evaluation
        for attack in self.attacks:
            how = _how(self.claim, attack)
            yield from loop.measure(
                asked.model,
                asked.split,
                [attack],
                asked.results,
                step_size=how.step_size,
                restarts=how.restarts,
                search_precision=how.search_precision,
                batch_size=asked.batch_size,
            )

    @property
    def pairs(self) -> list[Paired]:
        """The claim (A) and what was measured (B) on the sampled images, attack by attack."""
        return [paired(attack, self.claimed[attack], self.results.verdicts[attack]) for attack in self.attacks]

    @property
    def other_weights(self) -> bool:
        """The claim is of other weights than the model's now, or does not say of which."""
        return self.claim.weights != self.results.weights

    def objections(self) -> list[str]:
        """Why the claim does not stand, in words; none where it does."""
        found = ["it is of other weights"] if self.other_weights else []
        for pair in self.pairs:
            claimed, measured = (record.attacks[pair.attack] for record in (self.claim, self.results))
            known = pair.attack == "clean" and "whole" not in claimed  # the answers of a function, without chance
            differ, name = pair.only_a + pair.only_b, attack_name(pair.attack)
            how = [key for key in HOW if claimed.get(key) != measured.get(key)]
            found += [f"{name} has {key} {measured.get(key)} here and {claimed.get(key)} there" for key in how]
            if differ > max(1, ROUNDED * pair.n) if known else pair.p_value < LEVEL:
                found.append(
                    f"{name}: {pair.only_a} of {pair.n} images should stand and do not, {pair.only_b} stand and should not"
                )
        return found


def prepare(
    spec: str,
    *,
    n: int | None = None,
    seed: int = 0,
    attacks: Sequence[str] = (),
    checkpoint: str = "last",
    claim: str | None = None,
    dataset: str | None = None,
) -> Verification:
    """Load the model, its claim and the images, and draw the sample; nothing is measured yet.

    Args:
        spec: MODEL as evaluate takes it.
        n: how many images are drawn, without replacement; by default 200, or all where there are fewer.
        seed: of the draw.
        attacks: of those claimed; by default the one that leaves least, of those of the package. Clean is measured anyway.
        checkpoint: "last" or "best".
        claim: directory with results.json and verdicts.npz; by default MODEL's own.
        dataset: as in evaluate.

    Raises:
        InputError: for a model, data or claim that cannot be had, attacks that were not claimed, more images than it is of,
            or other images than it is of.
    """
    remote = None if claim or Path(spec).is_dir() or ":" in spec else Remote.fetch(spec)
    home = Path(claim) if claim else remote.directory if remote else Path(spec)
    found = [one for one in measured_in(home) if one.checkpoint == checkpoint]
    fitting = [one for one in found if set(attacks) <= set(one.record.attacks)]
    if not fitting:
        known = ", ".join(dict.fromkeys(attack for one in found for attack in one.record.attacks))
        raise InputError(
            f"{spec} claims nothing of {' and '.join(attacks) or f'its {checkpoint} weights'}"
            f"{f', only of {known}' if known else ''}; name the directory of its results with --claim"
        )
    record, verdicts = read_results(home / fitting[0].folder, checkpoint)
    size = min(200, record.n) if n is None else n
    if not NOTICED <= size <= record.n:
        raise InputError(
            f"n={size} must be from {NOTICED}, since fewer images refute nothing, to the {record.n} that the claim is of"
        )
    chosen = tuple(dict.fromkeys(("clean", *(attacks or _strongest(record)))))
    with TemporaryDirectory() as nowhere:  # where nothing is written
        config = EvalConfig(
            attacks=chosen,
            n=record.n,
            split=record.split,
            norm=record.threat_model.norm,
            eps=record.threat_model.eps,
            dataset=dataset,
            checkpoint=checkpoint,  # type: ignore[arg-type]  # checked
            seed=record.seed,
            output=nowhere,
        )
        whole = prepare_evaluation(f"{remote.repo_id}@{remote.revision}" if remote else spec, config)
    if record.images != whole.results.images:
        raise InputError(
            f"{spec} was measured on images of sha256 {record.images or '(not recorded)'}, the first {record.n} of "
            f"{whole.split.name} have {whole.results.images}; name the data with --dataset"
        )
    index = np.sort(np.random.default_rng(seed).choice(record.n, size, replace=False))
    sample = whole.split[torch.from_numpy(index)]
    facts = {"split": record.split, "seed": record.seed, "checkpoint": checkpoint, "weights": whole.results.weights}
    results = Results.of(sample, record.threat_model, **facts)
    claimed = {attack: verdicts[attack][index] for attack in chosen}
    return Verification(record, claimed, replace(whole, split=sample, results=results), chosen, index)


def noticed(n: int) -> float:
    """By what share of n images a figure must be too high to be refuted 95 times in 100, if nothing turns by chance."""
    from scipy.stats import binom

    return next(k for k in range(1, 1001) if binom.sf(NOTICED - 1, n, k / 1000) >= 0.95) / 1000


def _strongest(record: Record) -> tuple[str, ...]:
    """Of the attacks that a claim names the one that leaves least; never code from elsewhere, which only a user may name."""
    left = {a: figures["correct"] for a, figures in record.attacks.items() if a != "clean" and ":" not in a}
    return (min(left, key=left.__getitem__),) if left else ()


def _how(claim: Record, attack: str) -> EvalConfig:
    """How a claim says that an attack was run, as evaluate is asked for it; InputError where that cannot be."""
    figures = claim.attacks[attack]
    step: Any = figures.get("step_size")
    return EvalConfig(
        attacks=(attack,),
        step_size=number(step) if step is not None else None,
        restarts=figures.get("restarts", 1),
        search_precision=precision_of(figures),  # type: ignore[arg-type]
    )
