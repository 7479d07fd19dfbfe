"""A small part of `make faults`, the same way; the whole takes most of an hour."""

import json
import os
import random

import campaign
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)


def counts(tally):
    """(tried, lost)."""
    return sum(tally.values()), sum(count for (_, outcome), count in tally.items() if outcome == "lost")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills(tmp_path):
    tried, lost = counts(campaign.kills(4, tmp_path, random.Random(1)))
    assert tried >= 4 and lost == 0


def test_damage(tmp_path):
    assert counts(campaign.damage(28, tmp_path, random.Random(1))) == (28, 0)


def test_fuzz(tmp_path):
    tried, lost = counts(campaign.fuzz(300, tmp_path))
    assert tried >= 250 and lost == 0


def lax(folder):
    return (folder / "metrics.jsonl").read_bytes()


def breaking(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("reader", [lax, breaking])
def test_what_is_lost_is_counted(tmp_path, monkeypatch, reader):
    """A reader that takes whatever lies there, or one that breaks over it, is found out."""
    monkeypatch.setattr(campaign.files, "read_metrics", reader)
    tally = campaign.damage(28, tmp_path, random.Random(1))
    assert tally["damaged: metrics.jsonl", "lost"] > 1 and counts(tally)[0] == 28
