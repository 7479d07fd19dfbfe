"""Models for where there is no piat_hub: model.pt2 for torch alone, model.onnx for ONNX runtimes."""

import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from piat_hub.config import InputError, first_line
from piat_hub.records import files, lock


def export(model: nn.Module, directory: Path, formats: Sequence[str], name: str = "model") -> list[Path]:
    """Write model.pt2 (`torch.export.load(path).module()`) and model.onnx (input "images", output "logits").

    The logits, and for pt2 their gradients, are the model's own, for any batch size.

    Args:
        model: from `from_pretrained`; moved to the CPU and into eval mode.
        directory: made if there is none.
        formats: of "pt2" and "onnx".
        name: of the files, without suffix.

    Returns:
        The files, each written whole. They take images (B, C, H, W) in [0, 1] of the size that the model was trained
        on.

    Raises:
        InputError: if the model does not say its input size, or for onnx without its packages; InUse, while another
            process writes there.
    """
    shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if not shape:
        raise InputError("the model does not say what images it takes; export one that piat_hub saved")
    if "onnx" in formats and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise InputError(
            "model.onnx needs two more packages: pip install 'PATH/TO/piat_hub[onnx]', or give --formats pt2"
        )
    images = torch.zeros(2, *shape)
    paths = {kind: directory / f"{name}.{kind}" for kind in formats}
    with lock.only_writer(directory):
        for kind, path in paths.items():
            try:
                write = WRITERS[kind](model.cpu().eval(), images)
            except Exception as error:  # torch passes on whatever the model, or its own exporters, raise
                reason = first_line(error)
                raise InputError(
                    f"the model cannot be exported as {kind}: {reason}; try another of --formats"
                ) from error
            with files.whole_file(path) as scratch:
                write(scratch)
    return list(paths.values())


def _pt2(model: nn.Module, images: torch.Tensor) -> Callable[[Path], Any]:
    """What writes model.pt2."""
    program: Any = torch.export.export(model, (images,), dynamic_shapes=({0: Dim.DYNAMIC},))
    program._example_inputs = None  # they would be pickled into the file
    content = io.BytesIO()
    torch.export.save(program, content)  # in memory: a full disk ends the process that torch writes from
    return lambda path: path.write_bytes(content.getbuffer())


def _onnx(model: nn.Module, images: torch.Tensor) -> Callable[[Path], Any]:
    """What writes model.onnx."""
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    batch: Any = ({0: "batch"},)
    program: Any = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=batch, verbose=False, **names)
    return program.save


WRITERS = {"pt2": _pt2, "onnx": _onnx}
