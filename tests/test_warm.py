"""warm.py: a program started by the warm python is as one started by the plain one."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import PYTHON, python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the warm python is the plain one here"),
]
SHOWN = """
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ["MINE"], sys.path[0], __name__, input())
sys.exit({"a": 3, "b": "said", "c": None}[sys.argv[1]])
"""


@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
@pytest.mark.parametrize("word", ["a", "b", "c", "d"])
def test_words_folder_environment_streams_and_exit_code(tmp_path, kind, word):
    (tmp_path / "shown.py").write_text(SHOWN)
    words = {"-c": ["-c", SHOWN], "-m": ["-m", "shown"], "script": [str(tmp_path / "shown.py")]}[kind]
    environment = os.environ | {"MINE": "x\ny"}
    warm, plain = (
        subprocess.run([p, *words, word, "-u"], input="in\n", capture_output=True, text=True, env=environment)
        for p in (PYTHON, sys.executable)
    )
    assert (warm.returncode, warm.stdout) == (plain.returncode, plain.stdout) and "in" in warm.stdout
    assert warm.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]


def test_torch_is_there_and_nothing_that_reads_the_environment():
    loaded = python("-c", "import sys; print(*sys.modules)", check=True).stdout.split()
    assert "torch" in loaded and not {"timm", "huggingface_hub", "datasets", "accelerate", "piat_hub"} & set(loaded)


WAITS = """
import signal, sys, time
{before}
print('ready', flush=True)
while True:
    time.sleep(0.01)  # a signal between two bytecodes would leave signal.pause() waiting for the next
"""


def waiting(before):
    process = subprocess.Popen([PYTHON, "-c", WAITS.format(before=before)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "handler", "code"),
    [
        (signal.SIGTERM, "lambda *_: sys.exit(7)", 7),
        (signal.SIGINT, "lambda *_: sys.exit(7)", 7),
        (signal.SIGTERM, "signal.SIG_DFL", -signal.SIGTERM),
        (signal.SIGINT, "signal.default_int_handler", -signal.SIGINT),
    ],
)
def test_a_signal_is_the_programs(number, handler, code):
    process = waiting(f"signal.signal({int(number)}, {handler})")
    process.send_signal(number)
    assert process.wait() == code


def test_a_kill_takes_the_program_with_it():
    process = waiting("pass")
    process.kill()
    assert process.stdout.read() == ""  # comes to its end when nobody holds its other end any more


def test_what_it_starts_is_warm_too():
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(\"torch\" in sys.modules)'])"
    )
    assert python("-c", code, check=True).stdout == "True\n"
