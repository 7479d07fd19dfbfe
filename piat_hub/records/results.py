"""What an evaluation found: figures, verdicts image by image, and their files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from piat_hub.config import LISTED, InputError, ThreatModel, from_dict, number, pixels, printable, to_dict
from piat_hub.records.claims import Figures, hold
from piat_hub.records.corruptions import Corruptions
from piat_hub.records.files import (
    RESULTS,
    VERDICTS,
    load_arrays,
    move_aside,
    own,
    read_json,
    save_arrays,
    sealed,
    texts,
    write_text,
)
from piat_hub.records.statistics import class_accuracy, proportion

if TYPE_CHECKING:
    from piat_hub.data import Split


@dataclass
class Record:
    """A results.json, schema 1: what was measured, on which images, of which weights.

    n: the first so many of the split. weights, images: sha256, of the file and of all pixels. attacks: by name.
    worst_case: of images that withstood all of them. per_class: accuracies by attack, in the order of label_names.
    sweep: accuracies at other budgets, each {"eps", "attacks"}.
    notes: sentences that belong beside every figure, since without them it would mislead.
    environment: versions, git and device. A field that a file of before it existed lacks is empty.
    """

    threat_model: ThreatModel
    dataset: str
    split: str
    n: int
    seed: int = 0
    checkpoint: str = "last"
    weights: str = ""
    images: str = ""
    attacks: dict[str, Figures] = field(default_factory=dict)
    worst_case: Figures | None = None
    label_names: tuple[str, ...] = ()
    per_class: dict[str, list[float | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    sweep: list[dict[str, Any]] = field(default_factory=list)
    corruptions: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def listed(self) -> bool:
        """Whether a list chose the images, in place of the split's first."""
        return any(note.startswith(LISTED) for note in self.notes)

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "schema": 1,
            "threat_model": to_dict(self.threat_model),
            "dataset": {"name": self.dataset, "split": self.split, "n": self.n},
            "seed": self.seed,
            "checkpoint": self.checkpoint,
            "weights_sha256": self.weights,
            "images_sha256": self.images,
            "attacks": self.attacks,
            "worst_case": self.worst_case,
            "per_class": {"label_names": list(self.label_names)} | self.per_class,
            "notes": self.notes,
            "checks": self.checks,
            "sweep": self.sweep,
            **({"corruptions": self.corruptions} if self.corruptions else {}),
            **self.environment,
            "seconds": round(self.seconds, 1),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """The inverse of `to_dict`, from anyone's file; unknown keys are ignored.

        Raises:
            ValueError: unless counts, accuracies, intervals and texts are there, fit each other, and can be printed.
        """
        try:
            return cls._from_dict(values)
        except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{type(error).__name__} {error}") from error

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> Record:
        if set(values["threat_model"]) != {"norm", "eps"}:
            raise ValueError("its threat model lacks norm or eps")
        if unprintable := [text for text in texts(values) if not printable(text)]:
            raise ValueError(f"{unprintable[0][:40]!a} is no printable text")
        images, classes = values["dataset"], dict(values.get("per_class") or {})
        found = cls(
            threat_model=from_dict(ThreatModel, values["threat_model"]),
            dataset=images["name"],
            split=images["split"],
            n=images["n"],
            seed=values["seed"],
            checkpoint=values["checkpoint"],
            weights=values.get("weights_sha256") or "",
            images=values.get("images_sha256") or "",
            attacks=dict(values["attacks"]),
            worst_case=values.get("worst_case"),
            label_names=tuple(classes.pop("label_names", ())),
            per_class=classes,
            notes=list(values.get("notes") or ()),
            checks=list(values.get("checks") or ()),
            sweep=list(values.get("sweep") or ()),
            corruptions=dict(values.get("corruptions") or {}),
            environment={key: values[key] for key in ("versions", "git", "device") if key in values},
            seconds=values.get("seconds", 0.0),
        )
        hold(found)
        for key, told in found._distances():
            told[key] = pixels(number(told[key]), found.threat_model.norm)
        return found

    def _distances(self) -> list[tuple[str, dict[str, Any]]]:
        """The places of L2's and L1's distances that older files write n/255, as (key, where it stands)."""
        attacks: list[Any] = [*self.attacks.values(), *(f for point in self.sweep for f in point["attacks"].values())]
        places = [*(("step_size", figures) for figures in attacks), *(("eps", point) for point in self.sweep)]
        return [
            place
            for place in places
            if self.threat_model.norm != "Linf" and str(place[1].get(place[0])).endswith("/255")
        ]

    @property
    def one_class(self) -> str:
        """The class of which every clean image is right where none of any other is: said of all images; else ""."""
        shares = zip(self.label_names, self.per_class.get("clean", ()), strict=False)
        known = {name: share for name, share in shares if share is not None}
        right = [name for name, share in known.items() if share]
        return right[0] if len(known) > 1 and len(right) == 1 and known[right[0]] == 1 else ""

    def question(self, *, shared: bool = False) -> dict[str, str]:
        """What two results must share for one to add to the other, in words; `shared`: for a union of threat models."""
        threat, which = self.threat_model, "a list of" if self.listed else "the first"
        images = f"{self.dataset} ({self.split}, {which} {self.n} images)"
        return {
            "threat_model": "" if shared else f"{threat.norm} {pixels(threat.eps, threat.norm)}",
            "dataset": images,
            "seed": str(self.seed),
            "checkpoint": self.checkpoint,
            "weights_sha256": self.weights,
            "images_sha256": self.images,
        }


@dataclass
class Running:
    """An attack under way: `entry` stood when its current stage began, `standing` stands now, (n,) bool.

    stage: number of the current one, from 0. batches: of it that are done. stages: by name, what per_attack says of
    them. reach: of an attack that seeks the nearest example, its distance from each image, (n,).
    """

    attack: str
    facts: dict[str, Any]
    batch_size: int
    entry: np.ndarray
    standing: np.ndarray
    stage: int = 0
    batches: int = 0
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    reach: np.ndarray | None = None


@dataclass
class Results(Record):
    """A record that is being made, with its arrays: `verdicts` by attack, (n,) bool, true where still correct.

    labels: (n,) int64, into label_names. corrupted: verdicts under corruptions. running: the attack under way. stopped:
    attacks that an earlier call was stopped in, by name. reach: by attack that seeks the nearest example, its distance
    from each image, (n,) float32, 0 where the image is wrong when clean, inf where none was found.
    """

    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    verdicts: dict[str, np.ndarray] = field(default_factory=dict)
    corrupted: Corruptions | None = None
    reach: dict[str, np.ndarray] = field(default_factory=dict)
    running: Running | None = None
    stopped: dict[str, Running] = field(default_factory=dict)

    @classmethod
    def of(cls, images: Split, threat_model: ThreatModel, **facts: Any) -> Results:
        """Empty results for these images: split "test", seed 0 and checkpoint "last" unless told.

        Args:
            images: all that will be measured.
            threat_model: norm and eps.
            **facts: other fields of the record.
        """
        known: dict[str, Any] = {
            "split": "test",
            "n": len(images),
            "labels": images.labels.cpu().numpy(),
            "label_names": images.label_names,
            "images": images.digest(),
            "notes": list(images.notes),
        }
        return cls(threat_model, images.name, **(known | facts))

    def record(self, name: str, standing: np.ndarray, facts: Mapping[str, Any]) -> None:
        """Add one attack's verdicts and its figures.

        Args:
            name: of the attack.
            standing: (n,) bool, true where still classified correctly.
            facts: how it was run; they stand beside the counts.
        """
        self.attacks[name] = {**proportion(int(standing.sum()), self.n), **facts}  # type: ignore[typeddict-item]
        self.verdicts[name] = standing
        self._draw_together()

    def _draw_together(self) -> None:
        """The figures of images that withstood every attack run, and each class's."""
        standing = np.logical_and.reduce(list(self.verdicts.values()))
        worst = proportion(int(standing.sum()), self.n) | {"attacks": list(self.verdicts)}
        self.worst_case = worst  # type: ignore[assignment]
        classes = len(self.label_names)
        self.per_class = {a: class_accuracy(v, self.labels, classes) for a, v in self.verdicts.items()}

    def note(self, sentence: str) -> None:
        """Say once what must stand beside every figure: printed, on the card, in comparisons and reports."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def save(self, directory: Path) -> None:
        """Write results.json and verdicts.npz (or those of best), each whole; of an attack under way only its state."""
        directory.mkdir(parents=True, exist_ok=True)
        results, verdicts = result_files(directory, self.checkpoint)
        if self.running:
            arrays = {k: v for k, v in vars(self.running).items() if isinstance(v, np.ndarray)}
            facts = {k: v for k, v in vars(self.running).items() if k not in arrays} | {"of": self._identity()}
            return save_arrays(_partial(verdicts, self.running.attack), facts=np.array(json.dumps(facts)), **arrays)
        if self.corrupted:
            self.corrupted.save(directory, self.checkpoint)
            self.corruptions = self.corrupted.to_dict()
        reach = {f"{attack}.reach": distances for attack, distances in self.reach.items()}
        save_arrays(verdicts, index=np.arange(self.n), label=self.labels, **self.verdicts, **reach)
        write_text(results, json.dumps(sealed(self.to_dict()), indent=2) + "\n")
        for attack in self.attacks:
            _partial(verdicts, attack).unlink(missing_ok=True)
        return None

    def resume(self, directory: Path, *, stopped: bool = False) -> None:
        """Take over what an earlier call measured in `directory`; with `stopped`, also attacks it was stopped in.

        Raises:
            InputError: if it measured something else, or if its files are damaged, which are then moved aside.
        """
        results, verdicts = result_files(directory, self.checkpoint)
        if not results.exists():
            return
        try:
            before, kept = read_results(directory, self.checkpoint)
            arrays = load_arrays(own(directory, verdicts.name))
            corrupted = Corruptions.read(directory, self.checkpoint, before.corruptions) if before.corruptions else None
        except InputError as error:
            aside = [move_aside(path).name for path in (results, verdicts) if path.exists()]
            raise InputError(f"{error}: they were moved to {' and '.join(aside)}") from error
        now = self.question()
        for key, words in before.question().items():
            if words != now[key]:
                raise InputError(
                    f"{results} holds results for {key} {words}, this call asks for {now[key]}; "
                    f"name another place with --output, or move {results.name} and {verdicts.name} away"
                )
        if not np.array_equal(arrays.get("label", self.labels), self.labels):
            raise InputError(
                f"{results} was measured with other labels of these images; name another place with --output"
            )
        for name in ("attacks", "notes", "checks", "sweep", "corruptions", "environment", "seconds"):
            setattr(self, name, getattr(before, name))
        self.verdicts, self.corrupted = kept, corrupted
        reach = {attack: arrays.get(f"{attack}.reach", np.empty(0)) for attack in kept}
        self.reach = {a: found for a, found in reach.items() if found.shape == (self.n,) and found.dtype == np.float32}
        self._draw_together()
        for path in sorted(directory.glob(_partial(verdicts, "*").name)) if stopped else ():
            running = self._read_running(path)
            if running.attack in self.attacks:  # killed after its results were written
                path.unlink(missing_ok=True)
            else:
                self.stopped[running.attack] = running

    def _read_running(self, path: Path) -> Running:
        """An attack that was stopped. InputError, with the file moved aside, if it is damaged or another evaluation's."""
        try:
            arrays = load_arrays(path)
            facts = json.loads(str(arrays.pop("facts")))
            if facts.pop("of") != self._identity():
                raise ValueError("it is of another model, images or threat model")
            running = Running(**facts | arrays)
            if any(array.shape != (self.n,) for array in arrays.values()):
                raise ValueError("verdicts of another shape")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is not a whole state of an evaluation ({error}); it was moved to {move_aside(path).name}: "
                "the same command begins that attack anew"
            ) from error
        return running

    def _identity(self) -> list[Any]:
        """What a partial state must agree in."""
        return [self.weights, self.images, str(self.threat_model), self.seed, self.checkpoint, self.n]


def result_files(directory: Path, checkpoint: str) -> tuple[Path, Path]:
    """(results, verdicts) of a checkpoint, "last" or "best", in a directory."""
    return directory / RESULTS[checkpoint], directory / VERDICTS[checkpoint]


def _partial(verdicts: Path, attack: str) -> Path:
    return verdicts.with_name(f"{verdicts.stem}.{attack.replace(':', '-')}.partial.npz")


def verdicts_digest(standing: np.ndarray) -> str:
    """The sha256 of an attack's verdicts, (n,) bool: a byte an image, 1 where it stands."""
    return hashlib.sha256(standing.astype(np.uint8).tobytes()).hexdigest()


def read_record(path: Path) -> Record:
    """A results.json, which may be anyone's. ValueError, or OSError, unless it is whole and says what results say."""
    return Record.from_dict(read_json(path))


def read_results(directory: Path, checkpoint: str = "last") -> tuple[Record, dict[str, np.ndarray]]:
    """(results.json, verdicts by attack) of an evaluated directory.

    Returns:
        The record, and for each of its attacks (n,) bool, true where still classified correctly.

    Raises:
        InputError: if they are missing or damaged, or do not tell the same.
    """
    results, verdicts = result_files(directory, checkpoint)
    if not results.exists():
        raise InputError(f"{directory} has no {results.name}; evaluate it first: piat evaluate {directory}")
    try:
        record, arrays = read_record(own(directory, results.name)), load_arrays(own(directory, verdicts.name))
        kept = {name: arrays[name] for name in record.attacks}
        if any(k.shape != (record.n,) or k.dtype != bool for k in kept.values()):
            raise ValueError("verdicts of another shape or type")
        if any(record.attacks[name]["correct"] != int(k.sum()) for name, k in kept.items()):
            raise ValueError("they do not tell the same accuracies")
        worst = record.worst_case
        if worst and worst["correct"] != int(
            np.logical_and.reduce([kept[a] for a in worst.get("attacks", kept)]).sum()
        ):
            raise ValueError("they do not tell the same worst case")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{results} and {verdicts.name} cannot be read together ({error}); evaluate again") from error
    return record, kept


def grouping(directory: Path, checkpoint: str = "last") -> bytes:
    """Which images of an evaluated directory are of one class, whatever that is called: what verdicts to be paired share.

    Args:
        directory: as in `read_results`, which has read it.
        checkpoint: "last" or "best".

    Returns:
        The class of each image, numbered in the order in which classes first come.

    Raises:
        InputError: where the verdicts do not say the labels.
    """
    labels = load_arrays(own(directory, VERDICTS[checkpoint])).get("label")
    if labels is None:
        raise InputError(f"{directory / VERDICTS[checkpoint]} does not say the labels of its images; evaluate again")
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return bytes(first.argsort().argsort()[inverse].astype(np.int64))
