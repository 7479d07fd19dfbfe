"""machine.py: how many threads a process takes, and what it says of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

import piat_hub
from piat_hub import machine


@pytest.mark.parametrize(
    ("environment", "wished"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "4,2"}, 4),  # nested regions: the outermost counts
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "-2"}, None),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"MKL_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "2"}, 3),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, None),  # the launcher's own
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, None),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none", "MKL_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "2", "ACCELERATE_MIXED_PRECISION": "no"}, 2),
    ],
)
def test_a_users_wish_is_told_from_a_launchers_default(monkeypatch, environment, wished):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(psutil.Process, "environ", lambda self: {})  # the launcher's, before it changed anything
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert machine.wished_threads() == wished
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.set_threads(None) == torch.get_num_threads() == (wished or machine.cores())
    assert machine.set_threads(2) == 2


def test_one_thread_that_the_user_gave_the_launcher_is_a_wish(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(psutil.Process, "environ", lambda self: {"OMP_NUM_THREADS": "1"})
    assert machine.wished_threads() == 1

    def not_ours(self):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "environ", not_ours)
    assert machine.wished_threads() is None


SAYS = "from piat_hub import machine; machine.cores = lambda: 3; print('takes', machine.set_threads(None), flush=True)"


@pytest.mark.slow
def test_a_launchers_processes_heed_what_the_user_gave_the_launcher(tmp_path):
    """torchrun in earnest; of its own accord it gives two processes one thread each too."""
    (tmp_path / "says.py").write_text(SAYS)
    environment = os.environ | {"PYTHONPATH": str(Path(piat_hub.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "says.py"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["takes 1"] * 2


def test_cores_are_those_this_process_may_use_and_its_share_of_them(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "8")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    whole = machine.cores()
    assert 1 <= whole <= 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert machine.cores() == max(1, whole // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert machine.cores() == 1
