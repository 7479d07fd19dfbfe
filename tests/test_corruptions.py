"""--corruptions: closed-form verdicts, files, resume, shares, card, comparison, figure; what is refused before anything."""

import itertools
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, killed, python
from torch import nn

from piat_hub import cli
from piat_hub.config import ALEXNET, COMMON, EXTRA, EvalConfig, InputError
from piat_hub.data import Corrupted
from piat_hub.evaluation import corruptions, request
from piat_hub.evaluation.loop import Processes
from piat_hub.figures import breadth
from piat_hub.records import compare
from piat_hub.records.corruptions import Corruptions
from piat_hub.records.files import read_json
from piat_hub.records.results import Results, read_record
from piat_hub.records.statistics import mean_of_images, proportion

MODEL = """
import torch
class Bright(torch.nn.Module):
    \"\"\"Class 1 where the mean pixel is above .5, of ten.\"\"\"
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
    def forward(self, x):
        z = self.weight * 20 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z, *[torch.full_like(z, -50.0)] * 8], 1)
model = Bright()
"""
N = 12


def folder(home, names=(*COMMON, *EXTRA), n=N, shape=(8, 8, 1)):
    """Images whose level decides what `Bright` says: of severity s, the first s N / 6 are wrong; by corruption k shifted by k."""
    home.mkdir(parents=True, exist_ok=True)
    labels = np.arange(n) % 2
    for k, name in enumerate(names):
        images = np.zeros((5, n, *shape), np.uint8)
        for severity in range(5):
            wrong = (np.arange(n) + k) % n < (severity + 1) * n // 6
            images[severity] = np.where(labels ^ wrong, 200, 50).reshape(n, 1, 1, 1)
        np.save(home / f"{name}.npy", images.reshape(5 * n, *shape))
    np.save(home / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    return home


@pytest.fixture(autouse=True)
def own_code(tmp_path, monkeypatch):
    (tmp_path / "bright.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)


ASKED = [
    "bright:model",
    "--dataset",
    "digits",
    "--n",
    "8",
    "--batch-size",
    "3",
    "--attacks",
    "clean",
    "--corruptions",
    "C",
]


def expected(name, n=8):
    k = [*COMMON, *EXTRA].index(name)
    return np.array([[(i + k) % N >= (s + 1) * N // 6 for i in range(n)] for s in range(5)])


def test_verdicts_figures_mean_and_files_are_the_closed_form(tmp_path, capsys):
    folder(tmp_path / "C")
    assert cli.main(["evaluate", *ASKED, "--output", "o"]) == 0
    said, told = capsys.readouterr().out, read_json(Path("o/results.json"))["corruptions"]
    with np.load("o/corruptions.npz", allow_pickle=False) as arrays:
        found = dict(arrays)
    assert list(told["severities"]) == [*COMMON, *EXTRA] and told["dataset"] == {"name": "C", "n": 8}
    for name, each in told["severities"].items():
        assert np.array_equal(found[name], expected(name))
        assert each == [proportion(int(right.sum()), 8) for right in expected(name)]
    by_image = np.mean([expected(name).mean(0) for name in COMMON], 0)
    assert told["mean"]["accuracy"] == pytest.approx(by_image.mean())
    half = 1.96 * by_image.std(ddof=1) / 8**0.5
    assert told["mean"]["ci95"] == pytest.approx([by_image.mean() - half, by_image.mean() + half], abs=1e-4)
    assert told["mce"] is None and "mCE" not in said  # CIFAR-10-C has no reference that all agree on
    assert re.search(r"gaussian noise +\d", said) and re.search(
        rf"mean of the 15 .* {100 * by_image.mean():.2f} %", said
    )
    assert "saturate (extra)" in said and Path("o/corruptions.png").exists()
    assert read_record(Path("o/results.json")).corruptions == told


def test_mce_is_the_papers_formula_where_alexnet_is_the_reference():
    found = Corruptions("imagenet-c", 40, imagenet=True)
    rng = np.random.default_rng(0)
    for name in (*COMMON, *EXTRA):
        for _ in range(5):
            found.record(name, rng.random(40) < 0.5)
    ce = [(1 - found.verdicts[name]).sum() / 40 / 5 / ALEXNET[name] for name in COMMON]
    assert found.to_dict()["mce"] == pytest.approx(np.mean(ce)) and len(ALEXNET) == 15
    assert np.mean(list(ALEXNET.values())) == pytest.approx(0.7880, abs=1e-3)  # AlexNet's own mean error
    found.imagenet = False
    assert found.to_dict()["mce"] is None
    del found.verdicts["frost"]
    assert found.to_dict()["mean"] is None
    assert mean_of_images(np.array([0.5])) == (0.5, [0.0, 1.0])


def test_who_lacks_one_of_the_15_gets_no_mean_and_a_line(tmp_path, capsys):
    folder(tmp_path / "C", COMMON[:3])
    assert cli.main(["evaluate", *ASKED, "--output", "o"]) == 0
    said = capsys.readouterr().out
    assert "a mean is over the 15 common corruptions, and C lacks defocus_blur" in said
    assert read_json(Path("o/results.json"))["corruptions"]["mean"] is None and not Path("o/corruptions.png").exists()
    folder(tmp_path / "C")  # the rest: what is there is not measured again
    assert cli.main(["evaluate", *ASKED, "--output", "o"]) == 0
    assert read_json(Path("o/results.json"))["corruptions"]["mean"] is not None


def test_killed_anywhere_it_goes_on_to_the_same_verdicts(tmp_path):
    folder(tmp_path / "C", (*COMMON[:2], "frost"))
    config = dict(attacks=("clean",), n=8, batch_size=3, dataset="digits", corruptions="C")
    assert cli.main(["evaluate", *ASKED, "--output", "whole"]) == 0

    def work(most):
        (one,) = request.prepare("bright:model", EvalConfig(**config, output="k"))
        with one.writing():
            list(one.measure())
            for number, _ in enumerate(one.corruptions(), 1):
                if number == most:
                    os.kill(os.getpid(), signal.SIGKILL)

    assert killed(lambda: work(3), lambda: None) and killed(lambda: work(4), lambda: None)
    assert {name: len(each) for name, each in read_json(Path("k/results.json"))["corruptions"]["severities"].items()} == {
        COMMON[0]: 5, COMMON[1]: 2,
    }  # fmt: skip
    assert cli.main(["evaluate", *ASKED, "--output", "k"]) == 0
    one, other = (read_json(Path(place, "results.json"))["corruptions"] for place in ("whole", "k"))
    assert one == other
    with np.load("whole/corruptions.npz") as a, np.load("k/corruptions.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files) and a.files == b.files


def test_a_severity_that_results_do_not_tell_of_yet_costs_nothing(tmp_path):
    """Killed between corruptions.npz and results.json, which is written after it."""
    folder(tmp_path / "C", COMMON[:2])
    assert cli.main(["evaluate", *ASKED, "--output", "k"]) == 0
    with np.load("k/corruptions.npz") as file:
        arrays = {name: file[name] for name in file.files}
    told = read_json(Path("k/results.json"))
    told["corruptions"]["severities"][COMMON[1]].pop()
    Path("k/results.json").write_text(json.dumps({k: v for k, v in told.items() if k != "checksum"}))
    assert cli.main(["evaluate", *ASKED, "--output", "k"]) == 0 and not list(Path("k").glob("*.damaged"))
    with np.load("k/corruptions.npz") as file:
        assert all(np.array_equal(arrays[name], file[name]) for name in arrays)


def test_a_time_budget_stops_between_severities(tmp_path, monkeypatch, capsys):
    folder(tmp_path / "C", COMMON[:2])
    monkeypatch.setattr("time.monotonic", itertools.count(0, 40).__next__)
    assert cli.main(["evaluate", *ASKED, "--output", "o", "--time-budget", "5m"]) == 0
    assert "the time budget of 5m is spent: " in capsys.readouterr().out


def test_shares_of_two_processes_are_the_whole(tmp_path):
    images = Corrupted.open(str(folder(tmp_path / "C", COMMON[:1])))
    import bright

    def verdicts(**options):
        results = Results.of(split(), threat())
        list(corruptions.measure(bright.model, images, results, batch_size=5, **options))
        return results.corrupted.verdicts[COMMON[0]]

    whole, shares = verdicts(), [verdicts(processes=Processes(rank, 2)) for rank in (0, 1)]
    assert np.array_equal(shares[0] & shares[1], whole) and not np.array_equal(shares[0], whole)


def split():
    from piat_hub.data import load

    return load("digits", "test").first(8)


def threat():
    from piat_hub.config import ThreatModel

    return ThreatModel()


@pytest.mark.slow
def test_two_processes_share_it_to_the_same_verdicts(tmp_path):
    folder(tmp_path / "C", COMMON[:2])
    flags = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = ["-m", "accelerate.commands.launch", *flags.split(), ROOT / "evaluate.py"]
    python(*launch, *ASKED, "--output", "two", check=True)
    with np.load("two/corruptions.npz") as arrays:
        assert all(np.array_equal(arrays[name], expected(name)) for name in COMMON[:2])


def test_card_figure_and_comparison(tmp_path, evaluated, capsys):
    folder(tmp_path / "C")
    asked = ["--n", "30", "--attacks", "clean", "--corruptions", "C"]
    folder(tmp_path / "C", n=30)
    assert cli.main(["evaluate", "r", *asked]) == 0
    text = (evaluated / "README.md").read_text()
    assert "Under common corruptions, the first 30 images of C at each severity" in text
    assert re.search(r"\| gaussian noise +\| \d", text) and "| mean of the 15" in text
    assert cli.main(["evaluate", "r", *asked, "--checkpoint", "best", "--output", "b"]) == 0
    Path("b/results_best.json").rename("b/results.json")
    Path("b/verdicts_best.npz").rename("b/verdicts.npz")
    Path("b/corruptions_best.npz").rename("b/corruptions.npz")
    shares = compare.corruptions(evaluated, Path("b"))
    assert [name for name, *_ in shares] == [*COMMON, *EXTRA, "mean of the 15"]
    a, b = (read_json(Path(place, "results.json"))["corruptions"]["mean"]["accuracy"] for place in ("r", "b"))
    _, one, other, difference, (low, high) = shares[-1]
    assert (one, other, difference) == pytest.approx((a, b, b - a)) and low <= difference <= high
    capsys.readouterr()
    assert cli.main(["compare", "r", "b"]) == 0
    assert "mean of the 15" in capsys.readouterr().out
    figure = breadth.corruptions({"r": read_json(evaluated / "results.json")["corruptions"]})
    assert "30 images of C" in figure.get_label()
    np.save("C/snow.npy", np.load("C/snow.npy") // 2)
    assert cli.main(["evaluate", "r", *asked]) == 2
    assert "snow was measured on other images of C; name another place with --output" in capsys.readouterr().err


def broken(home):
    """Folders that are refused: what is done to a whole one, and what is said."""
    return {
        "empty": (lambda: [p.unlink() for p in home.glob("*.npy")], "holds none of the published arrays"),
        "no labels": (lambda: (home / "labels.npy").unlink(), "labels.npy is no file"),
        "objects": (
            lambda: np.save(home / "fog.npy", np.array([{}], object), allow_pickle=True),
            "fog.npy is no whole array",
        ),
        "cut": (lambda: os.truncate(home / "fog.npy", 999), "fog.npy is no whole array"),
        "floats": (lambda: np.save(home / "fog.npy", np.zeros((60, 8, 8, 1))), "fog.npy holds float64 of shape"),
        "short": (
            lambda: np.save(home / "fog.npy", np.zeros((50, 8, 8, 1), np.uint8)),
            r"fog.npy holds uint8 of shape \(50",
        ),
        "no fives": (
            lambda: np.save(home / "labels.npy", np.zeros(59, int)),
            r"labels.npy holds int64 of shape \(59,\)",
        ),
        "other order": (lambda: np.save(home / "labels.npy", np.repeat(np.arange(12), 5)), "five times the same"),
        "a pipe": (lambda: ((home / "fog.npy").unlink(), os.mkfifo(home / "fog.npy")), "fog.npy is no file"),
    }


@pytest.mark.parametrize("what", broken(Path()))
def test_folders_that_are_refused_in_one_line_before_anything(tmp_path, what, capsys):
    change, said = broken(folder(tmp_path / "C", ("fog", "frost")))[what]
    change()
    assert cli.main(["evaluate", *ASKED, "--output", "o"]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and len(error.splitlines()) == 1 and not Path("o").exists()


def test_other_requests_are_refused(tmp_path, capsys):
    folder(tmp_path / "C", ("fog",), shape=(9, 8, 1))
    folder(tmp_path / "D", ("fog",), n=6)
    for words, said in (
        (["--threat-models", "L1:2"], "--corruptions is of one threat model"),
        (["--corruptions", "D"], "n=8 is larger than the 6 images of a severity in D"),
        (["--corruptions", "nowhere"], "nowhere holds none of the published arrays"),
    ):
        assert cli.main(["evaluate", *ASKED, *words, "--output", "o"]) == 2
        assert said in capsys.readouterr().err and not Path("o").exists()
    with pytest.raises(InputError, match="the model cannot take|cannot take the 1x9x8 images of C"):
        results = Results.of(split(), threat())
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        list(corruptions.measure(model, Corrupted.open("C"), results))


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["severities"]["fog"][0].update(correct=99),
        lambda told: told["severities"].update(rain=[]),
        lambda told: told["severities"]["fog"].append(told["severities"]["fog"][0]),
        lambda told: told.update(mce=-1),
        lambda told: told.update(mean={"accuracy": 2.0, "ci95": [0.0, 1.0]}),
        lambda told: told.update(dataset=3),
        lambda told: told["dataset"].update(n="many"),
    ],
)
def test_claims_that_cannot_be_are_no_results(tmp_path, change):
    results = Results.of(split(), threat())
    results.record("clean", np.ones(8, bool), {})
    results.corrupted = Corruptions("C", 8, {"fog": "0" * 64})
    for _ in range(5):
        results.corrupted.record("fog", np.ones(8, bool))
    results.save(tmp_path)
    told = json.loads((tmp_path / "results.json").read_text())
    assert read_record(tmp_path / "results.json").corruptions == told["corruptions"]
    change(told["corruptions"])
    told.pop("checksum")
    (tmp_path / "results.json").write_text(json.dumps(told))
    with pytest.raises(ValueError):
        read_record(tmp_path / "results.json")
