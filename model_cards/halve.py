"""A run with its weights in fp16, half as large: `python model_cards/halve.py RUN TARGET`.

Results stay behind: other weights have others, so the target is evaluated anew.
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from piat_hub.records.files import WEIGHTS

KEPT = ("metrics.jsonl", "timing.jsonl", "curves.png", "config.json")


def halve(run: Path, target: Path) -> None:
    """Write TARGET: the weights rounded to fp16, and what training recorded. FileExistsError if there is one."""
    if target.exists():
        raise FileExistsError(f"{target} is there already; move it away, or name another")
    scratch = target.with_name(f".{target.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name in KEPT:
        shutil.copy(run / name, scratch)
    for name in filter(lambda name: (run / name).exists(), WEIGHTS.values()):
        tensors = {k: t.to(torch.float16) if t.is_floating_point() else t for k, t in load_file(run / name).items()}
        save_file(tensors, scratch / name, metadata={"format": "pt"})
    scratch.rename(target)


if __name__ == "__main__":
    halve(*map(Path, sys.argv[1:]))
