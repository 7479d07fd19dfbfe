"""Our evaluation beside its peers', on the same images: verdicts, seconds and their ratio.

    python benchmarks/evaluate.py MODEL --n 200 --seeds 0 1 2 --output FILE     AutoAttack: ours, and pyautoattack's own
    python benchmarks/evaluate.py MODEL --n 200 --torchattacks --eps 4/255      PGD-20 from the image itself, ours and torchattacks'

Both sides take turns, once for each seed. torchattacks is not among our dependencies: `pip install --no-deps torchattacks`.
"""

import argparse
import dataclasses
import json
import statistics
import time
from datetime import date
from functools import partial
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from tabulate import tabulate

from piat_hub.attacks import pgd
from piat_hub.config import EvalConfig, number, pixels
from piat_hub.data import to_unit
from piat_hub.evaluation import request
from piat_hub.evaluation.loop import evaluate, trained_against
from piat_hub.evaluation.model import load_model
from piat_hub.evaluation.verdict import correct, survives, twin_of, verdict_mode
from piat_hub.machine import device_name, set_threads


def autoattack(model, split, threat, seed):
    """Survivors of our standard AutoAttack and of pyautoattack's, with the seconds of each."""
    clock = time.perf_counter()
    ours = evaluate(model, split, ["aa"], threat_model=threat, seed=seed)
    middle = time.perf_counter()
    x, y = to_unit(split.images).contiguous(), split.labels
    peer = AutoAttack(model, eps=threat.eps, norm=threat.norm, seed=seed, version="standard")
    x_adv, _ = peer.run_standard_evaluation(x, y, batch_size=250)
    theirs = correct(model, x_adv, y).numpy() & ours.verdicts["clean"]
    end = time.perf_counter()
    row = {"seed": seed, "n": len(split), "ours": int(ours.verdicts["aa"].sum()), "pyautoattack": int(theirs.sum())}
    row |= {"differ": int((ours.verdicts["aa"] != theirs).sum())}
    return row | timed(middle - clock, end - middle)


def torchattacks_pgd(model, split, threat, seed):
    """PGD-20 from the images themselves, as an evaluation runs it, and torchattacks'."""
    import torchattacks

    x, y, step = to_unit(split.images).contiguous(), split.labels, threat.eps / 4
    ours_stage = partial(pgd, eps=threat.eps, step_size=step, steps=20, start=0.0, leave=True)
    clock = time.perf_counter()
    clean = correct(model, x, y)
    images, labels = to_unit(split.images)[clean], y[clean]  # what is wrong when clean is broken
    ours = clean.clone()
    ours[clean] = survives(model, twin_of(model, x[:2]), ours_stage, images, labels, 250, seed)[0]
    middle = time.perf_counter()
    peer = torchattacks.PGD(model, eps=threat.eps, alpha=step, steps=20, random_start=False)
    theirs = torch.cat([correct(model, peer(a, b), b) for a, b in zip(x.split(250), y.split(250), strict=True)])
    end = time.perf_counter()
    row = {"seed": seed, "n": len(split), "ours": int(ours.sum()), "torchattacks": int(theirs.sum())}
    row |= {"differ": int((ours != theirs).sum())}
    return row | timed(middle - clock, end - middle)


def timed(ours, theirs):
    """Both sides' seconds and how many times faster ours is."""
    return {"our_seconds": round(ours, 2), "their_seconds": round(theirs, 2), "ratio": round(theirs / ours, 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset")
    parser.add_argument("--n", type=int, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--torchattacks", action="store_true")
    parser.add_argument("--eps", type=number, help="default: the model's own")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    config = EvalConfig(n=args.n, dataset=args.dataset, output="unused", threads=args.threads)
    set_threads(args.threads)
    model, name, _ = load_model(args.model)
    split = request.evaluation_data(args.model, config, model)
    threat = trained_against(model)
    threat = dataclasses.replace(threat, eps=args.eps) if args.eps else threat
    with verdict_mode(model) as exact:
        exact = exact.to(memory_format=torch.channels_last)
        side_by_side = torchattacks_pgd if args.torchattacks else autoattack
        if args.torchattacks:
            side_by_side(exact, split[:8], threat, 0)  # warm
        rows = [side_by_side(exact, split, threat, seed) for seed in args.seeds]
    ratios = [row["ratio"] for row in rows]
    facts = {"model": name, "dataset": split.name, "threat_model": f"{threat.norm} eps {pixels(threat.eps)}"}
    facts |= {"device": device_name(torch.device("cpu")), "torch": torch.__version__}
    facts |= {"date": date.today().isoformat(), "rows": rows}
    print(f"{name} on {split.name}, {facts['threat_model']}, {facts['device']}")
    print(tabulate([list(map(str, row.values())) for row in rows], list(rows[0]), disable_numparse=True))
    print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    if args.output:
        args.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
