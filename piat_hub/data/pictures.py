"""Pictures as people see them, and as tensors: encoded ones that are decoded when asked for, and files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
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


def open_picture(file: bytes | str | Path, name: str) -> Image.Image:
    """A picture as people see it; whatever reads one, reads it here.

    It is turned upright as its EXIF orientation says, and stands on white where it is transparent. 16-bit levels are
    divided by 257, floats in [0, 1] multiplied by 255; both are rounded.

    Args:
        file: its path, or what stands in it.
        name: what messages call it.

    Returns:
        A picture of 8 bits a channel, of mode "L" where it is grey, else "RGB".

    Raises:
        InputError: if it is no picture or a broken one, an animation, larger than Pillow allows (178,956,970 pixels), or
            its levels have no known range.
    """
    try:
        raw = file if isinstance(file, bytes) else content(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures are welcome, and broken EXIF turns nothing
            with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
                if getattr(picture, "is_animated", False) and picture.format != "MPO":  # whose others are its previews
                    raise InputError(
                        f"{name} holds several pictures, an animation or pages; save one of them in its place"
                    )
                picture.load()
                if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    ImageOps.exif_transpose(picture, in_place=True)
                return _eight_bits(picture)
    except InputError:
        raise
    except Exception as error:  # Pillow passes on whatever its readers meet in a broken file
        what = "no image" if isinstance(file, bytes) else "not an image file"
        raise InputError(f"{name} is {what} ({_reason(error)}); drop it, or save it anew") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A loaded picture as mode L or RGB. ValueError where its levels have no known range."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        levels = np.asarray(picture)
        if picture.mode == "I" or not (levels.min() >= 0 and levels.max() <= 1):
            low, high = levels.min(), levels.max()
            raise ValueError(
                f"levels of {low:g} to {high:g}, where 8 or 16 bits or floats in [0, 1] would tell their range"
            )
        return Image.fromarray(np.rint(levels * 255).astype(np.uint8))
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), coloured)
    return picture.convert("L" if grey else "RGB")


def _reason(error: Exception) -> str:
    """What is wrong with a file, in a few words that do not name it."""
    if isinstance(error, UnidentifiedImageError):
        return f"its format is none of {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than Pillow opens, 178,956,970"
    return getattr(error, "strerror", None) or _line(error)


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
                raise InputError(
                    f"{self.name}: {_where(row, cell)} is in colour and the first ones are grey; make them alike"
                )
            images.append(image.expand(channels, -1, -1))
        return torch.stack(images) if images else torch.empty(0, *self.each, dtype=torch.uint8)

    def open(self, row: int, cell: Any) -> Tensor:
        """A cell as (1 or 3, H, W) uint8.

        Args:
            row: its number, for messages.
            cell: its "bytes", or the "path" of its file.

        Raises:
            InputError: if it is no image (see `open_picture`), or has another size than the first.
        """
        if not cell or {cell["bytes"], cell["path"]} == {None}:
            raise InputError(f"{self.name}: row {row} is no image (it is empty); drop it")
        where = _where(row, cell)
        picture = open_picture(cell["path"] if cell["bytes"] is None else cell["bytes"], f"{self.name}: {where}")
        image = _tensor(picture, (self.img_size,) * 2 if self.img_size else picture.size)
        if self.each and image.shape[1:] != self.each[1:]:
            sizes = " and ".join(f"{h}x{w}" for h, w in (self.each[1:], image.shape[1:]))
            raise InputError(f"{self.name} mixes image sizes: {sizes} ({where}); give them one with --img-size")
        return image


def _where(row: int, cell: Any) -> str:
    """A cell in messages: its file, or its row where the table holds the image itself."""
    return str(cell["path"]) if cell["bytes"] is None else f"row {row}"


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


def read_image(path: str | Path, shape: Sequence[int]) -> Tensor:
    """An image file as (C, H, W) uint8 of this shape, grey or RGB, resized (bilinear) where it differs.

    Args:
        path: of a PNG, JPEG or the like, read as `open_picture` says.
        shape: (C, H, W); grey for C = 1, RGB for C = 3.

    Raises:
        InputError: if it is no image file, or C is another number.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise InputError(f"{path} cannot be shown to a model of {channels} channels; a picture has 1 or 3")
    picture = open_picture(path, str(path)).convert("L" if channels == 1 else "RGB")
    return _tensor(picture, (width, height))


def _tensor(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture of mode L or RGB as (1 or 3, H, W) uint8, resized (bilinear) to (width, height) where it differs."""
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
