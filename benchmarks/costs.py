"""What an image costs, counted: `python benchmarks/costs.py [--backbones …] [--output FILE]`.

FLOPs of one update by torch's own formulas (products and convolutions), and the bytes that autograd keeps for backward, both
of real updates at small batches: they grow linearly with the batch, so the difference of two batches is an image's share.
Memory is that of a run: weights, gradient, momentum, PIAT's previous weights, the copy that is checked each epoch, the attack's
twin, and activations.
"""

import argparse
import json
from datetime import date
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from common import Flops
from tabulate import tabulate

from piat_hub import backbones, create_model, methods
from piat_hub.attacks import Twin, pgd
from piat_hub.training import engine
from piat_hub.training.guards import HALF

SIZES = {"resnet50": 224}


class Kept:
    """The most bytes of different tensors that autograd held at one time for a backward to come."""

    def __init__(self, besides):
        self.held, self.now, self.most = {}, 0, 0
        self.besides = {t.untyped_storage().data_ptr() for t in besides}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda packed: packed.tensor)

    def pack(self, tensor):
        return Held(tensor, self)


class Held:
    """A saved tensor; its storage counts while any saved tensor uses it."""

    def __init__(self, tensor, kept):
        storage = tensor.untyped_storage()
        self.tensor, self.kept, self.place, self.bytes = tensor, kept, storage.data_ptr(), storage.nbytes()
        if self.place not in kept.besides:
            kept.held[self.place] = kept.held.get(self.place, 0) + 1
            if kept.held[self.place] == 1:
                kept.now += self.bytes
                kept.most = max(kept.most, kept.now)

    def __del__(self):
        if self.place not in self.kept.besides:
            self.kept.held[self.place] -= 1
            if not self.kept.held[self.place]:
                self.kept.now -= self.bytes


def update(backbone, method, batch, precision, checkpointing, accelerator, steps):
    """(FLOPs, bytes kept for backward, bytes of the weights) of one update."""
    torch.manual_seed(0)
    size = SIZES.get(backbone, 32)
    name = backbone if backbones.ours(backbone) else None
    model = create_model(backbone) if name else create_model(backbone, num_classes=1000, img_size=size)
    if checkpointing:
        backbones.checkpoint_gradients(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    x, y = torch.rand(batch, 3, size, size), torch.randint(10, (batch,))
    twin = Twin(model, x[:1], HALF.get(precision))
    model, _ = engine.prepare(model, torch.optim.SGD(model.parameters(), 0.1), accelerator)
    attack = partial(pgd, eps=8 / 255, step_size=2 / 255, steps=steps)
    loss_of = partial(methods.get(method)(), x=x, y=y, progress=0.6)
    kept = Kept([*model.parameters(), *twin.parameters()])
    model.train()
    with Flops() as flops, kept.hooks:
        engine.backward(model, loss_of, attack, None, accelerator, twin)
    return flops.total, kept.most, weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["cifar_resnet20", "cifar_resnet18", "cifar_wrn_32_10"])
    parser.add_argument("--methods", nargs="+", default=["pgd_at", "nmse", "trades", "mart"])
    parser.add_argument("--mixed-precision", choices=["no", "bf16"], default="bf16")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    accelerator, rows = Accelerator(cpu=True, mixed_precision=args.mixed_precision), []
    for backbone in args.backbones:
        for method in args.methods:
            row = {"backbone": backbone, "method": method}
            for checkpointing in (False, True):
                small, large = (
                    update(backbone, method, batch, args.mixed_precision, checkpointing, accelerator, args.steps)
                    for batch in (1, 3)
                )
                each = [(b - a) / 2 for a, b in zip(small, large, strict=True)]
                if not checkpointing:
                    row |= {"gflop": each[0] / 1e9, "mib": each[1] / 2**20, "weights_mib": small[2] / 2**20}
                else:
                    row |= {"mib_checkpointed": each[1] / 2**20, "gflop_checkpointed": each[0] / 1e9}
            # fp32 weights, gradient, momentum, PIAT's previous weights, the copy that is checked; the twin's in the attack's
            copies = 5 + (0.5 if args.mixed_precision != "no" else 1)
            for kind in ("mib", "mib_checkpointed"):
                row[f"gib_128{kind[3:]}"] = (copies * row["weights_mib"] + 128 * row[kind]) / 1024
            rows.append(row)
            print({k: v if isinstance(v, str) else round(v, 3) for k, v in row.items()}, flush=True)
    facts = {"precision": args.mixed_precision, "steps": args.steps, "torch": torch.__version__}
    facts |= {"date": date.today().isoformat(), "rows": rows}
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    if args.output:
        args.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
