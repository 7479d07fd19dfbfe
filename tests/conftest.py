"""What every test shares: one seed, one thread, no network, caches in a folder of the test run's own."""

import contextlib
import copy
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

_CACHE = tempfile.mkdtemp(prefix="piat-tests-")  # before any Hugging Face import reads the environment
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": _CACHE,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "ACCELERATE_USE_CPU": "true",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
}
os.environ.pop("HF_TOKEN", None)

import pyautoattack  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
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
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    """Every test runs in a folder of its own, so that runs/ and results/ land there."""
    monkeypatch.chdir(tmp_path)


class Linear(torch.nn.Module):
    """z = W x: a model whose optimal perturbation is known in closed form."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


class Tiny(torch.nn.Module):
    """A small smooth network without BatchNorm, in any dtype."""

    def __init__(self, pixels=12, classes=4):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(pixels, 16), torch.nn.Tanh(), torch.nn.Linear(16, classes)
        )

    def forward(self, x):
        return self.net(x)


@pytest.fixture
def linear():
    return Linear


@pytest.fixture
def tiny():
    return Tiny


class Quick(pyautoattack.AutoAttack):
    """AutoAttack's four parts with far fewer iterations: their order and bookkeeping are tested, not their strength."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10
        self.square.n_queries = 100


@pytest.fixture
def quick_autoattack(monkeypatch):
    """AutoAttack as above."""
    monkeypatch.setattr(pyautoattack, "AutoAttack", Quick)
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


@pytest.fixture(scope="session")
def evaluated_once(small_digits, tmp_path_factory):
    """A run on digits, two epochs long, measured clean, under PGD-3 and a quick AutoAttack on 30 images; never written to."""
    from piat_hub.config import EvalConfig, RunOptions
    from piat_hub.evaluation.request import prepare_evaluation
    from piat_hub.training import run

    with pytest.MonkeyPatch.context() as patch:
        torch.set_num_threads(1)
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        patch.chdir(tmp_path_factory.mktemp("once"))
        patch.setattr(pyautoattack, "AutoAttack", Quick)
        list(run.train(small_digits(epochs=2), RunOptions(output="r")))
        list(prepare_evaluation("r", EvalConfig(attacks=("clean", "pgd3", "aa"), n=30)).measure())
        return Path("r").resolve()


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


def forked(*words, env=None, check=False):
    """`python WORDS…` (a script, or -m and a module) in a child of this process, which has paid for torch's import already.

    For what must be a process of its own and needs no fresh interpreter; gives a CompletedProcess.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush(), sys.stderr.flush()
        if (child := os.fork()) == 0:
            _become(list(map(str, words)), env or {}, out, err)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0), err.seek(0)
        done = subprocess.CompletedProcess(words, code, out.read(), err.read())
    assert not check or code == 0, done.stderr[-3000:]
    return done


def _become(words, env, out, err):
    """Run as that program to the end, in the child."""
    code = 1
    try:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ |= {key: str(value) for key, value in env.items()}
        for file, number in ((out, 1), (err, 2)):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        module = words[0] == "-m"
        sys.argv = words[module:]
        sys.path.insert(0, "" if module else str(Path(words[0]).parent))
        (runpy.run_module if module else runpy.run_path)(words[module], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def another(directory):
    """Inside the block a process of its own, whose number this gives, writes in the directory; killed at its end."""
    ready, told = os.pipe()
    if (child := os.fork()) == 0:
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


@pytest.fixture
def killed():
    """Do `work` in a process of its own, killed after so many seconds; gives whether it was. An error in it fails the test."""

    def kill(work, seconds):
        child = os.fork()
        if child == 0:
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, -signal.SIGKILL)
        return ended != 0

    return kill
