"""The machine of a measurement, with its bandwidth at that time."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import numpy as np
import psutil

from foredraft.bench.harness.interleave import best_of
from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.core.gemm_tile import LANES
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.model.linear import linear_loop


def describe(device: str = "cpu") -> dict:
    """Processor, cores, threads, versions, and the read bandwidth in GB/s measured now on `device`."""
    import torch

    on_gpu = str(device).startswith("cuda")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "read_gb_s": round(read_bandwidth(device), 1),
    }


def file_name(machine: dict) -> str:
    """File name stem of a kind of machine: its GPU, or its processor and cores."""
    words = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)", "", words.lower())).strip("-")


def read_bandwidth(device: str = "cpu", megabytes: int = 256, times: int = 5) -> float:
    """GB/s of the fastest of `times` reads of an array larger than the caches: a sum, and on a CPU also a matrix-vector
    product by the linear kernel, which prefetches more than a library's sum."""
    import torch

    array = torch.ones(megabytes * 250_000, device=device)
    # item() waits for the device
    reads = [lambda: array.sum().item()]
    if array.device.type == "cpu" and HAS_NUMBA:
        inputs = 4096
        weight = array[: array.numel() // (inputs * LANES) * inputs * LANES].view(-1, inputs, LANES).numpy()
        x, out = np.ones((1, inputs), np.float32), np.empty((1, len(weight) * LANES), np.float32)
        reads.append(lambda: linear_loop(x, weight, out, get_num_threads()))
    return array.numel() * 4 / min(best_of(read, times) for read in reads) / 1e9


def anonymous_bytes() -> int | None:
    """Resident memory of this process without mapped files; None where the system does not report it."""
    known = psutil.Process().memory_info()
    return known.rss - known.shared if hasattr(known, "shared") else None


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:(.*)", information.read_text(), re.M) if information.is_file() else None
    return named[1].strip() if named else platform.processor() or platform.machine()
