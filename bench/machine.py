"""The machine a bench ran on, with the bandwidth it really had at that time."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path


def describe(device: str = "cpu") -> dict:
    """Processor, cores, threads, versions and the read bandwidth in GB/s, measured now on `device`."""
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
    """A file name stem for this kind of machine: its processor or its GPU, and the cores."""
    words = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)", "", words.lower())).strip("-")


def read_bandwidth(device: str = "cpu", megabytes: int = 256, times: int = 5) -> float:
    """GB/s of the best of `times` sums over an array far larger than the caches."""
    import torch

    array = torch.ones(megabytes * 250_000, device=device)
    best = float("inf")
    for _ in range(times + 1):
        start = time.perf_counter()
        # reading the sum back waits for the device
        array.sum().item()
        best = min(best, time.perf_counter() - start)
    return array.numel() * 4 / best / 1e9


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
