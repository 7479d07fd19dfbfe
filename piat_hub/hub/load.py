"""Models from directories and the Hub, loaded strictly."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from torch import nn

from piat_hub.backbones import create_model
from piat_hub.backbones.normalization import Normalize, per_channel
from piat_hub.config import InputError, first_line, nearest, numbers_of
from piat_hub.hub import card, untrusted
from piat_hub.hub.save import ORIGIN
from piat_hub.records.files import WEIGHTS, file_digest, own
from piat_hub.records.model_config import ModelConfig
from piat_hub.records.published import PUBLISHED


def from_pretrained(
    model_id: str | Path,
    *,
    checkpoint: str = "last",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """A trained classifier, in eval mode: images (B, C, H, W) in [0, 1] to logits (B, K).

    No pickle is read.

    Args:
        model_id: a run directory or any directory with config.json and model.safetensors, or a Hub id ("ORG/NAME", also
            "ORG/NAME@revision"); a model of `list_pretrained()` is had at its pinned revision.
        checkpoint: "last", or "best" for the epoch chosen on held-out images.
        revision: branch, tag or commit on the Hub; before one in model_id.
        cache_dir: where downloads are kept, by default huggingface_hub's place.
        token: for a private model, by default the one that `hf auth login` or HF_TOKEN gave.
        local_files_only: take what was downloaded before, and ask the Hub nothing.
        device: where the model goes.

    Returns:
        The model, with `label_names` (one a class, or none), `piat` (the training configuration as a dict, or {}),
        `origin` (who else trained it, or None) and `weights_sha256` (of the weights file).

    Raises:
        InputError: a ValueError, if there is no such model, its weights do not fit its config.json exactly or are not
            those that were published, or it wants normalised images.
    """
    if checkpoint not in WEIGHTS:
        raise InputError(f"checkpoint {checkpoint!r} is unknown{nearest(checkpoint, WEIGHTS)}; choose last or best")
    known = {} if Path(model_id).is_dir() else PUBLISHED.get(str(model_id).partition("@")[0], {})
    where: dict[str, Any] = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    where["revision"] = revision
    config_file, weights_file = _files(model_id, WEIGHTS[checkpoint], where)
    config = ModelConfig.read(config_file)
    model = _built(config, weights_file, str(config_file))
    if known and where["revision"] == known["revision"] and model.weights_sha256 != known["weights_sha256"][checkpoint]:
        raise InputError(
            f"{weights_file} is not what we published as {model_id}: another sha256; delete it and load again"
        )
    mean, std = _statistics(config, str(model_id))
    if any(mean) or any(number != 1 for number in std):
        raise InputError(
            f"{model_id} wants normalised images, as timm's own models do; "
            "evaluate takes it as hf-hub:ORG/NAME or local-dir:DIRECTORY"
        )
    said = {key: config.pretrained_cfg.get(key) for key in ORIGIN}  # not what timm says of its own weights
    model.pretrained_cfg |= {key: value if isinstance(value, str) else None for key, value in said.items()}
    model.label_names = config.label_names
    model.piat, model.origin = dict(config.piat or {}), config.origin
    return model.to(device).eval()


def _statistics(config: ModelConfig, source: str) -> tuple[Sequence[float], Sequence[float]]:
    """By what mean and std it normalises; InputError where it does not say so."""
    mean, std = (config.pretrained_cfg.get(key) or () for key in ("mean", "std"))
    if not mean or not std:
        raise InputError(
            f"{source} does not say by what mean and std it normalises; add them to its config.json's pretrained_cfg "
            "(0 and 1 for images in [0, 1])"
        )
    return mean, std


def _built(config: ModelConfig, weights: Path, source: str) -> Any:
    """The model with the sha256 of its weights file, which a training may put another in the place of meanwhile."""
    while True:
        before = weights.stat()
        model: Any = untrusted.build(config, weights, source)
        model.weights_sha256 = file_digest(weights)
        after = weights.stat()
        if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
            return model


def _files(model_id: str | Path, weights: str, where: dict[str, Any]) -> tuple[Path, Path]:
    """config.json and a weights file of a directory or a Hub id, both of one commit, which `where` then names.

    Args:
        model_id: as in `from_pretrained`.
        weights: the file's name.
        where: of `hf_hub_download`; its revision is by default the one in model_id, or that of what we published.

    Raises:
        InputError: if they are not there.
    """
    if Path(model_id).is_dir():
        if where["revision"]:
            raise InputError(f"{model_id} is a directory, which has no revision {where['revision']!r}; leave it out")
        return _in_directory(model_id, weights)
    return _on_the_hub(str(model_id), weights, where)


def _in_directory(directory: str | Path, weights: str) -> tuple[Path, Path]:
    """config.json and a weights file of a directory; InputError if they are not there."""
    config_file, weights_file = own(directory, "config.json"), own(directory, weights)
    for file in (config_file, weights_file):
        if not file.is_file():
            raise InputError(f"{directory} is no model: it has no {file.name}; train one, or give another MODEL")
    return config_file, weights_file


def _on_the_hub(model_id: str, weights: str, where: dict[str, Any]) -> tuple[Path, Path]:
    """config.json and a weights file of a Hub id, as in `_files`."""
    name, _, pinned = model_id.partition("@")
    where["revision"] = where["revision"] or pinned or PUBLISHED.get(name, {}).get("revision")
    config_file = _download(name, "config.json", where)
    if re.fullmatch("[0-9a-f]{40}", commit := config_file.parent.name):
        where["revision"] = commit
    return config_file, _download(name, weights, where)


def from_timms_weights(backbone: str, source: str, **shape: Any) -> nn.Module | None:
    """A backbone that begins with weights of timm's own kind, which want normalised images: the normalisation goes inside.

    Args:
        backbone: timm's name.
        source: a directory with its config.json and model.safetensors, or a Hub id ("ORG/NAME", also "ORG/NAME@revision").
        **shape: of `create_model`: the classes, channels and size of the images; another number of classes has a new head.

    Returns:
        The model, or None where the source takes images in [0, 1]: see `start_from`.

    Raises:
        InputError: if there is no such model, it is of another backbone, or normalises otherwise than that does.
    """
    config_file, weights_file = _files(source, WEIGHTS["last"], {"revision": None})
    config = ModelConfig.read(config_file)
    said = config.pretrained_cfg
    if config.piat is not None or not any(_statistics(config, source)[0]):
        return None
    if config.architecture != backbone.partition(".")[0]:
        raise InputError(f"{source} is {config.architecture}, not {backbone}; choose --backbone {config.architecture}")
    known = timm.get_pretrained_cfg(backbone).to_dict()
    for key in ("mean", "std"):  # config.json keeps the backbone's name alone: it is built again with that one's
        if tuple(said.get(key) or ()) != tuple(known[key]):
            raise InputError(
                f"{source} normalises by {key} {said.get(key)}, {backbone} by {known[key]}; "
                f"choose its tag, --backbone {config.architecture}.{said.get('tag') or 'TAG'}"
            )
    untrusted.build(
        config, weights_file, source, renaming=True
    )  # timm itself takes what fits, if the classes are others
    overlay = {"file": str(weights_file), "hf_hub_id": None, "url": "", "num_classes": config.num_classes}
    model: Any = create_model(backbone, **shape, pretrained=True, pretrained_cfg_overlay=overlay)
    model.pretrained_cfg |= {key: said.get(key) for key in ORIGIN}
    return model


def start_from(model: Any, source: str, label_names: Sequence[str] = ()) -> None:
    """Give `model` the weights of a trained MODEL (see `from_pretrained`), but for a head of other classes.

    Args:
        model: built by `create_model`, of the same backbone and channels; changed in place. Its `begun_as` then says how
            MODEL was trained, as its config.json does.
        source: MODEL, a directory or a Hub id.
        label_names: of the model's classes, in order; its head keeps to MODEL's where both have the same names, in
            whatever order, or one has none and both have as many.

    Raises:
        InputError: if there is no such MODEL, or anything but the head differs.
    """
    trained: Any = from_pretrained(source)
    weights, own = trained.state_dict(), model.state_dict()
    heads = model.pretrained_cfg["classifier"]
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    fits = {name: t for name, t in weights.items() if name in own and t.shape == own[name].shape}
    if label_names and trained.label_names:
        rows = numbers_of(label_names, trained.label_names) or []
        same = len(rows) == len(trained.label_names)
        fits = {k: t[rows] if k.startswith(heads) else t for k, t in fits.items() if same or not k.startswith(heads)}
    wrong = sorted(name for name in own.keys() | weights.keys() if name not in fits and not name.startswith(heads))
    if wrong:
        built = trained.pretrained_cfg.get("architecture")
        raise InputError(
            f"the weights of {source} ({built}) do not fit this backbone at {wrong[0]!r}; "
            "choose its --backbone and images of its channels and size"
        )
    if (theirs := statistics_of(trained)) != (ours := statistics_of(model)):
        raise InputError(
            f"{source} normalises images by (mean, std) {theirs}, this backbone by {ours}, which its weights do not hold; "
            "choose the --backbone that it was built as"
        )
    model.load_state_dict(fits, strict=False)
    model.pretrained_cfg |= {key: trained.pretrained_cfg.get(key) for key in ORIGIN}
    model.begun_as = trained.piat


def statistics_of(model: nn.Module) -> list[tuple[list[float], ...]]:
    """(mean, std) of each layer that normalises, one number a channel, to five places."""
    return [
        tuple([round(value, 5) for value in each.flatten().tolist()] for each in (module.mean, module.std))
        for module in model.modules()
        if isinstance(module, Normalize)
    ]


def origin_of(directory: Path) -> dict[str, Any]:
    """What a run's config.json says of the weights it began with and of its licence, for the run to go on with.

    Args:
        directory: of the run; a damaged config.json, or none, says nothing.
    """
    try:
        known = ModelConfig.read(directory / "config.json").pretrained_cfg
    except (OSError, InputError):  # damaged: it is written anew
        known = {}
    return {key: known.get(key) for key in ORIGIN}


def from_timm(spec: str) -> nn.Module:
    """Any of timm's pretrained classifiers, in eval mode and taking images in [0, 1].

    Its normalisation, recorded in its config.json, is put before it. It gets the guards of `from_pretrained`: no pickle is
    read, and only an architecture that its weights fill is built.

    Args:
        spec: "hf-hub:ORG/NAME", also "hf-hub:ORG/NAME@revision", or "local-dir:DIRECTORY".

    Returns:
        A model that maps images (B, C, H, W) to logits (B, K), with `label_names` (one a class, or none), timm's
        `pretrained_cfg` and `weights_sha256`.

    Raises:
        InputError: if it cannot be had, or does not say by what it normalises.
    """
    source, _, name = spec.partition(":")
    if source == "hf-hub":
        config_file, weights_file = _on_the_hub(name, WEIGHTS["last"], {"revision": None})
    else:
        config_file, weights_file = _in_directory(name, WEIGHTS["last"])
    config = ModelConfig.read(config_file)
    model = untrusted.build(config, weights_file, spec, renaming=True)
    mean, std = _statistics(config, spec)
    normalised: Any = nn.Sequential(Normalize(*per_channel(mean, std, model.in_chans)), model).eval()
    normalised.pretrained_cfg = model.pretrained_cfg
    normalised.label_names = config.label_names
    normalised.weights_sha256 = file_digest(weights_file)
    return normalised


def list_pretrained(directory: str | Path = "model_cards") -> list[dict[str, Any]]:
    """The models that `from_pretrained` gives: those published on the Hub, then those in `directory`.

    Args:
        directory: whose folders with a config.json are listed.

    Returns:
        A dict each, with "model" (what to load it by), "architecture", "dataset", "method", "threat_model", and, as far
        as measured, "clean_acc", "pgd20_acc", "aa_acc" (fractions) with "n" (images, by attack); or "problem" in place
        of these, for a folder that holds no whole model.
    """
    rows = [row | {"model": name} for name, row in PUBLISHED.items()]
    for path in sorted(path.parent for path in Path(directory).glob("*/config.json")):
        try:
            rows.append(card.summary(path))
        except (InputError, OSError) as error:
            rows.append({"model": str(path), "problem": str(error)})
    return rows


def _download(repo_id: str, filename: str, where: Mapping[str, Any]) -> Path:
    check_id(repo_id, "there is no such directory, and ")
    try:
        return Path(hf_hub_download(repo_id, filename, **where))
    except Exception as error:  # the client passes on whatever the network, the Hub or the disk raise
        if isinstance(error, HTTPError) and not hasattr(error, "response"):  # the connection broke: is there a copy?
            with contextlib.suppress(Exception):
                return Path(hf_hub_download(repo_id, filename, **{**where, "local_files_only": True}))
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "check the name or the network, or give a local directory"
        if isinstance(error, RevisionNotFoundError):
            advice = f"there is no revision {where['revision']!r}"
        elif status in (401, 403):
            advice = "check the name; if it is private, run `hf auth login` or set HF_TOKEN"
        raise InputError(
            f"no {filename} for {repo_id!r}: no such directory, and the Hub says: {first_line(error)}; {advice}"
        ) from error


def check_id(repo_id: str, what: str = "") -> None:
    """InputError unless it is ORG/NAME as the Hub allows it.

    Args:
        repo_id: what is given as one.
        what: begins the message.

    Raises:
        InputError: for anything else.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        pass
    else:
        if "/" in repo_id:
            return
    raise InputError(
        f"{what}{repo_id!r} is no Hub id; it must be ORG/NAME, of letters, digits, '-', '_' and single '.'"
    )
