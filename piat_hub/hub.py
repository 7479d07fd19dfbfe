"""Models as directories: timm's config.json, safetensors weights, nothing else. Saved and loaded strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from timm.models._hub import save_config_for_hf
from torch import nn

import piat_hub.backbones  # noqa: F401  registers our architectures with timm
from piat_hub import tensors
from piat_hub.config import WEIGHTS, InputError, TrainConfig, nearest, to_dict, whole_file
from piat_hub.small_image import Normalize


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    *,
    config: TrainConfig | None = None,
    label_names: tuple[str, ...] = (),
    input_size: tuple[int, int, int] | None = None,
) -> Path:
    """Write config.json (timm's Hub format plus a root "piat" block) and model.safetensors into `directory`.

    Args: model built by timm or `create_model`; config the run it comes from; label_names one per class; input_size
    (C, H, W) of its images. Returns the directory. Each file is replaced whole or not at all.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_config(model, directory, config=config, label_names=label_names, input_size=input_size)
    save_weights(model, directory / WEIGHTS["last"])
    return directory


def save_config(
    model: nn.Module,
    directory: Path,
    *,
    config: TrainConfig | None = None,
    label_names: tuple[str, ...] = (),
    input_size: tuple[int, int, int] | None = None,
) -> None:
    """Write config.json: what rebuilds the architecture, by timm alone or by `from_pretrained`."""
    extra: dict[str, Any] = {"piat": to_dict(config)} if config else {}
    if label_names:
        extra["label_names"] = list(label_names)
    channels = input_size[0] if input_size else getattr(model, "in_chans", 3)
    preprocessing: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels, "crop_pct": 1.0}
    overrides: dict[str, Any] = {"tag": "piat"}
    if input_size:
        preprocessing["input_size"] = overrides["input_size"] = input_size
    with whole_file(directory / "config.json") as scratch:
        options = {**extra, "pretrained_cfg": overrides}
        save_config_for_hf(model, str(scratch), model_config=options, data_config=preprocessing)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's parameters and buffers as safetensors; the file appears whole or not at all."""
    tensors.save(model.state_dict(), path)


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

    Args:
        model_id: a run directory or any directory with config.json and model.safetensors, or a Hub id
            ("ORG/NAME", also "ORG/NAME@revision").
        checkpoint: "last", or "best" for the epoch chosen on held-out images.
        revision, cache_dir, token, local_files_only: as in huggingface_hub.
        device: where the model goes.
    Returns: the model, with `label_names` (tuple of str), `piat` (the training configuration as a dict, or {}) and
    `weights_sha256` (of the weights file).
    Raises: ValueError if there is no such model, or its weights do not fit its config.json exactly. No pickle is read.
    """
    if checkpoint not in WEIGHTS:
        raise InputError(f"checkpoint {checkpoint!r} is unknown{nearest(checkpoint, WEIGHTS)}; choose last or best")
    names = ("config.json", WEIGHTS[checkpoint])
    if Path(model_id).is_dir():
        config_file, weights_file = (Path(model_id) / name for name in names)
        for file in (config_file, weights_file):
            if not file.is_file():
                raise InputError(f"{model_id} is no model: it has no {file.name}; train one, or give another MODEL")
    else:
        name, _, pinned = str(model_id).partition("@")
        where: dict[str, Any] = {"revision": revision or pinned or None, "cache_dir": cache_dir, "token": token}
        where["local_files_only"] = local_files_only
        config_file, weights_file = (_download(name, file, where) for file in names)
    config = read_config(config_file)
    model = _build(config, str(config_file))
    load_weights(model, weights_file)
    model.weights_sha256 = tensors.file_digest(weights_file)
    model.label_names = tuple(config.get("label_names") or ())
    model.piat = config.get("piat") or {}
    return model.to(device).eval()


def start_from(model: Any, source: str) -> None:
    """Give `model` the weights of a trained MODEL (see `from_pretrained`), but for a head of another class count.

    model: built by `create_model`, of the same backbone and channels. InputError if anything but the head differs.
    """
    trained: Any = from_pretrained(source)
    weights, own = trained.state_dict(), model.state_dict()
    heads = model.pretrained_cfg["classifier"]
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    fits = {name: t for name, t in weights.items() if name in own and t.shape == own[name].shape}
    wrong = sorted(name for name in own.keys() | weights.keys() if name not in fits and not name.startswith(heads))
    if wrong:
        built = trained.pretrained_cfg.get("architecture")
        raise InputError(
            f"the weights of {source} ({built}) do not fit this backbone at {wrong[0]!r}; "
            "choose its --backbone and images of its channels and size"
        )
    model.load_state_dict(fits, strict=False)


def from_timm(spec: str) -> nn.Module:
    """Any of timm's pretrained classifiers, "hf-hub:ORG/NAME", in eval mode and taking images in [0, 1].

    Its normalisation, recorded in its config.json, is put before it. InputError if it cannot be had.
    """
    try:
        model = timm.create_model(spec, pretrained=True)
    except Exception as error:  # timm passes on whatever the network, the Hub or the weights raise
        raise InputError(f"no model {spec!r} for timm: {_first_line(error)}; check the name or the network") from error
    mean, std = (torch.tensor(model.pretrained_cfg[key]) for key in ("mean", "std"))
    return nn.Sequential(Normalize(mean, std), model).eval()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def list_pretrained() -> list[str]:
    """Published weights of our backbones, as "architecture.tag"; none is published yet."""
    return timm.list_pretrained("cifar_*")


def _download(repo_id: str, filename: str, where: Mapping[str, Any]) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repo_id):
        raise InputError(f"no model {repo_id!r}: it is no directory here and no Hub id ORG/NAME; check the path")
    try:
        return Path(hf_hub_download(repo_id, filename, **where))
    except Exception as error:  # httpx errors have no common base with the Hub's own
        raise InputError(
            f"no {filename} for {repo_id!r}: no such directory, and the Hub says: {_first_line(error)}; "
            "check the name or the network"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """config.json as a dict. Raises InputError unless it is an object that names an architecture timm knows."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}); fetch or write the model again") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise InputError(f"{path} names no architecture; it is no model of timm's format")
    return config


def _build(config: Mapping[str, Any], source: str) -> Any:
    architecture = config["architecture"]
    if not timm.is_model(architecture):
        raise InputError(f"{source}: unknown architecture {architecture!r}{nearest(architecture, timm.list_models())}")
    arguments, preprocessing = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    if not isinstance(arguments, dict) or not isinstance(preprocessing, dict):
        raise InputError(f"{source}: model_args and pretrained_cfg must be objects; it is no model of timm's format")
    if "num_classes" in config:
        arguments = arguments | {"num_classes": config["num_classes"]}
    try:
        model = timm.create_model(architecture, pretrained=False, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"{source}: {architecture} cannot be built with {arguments}: {error}") from error
    model.pretrained_cfg.update(preprocessing)
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into the model: whole, the same names and shapes exactly, or InputError."""
    weights, expected = tensors.load(path)[0], model.state_dict()
    for what, names in (("lacks", set(expected) - set(weights)), ("has the extra", set(weights) - set(expected))):
        if names:
            raise InputError(f"{path} {what} tensor {sorted(names)[0]!r}: it does not belong to this architecture")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, the architecture wants {list(expected[name].shape)}"
            raise InputError(f"{path}: {name!r} has shape {shapes}; config.json and weights do not belong together")
    model.load_state_dict(weights)
