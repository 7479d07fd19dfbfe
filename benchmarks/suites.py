"""What each suite of attacks breaks and costs beside AutoAttack: `python benchmarks/suites.py MODEL --attacks fast aa --n 100`.

NAME is an attack as `piat evaluate` takes it; `apgd` is AutoAttack without FAB-T and Square, `malt3` MALT with its three best
targets. NAME@bf16 searches in half precision; --emulate rounds to it in fp32 arithmetic, layer by layer, as hardware does, for
a machine that has none. Seconds are of the process's CPU time. AutoAttack's verdicts are those of --aa DIR, an evaluation of the
same images, or of `aa` where it is among the attacks. With --own-answers the labels are the model's clean answers.
"""

import argparse
import dataclasses
import json
import time
from datetime import date
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

from piat_hub import data
from piat_hub.attacks import Twin, malt
from piat_hub.config import EvalConfig, ThreatModel, number
from piat_hub.data import to_unit
from piat_hub.evaluation import request
from piat_hub.evaluation.loop import HALF, trained_against
from piat_hub.evaluation.model import load_model
from piat_hub.evaluation.suites import suite
from piat_hub.evaluation.verdict import class_count, correct, survives, twin_of, verdict_mode
from piat_hub.machine import device_name, device_of, set_threads
from piat_hub.records.results import read_results


class Rounded(torch.autograd.Function):
    """To bf16 and back, the gradient too."""

    @staticmethod
    def forward(context, x):
        return x.bfloat16().float()

    @staticmethod
    def backward(context, gradient):
        return gradient.bfloat16().float()


def emulated(model, x):
    """The bf16 twin in fp32 arithmetic: weights, and what goes into and out of its layers, rounded."""
    twin = Twin(model, x)
    for layer in twin.copy.modules():
        if type(layer) in (nn.Conv2d, nn.Linear):
            for parameter in layer.parameters():
                parameter.data = parameter.data.bfloat16().float()
            layer.register_forward_pre_hook(lambda _, inputs: (Rounded.apply(inputs[0]),))
            layer.register_forward_hook(lambda _, inputs, output: Rounded.apply(output))
    return twin


def stages_of(name, threat, classes, seed):
    """The stages of a suite by name."""
    if name == "malt3":
        return {"malt3": partial(malt, eps=threat.eps, norm=threat.norm, targets=3, seed=seed)}
    stages = suite("aa" if name == "apgd" else name, threat, classes, seed=seed).stages
    return {s: run for s, run in stages.items() if name != "apgd" or s not in ("fab-t", "square")}


def measured(name, model, split, threat, clean, args):
    """(which images stand, its row): the stages one after the other, each on what stands."""
    name, _, precision = name.partition("@")
    few = to_unit(split.images[:2])
    twin = emulated(model, few) if precision and args.emulate else twin_of(model, few, HALF.get(precision))
    stand, stages = clean.clone(), {}
    for stage, run in stages_of(name, threat, class_count(model, split), args.seed).items():
        clock, before = time.process_time(), stand.clone()
        for index in before.nonzero()[:, 0].split(args.batch_size):
            batch = to_unit(split.images[index]), split.labels[index]
            stand[index] = survives(model, twin, run, *batch, args.batch_size, args.seed)[0]
        took, broken = time.process_time() - clock, int((before & ~stand).sum())
        stages[stage] = {"attacked": int(before.sum()), "broken": broken, "seconds": round(took, 1)}
    seconds = round(sum(stage["seconds"] for stage in stages.values()), 1)
    return stand, {
        "attack": name,
        "search": precision or "fp32",
        "stand": int(stand.sum()),
        "seconds": seconds,
        "stages": stages,
    }


def images_of(args, model):
    """The images asked for, and what they are called."""
    if args.own_answers:
        split = data.load(args.dataset, "test", None, None, args.img_size)
        split = split[torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).tolist()[: args.n]]
        answers = torch.cat([model(to_unit(images)).argmax(1) for images in split.images[:].split(16)])
        return dataclasses.replace(split, labels=answers, label_names=tuple(map(str, range(1000))), inferred=True)
    config = EvalConfig(n=args.first + args.n, dataset=args.dataset, output="unused")
    return request.evaluation_data(args.model, config, model)[args.first : args.first + args.n]


def beside(facts, stands, aa):
    """Add to each row how many of AutoAttack's breaks it misses, how many more it finds, and how many times faster it is."""
    facts["aa"] = None if aa is None else int(aa.sum())
    cost = next((row["seconds"] for row in facts["rows"] if row["attack"] == "aa"), None)
    for row, stand in zip(facts["rows"], stands.values(), strict=True):
        row |= {} if aa is None else {"missed": int((stand & ~aa).sum()), "more": int((aa & ~stand).sum())}
        row |= {"ratio": round(cost / row["seconds"], 2)} if cost else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--attacks", nargs="+", required=True)
    parser.add_argument("--dataset")
    parser.add_argument("--first", type=int, default=0, help="number of the first image")
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--aa", type=Path, help="an evaluation that has these images")
    parser.add_argument("--eps", type=number, help="default: the model's own")
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--own-answers", action="store_true")
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    set_threads(args.threads)
    model, name, _ = load_model(args.model)
    model = model.eval().to(memory_format=torch.channels_last)
    threat = trained_against(model) or ThreatModel()
    threat = dataclasses.replace(threat, eps=args.eps) if args.eps else threat
    facts = {"model": name, "threat_model": str(threat), "first": args.first, "emulated": args.emulate, "rows": []}
    facts |= {"device": device_name(device_of(model)), "torch": torch.__version__, "date": date.today().isoformat()}
    with verdict_mode(model) as exact, torch.no_grad():
        split = images_of(args, exact)
        clean = correct(exact, to_unit(split.images[:]), split.labels)
        aa = torch.from_numpy(read_results(args.aa)[1]["aa"])[args.first :][: len(split)] if args.aa else None
        facts |= {"dataset": split.name, "n": len(split), "clean": int(clean.sum())}
        stands = {}
        for attack in args.attacks:
            stands[attack], row = measured(attack, exact, split, threat, clean, args)
            facts["rows"].append(row)
            print(json.dumps(row), flush=True)
            beside(facts, stands, stands.get("aa", aa))
            if args.output:  # what is measured stays, whatever comes
                args.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{name} on {split.name}, {threat}, {facts['device']}")
    keys = ("attack", "search", "stand", "missed", "more", "seconds", "ratio")
    shown = [[row.get(key, "") for key in keys] for row in facts["rows"]]
    print(tabulate(shown, ["attack", "search", "stand", "aa's missed", "more", "CPU s", "aa / it"]))


if __name__ == "__main__":
    main()
