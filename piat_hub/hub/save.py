"""A model as a directory: timm's config.json and safetensors weights, each written whole."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models._hub import save_config_for_hf
from torch import nn

from piat_hub.config import TrainConfig, to_dict
from piat_hub.records import files, lock, tensors
from piat_hub.records.origin import Origin

ORIGIN = ("license", "origin_url", "paper_name", "paper_ids")  # what pretrained_cfg says of where weights come from


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    *,
    config: TrainConfig | None = None,
    label_names: tuple[str, ...] = (),
    input_size: tuple[int, int, int] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
) -> Path:
    """Write config.json (timm's Hub format plus a root "piat" block) and model.safetensors into `directory`.

    Each file is replaced whole or not at all.

    Args:
        model: built by timm or `create_model`.
        directory: made if there is none.
        config: the run it comes from; without it there is no "piat" block.
        label_names: one per class.
        input_size: (C, H, W) of its images, in pixels.
        preprocessing: as in `save_config`.
        origin: who trained it, where piat_hub did not.

    Returns:
        The directory.

    Raises:
        Broken: if the system refuses to write.
        InUse: while another process writes there.
    """
    directory = Path(directory)
    with lock.only_writer(directory):
        facts: dict[str, Any] = {"config": config, "label_names": label_names, "input_size": input_size}
        save_weights(model, directory / files.WEIGHTS["last"])  # first, as it is what a full disk refuses
        save_config(model, directory, **facts, preprocessing=preprocessing, origin=origin)
    return directory


def save_config(
    model: nn.Module,
    directory: Path,
    *,
    config: TrainConfig | None = None,
    label_names: tuple[str, ...] = (),
    input_size: tuple[int, int, int] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
    license: str | None = None,
) -> None:
    """Write config.json: what rebuilds the architecture, by timm alone or by `from_pretrained`.

    Args:
        model: built by timm or `create_model`.
        directory: which must be there.
        config: the run it comes from; without it there is no "piat" block.
        label_names: one per class.
        input_size: (C, H, W) of its images, in pixels.
        preprocessing: how a picture gets that size, by timm's words: crop_mode, crop_pct, interpolation.
        origin: who trained it, where piat_hub did not.
        license: of a run that began with no weights.

    Raises:
        Broken: if the system refuses to write.
    """
    extra: dict[str, Any] = {"piat": to_dict(config)} if config else {}
    extra |= {"piat_origin": to_dict(origin)} if origin else {}
    if label_names:
        extra["label_names"] = list(label_names)
    channels = input_size[0] if input_size else getattr(model, "in_chans", 3)
    unit = {"mean": (0.0,) * channels, "std": (1.0,) * channels, "crop_pct": 1.0, **(preprocessing or {})}
    overrides: dict[str, Any] = {"tag": "piat"}
    if input_size:
        unit["input_size"] = overrides["input_size"] = input_size
    with files.whole_file(directory / "config.json") as scratch:
        options = {**extra, "pretrained_cfg": overrides}
        save_config_for_hf(model, str(scratch), model_config=options, data_config=unit)
        saved = files.read_json(scratch)
        if config:  # timm's facts of its own weights for this architecture: of these only if training began with those
            known = saved["pretrained_cfg"]
            kept = {"license": license} if license else {}
            if config.init_from:
                kept = {"license": "unknown"} | {k: known[k] for k in ORIGIN if k in known}
            saved["pretrained_cfg"] = {k: v for k, v in known.items() if k not in ORIGIN} | kept
        scratch.write_text(json.dumps(files.sealed(saved), indent=2) + "\n", encoding="utf-8")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's parameters and buffers as safetensors; the file appears whole or not at all.

    Args:
        model: the bare module.
        path: of the file.

    Raises:
        Broken: if the system refuses to write.
    """
    tensors.save(model.state_dict(), path)
