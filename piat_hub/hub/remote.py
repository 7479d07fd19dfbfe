"""What a model repository of the Hub says was measured, without its weights."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from huggingface_hub import HfApi, RepoFile
from huggingface_hub.errors import HTTPError, SafetensorsParsingError

from piat_hub.config import InputError, first_line
from piat_hub.hub.load import _download
from piat_hub.records.files import LARGEST, RECORDS, WEIGHTS
from piat_hub.records.published import PUBLISHED

MOST = 200  # records of a model: results and verdicts of its own images and of every folder
T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """A repository's records, in huggingface_hub's cache.

    Attributes:
        directory: of the records, as they lie in a run.
        repo_id: "ORG/NAME".
        revision: the commit.
        weights: the sha256 of each checkpoint's weights, which were not fetched.
    """

    directory: Path
    repo_id: str
    revision: str
    weights: dict[str, str]

    @classmethod
    def fetch(cls, model_id: str) -> Self:
        """Fetch config.json, results and verdicts, metrics and timing of one commit.

        Args:
            model_id: "ORG/NAME", also "ORG/NAME@revision"; what we published is had at its pinned revision.

        Raises:
            InputError: if there is no such model, the Hub cannot be reached, or its records are absurdly many or large.
        """
        name, _, pinned = model_id.partition("@")
        where: dict[str, Any] = {"revision": pinned or PUBLISHED.get(name, {}).get("revision")}
        directory = _download(name, "config.json", where).parent
        where["revision"] = directory.name
        tree = _asked(model_id, lambda: list(HfApi().list_repo_tree(name, recursive=True, **where)))
        files = {file.path: file for file in tree if isinstance(file, RepoFile)}
        records = [file for path, file in files.items() if _is_record(path)]
        size = sum(file.size for file in records)
        if len(records) > MOST or size > LARGEST:
            raise InputError(
                f"{model_id} has {len(records)} records of {size:,} bytes, which no model has; leave it out"
            )
        for file in records:
            _download(name, file.path, where)
        there = {checkpoint: files[path] for checkpoint, path in WEIGHTS.items() if path in files}
        weights = {checkpoint: file.lfs.sha256 for checkpoint, file in there.items() if file.lfs}
        return cls(directory, name, where["revision"], weights)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the last weights' tensors by name, from the file's header alone.

        Raises:
            InputError: where the Hub does not give it, or it is no safetensors file.
        """
        of, revision = (self.repo_id, WEIGHTS["last"]), self.revision
        found = _asked(of[0], lambda: HfApi().parse_safetensors_file_metadata(*of, revision=revision))
        return {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}


def _is_record(path: str) -> bool:
    """Whether a file of a repository is a record that is read: its own, or that of a folder directly below."""
    return bool(re.fullmatch(r"([^/]+/)?[^/]+\.(jsonl?|npz)", path)) and path.rpartition("/")[2] in RECORDS


def _asked(model_id: str, ask: Callable[[], T]) -> T:
    """What the Hub answers; InputError where it does not."""
    try:
        return ask()
    except (HTTPError, SafetensorsParsingError, OSError, ValueError) as error:
        raise InputError(
            f"{model_id} cannot be looked through: {first_line(error)}; check the name or the network"
        ) from error
