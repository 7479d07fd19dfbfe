"""Images that stay encoded, of any sizes, and are decoded when they are asked for, by workers where there are many."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from piat_hub.config import InputError, shortened
from piat_hub.data.pictures import Fit, levels, open_picture
from piat_hub.machine import cores


@dataclass(frozen=True)
class Encoded:
    """Images (N, C, H, W) uint8 that stay encoded, read like a tensor: each is decoded whenever an index asks for it.

    Attributes:
        cells: a column of a `datasets.Dataset`, undecoded, or an array of pictures.
        rows: which of them, in order, (N,) int64.
        each: (C, H, W) of every image; () while it is being found out.
        name: what messages call the data set.
        fit: how each gets that size, None for as it is.
        sizes: (H, W) of those that were looked at, each once.
        device: where they are given out.
    """

    cells: Any
    rows: Tensor
    each: tuple[int, ...]
    name: str
    fit: Fit | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    device: torch.device | str = "cpu"

    def looked_at(self) -> Encoded:
        """The same images with their shape, found on some of them: C = 1 where all of those are grey, else 3 (RGB)."""
        picked = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(0))[:64].sort().values
        seen = [self.open(row, self.cells[row]) for row in self.rows[picked].tolist()]
        sizes = tuple(dict.fromkeys((picture.height, picture.width) for picture in seen))
        channels = max(3 if picture.mode == "RGB" else 1 for picture in seen)
        return replace(self, each=(channels, *sizes[0]), sizes=sizes)

    def in_colour(self) -> Encoded:
        """The same images, with C = 3 if any of them is in colour: where those looked at are grey, workers open all."""
        if self.each[0] != 1:
            return self
        parts = [part.tolist() for part in self.rows.split(64)]
        coloured = any(any(found) for found in in_workers(self._coloured, parts))
        return replace(self, each=(3, *self.each[1:])) if coloured else self

    def _coloured(self, rows: Sequence[int]) -> list[bool]:
        """Of each row whether its picture is in colour."""
        return [self.open(row, cell).mode == "RGB" for row, cell in zip(rows, self.cells[list(rows)], strict=True)]

    @property
    def mixed(self) -> bool:
        """Whether pictures of several sizes were found."""
        return len(self.sizes) > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return len(self.rows), *self.each

    @property
    def gib(self) -> float:
        """What they would take decoded, in GiB."""
        return math.prod(self.shape) / 2**30

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
        return replace(self, device=device)

    def fitted(self, fit: Fit | None) -> Encoded:
        """The same images, given out in this size; None leaves them as they are."""
        return replace(self, fit=fit, each=(self.each[0], *fit.size)) if fit else self

    def decoded(self) -> Tensor:
        """All of them as one tensor, (N, C, H, W) uint8, C = 3 if only one of them is in colour.

        Raises:
            InputError: if one is no image (see `open_picture`), or has another size than the first.
        """
        parts = [part.tolist() for part in self.rows.split(64)]  # a table gives many cells much faster than one by one
        found = (pair for part in parts for pair in zip(part, self.cells[part], strict=True))
        images = [self.tensor(row, self.open(row, cell)) for row, cell in found]
        channels = max(map(len, images))
        return torch.stack([image.expand(channels, -1, -1) for image in images])

    def decode(self, rows: Sequence[int]) -> Tensor:
        """The images of these rows, (B, C, H, W) uint8 on the CPU.

        Args:
            rows: of `cells`.

        Raises:
            InputError: if one is no image of this shape.
        """
        images = [self.tensor(row, picture) for row, picture in zip(rows, self.pictures(rows), strict=True)]
        return torch.stack(images) if images else torch.empty(0, *self.each, dtype=torch.uint8)

    def pictures(self, rows: Sequence[int]) -> Iterator[Image.Image]:
        """The pictures of these rows as they lie there, in one mode, L or RGB.

        Args:
            rows: of `cells`.

        Raises:
            InputError: if one is no image, or is in colour where the first ones are grey.
        """
        for row, cell in zip(rows, self.cells[list(rows)] if rows else (), strict=True):
            picture = self.open(row, cell)
            if picture.mode == "RGB" and self.each[0] == 1:
                raise InputError(
                    f"{self.name}: {_where(row, cell)} is in colour and the first ones are grey; make them alike"
                )
            yield picture.convert("RGB") if picture.mode == "L" and self.each[0] == 3 else picture

    def open(self, row: int, cell: Any) -> Image.Image:
        """A cell's picture, of mode L or RGB.

        Args:
            row: its number, for messages.
            cell: its "bytes", or the "path" of its file, or the picture itself.

        Raises:
            InputError: if it is no image (see `open_picture`).
        """
        if isinstance(cell, Image.Image):
            return cell
        if not cell or {cell["bytes"], cell["path"]} == {None}:
            raise InputError(f"{self.name}: row {row} is no image (it is empty); drop it")
        file = cell["path"] if cell["bytes"] is None else cell["bytes"]
        try:
            return open_picture(file, f"{self.name}: {_where(row, cell)}")
        except InputError as error:
            raise InputError(f"{error}; piat train and piat label leave it out with --skip-broken") from error

    def tensor(self, row: int, picture: Image.Image) -> Tensor:
        """A row's picture as (1 or 3, H, W) uint8, in its size.

        Args:
            row: for messages.
            picture: of mode L or RGB.

        Raises:
            InputError: if it has another size than the first, and there is no fit.
        """
        if self.fit:
            return self.fit(picture)
        if picture.size != self.each[:0:-1]:
            sizes = " and ".join(f"{h}x{w}" for h, w in (self.each[1:], picture.size[::-1]))
            where = _where(row, self.cells[row])
            raise InputError(f"{self.name} mixes image sizes: {sizes} ({where}); give them one with --img-size")
        return levels(picture)

    def whole(self) -> tuple[Tensor, tuple[str, ...]]:
        """(which of them can be opened, (N,) bool; notes that name the others); decodes each once, in workers."""
        parts = [part.tolist() for part in self.rows.split(64)]
        broken = [text for found in in_workers(self._faults, parts) for text in found]
        opened = torch.tensor([not text for text in broken], dtype=torch.bool)
        named = shortened([text for text in broken if text])
        said = f"{self.name}: {int((~opened).sum())} broken images are left out: {named}"
        return opened, (() if opened.all() else (said,))

    def _faults(self, rows: Sequence[int]) -> list[str]:
        """Of each row the name of what cannot be opened, else ""."""
        faults = []
        for row, cell in zip(rows, self.cells[list(rows)], strict=True):
            try:
                self.open(row, cell)
                faults.append("")
            except InputError:
                faults.append(_where(row, cell or {"bytes": b""}))
        return faults


def _where(row: int, cell: Any) -> str:
    """A cell in messages: its file, or its row where the table holds the image itself."""
    return str(cell["path"]) if isinstance(cell, dict) and cell["bytes"] is None else f"row {row}"


class _Work(Dataset[Any]):
    """A function of a batch, as a DataLoader's workers take it."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __getitems__(self, batch: Any) -> Any:
        try:
            return self.work(batch)
        except InputError as error:  # raised here, it would come back inside a worker's traceback
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def in_workers(work: Callable[[Any], Any], batches: Iterable[Any], pinned: bool = False) -> Iterator[Any]:
    """What `work` gives for each batch, in order, ahead of time, by processes of its own.

    Args:
        work: goes to those processes whole, also where they are spawned.
        batches: what it gets, one after the other.
        pinned: its tensors lie in memory that a GPU reads by itself.

    Raises:
        InputError: that `work` raises.
    """
    settings: dict[str, Any] = {"num_workers": min(8, cores()), "pin_memory": pinned}
    settings["generator"] = torch.Generator()  # else it draws from the global one
    loader = DataLoader(_Work(work), batch_sampler=batches, collate_fn=_as_it_is, **settings)
    gc.collect()  # a half-read stream that nobody holds is closed by threads, which a forked worker would wait for in vain
    for given in loader:
        if isinstance(given, InputError):
            raise given
        yield given
