"""Corrupted test images as they are published (Hendrycks & Dietterich 2019, arXiv:1903.12261): NAME.npy and labels.npy."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from piat_hub.config import COMMON, EXTRA, SEVERITIES, InputError, first_line, local_name, shortened

FORM = f"{SEVERITIES} severities of the same images in order, whole numbers"


@dataclass(frozen=True)
class Corrupted:
    """A folder of corrupted images, of which nothing is read into memory before it is asked for.

    Attributes:
        name: what results call it.
        images: (5 N, H, W, C) uint8 by corruption, in the paper's order: five severities of N images each.
        labels: (N,) int64, class numbers of the first severity's images, and so of each.
        n: how many images of each severity are asked for, the first.
    """

    name: str
    images: dict[str, Any]
    labels: Tensor
    n: int

    @classmethod
    def open(cls, directory: str, n: int | None = None) -> "Corrupted":
        """Look at a folder's arrays, which are mapped, never unpickled.

        Args:
            directory: holds labels.npy and an array for each of some of the 15 corruptions and 4 extra ones.
            n: the first n images of each severity; all by default.

        Raises:
            InputError: for a folder that lacks them, or arrays of another type, shape or order.
        """
        home = Path(directory)
        names = [name for name in (*COMMON, *EXTRA) if (home / f"{name}.npy").exists()]
        if not names:
            raise InputError(
                f"{directory} holds none of the published arrays, {COMMON[0]}.npy and so on; name the unpacked folder of CIFAR-10-C"
            )
        labels = _array(home / "labels.npy")
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or len(labels) % SEVERITIES:
            raise InputError(
                f"{home / 'labels.npy'} holds {labels.dtype} of shape {labels.shape}, not labels of {FORM}"
            )
        each = np.asarray(labels, np.int64).reshape(SEVERITIES, -1)
        if (each != each[0]).any() or each.min() < 0:
            raise InputError(f"{home / 'labels.npy'} must hold the labels of {FORM}, five times the same from 0")
        images = {name: _array(home / f"{name}.npy") for name in names}
        shape = images[names[0]].shape
        for name, array in images.items():
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape != shape or len(array) != len(labels):
                raise InputError(
                    f"{home / name}.npy holds {array.dtype} of shape {array.shape}; the arrays must be uint8 (N, H, W, C), "
                    f"N being the {len(labels)} of labels.npy, all of one shape"
                )
        if n is not None and n > each.shape[1]:
            raise InputError(f"n={n} is larger than the {each.shape[1]} images of a severity in {directory}; lower it")
        return cls(local_name(directory), images, torch.from_numpy(each[0].copy()), n or each.shape[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of each image."""
        height, width, channels = next(iter(self.images.values())).shape[1:]
        return channels, height, width

    @property
    def missing(self) -> str:
        """Those of the 15 that the folder lacks; "" for none."""
        return shortened([name for name in COMMON if name not in self.images])

    def at(self, name: str, severity: int) -> Tensor:
        """The images of a corruption at a severity from 1 to 5, (n, C, H, W) uint8."""
        start = (severity - 1) * len(self.labels)
        return torch.from_numpy(np.array(self.images[name][start : start + self.n])).permute(0, 3, 1, 2)

    def digest(self, name: str) -> str:
        """The sha256 of the labels and of a corruption's pixels, as many as are asked for."""
        whole = hashlib.sha256(self.labels[: self.n].numpy().tobytes())
        for severity in range(1, SEVERITIES + 1):
            whole.update(self.at(name, severity).numpy().tobytes())
        return whole.hexdigest()


def _array(path: Path) -> Any:
    """An .npy file, mapped. InputError where it is none, or holds objects."""
    if not path.is_file():
        raise InputError(f"{path} is no file; a folder of corruptions has labels.npy and an array for each of them")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = first_line(error)
        raise InputError(f"{path} is no whole array of numbers ({reason}); fetch it again") from error
