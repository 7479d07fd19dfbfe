"""Measure a model on the training images that its run left out: `python model_cards/held_out.py RUN OUT N ATTACK [ATTACK…]`.

By these a model for this folder is chosen; the test images are for the one that was.
"""

import sys
from pathlib import Path

import piat_hub
from piat_hub import data
from piat_hub.records.rundir import RunDirectory


def measure(run: str, out: Path, n: int, attacks: list[str], dataset: str | None = None) -> None:
    """Write results.json and verdicts.npz of the last checkpoint on the first n held-out images into OUT."""
    config = RunDirectory.read(run).config
    _, held = data.hold_out(data.load(dataset or config.dataset, "train"), config.holdout or 0)
    model = piat_hub.from_pretrained(run)
    piat_hub.evaluate(model, held, attacks, threat_model=config.threat_model, n=n, split="held-out").save(out)


if __name__ == "__main__":
    run, out, n, *attacks = sys.argv[1:]
    measure(run, Path(out), int(n), attacks)
