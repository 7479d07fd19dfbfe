"""A pass over 10,000 training images: ours, and a DataLoader over the Hugging Face data set with torchvision's transforms.

    python benchmarks/data.py --dataset DIR [--workers 0 2] [--rounds 5] [--output FILE]

Both crop after padding by 4, flip, and give float32 batches of 128 in [0, 1]. Ours is `Split.feed` and `augment`: from memory,
and streamed as a data set that does not fit is. The sides take turns.
"""

import argparse
import json
from datetime import date
from pathlib import Path

import datasets
import torch
from common import beside, seconds
from tabulate import tabulate
from torchvision import transforms

from piat_hub import data
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a directory with 32x32 images that load_dataset reads")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the DataLoader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
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
    facts = {"dataset": whole.name, "images": args.images, "rounds": args.rounds, "rows": rows}
    facts |= {"device": device_name(torch.device("cpu")), "torch": torch.__version__, "date": date.today().isoformat()}
    print(f"{args.images} images of {whole.name}, {args.rounds} rounds, {facts['device']}")
    print(tabulate(rows, headers="keys", floatfmt=("", ".4f", ".2f", ".2f", ".2f")))
    if args.output:
        args.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
