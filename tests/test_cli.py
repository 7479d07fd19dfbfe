"""The command line: help from the fields, and bad input that costs one clear line, exit code 2 and nothing on disk."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import tomllib

import datasets
import numpy as np
import pytest
import torch
from conftest import PYTHON, ROOT, python
from PIL import Image

from piat_hub import cli
from piat_hub.cli.flags import Parser, add_fields
from piat_hub.cli.signals import go_on
from piat_hub.config import Diverged, EvalConfig, RunOptions, TrainConfig, recipes
from piat_hub.evaluation import suites

BAD = [
    ("train resnet18-cifar1", "unknown recipe 'resnet18-cifar1' .did you mean 'resnet18-cifar10'"),
    ("train --method trade", "unknown method 'trade'.*known: .*nmse"),
    ("train --method pgdat", "unknown method 'pgdat' .did you mean 'pgd_at'"),
    ("train --method.mo 3", "unknown argument '--method.mo'; there is --method.mu;"),
    ("predict MODEL x.png --top 0", "--top must be at least 1, got 0"),
    ("train --method.mu many", "'many' is not a number"),
    ("train --epoch 3", "unknown argument '--epoch' .did you mean '--epochs'"),
    ("train --epochs three", "invalid int value: 'three'"),
    ("train --epochs 3 resnet20-cifar10", "the recipe comes first"),
    ("train --backbone resnet-18", "unknown backbone 'resnet-18'.*cifar_resnet18"),
    ("train --eps 2", r"eps must be in \(0, 1\] for Linf, got 2.0"),
    ("train --eps -0.1", "eps must be > 0"),
    ("train --eps 8/0", "'8/0' is not a number; write a fraction like 8/255"),
    ("train --step-size 0.5", r"step-size must be in \(0, 2 eps\]"),
    ("train --step-size 0", "step-size must be > 0"),
    ("train --norm linf", "norm 'linf' is unknown .did you mean 'Linf'"),
    ("train --epochs 2 --clean-epochs 2", "leave no adversarial epoch; lower --clean-epochs"),
    ("train --interpolation piad", "interpolation 'piad' is unknown .did you mean 'piat'"),
    ("train --dataset digit", "no data set 'digit' .did you mean 'digits'"),
    ("train --dataset /nope", "no data set '/nope'"),
    ("train --dataset nobody/nothing", "pass --dataset DIR with a local copy"),
    ("train --holdout 2000", "too few for holdout=2000"),
    ("train --resume --output none", "none holds no run to resume; leave out --resume"),
    ("evaluate", "the following arguments are required: MODEL"),
    ("evaluate nowhere", "there is no such directory, and 'nowhere' is no Hub id"),
    ("evaluate nobody/nothing", "no config.json for 'nobody/nothing'"),
    ("evaluate empty", "empty is no model: it has no config.json"),
    ("evaluate README", "README is a file; MODEL is a run directory"),
    ("evaluate nobody.nothing:Net --dataset digits", "no model 'nobody.nothing:Net'"),
    ("train digits --image-column nope", "digits are no table; leave out --image-column and --label-column"),
    ("import f.pt --layout cifar_resnet8 --img-size 0", "img-size must be >= 1, got 0"),
    ("train photos", "no data set is named; give --dataset DIR, the folder of your pictures, or a Hub id"),
    ("train vit-small-cvst-imagenet --sched constant --dataset trio", "give one of them, or --min-lr 0"),
    ("import f.pt --layout robustbench-wrn --zoo mine.toml", "--zoo goes with --name; give it too, or leave --zoo out"),
    ("figures r --filterwise --only epochs", "--filterwise is of the landscape, which --only leaves out"),
    ("demo --export new --port 7000", "--export writes the page and opens none; leave out --port and --no-browser"),
    ("evaluate m --attacks pgd-20", "unknown attack 'pgd-20' .did you mean 'pgd20'"),
    ("evaluate m --n 401", "n=401 is larger than the split of digits, which has 400 images"),
    ("evaluate m --eps 1.5", r"eps must be in \(0, 1\]"),
    ("evaluate m --step-size 1", "step-size must be in"),
    ("evaluate m --norm L2", "norm L2 needs a budget of its own, Linf eps 0.15 says nothing of it; give --eps too"),
    ("evaluate m --checkpoint best", "it has no model_best.safetensors"),
    ("evaluate m --checkpoint bst", "checkpoint 'bst' is unknown .did you mean 'best'"),
    ("evaluate m --dataset trio", "the model has 10 classes and trio has 3; name the data it was trained for"),
    ("train digits --private", "go with --push-to-hub"),
    ("export m --output README", "README cannot be made: README is a file; name another --output"),
    ("evaluate m nowhere", "'nowhere' is no Hub id"),
    ("evaluate math:pi --dataset digits --checkpoint best", "leave out --checkpoint"),
    ("evaluate m --output README", "README is a file; name another --output"),
    ("train --output README/sub", "README is a file; name another --output"),
    (
        "train --backbone coat_tiny",
        "no small-image rule for the family of 'coat_tiny'; choose from",
    ),
    ("train --dataset bytes", "row 1 is no image"),
    ("train --dataset sizes", "mixes image sizes: 8x8 and 9x9"),
    ("train --dataset lone", "holds a single class"),
    ("train --dataset nolabel", "has no label column among image, year; name one with --label-column"),
    ("train --dataset noimage", "has no image column among label; name one with --image-column"),
    ("evaluate m m --output o", "--output takes the results of one MODEL"),
    ("card m2", "m2 is no run directory"),
    ("trian", "unknown command 'trian' .did you mean 'train'"),
    ("study lamda", "unknown study 'lamda' .did you mean 'lambda'"),
    ("study lambda digit", "unknown recipe 'digit' .did you mean 'digits'"),
    ("study lambda --seeds 0", "seeds must be >= 1"),
    ("study --seeds 1 lambda", "NAME and RECIPE come first: piat study NAME .RECIPE. --seeds"),
    ("study lambda --epochs 2 --clean-epochs 2", "leave no adversarial epoch"),
    ("study mu digits --attack clean", "unknown argument '--attack' .did you mean '--attacks'"),
    ("study mu --output README", "README is a file; name another --output"),
    ("figures", "the following arguments are required: RUN"),
    ("figures m2", "m2 is no run directory"),
    ("figures m --only landscap", "invalid choice: 'landscap'"),
    ("figures m --output README", "README is a file; name another --output"),
    ("report m2", "m2 is no run directory"),
    ("report m --output empty", "empty is a directory; name a file with --output"),
    ("figures m --threads 0", "threads must be >= 1"),
    ("report m --output README/report.html", "README is a file; name another --output"),
    ("label m trio", "the following arguments are required: --output"),
    ("label m nowhere --output o", "no data set 'nowhere'"),
    ("label m2 trio --output o", "'m2' is no Hub id"),
    ("label m trio --output m", "m holds config.json already; name another --output"),
    ("label m trio --output README", "README is a file; name another --output"),
    (
        "label m trio --output o --keep-confident 0",
        "--keep-confident must be in .0, 1., got 0; 0.5 keeps the surer half",
    ),
    ("label m trio --output o --keep-confident 1.5", "--keep-confident must be in .0, 1., got 1.5"),
    ("label m trio --output o --batch-size 0", "--batch-size must be at least 1, got 0"),
    ("label m noimage --output o", "has no image column among label; name one with --image-column"),
    ("label m trio --output o --split tset", "trio has no split 'tset' .did you mean 'test'"),
]


GREY = Image.fromarray(np.full((8, 8), 7, np.uint8))
CLASSES = datasets.ClassLabel(names=["a", "b", "c"])
DATA = {  # name -> images, label column, labels, its feature
    "trio": ([GREY] * 3, "label", [0, 1, 2], CLASSES),
    "bytes": ([GREY, {"bytes": b"no image", "path": None}, GREY], "label", [0, 1, 2], CLASSES),
    "sizes": ([GREY, GREY.resize((9, 9)), GREY], "label", [0, 1, 2], CLASSES),
    "lone": ([GREY] * 3, "label", [1, 1, 1], CLASSES),
    "nolabel": ([GREY] * 3, "year", [1, 2, 3], datasets.Value("int64")),
    "noimage": (None, "label", [0, 1, 2], CLASSES),
}


def bad_data(folder, images, column, labels, feature):
    """A directory with a train and a test split."""
    columns, features = {column: labels}, {column: feature}
    if images:
        columns, features = {"image": images} | columns, {"image": datasets.Image()} | features
    folder.mkdir()
    for split in ("train", "test"):
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(str(folder / f"{split}.parquet"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved, untrained digits model."""
    from piat_hub import create_model
    from piat_hub.config import recipes
    from piat_hub.hub.save import save_pretrained

    names = tuple("0123456789")
    net = create_model("cifar_resnet8", in_chans=1)
    return save_pretrained(net, tmp_path_factory.mktemp("m"), config=recipes.get("digits"), label_names=names)


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(line, message, model, tmp_path, capsys):
    (tmp_path / "m").symlink_to(model)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README").write_text("text")
    for name in set(line.split()) & set(DATA):
        bad_data(tmp_path / name, *DATA[name])
    before = sorted(p.name for p in [*tmp_path.iterdir(), *model.iterdir()])
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()
    assert len(last) == 1 and out == ""

    assert last[0].startswith(f"piat {line.split()[0]}: error: ") and re.search(message, last[0])
    assert sorted(p.name for p in [*tmp_path.iterdir(), *model.iterdir()]) == before


def test_an_existing_run_costs_nothing(small_digits, trained, tmp_path, capsys):
    trained(small_digits(epochs=2))
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    assert cli.main(["train", "--output", "r"]) == 2
    assert "r already holds a run; add --resume to go on with it, or name another --output" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == before


def test_divergence_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def diverge(*_):
        raise Diverged("the loss is nan at epoch 3, step 2 of 4")
        yield

    monkeypatch.setattr("piat_hub.training.run.train", diverge)
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == "piat train: error: the loss is nan at epoch 3, step 2 of 4\n"


def test_a_bug_is_not_hidden_as_bad_input(monkeypatch):
    def broken(*_):
        raise ValueError("a bug")
        yield

    monkeypatch.setattr("piat_hub.training.run.train", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["train"])


def read_config(monkeypatch, line):
    """What `train` would run for a command line."""
    got = []
    monkeypatch.setattr("piat_hub.cli.train.run_training", lambda config, options: got.append((config, options)))
    assert cli.main(line.split()) == 0
    return got[0]


def test_flags_become_fields(monkeypatch):
    line = (
        "train resnet18-cifar100 --dataset DIR --method nmse --method.mu 3 --interpolation constant "
        "--interpolation.constant 0.7 --interpolation.bn copy "
        "--eps 4/255 --step-size 1/255 --steps 7 --norm Linf --epochs 12 --lr 0.05 "
        "--train-size 5000 --no-flip --seed 3 --output out --resume --threads 2 --mixed-precision bf16"
    )
    config, options = read_config(monkeypatch, line)
    assert (config.recipe, config.dataset, config.backbone) == ("resnet18-cifar100", "DIR", "cifar_resnet18")
    assert config.method_args == {"mu": 3.0} and config.interpolation.kind == "constant"
    assert (config.interpolation.constant, config.interpolation.bn) == (0.7, "copy")
    assert (config.threat_model.eps, config.step_size, config.attack.steps) == (4 / 255, 1 / 255, 7)
    assert (config.epochs, config.lr, config.train_size, config.flip, config.seed) == (12, 0.05, 5000, False, 3)
    assert config.weight_decay == 3.5e-3 and config.mixed_precision == "bf16"
    assert options == RunOptions(output="out", resume=True, threads=2)


def test_the_default_is_the_digits_recipe(monkeypatch):
    from piat_hub.config import recipes

    assert read_config(monkeypatch, "train") == (recipes.get("digits"), RunOptions())


def test_copies_and_perturbation_compose_by_flags(monkeypatch):
    config, _ = read_config(monkeypatch, "train --interpolation piat --ema 0.999 --swa 3/4 --awp 0.005")
    assert (config.interpolation.kind, config.ema, config.swa, config.awp) == ("piat", 0.999, 0.75, 0.005)
    assert config.swa_start == 61 and config.epochs == 80


@pytest.mark.parametrize("command", ["train", "evaluate", "card", "list"])
def test_help_exits_with_zero(command):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0


def test_help_shows_every_field_with_doc_and_default(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "resnet18-cifar10", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for cls in (TrainConfig, RunOptions):
        for f in dataclasses.fields(cls):
            if f.metadata.get("flag") is not None and "prefix" not in f.metadata:
                assert f"--{f.metadata['flag'] or f.name.replace('_', '-')}" in text
                assert " ".join(f.metadata["doc"].split()) in text
    assert "(default: 8/255)" in text and "(default: 120)" in text and "--method.mu" in text and "[pixels]" in text
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f.metadata["doc"] in text for f in dataclasses.fields(EvalConfig) if f.metadata["flag"] is not None)


def test_list_and_bare_command(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "resnet18-cifar10" in out and "nmse" in out and "cifar_wrn_32_10" in out
    (asked,) = (f.metadata["doc"] for f in dataclasses.fields(EvalConfig) if f.name == "attacks")
    assert all(name in asked and name in out for name in suites.names())  # the help's words are typed by hand
    assert cli.main([]) == 2


@pytest.mark.slow
def test_train_then_evaluate_as_a_user_would(tmp_path):
    """The two scripts under `accelerate launch` and python, in real processes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", str(ROOT / "train.py")]
    flags = ["--epochs", "3", "--train-size", "256", "--holdout", "50", "--threads", "1", "--output", "r"]
    trained = subprocess.run([*launch, *flags], capture_output=True, text=True, env=environment, check=True)
    lines = trained.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["data", "epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert lines[0] == "data: 256 images on cpu, 0.0 MiB decoded"
    assert "held-out clean" in lines[3] and "lam 0.308" in lines[3] and "images/s" in lines[3]
    assert trained.stderr == ""  # no progress bar and no library's warnings where there is no terminal
    asked = ["r", "--attacks", "clean", "pgd3", "--n", "40", "--threads", "1"]
    measured = python(ROOT / "evaluate.py", *asked, check=True)
    results = json.loads((tmp_path / "r/results.json").read_text())
    assert f"{100 * results['attacks']['pgd3']['accuracy']:.2f} %" in measured.stdout
    assert "r: Linf eps 0.15, 40 images of digits (test), last" in measured.stdout
    assert measured.stderr == ""
    again = python(ROOT / "train.py", *flags)
    assert again.returncode == 2 and "train.py: error: r already holds a run" in again.stderr


def test_resuming_a_finished_run_says_so(small_digits, do_train, tmp_path, capsys):
    flags = "--epochs 2 --train-size 128 --holdout 20 --threads 1 --output r"
    assert cli.main(["train", *flags.split()]) == 0
    assert "nothing left to do" not in capsys.readouterr().out
    assert cli.main(["train", *flags.split(), "--resume"]) == 0
    assert "nothing left to do: all 2 epochs are done" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_train_the_same_run_directory(tmp_path, monkeypatch):
    """DDP as torchrun and Accelerate launch it on CPU, untold that it is one: one set of files, checked by both, resumable."""
    if not torch.accelerator.is_available():
        monkeypatch.delenv("ACCELERATE_USE_CPU")
    flags = "--epochs 2 --clean-epochs 0 --train-size 128 --holdout 50 --steps 2 --threads 1 --output r"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train.py", *flags.split()]
    done = python(*words, check=True)
    assert done.stdout.count("epoch 2/2") == 1 and done.stdout.count("card ") == 1
    timing = [json.loads(line) for line in (tmp_path / "r/timing.jsonl").read_text().splitlines()]
    assert [t["processes"] for t in timing] == [2, 2]
    files = ("model.safetensors", "model_best.safetensors", "metrics.jsonl")
    whole = {name: (tmp_path / "r" / name).read_bytes() for name in files}
    for path in (tmp_path / "r").rglob("*"):  # as if killed in the first epoch, then resumed
        if path.is_file() and path.name != "config.json":
            path.unlink()
    python(*words, "--resume", check=True)
    assert {name: (tmp_path / "r" / name).read_bytes() for name in files} == whole

    asked = ["r", "--attacks", "pgd3", "mim2", "--n", "90", "--batch-size", "20", "--threads", "1", "--output"]
    flags = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = ["-m", "accelerate.commands.launch", *flags.split()]  # torchrun takes --n for its own
    two = python(*launch, ROOT / "evaluate.py", *asked, "two", check=True)
    assert two.stdout.count("PGD-3") == 1
    assert cli.main(["evaluate", *asked, "one"]) == 0
    one, both = (dict(np.load(tmp_path / where / "verdicts.npz")) for where in ("one", "two"))
    assert one.keys() == both.keys() and all(np.array_equal(one[k], both[k]) for k in one)


def test_entry_points_name_the_same_function():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"piat": "piat_hub.cli:main"} and project["name"] == "piat-hub"
    shown = python("-m", "piat_hub", "list", check=True)
    assert "Recipes:" in shown.stdout


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("piat_hub.training.run.train", interrupted)
    assert cli.main(["train"]) == 130  # nothing of it is there yet
    assert capsys.readouterr().err == "piat train: error: stopped, start it again\n"
    monkeypatch.setattr("piat_hub.evaluation.request.prepare", lambda *_: next(interrupted()))
    assert cli.main(["evaluate", "my run"]) == 130
    assert "stopped, what is finished is saved: go on with " in (said := capsys.readouterr().err)
    assert said.endswith("evaluate 'my run' --resume\n")
    monkeypatch.setattr("piat_hub.cli.draw.figures", lambda *_: next(interrupted()))
    assert cli.main(["figures", "r"]) == 130  # it has no --resume
    assert capsys.readouterr().err == "piat figures: error: stopped, start it again\n"


@pytest.mark.parametrize(
    ("program", "processes", "command", "argv", "line"),
    [
        (
            "train.py",
            1,
            "train",
            ["digits", "--output", "a b"],
            ".venv/bin/python train.py digits --output 'a b' --resume",
        ),
        ("x/piat_hub/__main__.py", 1, "train", ["--resume"], ".venv/bin/python -m piat_hub train --resume"),
        (".venv/bin/piat", 1, "evaluate", ["r"], ".venv/bin/piat evaluate r --resume"),
        ("shell/piat", 1, "evaluate", ["r"], "piat evaluate r --resume"),
        ("shell/piat", 1, "study", ["mu"], "piat study mu"),
        ("train.py", 2, "train", ["digits"], "the same launcher and train.py digits --resume"),
    ],
)
def test_the_advice_is_a_line_that_the_shell_takes(monkeypatch, tmp_path, program, processes, command, argv, line):
    for path in (".venv/bin/python", ".venv/bin/piat", "shell/piat"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "shell"))
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setattr(sys, "argv", [program if program.endswith(".py") else str(tmp_path / program)])
    assert go_on(command, argv) == f"go on with {line}"


def test_no_flag_but_n_is_one_that_torchrun_takes_for_an_abbreviation_of_its_own():
    """The guide on several GPUs says how --n gets past it."""
    from torch.distributed.run import get_args_parser

    theirs, taken = get_args_parser()._option_string_actions, set()
    for config in (EvalConfig(), recipes.get("digits"), RunOptions()):
        parser = Parser(add_help=False)
        add_fields(parser, config)
        taken |= {flag for flag in parser._option_string_actions if sum(their.startswith(flag) for their in theirs) > 1}
    assert taken == {"--n"}


@pytest.mark.slow
def test_compare_predict_sweep_checks_and_classes(small_digits, trained, tmp_path, capsys):
    from PIL import Image

    from piat_hub import data

    for seed in (0, 1):
        trained(small_digits(seed=seed), f"r{seed}")
    flags = "--attacks pgd2 cw2 --n 40 --sweep-eps 0.05 0.1 --per-class --checks --surrogate r1"
    assert cli.main(["evaluate", "r0", "r1", *flags.split()]) == 0
    shown = capsys.readouterr().out
    written = json.loads((tmp_path / "r0/results.json").read_text())
    assert [point["eps"] for point in written["sweep"]] == ["0.05", "0.1"]
    for point in written["sweep"]:
        assert f"{100 * point['attacks']['cw2']['accuracy']:.2f} %" in shown
    assert "worst case of these" in shown and "class" in shown and "transfer" in shown
    assert {c["check"] for c in written["checks"]} >= {"steps", "transfer"} and written["checks"][0]["n"] == 40
    assert (tmp_path / "r0/sweep.png").read_bytes()[:4] == b"\x89PNG"
    card = (tmp_path / "r0/README.md").read_text()
    for result in written["checks"]:
        assert result["found"] in card
    assert cli.main(["compare", "r0", "r1"]) == 0
    shown = capsys.readouterr().out
    assert "McNemar" in shown and "CW-2" in shown
    test = data.load("digits", "test")
    Image.fromarray(test.images[0, 0].numpy()).resize((64, 64)).convert("RGB").save("digit.png")
    assert cli.main(["predict", "r0", "digit.png"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("digit.png: ") and line.count("%") == 3
    for name in ("d/b/2.PNG", "d/a.png", "d/.hidden.png", "d/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "digit.png").read_bytes())
    assert cli.main(["predict", "r0", "d", "digit.png"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [one.split(": ")[0] for one in shown] == ["d/a.png", "d/b/2.PNG", "digit.png"]
    assert {one.split(": ")[1] for one in shown} == {line.strip().split(": ")[1]}
    (tmp_path / "d/0.jpg").write_text("no image")
    (tmp_path / "d/thumbs.png").mkdir()
    assert cli.main(["predict", "r0", "d"]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines() == shown[:2]
    assert "1 of 3 files are missing above; d/0.jpg is not an image file" in told.err
    (tmp_path / "d/empty").mkdir()
    assert cli.main(["predict", "r0", "d/empty"]) == 2
    assert "d/empty has no picture in it" in capsys.readouterr().err
    (tmp_path / "text.png").write_text("no image")
    assert cli.main(["predict", "r0", "text.png"]) == 2
    assert "text.png is not an image file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_time_budget_stops_cleanly_and_says_what_was_run(
    small_digits, trained, do_evaluate, tmp_path, capsys, monkeypatch
):
    trained(small_digits())
    whole = do_evaluate("r", "pgd2", "mim2", n=60, batch_size=10, output="whole").results
    ticks = iter([0.0, *[1.0] * 3, *[100.0] * 1000])
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks, 100.0))
    flags = ["--attacks", "pgd2", "mim2", "--n", "60", "--batch-size", "10"]
    assert cli.main(["evaluate", "r", *flags, "--time-budget", "1m"]) == 0
    shown = capsys.readouterr().out
    assert "the time budget of 1m is spent: " in shown and "mim2; go on with --resume" in shown
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "r", *flags, "--resume"]) == 0
    written = json.loads((tmp_path / "r/results.json").read_text())
    assert written["attacks"]["mim2"]["correct"] == whole.attacks["mim2"]["correct"]
    sweep = [*flags, "--sweep-eps", "0.05", "0.1", "--checks", "--resume"]
    ticks = iter([0.0, *[1.0] * 2, *[100.0] * 1000])
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks, 100.0))
    assert cli.main(["evaluate", "r", *sweep, "--time-budget", "1m"]) == 0
    assert "the time budget of 1m is spent: eps 0.1 not done; the same command goes on" in capsys.readouterr().out
    ticks = iter([0.0, *[1.0] * 4, *[100.0] * 1000])
    assert cli.main(["evaluate", "r", *sweep, "--time-budget", "1m"]) == 0
    assert "the time budget of 1m is spent: no check is begun; the same command goes on" in capsys.readouterr().out
    assert cli.main(["evaluate", "r", "--time-budget", "soon"]) == 2
    assert "'soon' is no length of time; write 90s, 30m or 1h30m" in capsys.readouterr().err


OWN = """
import torch
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
def noisy():
    net = model()
    net.register_forward_pre_hook(lambda module, x: (x[0] + 0.2 * torch.randn_like(x[0]),))
    return net
def steps(x):
    return (8 * x).round() / 8
def attack(model, x, y, eps):
    return (x + eps * torch.sign(torch.rand_like(x) - 0.5)).clamp(0, 1)
def beyond(model, x, y, eps):
    return (x + 2 * eps).clamp(0, 1)
"""


def test_a_random_model_and_an_attack_of_ones_own(tmp_path, capsys):
    (tmp_path / "own_code.py").write_text(OWN)
    flags = "--dataset digits --n 50 --eps 0.1 --attacks clean own_code:attack"
    assert cli.main(["evaluate", "own_code:noisy", *flags.split(), "--output", "a"]) == 0
    shown = capsys.readouterr().out
    assert "\nnote: two passes of the model over the same images differ: " in shown and "own_code:attack  " in shown
    written = json.loads((tmp_path / "a/results.json").read_text())
    assert len(written["notes"]) == 1 and written["attacks"]["own_code:attack"]["whole"] is True
    assert cli.main(["evaluate", "own_code:model", *flags.replace(":attack", ":beyond").split()]) == 2
    assert "own_code:beyond left its budget: it moved an image by 0.2, the threat model is" in capsys.readouterr().err
    sys.modules.pop("own_code")


@pytest.mark.slow
@pytest.mark.parametrize("computed", [False, True])
def test_bf16_where_a_cpu_only_imitates_it_is_warned_of(monkeypatch, tmp_path, capsys, computed):
    import torch

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: computed)
    slow, said = "computes no bf16, and torch's imitation is many times slower than fp32", 1 - computed
    line = "train digits --train-size 64 --holdout 32 --epochs 1 --clean-epochs 0 --batch-size 32 --steps 1 --output r"
    assert cli.main([*line.split(), "--mixed-precision", "bf16"]) == 0
    assert capsys.readouterr().out.count(slow) == said
    line = "evaluate r --attacks pgd1 --n 8 --output"
    assert cli.main([*line.split(), "e", "--search-precision", "bf16"]) == 0
    assert capsys.readouterr().out.count(slow) == said
    assert cli.main([*line.split(), "f"]) == 0 and slow not in capsys.readouterr().out


@pytest.mark.slow
def test_a_part_without_gradient_before_the_model(tmp_path, capsys):
    (tmp_path / "own_code.py").write_text(OWN)
    flags = "--dataset digits --n 50 --eps 0.1 --attacks clean own_code:attack --output b"
    assert cli.main(["evaluate", "own_code:model", *flags.split(), "--through", "own_code:steps", "--checks"]) == 0
    shown = capsys.readouterr().out
    assert "note: the gradient is zero at each of the first 8 images" in shown and "WARNING through: PGD-100" in shown
    assert cli.main(["evaluate", "own_code:model", *flags.split()]) == 2  # another question
    assert "results for weights_sha256 " in capsys.readouterr().err
    assert cli.main(["evaluate", "own_code:model", *flags.split(), "--through", "own_code:none"]) == 2
    assert "no front part 'own_code:none'" in capsys.readouterr().err
    sys.modules.pop("own_code")


def test_normalised_models_and_timms_own(tmp_path, monkeypatch, capsys):
    import torch

    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def model():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = "--dataset digits --n 50 --attacks clean --eps 0.1"
    assert cli.main(["evaluate", "mine:model", *flags.split(), "--mean", "0.5", "--std", "0.25", "--output", "a"]) == 0
    found = json.loads((tmp_path / "a/results.json").read_text())["attacks"]["clean"]["correct"]
    from mine import model

    from piat_hub import data

    split = data.load("digits", "test").first(50)
    with torch.no_grad():
        assert found == int((model()((split.images / 255 - 0.5) / 0.25).argmax(1) == split.labels).sum())
    capsys.readouterr()
    other = ["--mean", "0.4", "--std", "0.25", "--output", "a"]
    assert cli.main(["evaluate", "mine:model", *flags.split(), *other]) == 2
    assert "holds results for weights_sha256" in capsys.readouterr().err  # never another normalisation's figures
    assert cli.main(["evaluate", "mine:model", *flags.split(), "--mean", "0.5"]) == 2
    assert "must be as many numbers each" in capsys.readouterr().err
    assert cli.main(["evaluate", "hf-hub:nobody/nothing", *flags.split()]) == 2
    assert "no config.json for 'nobody/nothing'" in capsys.readouterr().err


def test_what_evaluate_did_not_write_is_not_listed(small_digits, trained, tmp_path, capsys):
    trained(small_digits(epochs=2), "r")
    (tmp_path / "mine").mkdir()
    for name in ("README.md", "corruptions.png", "sweep.png", "curves.png"):
        (tmp_path / "mine" / name).touch()
    assert (
        cli.main(
            ["evaluate", "local-dir:r", "--dataset", "digits", "--attacks", "clean", "--n", "20", "--output", "mine"]
        )
        == 0
    )
    assert capsys.readouterr().out.split("\n")[-3:] == ["results  mine/results.json", "verdicts mine/verdicts.npz", ""]


def test_a_licence_given_to_a_run_stays_when_it_goes_on(tmp_path):
    flags = "train digits --epochs 2 --clean-epochs 0 --train-size 64 --holdout 32 --steps 2 --threads 1 --output r"
    assert cli.main(flags.split()) == 0
    assert '"license"' not in (tmp_path / "r/config.json").read_text()
    assert cli.main(["card", "r", "--license", "mit"]) == 0
    assert cli.main([*flags.split(), "--resume"]) == 0
    assert json.loads((tmp_path / "r/config.json").read_text())["pretrained_cfg"]["license"] == "mit"
    assert "\nlicense: mit\n" in (tmp_path / "r/README.md").read_text()


def test_none_takes_away_what_a_recipe_has(monkeypatch, capsys):
    got = []
    monkeypatch.setattr("piat_hub.cli.train.run_training", lambda config, options: got.append(config))
    words = "train photos --dataset d --backbone cifar_resnet8 --init-from none --ema none --img-size none"
    assert cli.main(words.split()) == 0
    assert (got[0].init_from, got[0].ema, got[0].img_size) == (None, None, None)
    assert cli.main(["train", "photos", "--dataset", "d", "--ema", "nine"]) == 2
    assert "'nine' is not a number" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", "photos", "--help"])
    assert "(default: imagenet, or none)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_reader_that_has_had_enough_is_no_error():
    command = f"{PYTHON} -m piat_hub list | head -1"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1
