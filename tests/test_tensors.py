"""tensors.py: what was saved comes back; whatever is changed in a file is noticed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from piat_hub.config import InputError
from piat_hub.records import tensors

SOME = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "half": torch.ones(3).half(),
}


def test_round_trip_as_any_safetensors_file(tmp_path):
    strided = {"a": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last), "c": torch.ones(1).expand(1), **SOME}
    tensors.save(strided, tmp_path / "t.safetensors", '{"about": "ä"}')
    for found in (tensors.load(tmp_path / "t.safetensors")[0], load_file(tmp_path / "t.safetensors")):
        assert found.keys() == strided.keys()
        assert all(torch.equal(t, found[k]) and t.dtype == found[k].dtype for k, t in strided.items())
    assert tensors.load(tmp_path / "t.safetensors")[1] == '{"about": "ä"}'
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    for name, order in (("a", list(SOME)), ("b", list(SOME)[::-1])):
        tensors.save({k: SOME[k] for k in order}, tmp_path / name, "x")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_flipped_bit_is_noticed(tmp_path):
    """Every bit of a file in turn: it is refused, or what is read is unchanged (a bit in the header's padding)."""
    path = tmp_path / "t.safetensors"
    tensors.save(SOME, path, "fact")
    whole, refused = np.frombuffer(path.read_bytes(), np.uint8), 0
    for bit in range(8 * len(whole)):
        changed = whole.copy()
        changed[bit // 8] ^= 1 << bit % 8
        path.unlink()  # a file system may hurry what is written in another's place to the disk
        path.write_bytes(changed.tobytes())
        try:
            found, facts = tensors.load(path)
        except InputError:
            refused += 1
            continue
        # a "piat" or "__metadata__" spelt otherwise takes the checksum away, not what it guards
        assert all(torch.equal(t, found[k]) for k, t in SOME.items()) and facts in ("fact", "")
    assert refused > 0.9 * 8 * len(whole)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "t.safetensors"
    tensors.save(SOME, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.unlink()
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="not a whole safetensors file"):
            tensors.load(path)


def test_others_files_have_no_checksum(tmp_path):
    save_file(SOME, tmp_path / "t.safetensors", metadata={"format": "pt"})
    assert tensors.load(tmp_path / "t.safetensors")[0].keys() == SOME.keys()


def test_the_digest_tells_what_looks_alike():
    alike = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.tensor([0.0, 0, 0, -0.0])},
    ]
    assert len({tensors.digest(t) for t in alike} | {tensors.digest(alike[0], json.dumps({}))}) == 6
