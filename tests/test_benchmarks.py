"""benchmarks/: each script runs, and writes what its document's table reads; how fast is not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

from piat_hub import methods

ROOT = Path(__file__).parent.parent


def test_methods(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/methods.py"), "--backbone", "cifar_resnet8", "--batch-size", "4"]
    command += ["--steps", "1", "--rounds", "1", "--threads", "1", "--output", str(tmp_path / "cost.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    facts = json.loads((tmp_path / "cost.json").read_text())
    names = {row["name"] for row in facts["rows"]}
    assert names == {*methods.names(), "pgd_at + AWP", "pgd_at + EMA", "PIAT, once an epoch"}
    assert facts["rows"][0]["ratio"] == 1 and all(row["seconds"] > 0 and row["name"] in shown for row in facts["rows"])
