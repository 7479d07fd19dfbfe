"""One writer at a time in a directory: who is refused, who is not, and that a kill leaves it free."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
from conftest import another, python

from piat_hub import cli
from piat_hub.config import Broken, EvalConfig, InputError, InUse, RunOptions
from piat_hub.evaluation.request import prepare_evaluation
from piat_hub.figures import gallery
from piat_hub.hub import card, export, load, push, untrusted
from piat_hub.hub.save import save_pretrained
from piat_hub.records import lock
from piat_hub.records.lock import in_use, only_writer
from piat_hub.records.rundir import RunDirectory
from piat_hub.training import run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def everything(directory):
    """All files below a directory with their bytes, but for the lock."""
    files = (path for path in Path(directory).rglob("*") if path.is_file() and path.name != lock.LOCK)
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture
def impatient(monkeypatch):
    """A refusal at once instead of within a second."""
    monkeypatch.setattr(lock, "PATIENCE", 0.0)


@pytest.mark.parametrize("spelling", ["r", "./r/", "../{here}/r", "link", "{whole}/r"])
def test_a_directory_has_one_writer_however_it_is_spelled(spelling, impatient, tmp_path):
    Path("r").mkdir()
    Path("link").symlink_to("r")
    named = spelling.format(here=tmp_path.name, whole=tmp_path)
    with another("r") as process:
        said = rf"in use by process {process} on \S+; one command at a time .* wait until that one ends, or work in another"
        with pytest.raises(InUse, match=said), only_writer(named):
            raise AssertionError
        assert in_use(Path(named))
    assert not in_use(Path(named))  # the kill has left its file there, and nobody behind it
    with only_writer(named):
        assert not in_use(Path("r"))  # this thread may enter again
        with only_writer("r"):
            pass
        assert Path("r", lock.LOCK).read_text().split()[0] == str(os.getpid())
    assert list(Path("r").iterdir()) == []


def test_it_waits_for_one_who_is_just_leaving(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 60.0)
    (ready, told), (asked, ask) = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        with only_writer("r"):
            os.write(told, b"x")
            os.read(asked, 1)
        os._exit(0)
    os.read(ready, 1)
    os.write(ask, b"x")
    with only_writer("r"):
        assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_left_of_a_directory_that_got_nothing():
    with pytest.raises(InputError, match="no such thing"), only_writer("a/b/c"):
        raise InputError("no such thing")
    assert not Path("a").exists()
    with only_writer("a/b/c"):
        Path("a/b/kept").touch()
    assert Path("a/b/kept").exists() and not Path("a/b/c").exists()


def test_one_who_was_made_while_another_takes_the_directory_away_again(monkeypatch):
    mkdir, gone = Path.mkdir, []

    def once(self, **options):
        mkdir(self, **options)
        if not gone:
            gone.append(self.rmdir())

    monkeypatch.setattr(Path, "mkdir", once)
    with only_writer("r"):
        assert gone and Path("r", lock.LOCK).exists()


def test_a_directory_that_cannot_be_written_to_needs_no_lock(monkeypatch):
    Path("r").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root may write everywhere
    with only_writer("r"):
        assert not list(Path("r").iterdir())


def test_a_file_and_a_link_in_the_locks_place_are_refused():
    Path("file").touch()
    with pytest.raises(Broken, match="file cannot be written: File exists"), only_writer("file"):
        raise AssertionError
    Path("r").mkdir()
    Path("mine.txt").write_text("mine")
    Path("r", lock.LOCK).symlink_to("../mine.txt")
    with pytest.raises(Broken, match="r cannot be written: Too many levels of symbolic links"), only_writer("r"):
        raise AssertionError
    assert Path("mine.txt").read_text() == "mine"


def test_a_child_that_ends_leaves_its_parents_lock_alone(impatient):
    """As a worker does that was forked inside the block, even where it leaves the block itself."""
    holding = only_writer("r")
    holding.__enter__()
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            holding.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(child, 0)
    done = python("-m", "piat_hub", "train", "digits", "--output", "r")
    assert done.returncode == 2 and f"in use by process {os.getpid()}" in done.stderr
    holding.__exit__(None, None, None)
    assert not Path("r").exists()


def test_where_the_system_has_no_locks_a_killed_holder_is_found_dead(monkeypatch, impatient):
    def none(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    warnings.simplefilter("ignore")
    with another("r") as process, pytest.raises(InUse, match=f"process {process} on"), only_writer("r"):
        raise AssertionError
    monkeypatch.setattr(lock, "PATIENCE", 60.0)  # the library looks twice before it calls a holder dead
    with only_writer("r"):
        assert Path("r", lock.LOCK).read_text().split()[0] == str(os.getpid())
    assert not Path("r", lock.LOCK).exists()


def test_every_command_that_writes_is_refused_in_one_line_and_touches_nothing(evaluated, capsys, impatient):
    """Also with --resume; and each of them works again once the other is gone, whom a kill ended."""
    train = ["train", "digits", "--epochs", "2", "--clean-epochs", "1", "--train-size", "256", "--holdout", "64"]
    train += ["--batch-size", "64", "--output", "r", "--resume"]
    commands = [
        train,
        ["train", "digits", "--output", "r/"],
        ["evaluate", "r", "--attacks", "pgd2", "--n", "30"],
        ["evaluate", "r", "--attacks", "pgd2", "--n", "30", "--checkpoint", "best"],
        ["card", "r"],
        ["export", "r", "--formats", "pt2"],
        ["figures", "r", "--only", "epochs", "--output", "r"],
        ["report", "r", "--only", "epochs", "--output", "r/page.html"],
        ["push", "r", "org/name"],
    ]
    before = everything("r")
    with another("r") as process:
        for command in commands:
            assert cli.main(command) == 2, command
            said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
            assert len(said) == 1 and f"in use by process {process}" in said[0], said
        assert everything("r") == before
        assert cli.main(["evaluate", "r", "--attacks", "pgd2", "--n", "30", "--output", "elsewhere"]) == 0
        assert cli.main(["compare", "r", "r"]) == 0
    for command in (commands[0], *commands[2:5]):
        assert cli.main(command) == 0, command
    assert {"pgd2", "pgd3"} <= set(json.loads(Path("r/results.json").read_text())["attacks"])


def test_a_library_call_that_writes_is_refused_too(evaluated, small_digits, impatient):
    model = load.from_pretrained("r")
    with another("r"):
        for call in (
            lambda: next(run.train(small_digits(), RunOptions(output="r"))),
            lambda: prepare_evaluation("r", EvalConfig(n=30)),
            lambda: save_pretrained(model, "r"),
            lambda: card.write(Path("r")),
            lambda: card.license_as(Path("r"), "mit"),
            lambda: export.export(model, Path("r"), ["pt2"]),
            lambda: push.push_to_hub("r", "org/name"),
        ):
            with pytest.raises(InUse, match="r is in use by process"):
                call()
    assert "license" not in json.loads(Path("r/config.json").read_text())["pretrained_cfg"]


def test_a_training_holds_its_directory_until_its_end(small_digits):
    events = run.train(small_digits(), RunOptions(output="r"))
    next(events)
    with pytest.raises(AssertionError, match="it was refused"), another("r"):
        pass
    assert Path("r", lock.LOCK).read_text().split()[0] == str(os.getpid())
    events.close()
    assert not Path("r", lock.LOCK).exists()


def test_a_landscape_that_cannot_be_kept_is_drawn_all_the_same(evaluated, monkeypatch, impatient):
    monkeypatch.setattr(gallery, "SETTINGS", gallery.SETTINGS | {"points": 3})
    found = RunDirectory.read("r")
    with another("r"):
        assert gallery.surface(found, False).losses is not None
    assert not Path("r/landscape.json").exists()


def test_evaluations_take_up_what_others_measured_meanwhile(evaluated_once):
    """Each is prepared before the other has run: the second adds to the first's figures."""
    shutil.copytree(evaluated_once, "r")
    first, second = (prepare_evaluation("r", EvalConfig(attacks=(a,), n=30)) for a in ("pgd2", "mim2"))
    for one in (first, second):
        with one.writing():
            list(one.measure())
    assert list(json.loads(Path("r/results.json").read_text())["attacks"]) == ["clean", "pgd3", "aa", "pgd2", "mim2"]


def test_weights_that_are_replaced_while_they_are_read_are_read_again(evaluated, monkeypatch):
    """As by a training: the digest is of the weights that were loaded."""
    build, built = untrusted.build, []

    def slow(*arguments):
        built.append(build(*arguments))
        if len(built) == 1:
            shutil.copy("r/model_best.safetensors", "new")
            os.replace("new", "r/model.safetensors")
        return built[-1]

    best = load.from_pretrained("r", checkpoint="best")
    monkeypatch.setattr(untrusted, "build", slow)
    found = load.from_pretrained("r")
    assert len(built) == 2 and found is built[1] and found.weights_sha256 == best.weights_sha256
