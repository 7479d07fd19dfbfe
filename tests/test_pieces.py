"""model_cards/pieces.py: training in pieces ends with the bytes of one in one go, and weights come back whole, as fp16."""

import importlib.util
from pathlib import Path

import pytest
import torch

import piat_hub
from piat_hub import data, records

SPEC = importlib.util.spec_from_file_location("pieces", Path(__file__).parent.parent / "model_cards" / "pieces.py")
pieces = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pieces)
WORDS = "digits --epochs 12 --train-size 192 --holdout 32 --threads 1 --output"


def test_a_run_in_pieces_is_the_run_in_one(monkeypatch):
    assert pieces.train("1h", *WORDS.split(), "whole") == 0
    monkeypatch.setattr(pieces, "duration", lambda _: deadline)
    deadline, codes = 30 + 4.0, []  # so long until it is told to stop
    while not codes or codes[-1] == 130:
        codes.append(pieces.train("any", *WORDS.split(), "cut"))
        assert len(codes) < 20
        deadline += 3  # a busy machine takes longer to begin
    assert codes[-1] == 0 and 130 in codes
    for name in ("model.safetensors", "model_best.safetensors", "metrics.jsonl"):
        assert (Path("whole") / name).read_bytes() == (Path("cut") / name).read_bytes()


def test_fp16_weights_come_back_in_small_pieces_and_are_measured_themselves(small_digits, do_train, do_evaluate):
    do_train(small_digits(epochs=3), "run")
    Path("run/curves.png").write_bytes(b"picture")
    pieces.halve(Path("run"), Path("half"))
    found = do_evaluate("half", "pgd3", n=40).results
    pieces.pack(Path("half"), Path("out"), most=20_000)
    assert len(list(Path("out").glob("model.safetensors.*"))) > 2
    assert all(p.stat().st_size <= 20_000 for p in Path("out").iterdir() if p.name != "SHA256.json")
    pieces.unpack(Path("out"), Path("back"))
    for path in (p for p in Path("half").rglob("*") if p.is_file()):
        assert (Path("back") / path.relative_to("half")).read_bytes() == path.read_bytes()
    assert records.read("back").figures("pgd3")["correct"] == found.attacks["pgd3"]["correct"]  # of these weights
    x = data.to_unit(data.load("digits", "test").images[:50])
    with torch.no_grad():
        full, half = (piat_hub.from_pretrained(name)(x) for name in ("run", "back"))
    assert half.dtype == torch.float32 and torch.allclose(full, half, atol=0.05) and not torch.equal(full, half)
    sizes = [(Path(name) / "model.safetensors").stat().st_size for name in ("back", "run")]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_damaged_or_missing_piece_is_named_and_nothing_is_written():
    Path("a").mkdir()
    Path("a/x").write_bytes(bytes(range(100)))
    pieces.pack(Path("a"), Path("out"), most=40)
    Path("out/x.001").write_bytes(b"\0" * 40)
    with pytest.raises(ValueError, match="the pieces of x are not what was packed"):
        pieces.unpack(Path("out"), Path("b"))
    Path("out/x.001").unlink()
    with pytest.raises(ValueError, match="bring them here again"):
        pieces.unpack(Path("out"), Path("b"))
    assert not Path("b").exists()
