"""What every test shares: one seed, one thread, no network, caches in a folder of the test run's own."""

import atexit
import contextlib
import copy
import gc
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import traceback
from collections import deque
from pathlib import Path

import warm

ROOT = Path(__file__).parent.parent
FIRST = "PIAT_TESTS" not in os.environ  # of the tests' processes: workers have its environment
SHARED = Path(os.environ.get("PIAT_TESTS") or tempfile.mkdtemp(prefix="piat-tests-"))  # a folder for all of them
os.environ |= {  # before any Hugging Face import reads the environment
    "PIAT_TESTS": str(SHARED),
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": tempfile.mkdtemp(dir=SHARED),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "ACCELERATE_USE_CPU": "true",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
}
os.environ.pop("HF_TOKEN", None)
if FIRST:
    atexit.register(shutil.rmtree, SHARED, ignore_errors=True)
    warm.begin(SHARED)
PYTHON = str(SHARED / "python")

import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402  no torch here: the process that only hands out tests needs none


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps one state a process; each test is a launch of its own."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _one_core(monkeypatch):
    """Tiny tensors gain nothing from threads, and lose much where something else runs beside the tests."""
    import torch

    torch.set_num_threads(1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch):
    """Processes are killed here, no machine is: what was written is there whether or not the disk has it yet."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    """Every test runs in a folder of its own, so that runs/ and results/ land there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def linear():
    from toys import Linear

    return Linear


@pytest.fixture
def tiny():
    from toys import Tiny

    return Tiny


@pytest.fixture
def quick_autoattack(monkeypatch):
    """AutoAttack's four parts with far fewer iterations."""
    from toys import Quick

    monkeypatch.setattr("pyautoattack.AutoAttack", Quick)
    return Quick


@pytest.fixture(scope="session")
def small_digits():
    """The `digits` recipe cut down to seconds: (TrainConfig fields)."""
    import dataclasses

    from piat_hub.config import recipes

    def make(**changes):
        base = dict(train_size=256, holdout=64, epochs=3, clean_epochs=1, batch_size=64)
        return dataclasses.replace(recipes.get("digits"), **(base | changes))

    return make


def once(name, make):
    """The folder SHARED/name, written by `make(folder)` in the worker that first asks for it; for reading only."""
    import torch

    place = SHARED / name
    place.parent.mkdir(exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            with pytest.MonkeyPatch.context() as patch:
                torch.set_num_threads(1)
                patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
                patch.chdir(tempfile.mkdtemp(dir=SHARED))
                make(Path(place.name).absolute())
                Path(place.name).rename(place)
    return place


@pytest.fixture(scope="session")
def finished():
    """The run directory of a config trained to its end, once for all tests; for reading only."""
    from piat_hub.config import RunOptions
    from piat_hub.training import run

    def find(config):
        name = hashlib.sha256(repr(config).encode()).hexdigest()[:16]
        return once(name, lambda folder: deque(run.train(config, RunOptions(output=str(folder))), maxlen=0))

    return find


@pytest.fixture
def trained(finished):
    """A copy of that run directory, to write to."""
    return lambda config, output="r": Path(shutil.copytree(finished(config), output))


@pytest.fixture(scope="session")
def evaluated_once(small_digits, finished):
    """A run on digits, two epochs long, measured clean, under PGD-3 and a quick AutoAttack on 30 images; never written to."""
    from toys import Quick

    from piat_hub.config import EvalConfig
    from piat_hub.evaluation.request import prepare_evaluation

    def make(folder):
        shutil.copytree(finished(small_digits(epochs=2)), folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyautoattack.AutoAttack", Quick)
            list(prepare_evaluation(str(folder), EvalConfig(attacks=("clean", "pgd3", "aa"), n=30)).measure())

    return once("evaluated/r", make)


@pytest.fixture
def evaluated(evaluated_once, tmp_path):
    """A copy of that run, r in the current directory."""
    return Path(shutil.copytree(evaluated_once, tmp_path / "r"))


FIELDS = {"las_at": {"width": 8}}  # a ResNet-18 beside models of a few layers would take most of the time


def begun(name, config):
    """A method as a run begins it; LAS-AT's strategy network is small."""
    from piat_hub import methods

    method = methods.get(name)(**FIELDS.get(name, {}))
    return method.begin(config) if hasattr(method, "begin") else method


def made_run(directory, config, metrics=(), correct=None, n=400):
    """A run directory without files: its curves, and how many of n test images each attack leaves its last weights."""
    from piat_hub.records.results import Record
    from piat_hub.records.rundir import Measured, RunDirectory
    from piat_hub.records.statistics import proportion

    attacks = {attack: proportion(count, n) for attack, count in (correct or {}).items()}
    record = Record(config.threat_model, config.dataset, "test", n, attacks=attacks)
    run = RunDirectory(Path(directory), None, config)
    vars(run).update(metrics=list(metrics), measured=[Measured(record, "last")] if correct else [])
    return run


def changed(run, **read):
    """The same run directory, as if this had been read from it: metrics, measured, …"""
    twin = copy.copy(run)
    vars(twin).update(read)
    return twin


@pytest.fixture
def do_train():
    """Run a training to its end, giving its epochs' metrics."""
    from piat_hub.config import RunOptions
    from piat_hub.training import run

    def train(config, output, **options):
        events = run.train(config, RunOptions(output=str(output), **options))
        return [event.metrics for event in events if isinstance(event, run.EpochDone)]

    return train


@pytest.fixture
def do_evaluate():
    """Measure a MODEL as evaluate.py does, giving the finished Evaluation."""
    from piat_hub.config import EvalConfig
    from piat_hub.evaluation import request

    def measure(spec, *attacks, **fields):
        prepared = request.prepare_evaluation(str(spec), EvalConfig(attacks=attacks, **fields))
        list(prepared.measure())
        return prepared

    return measure


def python(*words, check=False, **env):
    """Run `python WORDS…`, a warm one, with these variables beside the tests' own; gives the CompletedProcess."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | {key: str(value) for key, value in env.items()}
    done = subprocess.run([PYTHON, *map(str, words)], capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def killed(work, arm):
    """Do `work` in a process of its own, in which `arm` has seen to it that it is killed; gives whether it was.

    An error in it fails the test.
    """
    if (child := os.fork()) == 0:
        gc.freeze()  # what the tests before left may wait for threads that are not in here
        try:
            arm()
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL, -signal.SIGPROF), "an error in the work itself"
    return ended != 0


@contextlib.contextmanager
def another(directory):
    """Inside the block a process of its own, whose number this gives, writes in the directory; killed at its end."""
    ready, told = os.pipe()
    if (child := os.fork()) == 0:
        gc.freeze()
        from piat_hub.records.lock import only_writer

        with contextlib.suppress(BaseException), only_writer(directory):
            os.write(told, b"x")
            signal.pause()
        os._exit(1)
    os.close(told)
    try:
        assert os.read(ready, 1), "it was refused"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def die_after(seconds):
    """Have this process killed after so many seconds of its own CPU time, of which a busy machine takes none away."""
    signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends it as SIGKILL does
