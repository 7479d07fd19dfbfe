"""Pictures as people see them, and as tensors of one size."""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from timm.data import create_transform
from torch import Tensor

from piat_hub.config import InputError, first_line

# read by Pillow alone, unlike EPS, which it hands to Ghostscript
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
LARGEST = 2**30  # bytes of a picture's file
LARGEST_CUT = 178_956_970  # pixels of a picture on its way to the middle that is cut out of it: as many as Pillow opens


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


def open_picture(file: bytes | str | Path, name: str, widest: int | None = None) -> Image.Image:
    """A picture as people see it; whatever reads one, reads it here.

    It is turned upright as its EXIF orientation says, and stands on white where it is transparent. Grey levels of 16 bits are
    divided by 257, floats in [0, 1] multiplied by 255; both are rounded. Of colours of 16 bits Pillow takes the upper 8.

    Args:
        file: its path, or what stands in it.
        name: what messages call it.
        widest: pixels a side that it may have, looked at before it is decoded.

    Returns:
        A picture of 8 bits a channel, of mode "L" where it is grey, else "RGB".

    Raises:
        InputError: if it is no picture or a broken one, an animation, larger than Pillow allows (178,956,970 pixels) or
            than `widest`, or its levels have no known range.
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
                if widest and max(picture.size) > widest:
                    size = " x ".join(f"{side:,}" for side in picture.size)
                    raise InputError(f"{name} has {size} pixels, more than {widest:,} a side; make it smaller")
                picture.load()
                if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    ImageOps.exif_transpose(picture, in_place=True)
                return _eight_bits(picture)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no file {name}; correct its name") from error
    except Exception as error:  # Pillow passes on whatever its readers meet in a broken file
        what = "no image" if isinstance(file, bytes) else "not an image file"
        raise InputError(f"{name} is {what} ({_reason(error)}); drop it, or save it anew") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A loaded picture as mode L or RGB. ValueError where its levels have no known range."""
    if isinstance(picture, TiffImageFile) and picture.mode.startswith("I;16"):
        bits, zero = picture.tag_v2.get(258, (16,)), picture.tag_v2.get(262, 1)
        if tuple(bits) != (16,) or zero == 0:
            what = "where 0 is white" if zero == 0 else f"of {bits[0]} bits in 16"
            raise ValueError(f"levels {what}, which Pillow does not scale")
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
    mode = "L" if grey else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _reason(error: Exception) -> str:
    """What is wrong with a file, in a few words that do not name it."""
    if isinstance(error, UnidentifiedImageError):
        return f"its format is none of {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than Pillow opens, 178,956,970"
    return getattr(error, "strerror", None) or first_line(error)


@dataclass(frozen=True)
class Fit:
    """How a picture of any size becomes one of the model's, in timm's words and by its transform.

    Attributes:
        size: (H, W) in pixels.
        crop_mode: "squash" squeezes the whole picture into it; "center" resizes the short side to size / crop_pct and
            cuts out the middle; "border" fills up.
        crop_pct: in (0, 1].
        interpolation: "bilinear", "bicubic" and so on.
        mean: what "border" fills up with, a level in [0, 1] a channel, a grey picture with their mean; () for timm's usual.
    """

    size: tuple[int, int]
    crop_mode: str = "squash"
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = ()

    @classmethod
    def trained(cls, size: tuple[int, int], crop_pct: float | None) -> Self:
        """As a training run decides it: squeezed, or its middle where there is a crop_pct."""
        return cls(size) if crop_pct is None else cls(size, "center", crop_pct, "bicubic")

    @classmethod
    def of_timm(cls, pretrained_cfg: Mapping[str, Any]) -> Self | None:
        """As a model's pretrained_cfg says it; None where it says no input_size."""
        size = pretrained_cfg.get("input_size")
        if not size:
            return None
        said = {key: pretrained_cfg.get(key) for key in ("crop_mode", "crop_pct", "interpolation")}
        usual = {"crop_mode": "center", "crop_pct": 0.875, "interpolation": "bicubic"}  # timm's
        known: dict[str, Any] = {key: said[key] or usual[key] for key in usual}
        return cls((size[1], size[2]), **known, mean=tuple(pretrained_cfg.get("mean") or ()))

    def words(self) -> dict[str, Any]:
        """The same for a pretrained_cfg."""
        return {"crop_mode": self.crop_mode, "crop_pct": self.crop_pct, "interpolation": self.interpolation}

    @cached_property
    def transform(self) -> Callable[[Image.Image], Any]:
        """timm's for evaluation, which gives levels 0..255."""
        filled = {"mean": self.mean} if self.mean else {}
        return create_transform(self.size, use_prefetcher=True, **self.words(), **filled)

    def __call__(self, picture: Image.Image) -> Tensor:
        """A picture of mode L or RGB as (1 or 3, H, W) uint8."""
        if picture.size == self.size[::-1] and self.crop_pct == 1:
            return levels(picture)
        if self.crop_mode == "border" and picture.mode == "L" and len(self.mean) > 1:
            return replace(self, mean=(statistics.fmean(self.mean),))(picture)
        short, long = sorted(picture.size)
        before = (max(self.size) / self.crop_pct) ** 2  # pixels of a square that this is cut from
        if before > LARGEST_CUT:
            raise InputError(
                f"crop_pct {self.crop_pct} has {before:.1g} pixels cut to {self.size}; give a larger --crop-pct"
            )
        if self.crop_mode == "center" and before * long > LARGEST_CUT * short:
            raise InputError(
                f"a picture of {picture.width} x {picture.height} pixels is too narrow to be cut to {self.size[1]} x "
                f"{self.size[0]}; crop it before, or drop it"
            )
        return torch.as_tensor(self.transform(picture))


def read_image(
    path: str | Path,
    shape: Sequence[int],
    fit: Fit | None = None,
    name: str | None = None,
    widest: int | None = None,
) -> Tensor:
    """An image file as (C, H, W) uint8 of this shape, grey or RGB.

    Args:
        path: of a PNG, JPEG or the like, read as `open_picture` says.
        shape: (C, H, W); grey for C = 1, RGB for C = 3.
        fit: how it gets that size; squeezed (bilinear) where that is not said.
        name: what messages call it, by default its path.
        widest: as in `open_picture`.

    Raises:
        InputError: if it is no image file or too wide, or C is another number.
    """
    name, (channels, height, width) = name or str(path), shape
    if channels not in (1, 3):
        raise InputError(f"{name} cannot be shown to a model of {channels} channels; a picture has 1 or 3")
    picture = open_picture(path, name, widest).convert("L" if channels == 1 else "RGB")
    return (fit or Fit((height, width)))(picture)


def levels(picture: Image.Image) -> Tensor:
    """A picture of mode L or RGB as it is, (1 or 3, H, W) uint8."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
