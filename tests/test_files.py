"""files.py: whole or not at all, damage is found, and nothing outside a model's folder is read."""

import errno
import json
import os
import random
from pathlib import Path

import pytest

from piat_hub.config import Broken, InputError, printable
from piat_hub.records.files import append, own, read_json, read_lines, sealed, whole_file, write_text
from piat_hub.records.model_config import ModelConfig


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    with whole_file(path) as scratch:
        scratch.write_text("one")
        assert not path.exists()
    with pytest.raises(KeyError), whole_file(path) as scratch:
        scratch.write_text("half")
        raise KeyError
    with (
        pytest.raises(Broken, match=r"a\.json cannot be written: No space left on device"),
        whole_file(path) as scratch,
    ):
        scratch.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and path.read_text() == "one"


def test_a_read_only_file_system_is_told_in_words(tmp_path, monkeypatch):
    """It refuses to remove even a scratch file that is not there."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(Broken, match=r"a\.json cannot be written: Read-only file system"):
        write_text(tmp_path / "a.json", "{}")


def test_every_flipped_bit_of_sealed_json_is_found_or_harmless(tmp_path):
    path, values = tmp_path / "a.json", {"attacks": {"aa": 0.5}, "n": 10, "name": "é"}
    path.write_text(json.dumps(sealed(values), indent=2))
    content, found = path.read_bytes(), 0
    assert read_json(path) == values
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.unlink()
        path.write_bytes(damaged)
        try:
            # the seal's own name may be hit; then there is a stray entry beside what was written
            assert {k: v for k, v in read_json(path).items() if k in values} == values
        except ValueError:
            found += 1
    assert found > 0.8 * 8 * len(content)


def test_json_without_a_checksum_is_taken_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text('{"n": 1}')
    assert read_json(tmp_path / "a.json") == {"n": 1}


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"a":' * 100_000, "1" * 10_000, '{"a": "\ufeff'])
def test_what_is_no_object_is_a_value_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


def test_lines_are_sealed_and_the_damaged_one_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    for epoch in (1, 2, 3):
        append(path, sealed({"epoch": epoch, "lam": 0.5}))
    assert [line["epoch"] for line in read_lines(path)] == [1, 2, 3] and "checksum" not in read_lines(path)[0]
    path.write_text(path.read_text().replace('"epoch": 2', '"epoch": 7'))
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged in line 2 .*--resume writes it again"):
        read_lines(path)
    assert [line["epoch"] for line in read_lines(path, strict=False)] == [1, 3]


def test_links_out_of_a_folder_are_refused(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "secret").write_text("s")
    (folder / "inside").write_text("i")
    (folder / "link").symlink_to("inside")
    (folder / "out").symlink_to(tmp_path / "secret")
    assert own(folder, "inside").read_text() == own(folder, "link").read_text() == "i"
    for name in ("out", "../secret", str(tmp_path / "secret")):
        with pytest.raises(InputError, match="leads out of its folder"):
            own(folder, name)
    (tmp_path / "shortcut").symlink_to(folder)  # a link to the whole folder is the user's own way there
    assert own(tmp_path / "shortcut", "inside").read_text() == "i"


def test_the_hubs_cache_is_such_a_folder_too(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / ("a" * 40), tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "b").write_text("b")
    (snapshot / "config.json").symlink_to("../../blobs/b")
    assert own(snapshot, "config.json").read_text() == "b"


def random_json(rng, depth=0):
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind < 5:
        return [None, rng.random(), rng.randrange(-(10**9), 10**9), "é" * rng.randrange(4), True][kind]
    values = [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    return values if kind == 5 else {f"k{i}": v for i, v in enumerate(values)}


def test_any_json_survives_its_seal(tmp_path):
    rng = random.Random(0)
    for _ in range(300):
        values = {f"k{i}": random_json(rng) for i in range(4)}
        (tmp_path / "a.json").write_text(json.dumps(sealed(values)))
        assert read_json(tmp_path / "a.json") == values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": 3}, "names no architecture"),
        ({"label_names": "ab"}, "label_names must be a list of texts"),
        ({"label_names": [1]}, "label_names must be a list of texts"),
        ({"label_names": ["\x1b[2Jgone"]}, "no printable text"),
        ({"a\nb": 1}, "no printable text"),
        ({"model_args": []}, None),
        ({"model_args": [1]}, "model_args must be an object"),
        ({"pretrained_cfg": "x"}, "pretrained_cfg must be an object"),
        ({"piat": 1}, "piat must be an object"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "each of 1 to 2048"),
        ({"pretrained_cfg": {"input_size": 32}}, "input_size must be"),
    ],
)
def test_a_config_has_timms_form(tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"} | change))
    if message is None:
        assert ModelConfig.read(tmp_path / "config.json")
        return
    with pytest.raises(InputError, match=message) as error:
        ModelConfig.read(tmp_path / "config.json")
    assert str(error.value).isprintable()


def test_a_planted_link_is_not_written_through(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "m/.README.new.md").symlink_to(tmp_path / "precious")
    with whole_file(tmp_path / "m/README.md") as scratch:
        scratch.write_text("card")
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "m/README.md").is_symlink()


def test_links_in_a_circle_and_folders_below(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match=r"leads (back to itself|out of its folder)"):
        own(tmp_path, "a").read_text()
    snapshot = tmp_path / "snapshots" / ("a" * 40)
    (snapshot / "few").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/b").write_text("b")
    (snapshot / "few/results.json").symlink_to("../../../blobs/b")
    assert own(snapshot, "few/results.json").read_text() == own(snapshot / "few", "results.json").read_text() == "b"


def test_names_in_any_script_are_printable():
    assert all(printable(name) for name in ("می\u200cرود", "क्‍ष", "a\u00a0b", "👩‍🚀"))
    assert not any(printable(name) for name in ("a\nb", "\x1b[31m", "\u202egnp.exe", "\ud800", "a\u2028b"))
