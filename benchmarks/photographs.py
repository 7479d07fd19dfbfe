"""A pass over photographs of mixed sizes, cut to random parts: ours, and timm's DataLoader; beside what an attack takes.

    python benchmarks/photographs.py --dataset DIR [--img-size 96] [--workers 2] [--rounds 3] [--output FILE]

Both cut, flip and resize by timm's transforms in so many worker processes, in batches of 64. Ours is
`data.training_batches`, which seeds each image by itself; the other is `timm.data.create_loader` over the same folder. They
take turns. The attack is PGD-2 with the update that follows, on one thread. The memory is that of this process and its workers,
while 100,000 photographs (the same ones, again and again) are trained on, before the first and after the last of 200 batches.
"""

import argparse
import dataclasses
import json
from datetime import date
from itertools import islice
from pathlib import Path

import psutil
import timm
import torch
from common import beside, seconds
from tabulate import tabulate

from piat_hub import data
from piat_hub.backbones import create_model
from piat_hub.config import AttackConfig, PictureConfig, recipes
from piat_hub.machine import device_name, set_threads
from piat_hub.training.setup import make_attack


def ours(split, config, batches):
    """So many of a run's batches."""
    return lambda: [data.to_unit(images) for images, _ in islice(data.training_batches(split, config), batches)]


def timms(folder, config, workers, batches):
    """So many of timm's."""
    pictures = timm.data.create_dataset("", root=folder, split="train", is_training=True, batch_size=config.batch_size)
    words = {"scale": config.pictures.scale, "interpolation": "bicubic", "color_jitter": None, "use_prefetcher": False}
    words |= {"num_workers": workers, "mean": (0.0,) * 3, "std": (1.0,) * 3, "persistent_workers": False}
    loader = timm.data.create_loader(pictures, config.img_size, config.batch_size, is_training=True, **words)
    return lambda: [images for images, _ in islice(loader, batches)]


def attacked(split, config):
    """Images a second of PGD-2 and its update, on one thread."""
    model = create_model(config.backbone, num_classes=len(split.label_names), img_size=config.img_size)
    model = model.train().to(memory_format=torch.channels_last)
    x, y = data.to_unit(split.images[: config.batch_size]), split.labels[: config.batch_size]

    def step():
        x_adv = make_attack(config)(model, x, y)
        torch.nn.functional.cross_entropy(model(x_adv), y).backward()

    return len(x) / min(seconds(step) for _ in range(3))


def held():
    """MiB of this process and its workers, each page counted once."""
    here = psutil.Process()
    return sum(p.memory_full_info().pss for p in (here, *here.children(recursive=True))) / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a folder of photographs, DIR/train/CLASS/*.jpg")
    parser.add_argument("--img-size", type=int, default=96)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    set_threads(1)
    data.encoded.cores = lambda: args.workers  # else one a core
    pictures = PictureConfig(augment="rrc", scale=(0.3, 1.0), crop_pct=0.875)
    given = dict(dataset=args.dataset, img_size=args.img_size, pictures=pictures)
    config = dataclasses.replace(recipes.get("photos"), batch_size=64, attack=AttackConfig(steps=2), **given)
    fit = data.Fit.trained((args.img_size,) * 2, pictures.crop_pct)
    split = data.of_one_size(data.load_encoded(args.dataset, "train"), limit=0, fit=fit)
    sides = {
        "ours": ours(split, config, args.batches),
        "timm's": timms(args.dataset, config, args.workers, args.batches),
    }
    times = {name: [] for name in sides}
    for number in range(args.rounds + 1):
        for name, one in sides.items():
            took = seconds(one)
            if number:  # the first round warms up
                times[name].append(took)
    images = args.batches * config.batch_size
    rows = [{"pass": k, "images_per_second": images / r["seconds"]} | r for k, r in beside(times, "ours").items()]
    many = split[torch.arange(100_000) % len(split)]
    feed = data.training_batches(many, config)
    next(feed)
    memory = [held()]
    for _ in islice(feed, 200):
        pass
    memory.append(held())
    decoded = 100_000 * 3 * args.img_size**2 / 2**20
    facts = {"dataset": split.name, "images": images, "img_size": args.img_size, "workers": args.workers, "rows": rows}
    facts |= {"rounds": args.rounds, "attack_images_per_second": attacked(split, config), "backbone": config.backbone}
    facts |= {"held_mib": memory, "decoded_mib": decoded}
    facts |= {"device": device_name(torch.device("cpu")), "torch": torch.__version__, "date": date.today().isoformat()}
    print(f"{images} photographs of {split.name} at {args.img_size} pixels, {args.workers} workers, {facts['device']}")
    print(tabulate(rows, headers="keys", floatfmt=("", ".1f", ".4f", ".2f", ".2f", ".2f")))
    print(f"PGD-2 and update of {config.backbone}: {facts['attack_images_per_second']:.1f} images/s")
    print(
        f"100,000 photographs: {memory[0]:,.0f} MiB, after 200 batches {memory[1]:,.0f}; decoded they take {decoded:,.0f}"
    )
    if args.output:
        args.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
