"""Files that a stranger wrote, or an accident: one line of refusal or a right answer, in a bounded number of steps."""

import contextlib
import copy
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import python
from PIL import Image
from safetensors.torch import load_file, save_file

import piat_hub
from piat_hub import cli, data
from piat_hub.config import InputError, recipes
from piat_hub.evaluation.loop import trained_against
from piat_hub.figures import plots
from piat_hub.hub import card
from piat_hub.hub.save import save_pretrained
from piat_hub.records import tensors
from piat_hub.records.compare import compare
from piat_hub.records.files import read_json, read_metrics, sealed
from piat_hub.records.results import Results, read_record, read_results
from piat_hub.records.rundir import RunDirectory

CALLS = 3_000_000  # of Python, that reading a run may take
DEEP: list = []
for _ in range(500):
    DEEP = [DEEP]
NASTY = [
    *(None, True, -1, 0, 3.7, 10**30, 1e308, float("nan"), float("inf"), [], {}, DEEP, [1] * 2000, [100_000] * 900),
    *("1e-999999999", "x" * 100_000, "a\nb", "`$(touch X)`'\"; touch X #", "--output=x", "\u202e", {"a": {"b": [1]}}),
]


@contextlib.contextmanager
def few_calls():
    """AssertionError as soon as more than CALLS functions are called in the block."""
    left = CALLS

    def count(frame, event, argument):
        nonlocal left
        left -= 1
        assert left > 0, "it does not end"

    before = sys.gettrace()
    sys.settrace(count)  # which gives no function for the lines: calls alone are counted
    try:
        yield
    finally:
        sys.settrace(before)


def places(tree, at=()):
    """The path of every value in nested JSON."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def with_value(tree, path, value):
    changed = copy.deepcopy(tree)
    within = changed
    for key in path[:-1]:
        within = within[key]
    within[path[-1]] = value
    return changed


def refused(act):
    """Whether it refuses in one printable line; any other error is the test's."""
    try:
        with few_calls():
            act()
    except InputError as error:
        assert str(error).isprintable() and len(str(error)) < 2100
        return True
    return False


def shown(run):
    """Its card is written, and the command on it runs nothing but a training of a known recipe."""
    text = card.render(RunDirectory.read(run))
    command = re.search(r"```bash\n(.*)\n```", text)[1]
    words = shlex.split(command)
    assert words[:2] == ["piat", "train"] and words[2] in recipes.RECIPES and "\n" not in command
    assert not any(word.startswith("--output") for word in words)


def measured(run):
    """The results are refused, or they are figures that fit each other and the verdicts."""
    known = json.loads(WHOLE["results.json"])["attacks"]
    record, verdicts = read_results(run)
    assert all(record.attacks[name]["accuracy"] == known[name]["accuracy"] == v.mean() for name, v in verdicts.items())


def read(run):
    found = RunDirectory.read(run)
    return found.metrics, found.training


def drawn(run):
    if metrics := read_metrics(run):
        plots.curves(metrics)


def built(run):
    trained_against(piat_hub.from_pretrained(run))


WHOLE: dict[str, str] = {}  # a run's files as they were


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "acts"),
    [
        ("config.json", [shown]),
        ("results.json", [shown, measured]),
        ("metrics.jsonl", [drawn]),
        ("timing.jsonl", [read]),
    ],
)
def test_every_value_of_a_runs_files_may_be_anything(evaluated, name, acts):
    """Each value in turn becomes each of the nasty ones, where there are many values a few of them in turn."""
    path = evaluated / name
    WHOLE[name] = path.read_text()
    lines = WHOLE[name].splitlines() if name.endswith("l") else []
    tree = json.loads(lines[0] if lines else WHOLE[name])
    tree.pop("checksum", None)
    tried = caught = 0
    for number, place in enumerate(places(tree)):
        for value in NASTY if lines else NASTY[number % 7 :: 7]:
            path.write_text("\n".join([json.dumps(with_value(tree, place, value)), *lines[1:], ""]))
            caught += any(refused(lambda act=act: act(evaluated)) for act in acts)
            tried += 1
            if name == "config.json" and place[0] != "piat":
                refused(lambda: built(evaluated))
    assert tried > 90 and caught > tried / 3
    assert not Path("X").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'{"n": 1, "n": 2}',
        b'{"n": 1e400, "architecture": "resnet18"}' + b" " * 2**24,
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("name", ["config.json", "results.json", "metrics.jsonl", "verdicts.npz", "model.safetensors"])
def test_a_file_of_a_run_may_hold_anything(evaluated, name, content):
    (evaluated / name).write_bytes(content)
    readers = {
        "metrics.jsonl": read_metrics,
        "verdicts.npz": read_results,
        "model.safetensors": piat_hub.from_pretrained,
    }
    assert refused(lambda: readers.get(name, shown)(evaluated))


@pytest.mark.parametrize("name", ["config.json", "results.json", "metrics.jsonl", "timing.jsonl", "verdicts.npz"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_is_no_file_of_a_run(evaluated, name, make):
    (evaluated / name).unlink()
    make(evaluated / name)
    with pytest.raises(InputError) as error:
        read(evaluated)
        if name == "results.json":  # not read where it is no file
            raise InputError("results")
        read_results(evaluated)
    assert str(error.value).isprintable()


def test_metadata_nested_without_end_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "t.safetensors", metadata={"piat": "[" * 100_000})
    with pytest.raises(InputError, match="is damaged"):
        tensors.load(tmp_path / "t.safetensors")


def test_results_that_cannot_be_are_not_believed(evaluated):
    """Such as a worst case above its attacks, an attack above clean, an interval that is another count's."""
    whole = read_json(evaluated / "results.json")
    clean = whole["attacks"]["clean"]
    for change, message in (
        ({"worst_case": clean | {"correct": 30, "accuracy": 1.0, "ci95": [0.886, 1.0]}}, "do not fit"),
        ({"worst_case": clean}, "worst case"),
        ({"attacks": whole["attacks"] | {"clean": whole["attacks"]["aa"]}}, "above the clean accuracy|same accuracies"),
        ({"attacks": whole["attacks"] | {"pgd3": clean | {"ci95": [0.0, 1.0]}}}, "do not fit"),
        ({"attacks": whole["attacks"] | {"pgd3": clean | {"n": 29}}}, "do not fit"),
        ({"per_class": {"label_names": ["a"], "clean": [1.5]}}, "accuracies by class are none"),
        ({"seconds": float("inf")}, "seconds are none"),
        ({"sweep": [{"eps": "1e-999999999", "attacks": {}}]}, "a budget of its sweep is none"),
    ):
        (evaluated / "results.json").write_text(json.dumps(sealed(whole | change)))
        with pytest.raises(InputError, match=message):
            read_results(evaluated)


def test_only_results_of_the_weights_that_lie_there_are_compared(evaluated):
    shutil.copytree(evaluated, "other")
    assert compare(evaluated, Path("other"))
    weights = load_file("other/model.safetensors")
    weights["fc.bias"] += 1
    save_file(weights, "other/model.safetensors")
    with pytest.raises(InputError, match=r"other was measured with other weights than model\.safetensors holds now"):
        compare(evaluated, Path("other"))
    Path("other/config.json").unlink()  # results alone, as `--output` leaves them, are of weights elsewhere
    assert compare(evaluated, Path("other"))


@pytest.fixture
def stranger(tmp_path):
    """A model as a download brings it, its training configuration changed; gives its directory."""

    def make(in_chans=1, pretrained_cfg=None, **piat):
        model = piat_hub.create_model("cifar_resnet8", in_chans=in_chans)
        config = recipes.get("digits")
        save_pretrained(model, tmp_path / "m", config=config, input_size=(in_chans, 8, 8))
        content = read_json(tmp_path / "m/config.json")
        content["piat"] |= piat
        content["pretrained_cfg"] |= pretrained_cfg or {}
        (tmp_path / "m/config.json").write_text(json.dumps(content))
        return tmp_path / "m"

    return make


def said(capsys, *words):
    """What a refused command says, in its one line."""
    assert cli.main(list(map(str, words))) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1
    return err


def test_a_config_reaches_neither_the_hub_nor_all_memory(stranger, capsys):
    for change, message in (
        ({"dataset": "somebody/pictures"}, "names the data set somebody/pictures .*name the data with --dataset"),
        ({"img_size": 100_000}, "img-size must be <= 2048, got 100000"),
        ({"img_size": 2000}, "img-size must be at most 256, got 2000"),
        ({"threat_model": {"norm": "Linf", "eps": "1e-999999999"}}, "eps must be > 0, got 0.0"),
        ({"lr": float("inf")}, "lr must be finite"),
        ({"epochs": True}, "epochs must be int, got True"),
    ):
        assert re.search(message, said(capsys, "evaluate", stranger(**change), "--n", 4, "--attacks", "clean"))


@pytest.mark.parametrize("change", [{"mean": [0.5]}, {"std": [0.5]}])
def test_what_wants_normalised_images_is_not_measured_on_others(stranger, change):
    with pytest.raises(InputError, match="wants normalised images"):
        piat_hub.from_pretrained(stranger(pretrained_cfg=change))


def test_predict_reads_pictures_and_nothing_else(stranger, capsys, monkeypatch):
    model = stranger()
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was called"))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("grey.png")
    for name in ("pipe", "folder", "/dev/zero", "drawing.png", "nothing.png"):
        assert name in said(capsys, "predict", model, name)
    with monkeypatch.context() as patch:
        patch.setattr("piat_hub.data.pictures.LARGEST", 10)
        assert "it is larger than" in said(capsys, "predict", model, "grey.png")
    assert "pictures are grey or RGB" in said(capsys, "predict", stranger(in_chans=5), "grey.png")
    weights = load_file(stranger() / "model.safetensors")
    save_file(
        {name: t * float("nan") if t.is_floating_point() else t for name, t in weights.items()},
        model / "model.safetensors",
    )
    assert "gives NaN or Inf for grey.png" in said(capsys, "predict", model, "grey.png")


@pytest.mark.parametrize(
    "text",
    ["`; touch PWNED #", "$(touch PWNED)", "a'; touch PWNED; '", 'a"; touch PWNED; "', "--output=PWNED", "!!", "x\\"],
)
@pytest.mark.parametrize("key", ["dataset", "recipe", "backbone", "image_column", "method_args"])
def test_the_command_on_a_card_is_that_command_in_any_shell(stranger, text, key):
    folder = stranger(**{key: {text: text} if key == "method_args" else text})
    command = re.search(r"```bash\n(.*)\n```", card.write(folder).read_text())[1]
    script = 'piat() { for word in "$@"; do printf "%s\\0" "$word"; done; }; ' + command
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\0")[:-1] == shlex.split(command)[1:] and not Path("PWNED").exists()
    assert not any(word.startswith("--output") for word in shlex.split(command))


def test_a_licence_is_said_when_it_was_chosen(evaluated, capsys):
    assert "license" not in (evaluated / "README.md").read_text().split("---")[1]
    assert cli.main(["card", "r", "--license", "apache-2.0"]) == 0
    assert "\nlicense: apache-2.0\n" in (evaluated / "README.md").read_text()
    capsys.readouterr()
    assert "has weights, or began with some, under apache-2.0" in said(capsys, "card", "r", "--license", "mit")
    assert "must be a name in the Hub's words" in said(capsys, "card", "r", "--license", "a b")


def test_a_model_of_one_answer_is_said_to_be_one(stranger, capsys):
    model = stranger()
    weights = load_file(model / "model.safetensors")
    weights["fc.weight"].zero_()
    weights["fc.bias"] = torch.eye(10)[3]
    save_file(weights, model / "model.safetensors")
    (model / "metrics.jsonl").touch()  # a run's own directory, which has a card
    assert cli.main(["evaluate", str(model), "--attacks", "clean", "--n", "100", "--threads", "1"]) == 0
    line = (
        "every image of class 3 is right and none of any other: so does a model that answers this class to everything"
    )
    assert f"note: {line}" in capsys.readouterr().out and line in (model / "README.md").read_text()
    record = read_record(model / "results.json")
    assert record.one_class == "3"
    record.per_class["clean"][4] = 0.1
    assert record.one_class == ""


def test_the_class_of_one_answer_needs_two_classes():
    split = data.Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, 1, 1]), ("a", "b"), "mine")
    results = Results.of(split, recipes.get("digits").threat_model)
    results.record("clean", np.ones(3, bool), {})
    assert results.one_class == ""


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from piat_hub import cli
raise SystemExit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="the system limits no files")
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_full_disk_ends_an_export_in_one_line(stranger, kind):
    """As on a full disk every write beyond a size is refused, in a process of its own."""
    model = stranger()
    Path("full.py").write_text(FULL)
    done = python("full.py", "export", model, "--formats", kind, "--output", "out")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"out/model.{kind} cannot be written" in done.stderr and not Path("out").exists()


def test_what_torch_cannot_export_is_one_line(stranger, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such operator\nmore")

    monkeypatch.setattr(torch.export, "export", fail)
    assert "cannot be exported as pt2: no such operator" in said(capsys, "export", stranger(), "--formats", "pt2")
