"""model_cards/piece.sh: a model made in pieces comes back whole, as fp16, and measured as that."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import PYTHON, ROOT
from test_feed import photographs

import piat_hub
from piat_hub.records.groups import common_attacks, read_run

pytestmark = pytest.mark.slow

WORDS = ["digits", "--dataset", "pictures", "--img-size", "8", "--augment", "pad"]
WORDS += ["--epochs", "60", "--holdout", "8", "--threads", "1"]
TIMEOUT = """#!/usr/bin/env bash
# stands for `timeout --foreground --signal TERM SECONDS …`: its time is over when the first state is written
shift 4
"$@" & until [ -e runs/mine-fp32/state/state.safetensors ] || ! kill -0 $!; do sleep 0.1; done
kill -TERM $! && wait $! || exit 124
"""


def piece(**settings):
    """One call of the script."""
    settings = {"PYTHON": PYTHON, "PYTHONPATH": str(ROOT), "AA": "2"} | settings
    command = ["bash", "model_cards/piece.sh", "out", "mine", *WORDS]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)


def test_a_model_made_in_pieces_comes_back_whole_as_fp16():
    for name in ("train.py", "evaluate.py", "model_cards"):
        (Path.cwd() / name).symlink_to(ROOT / name)
    photographs(Path("pictures"))  # a folder, as CIFAR-10 is one where there is no Hub
    Path("timeout").write_text(TIMEOUT)
    Path("timeout").chmod(0o755)
    stopped = piece(PATH=f"{Path.cwd()}:{os.environ['PATH']}")
    assert stopped.returncode == 3 and "mine: more to train; the same command goes on" in stopped.stdout
    assert Path("runs/mine-fp32/state").exists() and not Path("runs/mine").exists()
    whole = piece(PIECE="100000")
    assert whole.returncode == 0 and whole.stdout.endswith("mine: whole\n"), whole.stderr

    subprocess.run("sha256sum --check mine.sha256", shell=True, cwd="out", check=True)
    Path("back").mkdir()
    subprocess.run("cat out/mine.tar.* | tar x -C back", shell=True, check=True)
    back = read_run("back/mine")
    assert len(back.metrics) == 60
    counts = {attack: back.figures(attack)["n"] for attack in common_attacks([back])}
    assert counts == {"clean": 24, "pgd20": 24, "pgd100": 24, "mim20": 24, "cw20": 24, "aa": 2}
    sizes = [(Path(name) / "model.safetensors").stat().st_size for name in ("back/mine", "runs/mine-fp32")]
    assert sizes[0] < 0.6 * sizes[1]
    x = torch.rand(50, 3, 8, 8)
    with torch.no_grad():
        half, full = (piat_hub.from_pretrained(name)(x) for name in ("back/mine", "runs/mine-fp32"))
    assert half.dtype == torch.float32 and torch.allclose(full, half, atol=0.05) and not torch.equal(full, half)


def test_an_error_of_training_ends_the_piece():
    for name in ("train.py", "evaluate.py", "model_cards"):
        (Path.cwd() / name).symlink_to(ROOT / name)
    settings = {"PYTHON": PYTHON, "PYTHONPATH": str(ROOT)}
    command = ["bash", "model_cards/piece.sh", "out", "mine", "digitz"]
    refused = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert refused.returncode == 2 and "did you mean 'digits'" in refused.stderr and not Path("runs").exists()


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"PYTHON": "true"}, 1, "DATASET: name the images of CIFAR-10"),
        ({"PYTHON": "true", "DATASET": "d", "LIMIT": "0"}, 3, "more to do; the same command goes on"),
        ({"PYTHON": "false", "DATASET": "d"}, 1, "one of them failed"),
        ({"PYTHON": "true", "DATASET": "d"}, 0, "all done"),
    ],
)
def test_long_trainings_say_all_done_only_where_they_are(settings, code, said):
    """benchmarks/long.sh; PYTHON stands for every training and evaluation."""
    command = ["bash", str(ROOT / "benchmarks/long.sh"), str(Path.cwd() / "out"), "0"]
    environment = {k: v for k, v in os.environ.items() if k != "DATASET"} | settings
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout + done.stderr
