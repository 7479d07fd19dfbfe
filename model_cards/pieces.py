"""Train on a machine that is lent for minutes at a time, and bring the weights back in small files.

    python model_cards/pieces.py train 9m resnet18-cifar10 --mixed-precision bf16 --compile --output runs/r18     # until it says so
    python model_cards/pieces.py halve runs/r18 runs/resnet18-cifar10                                             # fp16 weights
    python evaluate.py runs/resnet18-cifar10 --attacks clean pgd20 pgd100 mim20 cw20 --time-budget 9m --resume    # until it says so
    python model_cards/pieces.py pack runs/resnet18-cifar10 OUT                                                   # there
    python model_cards/pieces.py unpack OUT model_cards/resnet18-cifar10                                          # here

The first line is train.py with an end: it stops in time, saved, and the same line goes on. Accuracies are measured on the
fp16 file itself, since that is what is published; `pack` cuts it into files of at most 15 MiB.
"""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from piat_hub.config import WEIGHTS, duration

MOST = 15 * 2**20  # bytes of a piece
KEPT = ("config.json", "metrics.jsonl", "timing.jsonl", "curves.png")


def train(length: str, *words: str) -> int:
    """Run train.py for so long at most, 30 s of which are for saving; returns 0 when the run is done, 130 if more is to do."""
    directory = Path(words[words.index("--output") + 1])
    resume = ["--resume"] if (directory / "state").exists() else []
    process = subprocess.Popen([sys.executable, "-m", "piat_hub", "train", *words, *resume])
    try:
        return process.wait(max(1.0, duration(length) - 30))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
        return 130 if code == -signal.SIGTERM else code  # that early nothing was begun


def halve(run: Path, target: Path) -> None:
    """Copy what a run recorded, its weights in fp16; results are measured anew, as other weights have others."""
    target.mkdir(parents=True)
    for name in KEPT:
        shutil.copy(run / name, target / name)
    for name in WEIGHTS.values():
        if (run / name).exists():
            tensors = {k: t.half() if t.is_floating_point() else t for k, t in load_file(run / name).items()}
            save_file(tensors, target / name, metadata={"format": "pt"})


def pack(directory: Path, out: Path, most: int = MOST) -> None:
    """Write every file of the directory in pieces of at most `most` bytes, and their checksums."""
    out.mkdir(parents=True, exist_ok=True)
    sums = {}
    for path in sorted(
        p for p in directory.rglob("*") if p.is_file() and "state" not in p.relative_to(directory).parts
    ):
        name, content = path.relative_to(directory).as_posix(), path.read_bytes()
        sums[name] = hashlib.sha256(content).hexdigest()
        for k in range(max(1, -(-len(content) // most))):
            (out / f"{name.replace('/', '@')}.{k:03}").write_bytes(content[k * most : (k + 1) * most])
    (out / "SHA256.json").write_text(json.dumps(sums, indent=1) + "\n")


def unpack(out: Path, directory: Path) -> None:
    """Put the pieces together again. ValueError, and nothing is written, where one is missing or damaged."""
    sums = json.loads((out / "SHA256.json").read_text())
    found = {
        name: b"".join(p.read_bytes() for p in sorted(out.glob(f"{name.replace('/', '@')}.[0-9]*"))) for name in sums
    }
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise ValueError(f"{out}: the pieces of {name} are not what was packed; bring them here again")
    for name, content in found.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:] or [""]
    if what == "train":
        sys.exit(train(*arguments))
    elif what in ("halve", "pack", "unpack"):
        globals()[what](*map(Path, arguments))
    else:
        sys.exit(__doc__)
