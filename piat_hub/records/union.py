"""The union of threat models: an image stands where it withstands the worst of all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from piat_hub.config import InputError, to_dict
from piat_hub.records.files import RESULTS, UNIONS, own, read_json, sealed, write_text
from piat_hub.records.results import Record, Results, read_results, verdicts_digest
from piat_hub.records.statistics import proportion


class Stale(InputError):
    """A union.json whose folders were measured further, or moved away, since it was written."""


@dataclass(frozen=True)
class Union:
    """What was measured under several threat models, of one model on the same images.

    Attributes:
        parts: what was measured under each, by the folder that it lies in.
        standing: (n,) bool by folder, true where an image withstood every attack that was run there.
    """

    parts: dict[str, Record]
    standing: dict[str, np.ndarray]

    @classmethod
    def of(cls, parts: Sequence[Results]) -> Self:
        """The union of finished evaluations.

        Args:
            parts: at least one, of different threat models, the same model, images and seed.
        """
        verdicts = [list(part.verdicts.values()) for part in parts]
        folders = [part.threat_model.folder for part in parts]
        standing = [np.logical_and.reduce(each) for each in verdicts]
        return cls(dict(zip(folders, parts, strict=True)), dict(zip(folders, standing, strict=True)))

    @classmethod
    def read(cls, directory: Path, checkpoint: str = "last") -> Self:
        """The union that a directory's union.json tells of, from the results in its folders.

        Args:
            directory: holds union.json.
            checkpoint: "last" or "best".

        Raises:
            InputError: if there is none, or it is damaged; Stale, if a folder was measured further since.
        """
        path = own(directory, UNIONS[checkpoint])
        if not path.exists():
            raise InputError(f"{directory} has no {path.name}; evaluate it first with --threat-models")
        try:
            told = read_json(path)
            folders = [part["folder"] for part in told["threat_models"]]
            if not folders or not all(isinstance(folder, str) and Path(folder).name == folder for folder in folders):
                raise ValueError("its folders are none")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}); evaluate again with the same --threat-models") from error
        if gone := [folder for folder in folders if not own(directory, f"{folder}/{RESULTS[checkpoint]}").is_file()]:
            raise Stale(f"{path} is of the folder {gone[0]} too, which has no results; evaluate again")
        found = {folder: read_results(own(directory, folder), checkpoint) for folder in folders}
        parts = {folder: record for folder, (record, _) in found.items()}
        standing = {folder: np.logical_and.reduce(list(each.values())) for folder, (_, each) in found.items()}
        union = cls(parts, standing)
        if len({tuple(record.question(shared=True).items()) for record in parts.values()}) > 1:
            raise Stale(f"{path} is of folders that measured other images or weights than one another; evaluate again")
        if any(union.to_dict()[key] != told.get(key) for key in ("threat_models", "union")):
            raise Stale(
                f"{path} does not tell what its folders hold by now; call evaluate again with the same --threat-models"
            )
        return union

    @property
    def first(self) -> Record:
        """What all parts share stands in it: model, images, seed and checkpoint."""
        return next(iter(self.parts.values()))

    @property
    def worst(self) -> np.ndarray:
        """(n,) bool, true where an image withstood every attack under every threat model."""
        return np.logical_and.reduce(list(self.standing.values()))

    @property
    def figures(self) -> dict[str, Any]:
        """The union's accuracy, correct, n and ci95."""
        return proportion(int(self.worst.sum()), self.first.n)

    def to_dict(self) -> dict[str, Any]:
        """The content of union.json."""
        shared = self.first.to_dict()
        keys = ("schema", "dataset", "seed", "checkpoint", "weights_sha256", "images_sha256")
        return {
            **{key: shared[key] for key in keys},
            "threat_models": [
                {**to_dict(part.threat_model), "folder": folder}
                | {**proportion(int(self.standing[folder].sum()), part.n), "attacks": list(part.attacks)}
                | {"verdicts_sha256": verdicts_digest(self.standing[folder]), "seconds": round(part.seconds, 1)}
                for folder, part in self.parts.items()
            ],
            "union": {**self.figures, "verdicts_sha256": verdicts_digest(self.worst)},
            "notes": list(dict.fromkeys(note for part in self.parts.values() for note in part.notes)),
            **self.first.environment,
            "seconds": round(sum(part.seconds for part in self.parts.values()), 1),
        }

    def save(self, directory: Path) -> Path:
        """Write union.json, or that of the best checkpoint; returns its path."""
        path = directory / UNIONS[self.first.checkpoint]
        write_text(path, json.dumps(sealed(self.to_dict()), indent=2) + "\n")
        return path
