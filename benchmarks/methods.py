"""What a training step costs with each method, beside PGD-AT: `python benchmarks/methods.py [--output FILE]`.

One weight update of each in turn, round after round, on the same images and weights; ratios are taken within a round, so
that a machine that is busy for a while slows both sides. Free-AT's update is one of its replays.
"""

import argparse
import json
from datetime import date
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from common import beside, seconds
from tabulate import tabulate

from piat_hub import create_model, methods
from piat_hub.attacks import Twin, pgd
from piat_hub.config import TrainConfig
from piat_hub.machine import device_name, set_threads
from piat_hub.training import engine
from piat_hub.training.averages import EMA
from piat_hub.training.interpolation import ParameterInterpolation


def update(name, model, optimizer, accelerator, attack, twin, x, y, gamma=None, ema=None):
    """A function that makes one weight update with the method, as the engine does."""
    method = methods.get(name)()
    method = method.begin(TrainConfig()) if hasattr(method, "begin") else method
    loss_of = partial(method, x=x, y=y, progress=0.6)

    def run():
        model.train()
        engine.backward(model, loss_of, attack, gamma, accelerator, twin)
        optimizer.step()
        optimizer.zero_grad()
        if ema:
            ema.step()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="cifar_resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="PGD steps")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    set_threads(args.threads)
    torch.manual_seed(0)
    accelerator = Accelerator()
    model = create_model(args.backbone).to(accelerator.device).to(memory_format=torch.channels_last)
    x = torch.rand(args.batch_size, 3, 32, 32, device=accelerator.device).to(memory_format=torch.channels_last)
    twin = Twin(model, x[:2])
    model, optimizer = engine.prepare(model, torch.optim.SGD(model.parameters(), 1e-4, 0.9), accelerator)
    y = torch.randint(10, (args.batch_size,), device=accelerator.device)
    attack = partial(pgd, eps=8 / 255, step_size=2 / 255, steps=args.steps)

    bind = partial(update, model=model, optimizer=optimizer, accelerator=accelerator, attack=attack)
    bind = partial(bind, twin=twin, x=x, y=y)
    runs = {name: bind(name) for name in ("pgd_at", *sorted(set(methods.names()) - {"pgd_at"}))}
    runs |= {"pgd_at + AWP": bind("pgd_at", gamma=0.01), "pgd_at + EMA": bind("pgd_at", ema=EMA(model))}
    interpolation = ParameterInterpolation(model)
    runs["PIAT, once an epoch"] = interpolation.step
    times = {name: [] for name in runs}
    for number in range(args.rounds + 1):
        for name, run in runs.items():
            took = seconds(run)
            if number:  # the first round warms up
                times[name].append(took)

    rows = [{"name": name} | row for name, row in beside(times, "pgd_at").items()]
    facts = {"backbone": args.backbone, "batch_size": args.batch_size, "steps": args.steps, "rounds": args.rounds}
    facts |= {"device": device_name(accelerator.device), "torch": torch.__version__}
    facts |= {"date": date.today().isoformat(), "rows": rows}
    table = [[r["name"], *(f"{r[k]:.4f}" for k in ("seconds", "ratio", "lowest", "highest"))] for r in rows]
    print(f"{args.backbone}, batch {args.batch_size}, PGD-{args.steps}, {args.rounds} rounds, {facts['device']}")
    print(tabulate(table, ["method", "s/update", "to PGD-AT", "lowest", "highest"], disable_numparse=True))
    if args.output:
        args.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
