"""A model's config.json: timm's Hub format, with our training configuration under "piat" at its root."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from piat_hub.config import WIDEST, InputError, TrainConfig, from_dict, printable, to_dict
from piat_hub.records.files import is_number, read_json, texts
from piat_hub.records.origin import Origin

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class ModelConfig:
    """config.json as far as we read it; it may be anyone's, and is held against timm's form when it is read.

    Attributes:
        architecture: timm's name.
        num_classes: None where it says none.
        label_names: one a class, or ().
        model_args: what the architecture is built with.
        pretrained_cfg: preprocessing and origin, in timm's words.
        piat: the TrainConfig it was trained with, as JSON; None for a model that piat_hub did not train.
        origin: who trained it instead, where that is known.
        content: the whole object, other keys too.
    """

    architecture: str
    num_classes: int | None
    label_names: tuple[str, ...]
    model_args: Mapping[str, Any]
    pretrained_cfg: Mapping[str, Any]
    piat: Mapping[str, Any] | None
    origin: Origin | None
    content: Mapping[str, Any]

    @property
    def backbone(self) -> str:
        """What people call the architecture: for a small_image timm's model that it adapts."""
        base = self.model_args.get("base") if self.architecture == "small_image" else None
        return base if isinstance(base, str) else self.architecture

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read config.json, held against its checksum.

        Args:
            path: of the file.

        Raises:
            InputError: unless it is whole and an object that names an architecture, its texts can be printed, and what
                we read of it has the form of timm's.
        """
        try:
            content = read_json(path)
            unprintable = [text for text in texts(content) if not printable(text)]
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no config of a model ({error}); fetch or write the model again") from error
        if unprintable:
            raise InputError(f"{path} holds {unprintable[0][:40]!a}, which is no printable text; write the model again")
        return cls.of(content, str(path))

    @classmethod
    def of(cls, content: Mapping[str, Any], source: str) -> Self:
        """The configuration that an object holds.

        Args:
            content: as JSON holds it.
            source: what messages call it.

        Raises:
            InputError: where it has not timm's form.
        """
        architecture = content.get("architecture")
        if not isinstance(architecture, str) or not re.fullmatch(r"[\w.-]+", architecture, re.ASCII):
            raise InputError(f"{source} names no architecture; it is no model of timm's format")
        parts: dict[str, Any] = {key: content.get(key) or {} for key in ("model_args", "pretrained_cfg", "piat")}
        for key, value in parts.items():
            if not isinstance(value, dict):
                raise InputError(f"{source}: {key} must be an object; it is no model of timm's format")
        names = content.get("label_names") or []
        if isinstance(names, dict):  # timm knows these too: by index, in whatever order
            if names.keys() != set(map(str, range(len(names)))):
                raise InputError(f"{source}: label_names must be numbered 0 to {len(names) - 1}; write the model again")
            names = [names[str(k)] for k in range(len(names))]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{source}: label_names must be a list of texts; it is no model of timm's format")
        for key, within in (("num_classes", content), ("in_chans", parts["model_args"])):
            if key in within and (type(within[key]) is not int or not within[key] >= 0):
                raise InputError(
                    f"{source}: {key} must be a whole number, not {within[key]!r:.40}; write the model again"
                )
        _hold_preprocessing(parts["pretrained_cfg"], source)
        if "piat" not in content:
            parts["piat"] = None
        try:
            origin = from_dict(Origin, content["piat_origin"]) if "piat_origin" in content else None
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        return cls(architecture, content.get("num_classes"), tuple(names), **parts, origin=origin, content=content)

    def trained_by(self, config: TrainConfig) -> Self:
        """The same with this training configuration in place of its own."""
        piat = to_dict(config)
        return replace(self, piat=piat, content={**self.content, "piat": piat})


def _hold_preprocessing(preprocessing: Mapping[str, Any], source: str) -> None:
    """InputError unless mean, std, crop_pct and input_size are numbers, and the rest of it that is taken over is text."""
    for key in ("mean", "std"):
        numbers = preprocessing.get(key) or []
        if not isinstance(numbers, list) or not all(map(is_number, numbers)):
            raise InputError(f"{source}: {key} must be a list of numbers; it is no model of timm's format")
    crop = preprocessing.get("crop_pct")
    if crop is not None and not (is_number(crop) and 0 < crop <= 2):
        raise InputError(f"{source}: crop_pct must be a share in (0, 2], not {crop!r:.40}; write the model again")
    for key, known in (("crop_mode", CROP_MODES), ("interpolation", INTERPOLATIONS), ("tag", ())):
        word = preprocessing.get(key) or ""
        if not isinstance(word, str):
            raise InputError(f"{source}: {key} must be text; it is no model of timm's format")
        if word and known and word not in known:
            raise InputError(
                f"{source}: {key} {word!r:.40} is none of timm's: {', '.join(known)}; write the model again"
            )
    image = preprocessing.get("input_size")
    if image is not None and not (
        isinstance(image, list) and len(image) == 3 and all(type(side) is int and 0 < side <= WIDEST for side in image)
    ):
        raise InputError(
            f"{source}: input_size must be [channels, height, width], each of 1 to {WIDEST}, not {image!r:.80}"
        )
