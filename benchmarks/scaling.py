"""Training's images per second over processes: `python benchmarks/scaling.py --processes 1 2 [--output FILE]`.

Each count is launched by torchrun and makes the engine's updates on one global batch, divided as a run divides it. On a
CPU each process has its share of the cores as threads; on GPUs each process has its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import date
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from common import seconds
from tabulate import tabulate

from piat_hub import create_model, methods
from piat_hub.attacks import Twin, pgd
from piat_hub.machine import device_name, set_threads
from piat_hub.training import engine
from piat_hub.training.guards import HALF


def worker(args):
    """One process of a launch: its updates; rank 0 prints the figures."""
    set_threads(args.threads)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    torch.manual_seed(0)
    model = create_model(args.backbone).to(accelerator.device).to(memory_format=torch.channels_last)
    share = args.batch_size // accelerator.num_processes
    x = torch.rand(share, 3, 32, 32, device=accelerator.device).to(memory_format=torch.channels_last)
    y = torch.randint(10, (share,), device=accelerator.device)
    twin = Twin(model, x[:2], HALF.get(args.mixed_precision))
    volume = sum(p.numel() * p.element_size() for p in model.parameters())
    model, optimizer = engine.prepare(model, torch.optim.SGD(model.parameters(), 1e-4, 0.9, foreach=True), accelerator)
    attack = partial(pgd, eps=8 / 255, step_size=2 / 255, steps=args.steps)
    loss_of = partial(methods.get(args.method)(), x=x, y=y, progress=0.6)

    def update():
        model.train()
        engine.backward(model, loss_of, attack, None, accelerator, twin)
        optimizer.step()
        optimizer.zero_grad()
        engine.average_buffers(engine.unwrap(model, accelerator), accelerator)

    update()
    times = [seconds(update) for _ in range(args.rounds)]
    if accelerator.is_main_process:
        row = {"processes": accelerator.num_processes, "threads each": torch.get_num_threads()}
        row |= {"images/s": args.batch_size / statistics.median(times), "s an update": statistics.median(times)}
        row |= {"all-reduce MiB an update": volume / 2**20 if accelerator.num_processes > 1 else 0.0}
        print(json.dumps(row | {"device": device_name(accelerator.device)}))
    accelerator.end_training()


def launch(args):
    """Each count of processes in turn, and their table."""
    rows = []
    for count in args.processes:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", __file__]
        flags = {"method": args.method, "backbone": args.backbone, "batch-size": args.batch_size, "steps": args.steps}
        flags |= {"mixed-precision": args.mixed_precision, "rounds": args.rounds}
        flags |= {"threads": args.threads} if args.threads else {}
        command += ["--worker", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]
        cpu = {} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"}
        shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | cpu)
        if shown.returncode:
            sys.exit(shown.stderr)
        rows.append(json.loads(shown.stdout.splitlines()[-1]))
    device = rows[0]["device"].partition(",")[0]
    rows = [{k: v for k, v in row.items() if k != "device"} for row in rows]
    facts = {"method": args.method, "backbone": args.backbone, "batch_size": args.batch_size, "steps": args.steps}
    facts |= {"precision": args.mixed_precision, "device": device, "torch": torch.__version__}
    facts |= {"date": date.today().isoformat(), "rows": rows}
    print(f"{args.backbone}, {args.method}, global batch {args.batch_size}, PGD-{args.steps}, {device}")
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    if args.output:
        args.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--method", choices=methods.names(), default="nmse")
    parser.add_argument("--backbone", default="cifar_resnet20")
    parser.add_argument("--batch-size", type=int, default=128, help="global")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of each process (default: its share of the cores)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    worker(args) if args.worker else launch(args)


if __name__ == "__main__":
    main()
