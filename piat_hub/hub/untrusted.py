"""A model from anyone's config.json: nothing that it names is imported, opened or fetched, and its size is known first.

The architecture is built without memory before anything else, in a bounded number of steps. A safetensors file cannot
promise tensors that it does not hold, so only where the architecture's are the file's, name by name and shape by shape,
is it built in earnest.
"""

import inspect
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules
from torch.nn.modules.module import register_module_parameter_registration_hook

from piat_hub.config import InputError, first_line, nearest
from piat_hub.hub import timm_layout
from piat_hub.records import tensors
from piat_hub.records.model_config import ModelConfig

LARGEST = 100_000  # what a number in model_args may be
TOGETHER = 4 * LARGEST  # what their sum may be
ENTRIES = 1_000  # values in model_args
REPLACED = 1_000  # parameters that may come and go while a model is built, beside twice what its file holds
STEPS = 2_000_000  # of Python that building a model may take: thrice what the largest of timm's does
TORCH, LAYERS = str(Path(torch.__file__).parent), str(Path(torch.nn.__file__).parent)
SPARE = 2**28  # bytes that a model may compute when built, beside what its file holds
RESERVED = {*inspect.signature(timm.create_model).parameters, "features_only", "out_indices"}
# these list all pairs of an image's pixels in Python
LISTING = ["levit", "tiny_vit", "efficientvit_msra", "efficientformer"]
FEW = {"base", "num_classes", "in_chans", "drop_rate", "drop_path_rate", "global_pool"}  # what those may be told
PREPROCESSING = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "tag")


def build(config: ModelConfig, weights: Path, source: str, *, renaming: bool = False) -> Any:
    """The model that a config.json describes, with the weights of a safetensors file.

    Args:
        config: anyone's.
        weights: path of a safetensors file.
        source: what messages call the config.
        renaming: where the file's names are not the architecture's, timm may know them as those of another time.

    Returns:
        The model on the CPU, as timm builds it, with preprocessing in its pretrained_cfg.

    Raises:
        InputError: where timm has no such model, an argument is none that describes an architecture, or the weights do
            not fit it exactly, the same tensors of the same shapes.
    """
    architecture = config.architecture
    if not timm.is_model(architecture):
        raise InputError(f"{source}: unknown architecture {architecture!r}{nearest(architecture, timm.list_models())}")
    arguments = _arguments(config, source)

    def create() -> Any:
        try:
            return timm.create_model(architecture, pretrained=False, **arguments)
        except Exception as error:  # timm passes on whatever its models raise
            reason = first_line(error)
            shown = f"{arguments}" if len(f"{arguments}") < 200 else "its model_args"
            raise InputError(f"{source}: {architecture} cannot be built with {shown}: {reason}") from error

    found = tensors.shapes(weights)
    in_steps = nullcontext() if _lists_pixels(config) else _few_steps()
    with torch.device("meta"), _few_parameters(2 * len(found) + REPLACED), in_steps:
        sketch = create()
    names = config.label_names
    if names and len(names) != sketch.num_classes:
        raise InputError(
            f"{source}: {len(names)} label_names for {sketch.num_classes} classes; there must be one for each"
        )
    held = None
    if renaming and not found.keys() <= sketch.state_dict().keys():
        held = timm_layout.renamed(tensors.load(weights)[0], sketch, architecture)
        found = {name: (tensor.is_floating_point(), tuple(tensor.shape)) for name, tensor in held.items()}
    fits(found, sketch.state_dict(), weights)
    memory = sum(t.numel() * t.element_size() for t in (*sketch.parameters(), *sketch.buffers()))
    if memory > 4 * weights.stat().st_size + SPARE:
        raise InputError(
            f"{source}: {architecture} would take {memory / 2**30:.1f} GiB, far more than its weights; it is refused"
        )
    model = create()
    model.load_state_dict(held or tensors.load(weights)[0])
    preprocessing = dict(config.pretrained_cfg)
    if preprocessing.get("input_size") and preprocessing["input_size"][0] != getattr(sketch, "in_chans", None):
        del preprocessing["input_size"]  # of other images than the model's
    model.pretrained_cfg.update({key: preprocessing[key] for key in PREPROCESSING if key in preprocessing})
    return model


def fits(found: Mapping[str, tuple[bool, tuple[int, ...]]], expected: Mapping[str, Any], path: Path) -> None:
    """InputError unless a file's tensors are those of a state_dict.

    Args:
        found: (of floating point, shape) by name, as `tensors.shapes` gives them.
        expected: the state_dict.
        path: of the file, for messages.

    Raises:
        InputError: naming the first tensor that is missing, too many, of another shape or another kind of number.
    """
    for what, names in (("lacks", set(expected) - set(found)), ("has the extra", set(found) - set(expected))):
        if names:
            raise InputError(f"{path} {what} tensor {sorted(names)[0]!r}: it does not belong to this architecture")
    for name, (floating, shape) in found.items():
        if shape != tuple(expected[name].shape):
            shapes = f"{list(shape)}, the architecture wants {list(expected[name].shape)}"
            raise InputError(f"{path}: {name!r} has shape {shapes}; config.json and weights do not belong together")
        if floating != expected[name].is_floating_point():
            raise InputError(f"{path}: {name!r} has numbers of another kind than the architecture's; write it again")


def _arguments(config: ModelConfig, source: str) -> dict[str, Any]:
    """What timm is called with; InputError for what no architecture needs."""
    arguments = dict(config.model_args)
    if reserved := sorted(RESERVED & set(arguments)):
        raise InputError(f"{source}: model_args may not hold {reserved[0]!r}, which is no part of an architecture")
    values = list(_values(arguments))
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(values) > ENTRIES or not all(0 <= n <= LARGEST for n in numbers) or sum(numbers) > TOGETHER:
        rule = f"at most {ENTRIES} values, none above {LARGEST:,} or below 0, {TOGETHER:,} together"
        raise InputError(f"{source}: model_args describe no architecture that is known to us; they may have {rule}")
    if _lists_pixels(config) and (other := sorted(set(arguments) - FEW)):
        base = _base(config)
        raise InputError(f"{source}: {base} is taken with {', '.join(sorted(FEW))} alone, not {other[0]!r}")
    return arguments | ({} if config.num_classes is None else {"num_classes": config.num_classes})


def _base(config: ModelConfig) -> str:
    """The name of timm's model that is built in the end."""
    return str(config.model_args.get("base", config.architecture))


def _lists_pixels(config: ModelConfig) -> bool:
    """Whether its family lists all pairs of pixels: timm's own sizes of it take many steps, others without end."""
    return is_model_in_modules(_base(config).partition(".")[0], LISTING)


def _values(nested: Any) -> Iterator[Any]:
    if isinstance(nested, dict | list):
        for value in nested.values() if isinstance(nested, dict) else nested:
            yield from _values(value)
    else:
        yield nested


@contextmanager
def _few_parameters(most: int) -> Iterator[None]:
    """ValueError as soon as modules are given more parameters than so many."""
    count, ours = 0, threading.get_ident()

    def note(*_: Any) -> None:  # torch calls it for modules of every thread
        nonlocal count
        if threading.get_ident() != ours:
            return
        if (count := count + 1) > most:
            raise ValueError("it has more parameters than its weights hold tensors")

    hook = register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _few_steps() -> Iterator[None]:
    """ValueError as soon as what is called takes more than `STEPS` lines of Python, a function of torch's being one."""
    left = STEPS

    def line(*_: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it takes more than {STEPS:,} steps of Python")
        return line

    def call(frame: Any, *_: Any) -> Any:
        nonlocal left
        file = frame.f_code.co_filename
        if not file.startswith(TORCH):
            return line()
        if file.startswith(LAYERS):
            line()
        else:
            left -= 1  # nothing is raised here: it might be what leaves a context
        return None

    before = sys.gettrace()
    with torch.set_grad_enabled(torch.is_grad_enabled()):  # what is broken off may have changed it
        sys.settrace(call)
        try:
            yield
        finally:
            sys.settrace(before)
