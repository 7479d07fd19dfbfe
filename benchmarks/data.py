"""A pass over 10,000 training images: ours, and a DataLoader over the Hugging Face data set with torchvision's transforms.

    python benchmarks/data.py --dataset DIR [--workers 0 2] [--rounds 5] [--output FILE]
    python benchmarks/data.py --mapped 50000 1000000 [--steps 100] [--rounds 5] [--output FILE]

Both crop after padding by 4, flip, and give float32 batches of 128 in [0, 1]. Ours is `Split.feed` and `augment`: from memory,
and streamed as a data set that does not fit is. The sides take turns.

The second form feeds batches of 512 images of 32x32, 358 of which come from an .npz of so many (made by repetition), converted and
mapped as `--extra-data` does it; 10,000 others stand for the real ones. The sizes take turns, so many steps in a round. Held is
what the process holds beyond the file's pages, which the system takes back where it needs them: labels and the pass under way, 8
bytes an image each.
"""

import argparse
import json
import tempfile
import zipfile
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import psutil
import torch
from common import beside, seconds
from tabulate import tabulate
from torchvision import transforms

from piat_hub import data
from piat_hub.config import TrainConfig
from piat_hub.machine import device_name, set_threads


def ours(split, count, batch):
    """One pass as the engine makes it."""
    order = list(data.batches(count, batch, 0, 1))
    return lambda: [data.to_unit(data.augment(images, 4, True)) for images, _ in split.feed(order)]


def loader(table, column, batch, workers):
    """One pass of the usual pipeline."""
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    prepared = transforms.Compose(steps)
    table = table.with_transform(lambda rows: {"x": [prepared(image) for image in rows[column]]})
    loaded = torch.utils.data.DataLoader(table, batch, shuffle=True, drop_last=True, num_workers=workers)
    return lambda: [rows["x"] for rows in loaded]


def passes(args):
    """The first form's facts."""
    whole, streamed = data.load(args.dataset, "train"), data.load(args.dataset, "train", limit=0)
    table = datasets.load_dataset(args.dataset, split="train").select(range(args.images))
    column = next(name for name, feature in table.features.items() if isinstance(feature, datasets.Image))
    sides = {"ours, from memory": ours(whole.first(args.images), args.images, 128)}
    sides["ours, streamed"] = ours(streamed.first(args.images), args.images, 128)
    sides |= {f"DataLoader, {w} workers": loader(table, column, 128, w) for w in args.workers}
    times = {name: [] for name in sides}
    for number in range(args.rounds + 1):
        for name, one in sides.items():
            took = seconds(one)
            if number:  # the first round warms up
                times[name].append(took)
    rows = [{"pass": name} | row for name, row in beside(times, "ours, from memory").items()]
    print(tabulate(rows, headers="keys", floatfmt=("", ".4f", ".2f", ".2f", ".2f")))
    return {"dataset": whole.name, "images": args.images, "rounds": args.rounds, "rows": rows}


def repeated(path, n):
    """An .npz of n images of 32x32 and labels, 10,000 of them again and again."""
    block = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), dtype=np.uint8)
    with zipfile.ZipFile(path, "w") as packed, packed.open("image.npy", "w", force_zip64=True) as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, 32, 32, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        for start in range(0, n, len(block)):
            member.write(block[: n - start])
    with zipfile.ZipFile(path, "a") as packed, packed.open("label.npy", "w") as member:
        np.lib.format.write_array(member, np.arange(n) % 10)


def stand_in(args):
    """The real images' stand-in."""
    images = torch.zeros(args.images, 3, 32, 32, dtype=torch.uint8)
    return data.Split(images, torch.arange(args.images) % 10, (), "real")


def fed(folder, args, real):
    """Batches of the real images and the .npz in this folder, which is the cache too."""
    config = TrainConfig(
        extra_data="made", batch_size=512, epoch_size=512 * args.steps, epochs=args.rounds + 1, clean_epochs=0
    )
    with mock.patch("huggingface_hub.constants.HF_HOME", folder):
        extra = data.open_npz(Path(folder, "made.npz"))
    return data.training_batches(real, config, extra=extra)


def held(folder, args):
    """What a fresh process holds once it has opened the .npz and fed a batch, in MiB, but for what it maps from files."""
    real, before = stand_in(args), anonymous()
    feed = fed(folder, args, real)
    next(feed)
    return anonymous() - before


def anonymous():
    return sum(int(found.anonymous) for found in psutil.Process().memory_maps()) / 2**20


def mapped(args):
    """The second form's facts."""
    real, rows, feeds, times = stand_in(args), [], {}, {n: [] for n in args.mapped}
    for n in args.mapped:
        with tempfile.TemporaryDirectory() as folder:
            repeated(Path(folder, "made.npz"), n)
            row = {"images": n, "convert_seconds": seconds(partial(fed, folder, args, real))}
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                row["held_mib"] = fresh.submit(held, folder, args).result()
            feeds[n] = fed(folder, args, real)
            row["first_batch_seconds"] = seconds(partial(next, feeds[n]))
        rows.append(row | {"computed_mib": 16 * n / 2**20, "file_mib": 3072 * n / 2**20})
    for number in range(args.rounds + 1):
        for n, feed in feeds.items():
            steps = args.steps - (not number)
            took = seconds(lambda: deque(map(data.to_unit, (x for x, _ in islice(feed, steps))), maxlen=0))  # noqa: B023
            if number:
                times[n].append(took / steps)
    rows = [row | beside(times, args.mapped[0])[row["images"]] for row in rows]
    print(tabulate(rows, headers="keys", floatfmt=".4f"))
    return {"batch": 512, "extra": 358, "steps": args.steps, "rounds": args.rounds, "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--dataset", help="a directory with 32x32 images that load_dataset reads")
    form.add_argument("--mapped", type=int, nargs="+", metavar="N", help="images of an .npz beside the real ones")
    parser.add_argument("--steps", type=int, default=100, help="in a round, of the second form")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the DataLoader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    facts = mapped(args) if args.mapped else passes(args)
    facts |= {"device": device_name(torch.device("cpu")), "torch": torch.__version__, "date": date.today().isoformat()}
    if args.output:
        args.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
