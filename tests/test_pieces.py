"""model_cards/piece.sh: a model made in pieces has the bytes of one made in one go, and comes back whole, as fp16."""

import os
import subprocess
import sys
from pathlib import Path

import torch

import piat_hub
from piat_hub import data, records

HERE = Path(__file__).parent.parent
WORDS = ["digits", "--epochs", "8", "--train-size", "192", "--holdout", "32", "--threads", "1"]


def test_a_model_made_in_pieces_comes_back_whole_as_fp16():
    for name in ("train.py", "evaluate.py", "model_cards"):
        (Path.cwd() / name).symlink_to(HERE / name)
    settings = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(HERE), "AA": "10"}
    said, seconds = [], 10.0  # of a piece
    while not said or said[-1].returncode == 3:
        command = ["bash", "model_cards/piece.sh", "out", "mine", *WORDS]
        said.append(
            subprocess.run(command, env=settings | {"PIECE": str(int(seconds))}, capture_output=True, text=True)
        )
        seconds *= 1.4  # a busy machine takes longer to begin
        assert len(said) < 20
    assert said[-1].returncode == 0 and said[-1].stdout.endswith("mine: whole\n"), said[-1].stderr
    assert any("mine: more to train; the same command goes on" in one.stdout for one in said[:-1])

    subprocess.run("sha256sum --check SHA256", shell=True, cwd="out", check=True)
    Path("back").mkdir()
    subprocess.run("cat out/mine.tar.* | tar x -C back", shell=True, check=True)
    back = records.read("back/mine")
    counts = {attack: back.figures(attack)["n"] for attack in records.attacks([back])}
    assert counts == {"clean": 400, "pgd20": 400, "pgd100": 400, "mim20": 400, "cw20": 400, "aa": 10}

    whole = ["train.py", *WORDS, "--output", "whole"]
    subprocess.run([sys.executable, *whole], env=settings, check=True, capture_output=True)
    for name in ("model.safetensors", "model_best.safetensors", "metrics.jsonl"):
        assert (Path("whole") / name).read_bytes() == (Path("runs/mine-fp32") / name).read_bytes()
    sizes = [(Path(name) / "model.safetensors").stat().st_size for name in ("back/mine", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    x = data.to_unit(data.load("digits", "test").images[:50])
    with torch.no_grad():
        full, half = (piat_hub.from_pretrained(name)(x) for name in ("whole", "back/mine"))
    assert half.dtype == torch.float32 and torch.allclose(full, half, atol=0.05) and not torch.equal(full, half)
