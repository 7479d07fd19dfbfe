"""What a folder of pictures means: which of its folders are splits, which are classes, and what in it is neither."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from piat_hub.config import InputError, shortened

TABLES = {".parquet", ".arrow", ".tar"}  # where one lies, the pictures beside it are not the data
# what `pictures_at` looks for
PICTURES = {".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
DECLARED = re.compile(r"^(configs|dataset_info):", re.MULTILINE)  # in README.md: its owner says what the splits are


def pictures_at(path: str | Path) -> list[str]:
    """A picture's own path; of a folder those of the pictures in it at any depth, but for hidden ones, sorted.

    Raises:
        InputError: for a folder without any.
    """
    if not Path(path).is_dir():
        return [str(path)]
    files = [file for file in Path(path).rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
    if not (pictures := sorted(file for file in files if file.suffix.lower() in PICTURES)):
        raise InputError(f"{path} has no picture in it; name picture files, or a folder of some")
    return [str(file) for file in pictures]


def _hidden(file: Path) -> bool:
    """Whether a file of a folder is not meant to be seen, or was left by a Mac."""
    return any(part.startswith(".") or part == "__MACOSX" for part in file.parts)


@dataclass(frozen=True)
class PictureFolder:
    """A folder whose data are pictures in it.

    Attributes:
        root: the folder.
        files: all in it but hidden ones, relative to it, sorted.
        pictures: those that `datasets` takes for pictures.
        splits: the folders of each split, relative to it; "train" alone where no folder is called like a split.
    """

    root: Path
    files: tuple[Path, ...]
    pictures: tuple[Path, ...]
    splits: dict[str, tuple[Path, ...]]

    @classmethod
    def read(cls, root: Path) -> PictureFolder | None:
        """Look through a folder; None where `datasets` is to say what it holds: tables, archives, a declared data set.

        Args:
            root: the folder.

        Raises:
            InputError: where a folder could be a split or a class.
        """
        from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

        if declared(root):
            return None
        found = [Path(at) / name for at, folders, names in os.walk(root) for name in (*names, *_links(at, folders))]
        files = sorted(path.relative_to(root) for path in found)
        files = [f for f in files if not _hidden(f)]
        pictures = [f for f in files if f.suffix.lower() in ImageFolder.EXTENSIONS]
        links = [f for f in files if (root / f).is_symlink() and (root / f).is_dir()]
        if taken := [f for f in links if _split_called(f.name) or not pictures]:
            raise InputError(
                f"{root / taken[0]} is a link to a folder, and none is followed; put the folder itself there"
            )
        if not pictures or any(f.suffix in TABLES and not _describes(f) for f in files):
            return None
        return cls(root, tuple(files), tuple(pictures), _splits(root, files, pictures))

    def patterns(self, split: str) -> list[str]:
        """What `datasets` is to read for a split."""
        return [f"{glob.escape(str(self.root.resolve() / folder))}/**" for folder in self.splits[split]]

    def described(self, split: str) -> bool:
        """Whether a metadata file says the split's classes, in place of its folders' names."""
        return any(map(_describes, self._within(split, self.files)))

    def check(self, split: str) -> None:
        """InputError unless every picture of the split lies in the folder of its class, in one of two or more.

        Args:
            split: one of `splits`.

        Raises:
            InputError: naming the file that is in the way, or the classes.
        """
        where = self.root / self.splits[split][0]
        if archives := [f for f in self._within(split, self.files) if f.suffix.lower() == ".zip"]:
            raise InputError(
                f"{self.root / archives[0]} lies among pictures, which is no picture; unpack it, or move it away"
            )
        if self.described(split):
            return
        pictures = self._within(split, self.pictures)
        depths = {len(f.parts): f for f in pictures}
        deepest = depths[max(depths)]
        if len(deepest.parts) == len(self.splits[split][0].parts) + 1:
            raise InputError(
                f"{self.root / deepest} lies in no folder of its class; make it {where / 'CLASS' / deepest.name}, or say "
                f"the classes in {where / 'metadata.csv'}, with columns file_name and label"
            )
        if len(depths) > 1:
            raise InputError(
                f"{self.root / depths[min(depths)]} and {self.root / deepest} lie at different depths, so their folders "
                f"cannot both be classes; put each picture into {where / 'CLASS'}"
            )
        classes = self.classes(split)
        if len(classes) < 2:
            raise InputError(f"{where} holds a single class, {classes[0]!r}; a classifier needs at least two folders")
        if all(map(_split_called, classes)):
            raise InputError(
                f"{where} has the classes {shortened(classes)}, which are splits; put them above the classes: {classes[0]}/CLASS"
            )
        if split == "train" and "test" in self.splits:
            unseen = sorted(set(self.classes("test")) - set(classes))
            if unseen and not self.described("test"):
                raise InputError(
                    f"{where} has no picture of {shortened(unseen)}, which the test split has; add some, or take it out of both"
                )

    def notes(self, split: str) -> tuple[str, ...]:
        """What a split's pictures leave to be said: which of several folders is the class, and which are of no split."""
        found, name = [], self.root.name
        above = self.splits[split]
        within = [
            f.parent.relative_to(folder).parts for folder in above for f in self.pictures if f.is_relative_to(folder)
        ]
        several = [level for level in zip(*within, strict=False) if len(set(level)) > 1]
        if len(several) > 1 and not self.described(split):
            found.append(
                f"{name}: pictures lie in folders within folders ({'/'.join(within[0])}); the innermost ones are the classes: "
                f"{shortened(self.classes(split))}"
            )
        folders = [folder for each in self.splits.values() for folder in each]
        if lost := [f for f in self.pictures if not any(f.is_relative_to(folder) for folder in folders)]:
            where = shortened(sorted({str(f.parent) for f in lost}))
            found.append(f"{name}: {len(lost)} pictures in {where} belong to no split and are left out")
        return tuple(found)

    def classes(self, split: str) -> list[str]:
        """The names of the folders that hold the split's pictures, sorted."""
        return sorted({f.parent.name for f in self._within(split, self.pictures)})

    def paths(self, split: str) -> list[str]:
        """All files of the split as `datasets` names them, but those that describe the pictures."""
        return [str(self.root.resolve() / f) for f in self._within(split, self.files) if not _describes(f)]

    def _within(self, split: str, files: Sequence[Path]) -> list[Path]:
        """Those files that lie in the split's folders."""
        return [f for f in files if any(f.is_relative_to(folder) for folder in self.splits[split])]


def declared(root: Path) -> bool:
    """Whether a data set says itself what its splits and columns are, as one fetched from the Hub does."""
    readme = root / "README.md"
    return readme.is_file() and bool(DECLARED.search(readme.read_text(encoding="utf-8", errors="replace")))


def _links(at: str, folders: Sequence[str]) -> list[str]:
    """Those of the folders in `at` that are links, which `datasets` does not follow."""
    return [name for name in folders if Path(at, name).is_symlink()]


def _describes(file: Path) -> bool:
    """Whether a file is one of those in which `datasets` looks for the pictures' columns."""
    return file.stem == "metadata" and file.suffix in (".csv", ".jsonl", ".parquet")


def _splits(root: Path, files: Sequence[Path], pictures: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """The topmost folders that are called like splits, by split; else all is "train"."""
    above = Path()
    while True:  # through folders in which there is but one other, as archives unpack to
        tops = {f.relative_to(above).parts[0] for f in pictures}
        if len(tops) > 1 or any(map(_split_called, tops)) or min(len(f.relative_to(above).parts) for f in pictures) < 3:
            break
        above = above / tops.pop()
    folders = sorted({above / f.relative_to(above).parts[0] for f in pictures if len(f.relative_to(above).parts) > 1})
    named = {folder: split for folder in folders if (split := _split_called(folder.name))}
    others = [folder.name for folder in folders if folder not in named]
    if others:
        for folder in named:
            inside = [f.relative_to(folder) for f in files if f.is_relative_to(folder)]
            if all(len(f.parts) == 1 for f in inside) and not any(map(_describes, inside)):
                raise InputError(
                    f"{root / folder} could be a split or a class, beside {shortened(others)}; put the folders of the "
                    f"classes into {root / above / 'train'} and {root / above / 'test'}"
                )
    if not named and folders:
        loosely = {folder: split for folder in folders if (split := _split_called(folder.name, loosely=True))}
        named = loosely if len(loosely) == len(folders) else {}
    if not named:
        return {"train": (above,)}
    return {split: tuple(f for f in named if named[f] == split) for split in dict.fromkeys(named.values())}


def _split_called(name: str, *, loosely: bool = False) -> str:
    """The split that a folder's name says, or "". Loosely: that one of its words says, as in "train_images"."""
    from datasets.data_files import SPLIT_KEYWORDS

    words = re.split(r"[-._ 0-9]+", name.casefold()) if loosely else [name.casefold()]
    return next((str(split) for split, known in SPLIT_KEYWORDS.items() if set(words) & set(known)), "")
