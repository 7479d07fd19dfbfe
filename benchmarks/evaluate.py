"""Our evaluation beside its peers', on the same images: verdicts and seconds.

    python benchmarks/evaluate.py MODEL --n 200 --seeds 0 1 2 --output FILE     AutoAttack: ours, and pyautoattack's own
    python benchmarks/evaluate.py MODEL --n 200 --torchattacks                  PGD-20 from the image itself, ours and torchattacks'

torchattacks is not among our dependencies: `pip install --no-deps torchattacks`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from tabulate import tabulate

from piat_hub import evaluation, run
from piat_hub.attacks import pgd
from piat_hub.config import EvalConfig, pixels
from piat_hub.data import to_unit
from piat_hub.evaluation import correct, evaluate


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
    return row | {"our_seconds": round(middle - clock, 1), "their_seconds": round(end - middle, 1)}


def torchattacks_pgd(model, split, threat):
    """PGD-20 without a random start: how many verdicts differ."""
    import torchattacks

    x, y, step = to_unit(split.images).contiguous(), split.labels, threat.eps / 4
    peer = torchattacks.PGD(model, eps=threat.eps, alpha=step, steps=20, random_start=False)
    clock = time.perf_counter()
    ours = correct(model, pgd(model, x, y, threat.eps, step, 20, start=0.0), y).numpy()
    middle = time.perf_counter()
    theirs = correct(model, peer(x, y), y).numpy()
    row = {
        "n": len(split),
        "ours": int(ours.sum()),
        "torchattacks": int(theirs.sum()),
        "differ": int((ours != theirs).sum()),
    }
    return row | {"our_seconds": round(middle - clock, 1), "their_seconds": round(time.perf_counter() - middle, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset")
    parser.add_argument("--n", type=int, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--torchattacks", action="store_true")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    config = EvalConfig(n=args.n, dataset=args.dataset, output="unused", threads=args.threads)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    model, name, _ = run.load_model(args.model)
    split = run.evaluation_data(args.model, config, run.from_dict(run.TrainConfig, model.piat))
    threat = evaluation.trained_against(model)
    with evaluation.verdict_mode(model) as exact:
        if args.torchattacks:
            rows = [torchattacks_pgd(exact, split, threat)]
        else:
            rows = [autoattack(exact, split, threat, seed) for seed in args.seeds]
    facts = {"model": name, "dataset": split.name, "threat_model": f"{threat.norm} eps {pixels(threat.eps)}"}
    facts |= {"device": evaluation.device_name(torch.device("cpu")), "torch": torch.__version__, "rows": rows}
    print(f"{name} on {split.name}, {facts['threat_model']}, {facts['device']}")
    print(tabulate([list(map(str, row.values())) for row in rows], list(rows[0]), disable_numparse=True))
    if args.output:
        args.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
