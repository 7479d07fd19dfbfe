"""study.py: which runs a study is made of, and that a sweep of real processes can be killed, goes on, and ends in a table."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PYTHON, ROOT, another, changed, made_run, once

import piat_hub
from piat_hub import cli, data, methods
from piat_hub.cli import study
from piat_hub.config import AttackConfig, InputError, MixingConfig, StudyOptions, recipes
from piat_hub.hub import card
from piat_hub.hub.save import save_config
from piat_hub.records import groups
from piat_hub.records.files import WEIGHTS
from piat_hub.records.groups import CURVES, mean_interval, read_run
from piat_hub.records.labels import command
from piat_hub.records.published import PAPER_ATTACKS, method_of, paper
from piat_hub.study import studies, sweep
from piat_hub.study.sweep import Busy, Done, Member, members_of, next_command, run_members
from piat_hub.study.table import reference, table_rows, table_text, write_table
from piat_hub.training.interpolation import g

DIGITS = recipes.get("digits")


def member(name, config=DIGITS):
    return Member(Path("out") / name, config, 400)


def says(text, code=0):
    """A command that prints a line."""
    return [sys.executable, "-c", f"import sys; print({text!r}, flush=True); sys.exit({code})"]


def test_lambda_mu_and_averaging_change_only_what_they_are_about():
    found = studies.STUDIES["lambda"](DIGITS)
    assert list(found) == ["nmse-none", *(f"nmse-{lam}" for lam in (0.1, 0.3, 0.5, 0.7, 0.9)), "nmse-piat"]
    assert found["nmse-piat"] == DIGITS and found["nmse-0.3"].interpolation.constant == 0.3
    assert all(dataclasses.replace(c, interpolation=DIGITS.interpolation) == DIGITS for c in found.values())
    laws = {name: c.interpolation for name, c in studies.STUDIES["speed"](DIGITS).items()}
    assert [law.kind for law in laws.values()] == ["none"] + 4 * ["piat"]
    assert laws["nmse-piat-1n"] == DIGITS.interpolation
    for s in (0.0625, 0.25, 4):
        law = laws[f"nmse-piat-{s:g}n"]
        assert [g(n, a=law.a, b=law.b, c=law.c, d=law.d) for n in range(1, 40)] == [g(s * n) for n in range(1, 40)]
    assert {name: c.method_args for name, c in studies.STUDIES["mu"](DIGITS).items()} == {
        "nmse-piat-mu3": {"mu": 3.0},
        "nmse-piat-mu4": {"mu": 4.0},
        "nmse-piat": {},
        "nmse-piat-mu6": {"mu": 6.0},
    }
    averages = studies.STUDIES["averaging"](DIGITS)
    kinds = {name: (c.interpolation.kind, c.interpolation.bn, c.ema, c.swa) for name, c in averages.items()}
    assert kinds == {
        "nmse-none": ("none", "interpolate", None, None),
        "nmse-piat": ("piat", "interpolate", None, None),
        "nmse-piat-bn-copy": ("piat", "copy", None, None),
        "nmse-piat-bn-recalibrate": ("piat", "recalibrate", None, None),
        "nmse-ema": ("none", "interpolate", 0.999, None),
        "nmse-swa": ("none", "interpolate", None, 0.5),
    }


def test_methods_are_all_there_with_as_many_updates():
    found = studies.STUDIES["methods"](DIGITS)
    assert {name.rpartition("-")[0] for name in found} == set(methods.names()) and len(found) == 2 * len(
        methods.names()
    )
    assert found["free_at-piat"].epochs == 10 and found["mart-none"].epochs == 80
    assert found["nmse-none"].interpolation.kind == "none"


def test_clean_epochs_are_the_recipes_and_none():
    found = studies.STUDIES["clean-epochs"](DIGITS)
    assert len(found) == 2 * (len(methods.names()) - 1)
    assert found["score-none-clean7"].warmup == 7 and found["trades-none-clean0"].warmup == 0
    assert found["free_at-none-clean1"].epochs == 10  # as many updates as the others
    assert all(config.interpolation.kind == "none" for config in found.values())


@pytest.fixture
def no_data(monkeypatch):
    """Ten test images of ten classes, whatever the data set is called."""
    ten = data.load("digits", "test").first(10)
    monkeypatch.setattr("piat_hub.data.load_encoded", lambda *_: ten)


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table5"])
def test_a_tables_members_are_its_rows(name, no_data):
    rows = [row for row in paper() if row["table"] == name[-1]]
    bases = [recipes.get(r) for r in studies.default_recipes(name)]
    members = members_of(name, bases, studies.default_attacks(name), StudyOptions(seeds=1))
    assert all(member.n == 10 for member in members)
    beside = {
        (m.config.backbone, m.config.dataset, m.directory.name): groups.beside(m.config, name[-1]) for m in members
    }
    for row in rows:
        method, kind = method_of(row["method"])
        backbone = {"resnet18": "cifar_resnet18", "wrn-32-10": "cifar_wrn_32_10"}[row["architecture"]]
        found = beside[backbone, row["dataset"], f"{method}-{kind}-0"]
        for key, attack in PAPER_ATTACKS.items():
            if row[key]:
                assert found[attack] == pytest.approx(float(row[key]) / 100)
    assert studies.default_attacks(name)[-1] == "aa" and studies.default_attacks("mu") == ("clean", "pgd20")


def test_recipes_that_flags_make_the_same_are_refused(no_data):
    bases = [dataclasses.replace(recipes.get(f"resnet18-{d}"), dataset="cifar10") for d in ("cifar10", "cifar100")]
    with pytest.raises(InputError, match="resnet18-cifar10 and resnet18-cifar100 are the same under these flags"):
        members_of("table1", bases, ["clean"], StudyOptions(seeds=1))


def test_a_members_command_is_the_one_that_its_card_tells(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = dataclasses.replace(studies.STUDIES["mu"](DIGITS)["nmse-piat-mu3"], seed=2, epochs=7)
    words = next_command(member("m", config), ["clean"], StudyOptions(track_test=True))
    assert words[:4] == [sys.executable, "-m", "piat_hub", "train"]
    assert words[4:] == [
        *("digits", "--epochs", "7", "--seed", "2", "--method.mu", "3.0", "--output", "out/m", "--threads", "1"),
        "--track-test",
    ]
    assert set(command(config).split()[3:]) < set(words)


def test_another_run_in_a_members_place_is_refused_before_anything_runs(small_digits):
    law = dataclasses.replace(DIGITS.interpolation, kind="none")
    model, directory = piat_hub.create_model("cifar_resnet8", in_chans=1), Path("out/nmse-none-0")
    directory.mkdir(parents=True)
    about = {"label_names": [str(k) for k in range(10)], "input_size": (1, 8, 8)}
    save_config(model, directory, config=small_digits(interpolation=law), **about)
    with pytest.raises(InputError, match=r"out/nmse-none-0 holds another run \(.*--epochs.*name another --output"):
        members_of("lambda", [DIGITS], ["clean"], StudyOptions(output="out"))
    with pytest.raises(InputError, match="unknown study 'lamda' .did you mean 'lambda'"):
        members_of("lamda", [DIGITS], ["clean"], StudyOptions())
    with pytest.raises(InputError, match="unknown attack 'pgd2o'"):
        members_of("mu", [DIGITS], ["clean", "pgd2o"], StudyOptions())
    with pytest.raises(InputError, match="n=401 is larger than the split of digits"):
        members_of("mu", [DIGITS], ["clean"], StudyOptions(n=401))


def test_a_member_that_was_measured_on_other_images_is_refused_before_anything_runs(evaluated):
    sweep._refuse_other_results(evaluated, 30)
    with pytest.raises(InputError, match="was measured on the first 30 images, this study on 40; give --n 30, or move"):
        sweep._refuse_other_results(evaluated, 40)
    content = json.loads((evaluated / "results.json").read_text())
    content["threat_model"]["eps"] = "0.1"
    (evaluated / "results.json").write_text(json.dumps({k: v for k, v in content.items() if k != "checksum"}))
    with pytest.raises(
        InputError, match="measured on digits .test., Linf eps 0.1, this study is of digits, Linf eps 0.15; move"
    ):
        sweep._refuse_other_results(evaluated, 30)


@pytest.mark.parametrize(
    ("changes", "member"),
    [
        ({"mixing": MixingConfig(smoothing=0.1)}, "las_at-none-0"),
        ({"mixing": MixingConfig(mixup=0.2)}, "fat-none-0"),
        ({"accumulation": 2}, "free_at-none-0"),
        ({"attack": AttackConfig(crafting="apgd")}, "fat-none-0"),
    ],
)
def test_what_a_members_training_would_refuse_is_refused_before_anything_runs(changes, member):
    base = dataclasses.replace(DIGITS, **changes)
    with pytest.raises(InputError, match=f"member {member} of the study cannot be trained: "):
        members_of("methods", [base], ["clean"], StudyOptions(output="out"))


def test_another_method_does_not_keep_the_fields_of_the_recipes_own():
    base = recipes.get("preact-resnet18-cifar10-edm")
    assert base.method_args and study._base(base, {"method": base.method}).method_args == base.method_args
    assert study._base(base, {"method": "mart"}).method_args == {}


PART = """
import os, sys, time
from pathlib import Path
name, gpu = sys.argv[1], Path(os.environ["CUDA_VISIBLE_DEVICES"])
gpu.mkdir()  # fails where another is at work on it
Path(name).touch()
while not Path({"m0": "m2", "m1": "m0"}.get(name, name)).exists():
    time.sleep(0.01)
gpu.rmdir()
"""


def test_a_sweep_runs_several_at_a_time_each_on_its_own_gpu(monkeypatch):
    """m1 ends once m0 is under way, m0 once m2 is: so m2 has the GPU of m1, and at each time two are at work."""
    gpus, start_command = {}, sweep.start_command

    def start(member, command, gpu):
        gpus[member.directory.name] = gpu
        return start_command(member, command, gpu)

    monkeypatch.setattr("piat_hub.study.sweep.devices", lambda: ["3", "5"])
    monkeypatch.setattr("piat_hub.study.sweep.start_command", start)
    monkeypatch.setattr(
        "piat_hub.study.sweep.next_command",
        lambda m, *_: None if m.log.exists() else [sys.executable, "-c", PART, m.directory.name],
    )
    members = [member(f"m{k}") for k in range(4)]
    done = [event for event in run_members(members, ["clean"], StudyOptions(jobs=2)) if event]
    assert {d.member.directory.name: d.failed for d in done} == dict.fromkeys(("m0", "m1", "m2", "m3"), "")
    assert [gpus[name] for name in ("m0", "m1", "m2")] == ["3", "5", "5"]


def test_a_member_that_fails_is_told_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(
        "piat_hub.study.sweep.next_command",
        lambda m, *_: None if m.log.exists() else says(f"first\nlast of {m.directory.name}", m.directory.name == "m1"),
    )
    done = [event for event in run_members([member(f"m{k}") for k in range(3)], ["clean"], StudyOptions()) if event]
    assert {d.member.directory.name: d.failed for d in done} == {"m0": "", "m1": "last of m1", "m2": ""}


def test_a_command_that_changes_nothing_is_not_run_for_ever(monkeypatch):
    monkeypatch.setattr("piat_hub.study.sweep.next_command", lambda *_: says("all is well"))
    (done,) = [event for event in run_members([member("m0")], ["clean"], StudyOptions()) if event]
    assert done.failed == "its command came to its end and left it undone: all is well"


def test_unusable_input_ends_the_sweep(monkeypatch):
    monkeypatch.setattr("piat_hub.study.sweep.next_command", lambda *_: says("piat train: error: no such data", 2))
    with pytest.raises(InputError, match="no such data .all of it: out/m0.log"):
        list(run_members([member("m0"), member("m1")], ["clean"], StudyOptions()))
    assert not member("m1").log.exists()


def test_closing_a_sweep_stops_its_processes(monkeypatch):
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    monkeypatch.setattr("piat_hub.study.sweep.next_command", lambda *_: [sys.executable, "-c", script])
    events = run_members([member("m0")], ["clean"], StudyOptions())
    while not (member("m0").log.exists() and member("m0").log.read_text().strip()):
        next(events)
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(member("m0").log.read_text()), 0)


def test_a_member_in_anothers_hands_has_its_turn_when_that_ends(monkeypatch):
    one, events = member("m0"), []
    monkeypatch.setattr("piat_hub.study.sweep.next_command", lambda m, *_: None if m.log.exists() else says("done"))
    with contextlib.ExitStack() as held:
        held.enter_context(another(one.directory))
        for event in filter(None, run_members([one], ["clean"], StudyOptions())):
            events.append(type(event))
            assert event == Done(one) or not one.log.exists()
            held.close()
    assert events == [Busy, Done] and one.log.read_text() == "done\n"


def test_a_command_that_came_second_is_started_again(monkeypatch):
    """Of two sweeps that begin at once; the other's command prints into the same log."""
    refusal = says("piat train: error: m0 is in use by process 7 on host; wait\nepoch 1/2: loss 2.3", 2)
    commands = iter([refusal, refusal, says("done"), None])
    monkeypatch.setattr("piat_hub.study.sweep.next_command", lambda *_: next(commands))
    assert list(filter(None, run_members([member("m0")], ["clean"], StudyOptions()))) == [Done(member("m0"))]


def test_a_member_killed_between_its_metrics_and_its_weights_is_not_done(small_digits, trained):
    config = small_digits(epochs=2)
    trained(config, "out/m")
    one = Member(Path("out/m"), config, 20)
    assert one.epochs == 2 and not one.trained  # the command line writes the card last
    assert "--resume" in next_command(one, ["clean"], StudyOptions())
    card.write(one.directory)
    assert next_command(one, ["clean"], StudyOptions())[3] == "evaluate"


@pytest.fixture
def measured(small_digits, finished, do_evaluate):
    """Four members: NMSE and PIAT+NMSE, two seeds each, trained for two steps and measured on 40 images."""

    def make(folder):
        shutil.copytree(finished(config), folder)
        do_evaluate(folder, "pgd2", n=40)

    found = []
    for kind, seed in itertools.product(("none", "piat"), (0, 1)):
        law = dataclasses.replace(DIGITS.interpolation, kind=kind)
        config = small_digits(epochs=2, clean_epochs=0, train_size=64, seed=seed, interpolation=law)
        found.append(Member(once(f"{kind}-{seed}", make), config, 40))
    return found


@pytest.mark.slow
def test_rows_are_what_the_runs_say(measured):
    first, second = table_rows("lambda", measured, ["clean", "pgd2"])
    assert (first["label"], second["label"], first["seeds"]) == ("NMSE", "PIAT+NMSE", [0, 1])
    each = [[read_run(m.directory).figures("pgd2")["accuracy"] for m in measured[k : k + 2]] for k in (0, 2)]
    assert [first["pgd2"]["each"], second["pgd2"]["each"]] == each and first["pgd2"]["n"] == 40
    assert first["pgd2"]["mean"] == pytest.approx(sum(each[0]) / 2) and first["gain"] is None
    assert second["gain"] == mean_interval([b - a for a, b in zip(*each, strict=True)])
    assert first["paper"] == {} == second["paper"]


def test_a_row_is_compared_with_the_same_without_interpolation_or_its_methods_first():
    def group(config):
        return [made_run("r", config)]

    for name, expected in (
        ("methods", {"trades-piat": "trades-none", "trades-none": "trades-none"}),
        ("averaging", {"nmse-piat-bn-copy": "nmse-none", "nmse-ema": "nmse-none"}),
        ("mu", {"nmse-piat": "nmse-piat-mu3"}),
        ("table1", {"pgd_at-piat": "pgd_at-none", "nmse-piat": "nmse-piat"}),
    ):
        groups = {key: group(config) for key, config in studies.STUDIES[name](DIGITS).items()}
        for key, other in expected.items():
            assert reference(groups[key], list(groups.values())) is groups[other]


@pytest.mark.slow
def test_rows_of_the_papers_data_have_its_numbers(measured, monkeypatch):
    real = dataclasses.replace(recipes.get("resnet18-cifar10"), seed=0)
    read = read_run

    def pretend(directory):
        found = read(directory)
        config = dataclasses.replace(real, interpolation=found.config.interpolation)
        (one,) = found.measured
        record = dataclasses.replace(one.record, dataset="cifar10", threat_model=real.threat_model)
        one = dataclasses.replace(one, record=record)
        return changed(dataclasses.replace(found, config=config), metrics=found.metrics, measured=[one])

    monkeypatch.setattr("piat_hub.records.groups.read_run", pretend)
    rows = table_rows("table3", [measured[0], measured[2]], ["clean", "pgd2"])
    assert rows[1]["paper"] == pytest.approx({"clean": 0.8076, "pgd20": 0.5355, "aa": 0.4870})
    assert rows[0]["paper"]["aa"] == pytest.approx(0.466)
    text = table_text("table3", rows, ["clean", "pgd2"], {})
    assert "80.76" in text and "The paper's Table 3" not in text


@pytest.mark.slow
def test_members_that_failed_are_named_under_the_table(measured):
    lost = [Done(measured[2], "the loss is nan at epoch 1, step 2 of 4")]
    rows = table_rows("lambda", measured, ["clean", "pgd2"], lost)
    assert [row["seeds"] for row in rows] == [[0, 1], [1]] and rows[1]["gain"] is None
    path = write_table(Path("out"), "lambda", rows, ["clean", "pgd2"], lost)
    text = path.read_text()
    assert "Failed, and in no row:\n\n- piat-0: the loss is nan" in text
    assert "over seeds (Student's t), of one model (Wilson) where there is one" in text
    assert json.loads(path.with_suffix(".json").read_text())["failed"] == {"piat-0": lost[0].failed}


def row(label, seeds, published=None, **attacks):
    found = {a: {"each": [v] * seeds, "n": 400, "mean": v, "low": v - 0.1, "high": v + 0.1} for a, v in attacks.items()}
    curves = {name: [0.01, 0.03] for name in CURVES}
    return {"label": label, "seeds": list(range(seeds)), "paper": published or {}, "gain": None} | found | curves


def test_the_table_has_the_papers_numbers_beside_ours_or_below_never_mixed():
    ours = [row("PIAT", 2, clean=0.8, aa=0.45)]
    apart = table_text("table1", ours, ["clean", "aa"], {})
    above, below = apart.split("The paper's Table 1")
    assert "| PIAT | 2       | 80.00 [70.00, 90.00] | 45.00 [35.00, 55.00] |" in above and "47.08" not in above
    assert "no row above can be compared with one below" in below and "47.08" in below and "80.00" not in below
    mixed = [row("PIAT", 2, {"clean": 0.7908, "aa": 0.4708}, clean=0.8, aa=0.45)]
    mixed = table_text("table1", mixed, ["clean", "aa"], {})
    assert "The paper's Table" not in mixed and "| paper's   |" in mixed and "79.08" in mixed and "47.08" in mixed
    assert "2.00" in mixed  # the mean of the curves' figures, in points
    assert "The paper's" not in table_text("mu", ours, ["clean", "aa"], {})
    gains = [row("NMSE", 3, pgd20=0.8), row("PIAT+NMSE", 3, pgd20=0.78) | {"gain": (-0.02, -0.03, -0.01)}]
    text = table_text("lambda", gains, ["pgd20"], {})
    assert "| PGD-20 minus the reference's, points   |" in text and "-2.00 [-3.00, -1.00]" in text


ARGUMENTS = "study table5 digits --epochs 2 --train-size 64 --holdout 20 --seeds 1 --attacks clean pgd2 --n 20 --jobs 2"


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_in_a_table(capsys, monkeypatch):
    home = Path("runs/study/digits")
    monkeypatch.setattr(sys, "executable", PYTHON)  # for the members
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sweep = subprocess.Popen([PYTHON, "-m", "piat_hub", *ARGUMENTS.split()], start_new_session=True)
    with contextlib.suppress(ProcessLookupError):
        while not list(home.glob("*/metrics.jsonl")) and sweep.poll() is None:
            time.sleep(0.1)
        os.kill(sweep.pid, signal.SIGKILL)  # its members live on for a while, and hold their logs
    sweep.wait()
    assert list(home.glob("*/metrics.jsonl"))
    assert cli.main(ARGUMENTS.split()) == 0
    shown = capsys.readouterr().out
    assert "| ALP" in shown and "| NMSE" in shown and "The paper's Table 5" in shown and "lambda" not in shown
    rows = json.loads((home / "table5.json").read_text())["rows"]
    for name, line in zip(("alp-none-0", "nmse-none-0"), rows, strict=True):
        run = read_run(home / name)
        assert [m["epoch"] for m in run.metrics] == [1, 2] and line["pgd2"]["n"] == 20
        assert line["pgd2"]["each"] == [run.figures("pgd2")["accuracy"]]
    before = {p: p.stat().st_mtime_ns for p in home.glob(f"*/{WEIGHTS['last']}")}
    assert cli.main(ARGUMENTS.split()) == 0 and before == {p: p.stat().st_mtime_ns for p in before}
    assert (home / "table5.md").read_text() in capsys.readouterr().out


def test_a_members_default_holdout_is_the_one_its_data_gave_and_its_step_a_quarter_of_eps(tmp_path, monkeypatch):
    base = dataclasses.replace(DIGITS, holdout=None)
    (tmp_path / "config.json").touch()
    trained = made_run(tmp_path, dataclasses.replace(base, holdout=139, attack=AttackConfig(step_size=0.0375)))
    monkeypatch.setattr(sweep.RunDirectory, "read", lambda _: trained)
    sweep._refuse_another(tmp_path, base)
    with pytest.raises(InputError, match="holds another run"):
        sweep._refuse_another(tmp_path, dataclasses.replace(base, holdout=150))
