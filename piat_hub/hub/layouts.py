"""Checkpoints that others trained, as our models: a layout says what their tensors are called here.

robustbench-wrn     WideResNet with ReLU.
robustbench-wrn-r   RobustWideResNet, the same by other names.
robustbench-preact  PreActResNet, projections of the raw input.
robustbench-preact-v2  PreActResNet, projections of the pre-activated input.
robustbench-resnet  ResNet of basic blocks.
robustbench-resnet50  ResNet of bottlenecks.
robustbench-wrn-silu  DMWideResNet, SiLU, always normalised: ten classes get CIFAR-10's mean and std and a hundred CIFAR-100's
                    unless others are given (Wang2023Better's of SVHN: 0.5 and 0.5).
robustbench-rawrn   NormalizedWideResNet, the same with squeeze and excitation.
robustbench-preact-silu  DMPreActResNet, the same.

Any timm model's name is a layout too, see `timm_layout`. zoo.toml says which model of RobustBench's zoo has which, and by
what it normalises, which most files lack. What no tensor shows must be known: both kinds of PreActResNet hold the same
ones, and so does Ding2020MMA, a WideResNet that normalises each image by itself and cannot be converted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from piat_hub.backbones.cifar import CIFAR10, CIFAR100
from piat_hub.config import InputError, nearest
from piat_hub.hub import card, timm_layout, zoo
from piat_hub.hub.save import ORIGIN, save_pretrained
from piat_hub.hub.timm_layout import behind, whole
from piat_hub.records import files, tensors
from piat_hub.records.origin import Origin


@dataclass(frozen=True)
class Layout:
    """A naming of tensors: which architecture of ours it is of, with which options, and what its layers are called.

    Attributes:
        architecture: ours, by timm's name.
        block: the pattern of what comes before a layer in a residual block, with its stage and its index from 0.
        inside: the layers of a block, their name -> ours.
        outside: the other layers, their name -> ours.
        options: what else the architecture is built with.
        first_stage: the number of the first stage in `block`.
        statistics: of networks that always normalise and whose files do not say by what: classes -> {"mean", "std"}.
    """

    architecture: str
    block: str
    inside: Mapping[str, str]
    outside: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    first_stage: int = 1
    statistics: Mapping[int, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def rename(self, key: str) -> str:
        """Our name of a tensor.

        Args:
            key: its name in this layout, without wrappers' prefixes.

        Raises:
            InputError: if the layout has none such.
        """
        match = re.fullmatch(rf"(?:{self.block}\.)?(.+)\.(\w+)", key)
        stage, index, layer, tensor = match.groups("") if match else ("",) * 4
        layers = self.inside if stage else self.outside
        if layer not in layers:
            raise InputError(f"{key!r} has no place in it")
        if not stage:
            return f"{layers[layer]}.{tensor}"
        number = int(stage) - self.first_stage
        block = f"layer{number + 1}" if self.architecture.startswith("cifar_resnet") else f"stages.{number}.blocks"
        return f"{block}.{index}.{layers[layer]}.{tensor}"


_PREACT: dict[str, Any] = {
    "architecture": "cifar_preact_resnet18",
    "block": r"layer(\d)\.(\d+)",
    "inside": {"bn1": "norm1", "conv1": "conv1", "bn2": "norm2", "conv2": "conv2", "shortcut.0": "downsample.conv"},
    "outside": {"conv1": "stem.conv", "bn": "norm", "linear": "head.fc"},
}
_WRN: dict[str, Any] = {
    "architecture": "cifar_wrn_28_10",
    "inside": {"bn1": "norm1", "conv1": "conv1", "bn2": "norm2", "conv2": "conv2", "convShortcut": "downsample.conv"},
}
_RESNET: dict[str, Any] = {
    "block": r"layer(\d)\.(\d+)",
    "inside": {name: name for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")}
    | {"shortcut.0": "downsample.0", "shortcut.1": "downsample.1"},
    "outside": {"conv1": "conv1", "bn1": "bn1", "linear": "fc"},
}
_NORMALISED: dict[str, Any] = {"first_stage": 0, "statistics": {10: CIFAR10, 100: CIFAR100}}
_SILU: dict[str, Any] = {
    "block": r"layer\.(\d)\.block\.(\d+)",
    "inside": {"batchnorm_0": "norm1", "conv_0": "conv1", "batchnorm_1": "norm2", "conv_1": "conv2"}
    | {"shortcut": "downsample.conv"},
    "outside": {"init_conv": "stem.conv.conv", "batchnorm": "norm", "logits": "head.fc"},
    **_NORMALISED,
}
LAYOUTS = {
    "robustbench-wrn": Layout(
        **_WRN, block=r"block(\d)\.layer\.(\d+)", outside={"conv1": "stem.conv", "bn1": "norm", "fc": "head.fc"}
    ),
    "robustbench-wrn-r": Layout(
        **_WRN,
        block=r"blocks\.(\d)\.layer\.(\d+)",
        outside={"stem_conv": "stem.conv", "bn1": "norm", "fc": "head.fc"},
        first_stage=0,
    ),
    "robustbench-preact": Layout(**_PREACT, options={"raw_shortcut": True}),
    "robustbench-preact-v2": Layout(**_PREACT),
    "robustbench-resnet": Layout(architecture="cifar_resnet18", **_RESNET),
    "robustbench-resnet50": Layout(architecture="cifar_resnet50", **_RESNET),
    "robustbench-wrn-silu": Layout(architecture="cifar_wrn_28_10_silu", **_SILU),
    "robustbench-rawrn": Layout(
        architecture="cifar_rawrn_70_16",
        **_SILU
        | {"inside": _SILU["inside"] | {"conv_1": "conv2.conv", "se.fc1": "conv2.se.fc1", "se.fc2": "conv2.se.fc2"}},
    ),
    "robustbench-preact-silu": Layout(
        architecture="cifar_preact_resnet18_silu",
        block=r"layer_(\d)\.(\d+)",
        inside={"batchnorm_0": "norm1", "conv_2d_1": "conv1", "batchnorm_1": "norm2", "conv_2d_2": "conv2"}
        | {"shortcut": "downsample.conv"},
        outside={"conv_2d": "stem.conv.conv", "batchnorm": "norm", "logits": "head.fc"},
        **_NORMALISED,
    ),
}

# where a checkpoint keeps its tensors; averages come first, as in timm
NESTS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net", "last")
PREFIX = re.compile(
    r"^(?:(?:module|model|net|normalize|normalizer|_orig_mod|\d+)\.)+"
)  # of wrappers around the network
# beside the network or twice in it: forward takes none of these
UNUSED = ("sub_block1.", "model_preact_hl1.", "attacker.", "n_averaged")
STATISTICS = (("mu", "sigma"), ("mean", "std"), ("new_mean", "new_std"))
BLOCK = re.compile(r"(?:stages\.|layer)(\d+)\.(?:blocks\.)?\d+\.conv1\.weight")


def convert(
    path: str | Path,
    layout: str,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    img_size: int | None = None,
) -> nn.Module:
    """The model whose tensors a checkpoint holds in another layout, in eval mode.

    Depth, widths, channels and classes are read off the tensors.

    Args:
        path: a file of torch.save (read without running anything in it) or a .safetensors file.
        layout: one of LAYOUTS, or the timm model whose own names its tensors have.
        mean: subtracted from its images in [0, 1], one number a channel, if the checkpoint does not say.
        std: divided by after that, one number a channel.
        img_size: pixels a side of a timm model's images; by default its usual size.

    Returns:
        A timm model that maps images (B, C, H, W) in [0, 1] to logits (B, K); those of LAYOUTS are for 32x32 images, and
        their pooling takes other sizes too.

    Raises:
        InputError: if there is no such file, it holds more than tensors, or they do not fit the layout exactly, with
            the layout that they fit.
    """
    if layout not in LAYOUTS and not timm.is_model(layout.partition(".")[0]):
        near = nearest(layout, LAYOUTS) or nearest(layout, timm.list_models())
        raise InputError(
            f"unknown layout {layout!r}{near}; known: {', '.join(LAYOUTS)}, and the names of timm's models"
        )
    if img_size and layout in LAYOUTS:
        raise InputError(f"--img-size {img_size} is for layouts that are timm's; {layout} takes any size: leave it out")
    found = _read(Path(path))
    normalisation = _normalisation(path, found, mean, std)
    try:
        if layout in LAYOUTS:
            chosen = LAYOUTS[layout]
            architecture, (arguments, weights) = chosen.architecture, _fit(found, chosen)
            if normalisation and not chosen.statistics:  # with those it is behind them already
                weights = behind(weights, _ends(chosen)[0])
        else:
            architecture, arguments, weights = timm_layout.fit(found, layout, img_size, bool(normalisation))
    except InputError as error:
        others = " or ".join(name for name, other in LAYOUTS.items() if name != layout and _fits(found, other))
        advice = f"use {others}" if others else "no other layout does"
        raise InputError(f"{path} does not fit layout {layout}: {error}; {advice}") from error
    if layout in LAYOUTS:
        normalisation = normalisation or _usual(path, LAYOUTS[layout], arguments["num_classes"])
    model = timm.create_model(architecture, **{**arguments, **normalisation})
    model.load_state_dict(weights)
    return model.eval()


def import_checkpoint(
    path: str | Path,
    layout: str,
    output: str | Path,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    img_size: int | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
) -> Path:
    """`convert`, then write it into a directory; returns the directory.

    config.json, weights, an empty metrics.jsonl, so that results go there, and where it is known who trained it a card.

    Args:
        path: as in `convert`, as are layout, mean and std.
        layout: as in `convert`.
        output: the directory, made if there is none.
        mean: one number a channel, if the checkpoint does not say.
        std: one number a channel, if the checkpoint does not say.
        img_size: as in `convert`.
        preprocessing: how a picture gets its size, as in `save_config`.
        origin: who trained it.

    Raises:
        InputError: if the conversion fails or the directory holds a model already; nothing is then written.
    """
    directory = Path(output)
    taken = [name for name in ("config.json", *files.WEIGHTS.values()) if (directory / name).exists()]
    if taken or (directory.exists() and not directory.is_dir()):
        raise InputError(f"{directory} holds {' and '.join(taken) or 'a file'} already; name another output")
    model: Any = convert(path, layout, mean=mean, std=std, img_size=img_size)
    side = img_size or model.pretrained_cfg["input_size"][-1]
    model.pretrained_cfg |= dict.fromkeys(ORIGIN)  # timm's are of weights of its own
    if origin:
        model.pretrained_cfg |= {"license": origin.license, "origin_url": origin.source, "paper_name": origin.paper}
    size = (model.in_chans, side, side)
    save_pretrained(model, directory, input_size=size, preprocessing=preprocessing, origin=origin)
    (directory / "metrics.jsonl").touch()
    if origin:
        card.write(directory)
    return directory


def import_known(path: str | Path, name: str, output: str | Path, own: str | Path | None = None) -> Path:
    """`import_checkpoint` of a model that a table knows.

    Args:
        path: of its checkpoint.
        name: of the model in the table, see `zoo.known`.
        output: the directory, made if there is none.
        own: a table of the user's own beside the package's.

    Raises:
        InputError: for an unknown name, or as `import_checkpoint` does.
    """
    row = zoo.known(name, own)
    preprocessing = {key: value for key in ("crop_pct", "interpolation") if (value := getattr(row, key))}
    asked: dict[str, Any] = {"mean": row.mean, "std": row.std, "img_size": row.img_size}
    return import_checkpoint(path, row.layout, output, **asked, preprocessing=preprocessing, origin=row.origin())


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their own names, without wrappers' prefixes and what forward never uses."""
    if not path.is_file():
        raise InputError(f"no checkpoint {path}: there is no such file; check the path")
    found: Any = tensors.load(path)[0] if path.suffix == ".safetensors" else _unpickle(path)
    for _ in NESTS:  # a pickle may hold itself
        inner = [found[key] for key in NESTS if key in found] if isinstance(found, Mapping) else []
        found = next((one for one in inner if isinstance(one, Mapping)), found)
    held: dict[str, Tensor] = {}
    for key, value in found.items() if isinstance(found, Mapping) else ():
        name = PREFIX.sub("", str(key))
        if isinstance(value, Tensor) and not name.startswith(UNUSED):
            if name in held:
                raise InputError(f"{path} holds {name!r} twice, also as {key!r}; save the state_dict of one network")
            held[name] = value
    if not held:
        raise InputError(f"{path} holds no tensors by name, also not under {', '.join(NESTS)}; save a state_dict")
    return held


def _unpickle(path: Path) -> Any:
    """What torch.save wrote, if it is tensors in plain containers; nothing in the file is run."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file raises whatever its reader trips over
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise InputError(
                f"{path} holds more than tensors ({wanted[1]}); such a pickle can run code and is refused: "
                "give one with a state_dict alone"
            ) from error
        raise InputError(
            f"{path} is no whole checkpoint of torch.save ({type(error).__name__}); fetch or write it again"
        ) from error


def _normalisation(
    path: str | Path, found: dict[str, Tensor], mean: Sequence[float], std: Sequence[float]
) -> Mapping[str, Sequence[float]]:
    """{"mean", "std"} as taken out of the tensors `found`, else as given, or {}."""
    given = {"mean": list(mean), "std": list(std)} if mean or std else {}
    for names in STATISTICS:
        if all(name in found for name in names):
            own = [found.pop(name).float().flatten() for name in names]
            for (what, numbers), tensor in zip(given.items(), own, strict=False):
                if not torch.equal(torch.tensor(numbers).float(), tensor):
                    raise InputError(
                        f"{path} has a {what} of its own, {tensor.tolist()}, not {numbers}; leave yours out"
                    )
            return {what: tensor.tolist() for what, tensor in zip(("mean", "std"), own, strict=True)}
    return given


def _usual(path: str | Path, layout: Layout, classes: int) -> Mapping[str, Sequence[float]]:
    """{"mean", "std"} of networks of this layout that tell so many classes apart; {} where it normalises nothing."""
    if layout.statistics and classes not in layout.statistics:
        raise InputError(
            f"{path} has {classes} classes and normalises its images, by numbers that it does not hold; "
            "give those of its training with --mean and --std"
        )
    return layout.statistics.get(classes, {})


def _fit(found: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what timm builds the architecture with, its whole state_dict); InputError names the first tensor that does not fit."""
    foreign = {layout.rename(key): key for key in found}
    weights = {name: found[key] for name, key in foreign.items()}
    arguments = _read_off(weights, layout)
    with torch.device("meta"):
        expected = timm.create_model(layout.architecture, **arguments).state_dict()
    return arguments, whole(weights, expected, foreign)


def _fits(found: Mapping[str, Tensor], layout: Layout) -> bool:
    try:
        _fit(found, layout)
    except InputError:
        return False
    return True


def _ends(layout: Layout) -> tuple[str, str]:
    """The names of the architecture's first convolution and of its classifier."""
    cfg = timm.get_pretrained_cfg(layout.architecture)
    return cfg.first_conv, cfg.classifier


def _read_off(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
    """Depth, widths, channels and classes as the shapes of our named tensors say."""
    first, head = (f"{name}.weight" for name in _ends(layout))
    for name in (first, head):
        if name not in weights or weights[name].ndim < 2:
            raise InputError(f"nothing is there for our {name!r}")
    stages: dict[int, list[int]] = {}
    for name, tensor in weights.items():
        block = BLOCK.fullmatch(name)
        if block and tensor.ndim:
            stages.setdefault(int(block[1]), []).append(len(tensor))
    if len(stages) not in (3, 4):
        raise InputError(f"it has residual blocks in {len(stages)} stages, not in 3 or 4")
    blocks = [stages[stage] for stage in sorted(stages)]
    arguments: dict[str, Any] = {"layers": [len(b) for b in blocks], "channels": [b[0] for b in blocks]}
    if layout.architecture == "cifar_preact_resnet18":
        arguments["final_norm"] = "norm.weight" in weights
    stem_chs, in_chans = weights[first].shape[:2]
    ends = {"stem_chs": stem_chs, "in_chans": in_chans, "num_classes": len(weights[head])}
    return {**arguments, **ends, **layout.options}
