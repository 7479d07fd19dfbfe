"""What asks the machine: cores, threads, memory, device, versions, commit."""

import ctypes
import os
import platform
import subprocess
import sys
from datetime import timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import InitProcessGroupKwargs
from joblib import cpu_count
from torch import nn


def cores() -> int:
    """This process's share of the cores it may use, at least 1: affinity and a container's quota count."""
    return max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def wished_threads() -> int | None:
    """What the user's OMP_NUM_THREADS says, else MKL_NUM_THREADS; None where they say nothing, or a launcher's own 1.

    `accelerate launch` and torchrun set 1 for their processes where the user has set none for them.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        text = os.environ.get(name, "").partition(",")[0].strip()  # of nested regions the outermost counts
        if text.isdecimal() and int(text) > 0 and not (text == "1" and launched_without(name)):
            return int(text)
    return None


def launched_without(name: str) -> bool:
    """Whether a launcher started this process and was itself started without this environment variable.

    Args:
        name: of the variable.
    """
    if not {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & set(os.environ):
        return False
    try:
        return name not in psutil.Process().parent().environ()
    except (psutil.Error, AttributeError, OSError):  # it is gone, or another user's
        return True


# how long a process waits for the others: while one decodes the data, or has the harder batch of an evaluation
PATIENCE = InitProcessGroupKwargs(timeout=timedelta(days=1))


def see_cpu_processes() -> None:
    """Let Accelerate, when it begins, see the processes that torchrun started where there is no GPU.

    Without being told so it takes each of them for the only one: each would train the whole, into the same directory.
    """
    if "LOCAL_RANK" in os.environ and not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def restarted() -> bool:
    """Whether torchrun has started this process again, after a failure of one of its launch."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def set_threads(threads: int | None) -> int:
    """Give this process so many threads, else what OMP_NUM_THREADS asks for, else its share of the cores; returns the count.

    On Linux it also keeps freed memory: by default an attack's activations go back to the system and are faulted in
    anew at every step.

    Args:
        threads: how many; None for `cores()`.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**30) or libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, and the most that an older glibc takes
    torch.set_num_threads(threads or wished_threads() or cores())
    return torch.get_num_threads()


def peak_memory(device: torch.device) -> float:
    """The most memory used so far, of the GPU where there is one, else of the process; GiB, 0 on Windows."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU for a model without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def images_at_a_time(device: torch.device) -> int:
    """How many images an evaluation takes at a time unless it is told: 250 on a CPU, 1000 elsewhere."""
    return 250 if device.type == "cpu" else 1000


def bf16_warning(device: torch.device) -> str:
    """What to say where bf16 is asked for and the CPU has no arithmetic for it, so that torch imitates it; "" elsewhere."""
    onednn = torch.ops.mkldnn
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or onednn._is_mkldnn_bf16_supported():
        return ""
    return f"warning: {device_name(device)} computes no bf16, and torch's imitation is many times slower than fp32; leave bf16 out"


def environment(device: torch.device) -> dict[str, Any]:
    """versions, git and device of results.json."""
    names = ("piat-hub", "torch", "timm", "pyautoattack", "numpy")
    return {
        "versions": {"python": platform.python_version()} | {n.replace("-", "_"): _version(n) for n in names},
        "git": git_revision(),
        "device": device_name(device),
    }


def device_name(device: torch.device) -> str:
    """The device in words, with the thread count of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"CPU {cpu_model()}, {threads} thread{'s' if threads > 1 else ''}"


@cache
def cpu_model() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache  # asked after every attack, and it is the code as it was loaded
def git_revision() -> str | None:
    """The commit this package runs from, with "-dirty" for changed files; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
