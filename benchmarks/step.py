"""A weight update of ours beside the authors' own code: `python benchmarks/step.py --method trades --peer DIR`.

DIR is a checkout of github.com/yaodongyu/TRADES (for trades), YisenWang/MART (mart) or
zjfheart/Geometry-aware-Instance-reweighted-Adversarial-Training (gairat; pgd_at, which its first epochs are). Their loss
runs as published, in a process of its own; `.cuda()` does nothing where there is no GPU. Both sides take turns, update by
update, on the same images; ratios are taken within a turn, so a machine that is busy for a while slows both. Before the
clock starts both make one update from the same weights and the same attack start, and losses and gradients are compared.
"""

import argparse
import contextlib
import copy
import importlib
import json
import multiprocessing
import statistics
import sys
import warnings
from datetime import date
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from common import Flops, peak, seconds
from tabulate import tabulate

from piat_hub import backbones, create_model, methods
from piat_hub.attacks import Twin, pgd
from piat_hub.machine import device_name, peak_memory, set_threads
from piat_hub.training import engine
from piat_hub.training.guards import HALF
from piat_hub.training.interpolation import ParameterInterpolation

EPS, STEP = 8 / 255, 2 / 255


def trades(model, optimizer, x, y, steps):
    """trades.py's loss, with beta as in their paper."""
    loss = importlib.import_module("trades").trades_loss
    return loss(model, x, y, optimizer, step_size=STEP, epsilon=EPS, perturb_steps=steps, beta=6.0)


def mart(model, optimizer, x, y, steps):
    """mart.py's loss, with beta as they take it for ResNets."""
    loss = importlib.import_module("mart").mart_loss
    return loss(model, x, y, optimizer, step_size=STEP, epsilon=EPS, perturb_steps=steps, beta=5.0)


def gairat(model, optimizer, x, y, steps, weighted=True):
    """What GAIRAT.py does with a batch: GA_PGD, then cross-entropy, from its begin_epoch on weighted."""
    ga_pgd, gair = importlib.import_module("attack_generator").GA_PGD, importlib.import_module("GAIR").GAIR
    x_adv, kappa = ga_pgd(model, x, y, EPS, STEP, steps, loss_fn="cent", category="Madry", rand_init=True)
    model.train()
    optimizer.zero_grad()
    losses = F.cross_entropy(model(x_adv), y, reduction="none")
    return (losses.mul(gair(steps, kappa.to(x.device), -1.0, "Tanh")) if weighted else losses).mean()


PEERS = {"trades": trades, "mart": mart, "gairat": gairat, "pgd_at": partial(gairat, weighted=False)}


def peer(pipe, folder, method, model, x, y, steps, threads):
    """Their side, in its own process: "compare" is answered with loss and gradient, "time" with seconds."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")  # the authors' code is of its time
    sys.path.insert(0, str(folder))
    if not torch.cuda.is_available():
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_: self
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, x, y = model.to(device), x.to(device), y.to(device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

    def update():
        loss = PEERS[method](model, optimizer, x, y, steps)
        loss.backward()
        optimizer.step()
        return loss

    for order in iter(pipe.recv, "stop"):
        if order == "compare":
            with same_noise(x, "randn", "randn_like", "rand_like"):
                loss = float(update())
            pipe.send((loss, gradient(model).cpu().numpy()))
        else:
            pipe.send(seconds(update))


def ask(pipe, order):
    """What their side answers."""
    pipe.send(order)
    return pipe.recv()


def gradient(model):
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten().float() for p in model.parameters()])


def our_update(method, model, x, y, steps, accelerator, options):
    """One weight update as the engine makes it, but that the attack may be compiled in another mode; gives the loss."""
    x, model = x.to(memory_format=torch.channels_last), model.to(memory_format=torch.channels_last)
    if options.gradient_checkpointing:
        backbones.checkpoint_gradients(model)
    twin = Twin(model, x[:2], HALF.get(accelerator.mixed_precision))
    if options.compile:
        twin.compile(dynamic=False, mode=options.compile)
        # never a CUDA graph: TRADES keeps these logits while the attack runs, and a replay overwrites them
        model.compile(dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, foreach=True)
    model, optimizer = engine.prepare(model, optimizer, accelerator)
    attack = partial(pgd, eps=EPS, step_size=STEP, steps=steps)
    loss_of = partial(methods.get(method)(), x=x, y=y, progress=0.6)

    def update():
        model.train()
        optimizer.zero_grad()
        loss = engine.backward(model, loss_of, attack, None, accelerator, twin)
        optimizer.step()
        return loss

    return update


@contextlib.contextmanager
def same_noise(x, *functions):
    """Every draw of the attacks' start is the same, by these functions of torch and by numpy's uniform."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))

    def like(torchs):
        return lambda other, **options: noise.to(other) if other.shape == x.shape else torchs(other, **options)

    fake = {
        "randn": lambda *_, **__: noise,  # theirs; for ours it stays torch's, with which a compiler tries kernels
        "randn_like": like(torch.randn_like),  # a compiler tries kernels on other shapes
        "rand_like": like(torch.rand_like),
    }
    uniform = lambda low, high, shape: low + (high - low) * noise.double().numpy()  # noqa: E731
    with contextlib.ExitStack() as stack:
        for name in functions:
            stack.enter_context(mock.patch.object(torch, name, fake[name]))
        stack.enter_context(mock.patch.object(np.random, "uniform", uniform))
        yield


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=methods.names(), default="trades")
    parser.add_argument("--backbone", default="cifar_resnet20", help="cifar_ may be left out")
    parser.add_argument("--peer", type=Path, help="a checkout of the authors' code; without it only ours is timed")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="PGD steps")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument(
        "--compile",
        choices=["default", "reduce-overhead", "max-autotune"],
        help="torch.compile's mode for the attack; the model's is default",
    )
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, help="also append the figures to this file, as a JSON line")
    args = parser.parse_args()
    if args.peer and args.method not in PEERS:
        parser.error(f"no peer is known for {args.method}; choose {', '.join(PEERS)}, or leave out --peer")
    threads = set_threads(args.threads)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    device, dtype = accelerator.device, HALF.get(args.mixed_precision, torch.float32)
    name = args.backbone if args.backbone.startswith("cifar_") else f"cifar_{args.backbone}"
    torch.manual_seed(0)
    model = create_model(name)
    x, y = torch.rand(args.batch_size, 3, 32, 32), torch.randint(10, (args.batch_size,))
    if args.peer:
        processes = multiprocessing.get_context("spawn")
        pipe, end = processes.Pipe()
        call = (end, args.peer, args.method, model, x, y, args.steps, threads)
        process = processes.Process(target=peer, args=call, daemon=True)
        process.start()
    x, y, model = x.to(device), y.to(device), copy.deepcopy(model).to(device)
    update = our_update(args.method, model, x, y, args.steps, accelerator, args)

    facts = {"method": args.method, "backbone": name, "batch_size": args.batch_size, "steps": args.steps}
    facts |= {"precision": args.mixed_precision, "compile": args.compile, "rounds": args.rounds}
    facts |= {"gradient_checkpointing": args.gradient_checkpointing, "peer": args.peer and args.peer.resolve().name}
    with same_noise(x, "randn_like", "rand_like"):
        losses = {"ours": float(update())}
    if args.peer:
        losses["theirs"], theirs = ask(pipe, "compare")
        off = gradient(model).cpu() - torch.from_numpy(theirs)
        facts["gradient_deviation"] = float(off.norm()) / float(np.linalg.norm(theirs))
    facts["loss"] = losses
    with Flops() as counter:
        update()
    update()
    interpolation = ParameterInterpolation(model)
    interpolation.step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = {side: [] for side in losses}
    for _ in range(args.rounds):
        times["ours"].append(seconds(update))
        if args.peer:
            times["theirs"].append(ask(pipe, "time"))
    if args.peer:
        pipe.send("stop")
        process.join()
    facts["images_per_second"] = {s: args.batch_size / statistics.median(t) for s, t in times.items()}
    if args.peer:
        ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
        facts["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    facts["interpolation_share"] = seconds(interpolation.step) / (
        50_000 / args.batch_size * statistics.median(times["ours"])
    )
    speed = counter.total / statistics.median(times["ours"]) / 1e9
    matrix, convolution = peak(device, dtype)
    facts |= {"gflop": counter.total / 1e9, "gflops": speed, "peak": {"matrix": matrix, "convolution": convolution}}
    facts["peak_memory_gib"] = peak_memory(device)
    facts |= {"device": device_name(device), "torch": torch.__version__, "date": date.today().isoformat()}

    rate = facts["images_per_second"]
    row = {"method": args.method, "backbone": name, "batch": args.batch_size, "precision": args.mixed_precision}
    row |= {"images/s": f"{rate['ours']:.1f}", "theirs": f"{rate['theirs']:.1f}" if args.peer else "-"}
    if args.peer:
        row["ratio (min, max)"] = "{median:.2f} ({min:.2f}, {max:.2f})".format(**facts["ratio"])
        row["loss"] = f"{losses['ours']:.4f} / {losses['theirs']:.4f}"
        row["gradient off by"] = f"{facts['gradient_deviation']:.1e}"
    row |= {
        "GFLOP/s": f"{speed:.0f}",
        "of matrix peak": f"{speed / matrix:.0%}",
        "of conv. peak": f"{speed / convolution:.0%}",
    }
    print(f"PGD-{args.steps}, {args.rounds} rounds, {facts['device']}, torch {torch.__version__}")
    print(tabulate([row], headers="keys", disable_numparse=True))
    if args.output:
        with args.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
