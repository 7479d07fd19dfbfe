"""machine.py: how many threads a process takes, and what it says of the machine."""

import os

import pytest
import torch

from piat_hub import machine


@pytest.mark.parametrize(
    ("environment", "wished"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "4,2"}, 4),  # nested regions: the outermost counts
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, None),  # the launcher's own
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, None),
        ({"OMP_NUM_THREADS": "2", "ACCELERATE_MIXED_PRECISION": "no"}, 2),
    ],
)
def test_a_users_wish_is_told_from_a_launchers_default(monkeypatch, environment, wished):
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert machine.wished_threads() == wished
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.set_threads(None) == torch.get_num_threads() == (wished or machine.cores())
    assert machine.set_threads(2) == 2


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
