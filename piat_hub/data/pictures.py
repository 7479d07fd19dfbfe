"""Pictures as tensors: encoded ones that are decoded when asked for, and files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from piat_hub.config import InputError
from piat_hub.machine import cores

# read by Pillow alone, unlike EPS, which it hands to Ghostscript
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
LARGEST = 2**30  # bytes of a picture's file


def content(path: str | Path) -> bytes:
    """What stands in a picture's file.

    Args:
        path: of the file.

    Raises:
        ValueError: for a pipe or a device, which may never end, and beyond `LARGEST`.
        OSError: if it cannot be read.
    """
    if (file := Path(path)).exists() and not file.is_file():
        raise ValueError("it is no regular file")
    if file.stat().st_size > LARGEST:
        raise ValueError(f"it is larger than {LARGEST // 2**30} GiB")
    return file.read_bytes()


@dataclass(frozen=True)
class Encoded:
    """Images (N, C, H, W) uint8 that stay encoded, read like a tensor: each is decoded whenever an index asks for it.

    Attributes:
        cells: a column of a `datasets.Dataset`, undecoded.
        rows: which of them, in order, (N,) int64.
        each: (C, H, W) of every image; () while it is being found out.
        img_size: pixels a side that each is resized to, None for as it is.
        name: what messages call the data set.
        device: where they are given out.
    """

    cells: Any
    rows: Tensor
    each: tuple[int, ...]
    img_size: int | None
    name: str
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return len(self.rows), *self.each

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self.decode(self.select(index).rows.tolist()).to(self.device)

    def select(self, index: Tensor | slice) -> Encoded:
        """These images alone, still encoded.

        Args:
            index: positions among these images, int64 or bool, or a slice.
        """
        return replace(self, rows=self.rows[index.cpu() if isinstance(index, Tensor) else index])

    def to(self, device: torch.device | str) -> Encoded:
        """The same images, given out on `device`."""
        return replace(self, device=torch.device(device))

    def decode(self, rows: Sequence[int]) -> Tensor:
        """The images of these rows, (B, C, H, W) uint8 on the CPU.

        Args:
            rows: of `cells`.

        Raises:
            InputError: if one is no image of this shape.
        """
        images, channels = [], self.each[0]
        for row, cell in zip(rows, self.cells[list(rows)] if rows else (), strict=True):
            image = self.open(row, cell)
            if len(image) > channels:
                raise InputError(f"{self.name}: row {row} is in colour and the first ones are grey; make them alike")
            images.append(image.expand(channels, -1, -1))
        return torch.stack(images) if images else torch.empty(0, *self.each, dtype=torch.uint8)

    def open(self, row: int, cell: Any) -> Tensor:
        """A cell as (1 or 3, H, W) uint8.

        Args:
            row: its number, for messages.
            cell: its "bytes", or the "path" of its file.

        Raises:
            InputError: if it is no image, or has another size than the first.
        """
        try:
            raw = cell["bytes"] if cell["bytes"] is not None else content(cell["path"])
            with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
                image = _pixels(picture, self.img_size)
        except (OSError, TypeError, ValueError) as error:
            raise InputError(f"{self.name}: row {row} is no image ({_line(error)}); drop it") from error
        if self.each and image.shape[1:] != self.each[1:]:
            sizes = " and ".join(f"{h}x{w}" for h, w in (self.each[1:], image.shape[1:]))
            raise InputError(f"{self.name} mixes image sizes: {sizes} (row {row}); give them one with --img-size")
        return image


class _Decoder(Dataset[Any]):
    """Encoded images as a DataLoader's worker takes them, a batch of rows at a time."""

    def __init__(self, images: Encoded) -> None:
        self.images = images

    def __getitems__(self, rows: list[int]) -> Tensor | InputError:
        try:
            return self.images.decode(rows)
        except InputError as error:  # raised here, it would come back inside a worker's traceback
            return error


def _as_they_are(batch: Tensor | InputError) -> Tensor | InputError:
    return batch


def workers() -> int:
    """Threads or processes that decode for this process: its share of the cores, at most 8."""
    return min(8, cores())


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _decode(encoded: Encoded) -> Tensor:
    """All of them as one tensor, (N, C, H, W) uint8, C = 3 if only one of them is in colour."""
    images = [encoded.open(row, cell) for row, cell in enumerate(encoded.cells)]
    channels = max(map(len, images))
    return torch.stack([image.expand(channels, -1, -1) for image in images])


def read_image(path: str, shape: Sequence[int]) -> Tensor:
    """An image file as (C, H, W) uint8 of this shape, grey or RGB, resized (bilinear) where it differs.

    Args:
        path: of a PNG, JPEG or the like.
        shape: (C, H, W); grey for C = 1, else RGB.

    Raises:
        InputError: if it is no image file.
    """
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(content(path)), formats=FORMATS) as file:
            picture = file.convert("L" if channels == 1 else "RGB")
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            return _pixels(picture, None)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not an image file ({_line(error)}); give PNG, JPEG or the like") from error


def _pixels(picture: Image.Image, img_size: int | None) -> Tensor:
    """A picture as (C, H, W) uint8, C = 1 for 8-bit grey, else 3."""
    if picture.mode != "L":
        picture = picture.convert("RGB")
    if img_size is not None and picture.size != (img_size, img_size):
        picture = picture.resize((img_size, img_size), Image.Resampling.BILINEAR)
    pixels = np.array(picture)
    return torch.from_numpy(pixels)[None] if pixels.ndim == 2 else torch.from_numpy(pixels).permute(2, 0, 1)
