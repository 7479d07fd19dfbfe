"""What the benchmarks share: a clock, a count of floating-point operations, the device's peak."""

import statistics
import time

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def seconds(work):
    """The time of one call; on a GPU from idle until it is really done."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def beside(times, base):
    """{name: median seconds, and the median, least and most of its ratio to `base` within a round}."""
    figures = {}
    for name, each in times.items():
        ratios = [a / b for a, b in zip(each, times[base], strict=True)]
        row = {"seconds": statistics.median(each), "ratio": statistics.median(ratios)}
        figures[name] = row | {"lowest": min(ratios), "highest": max(ratios)}
    return figures


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of products and convolutions inside, by torch's own formulas, in `total`."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def peak(device, dtype):
    """GFLOP/s of this device in this precision: (a square matrix product, a 3x3 convolution), the best of several."""
    big = device.type == "cuda"
    n, channels, batch = (8192, 256, 1024) if big else (1536, 128, 16)
    a = torch.randn(n, n, device=device, dtype=dtype)
    x = torch.randn(batch, channels, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    work = {2 * n**3: lambda: a @ a, 2 * 9 * channels**2 * 32 * 32 * batch: lambda: F.conv2d(x, w, padding=1)}
    with torch.no_grad():
        return [flop / min(seconds(run) for _ in range(8)) / 1e9 for flop, run in work.items()]
