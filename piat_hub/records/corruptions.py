"""Accuracy under common corruptions: the verdicts of each corruption and severity, and what results.json says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from piat_hub.config import ALEXNET, COMMON, EXTRA, SEVERITIES, InputError
from piat_hub.records.files import CORRUPTIONS, load_arrays, own, save_arrays
from piat_hub.records.statistics import mean_of_images, proportion


@dataclass
class Corruptions:
    """What was measured so far.

    Attributes:
        name: of the folder of images.
        n: images of each severity.
        digests: the sha256 of labels and pixels by corruption.
        verdicts: by corruption, (severities done, n) bool, true where the class is right.
        imagenet: the images and classes are ImageNet-C's, so AlexNet's errors are the reference of mCE.
    """

    name: str
    n: int
    digests: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, np.ndarray] = field(default_factory=dict)
    imagenet: bool = False

    @property
    def whole(self) -> dict[str, np.ndarray]:
        """The corruptions of which all five severities are done, in the paper's order."""
        return {c: self.verdicts[c] for c in (*COMMON, *EXTRA) if len(self.verdicts.get(c, ())) == SEVERITIES}

    @property
    def by_image(self) -> np.ndarray | None:
        """(n,) each image's share of right answers over the 15 corruptions at five severities; None where one is missing."""
        whole = self.whole
        return np.mean([whole[c].mean(0) for c in COMMON], 0) if set(COMMON) <= set(whole) else None

    def record(self, corruption: str, right: np.ndarray) -> None:
        """Add the verdicts of the next severity, (n,) bool."""
        done = self.verdicts.get(corruption, np.empty((0, self.n), bool))
        self.verdicts[corruption] = np.concatenate([done, right[None]])

    def to_dict(self) -> dict[str, Any]:
        """What results.json says under "corruptions"."""
        shares, whole = self.by_image, self.whole
        each = {c: [proportion(int(right.sum()), self.n) for right in v] for c, v in self.verdicts.items()}
        errors = {c: 1 - float(v.mean()) for c, v in whole.items()}
        known = self.imagenet and shares is not None
        return {
            "dataset": {"name": self.name, "n": self.n},
            "images_sha256": self.digests,
            "severities": each,
            "mean": None if shares is None else dict(zip(("accuracy", "ci95"), mean_of_images(shares), strict=True)),
            "mce": float(np.mean([errors[c] / ALEXNET[c] for c in COMMON])) if known else None,
            "reference": "AlexNet's errors on ImageNet-C" if known else None,
        }

    def save(self, directory: Path, checkpoint: str) -> None:
        """Write the verdicts, whole."""
        save_arrays(directory / CORRUPTIONS[checkpoint], **self.verdicts)

    @classmethod
    def read(cls, directory: Path, checkpoint: str, told: Mapping[str, Any]) -> Self:
        """What a directory holds.

        Args:
            directory: with results.json and the verdicts.
            checkpoint: "last" or "best".
            told: what its results.json says under "corruptions".

        Raises:
            InputError: where the verdicts are missing, damaged, or tell something else.
        """
        path = own(directory, CORRUPTIONS[checkpoint])
        try:
            images = told["dataset"]
            found = cls(images["name"], images["n"], dict(told["images_sha256"]), imagenet=told["mce"] is not None)
            arrays = load_arrays(path)  # of a process that was killed it may hold one severity more
            found.verdicts = {c: arrays[c][: len(each)] for c, each in told["severities"].items()}
            if any(v.dtype != bool or v.ndim != 2 or v.shape[1] != found.n for v in found.verdicts.values()):
                raise ValueError("verdicts of another shape or type")
            counts = {c: [f["correct"] for f in each] for c, each in told["severities"].items()}
            if counts != {c: v.sum(1).tolist() for c, v in found.verdicts.items()}:
                raise ValueError("they do not tell the same accuracies")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} and results.json cannot be read together ({error}); measure again elsewhere"
            ) from error
        return found
