"""How many threads this process should use: its cores, or fewer if its container has a smaller share of them."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

from foredraft.errors import UserError


def affinity() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _share(folder: Path) -> float:
    """Cores that one control group allows: cpu.max of version 2, or the two files of version 1; inf without a limit."""
    words = _read(folder / "cpu.max").split() or [
        _read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = (float(word) for word in words)
    except ValueError:
        # "max", or no such file
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def cpu_quota(root: Path = Path("/")) -> float:
    """Cores that the control groups of this process allow together; inf without a limit or without control groups.

    A group's limit also holds for the groups below it. `root` holds proc/self/cgroup and sys/fs/cgroup.
    """
    least = math.inf
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [f"sys/fs/cgroup/{name}" for name in (controllers, "cpu", "cpu,cpuacct")]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for mount in mounts:
            # in a container the path may be the host's, and the group itself is the mounted folder
            for depth in range(len(parts) + 1):
                least = min(least, _share(root / mount / "/".join(parts[:depth])))
    return least


@functools.cache
def available_threads() -> int:
    """FOREDRAFT_THREADS, or OMP_NUM_THREADS, or the cores of this process, at most its share of the machine.

    UserError: a variable is not a positive number.
    """
    for name in ("FOREDRAFT_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name)
        if value:
            # OpenMP allows a number for each level of nesting
            text = value.split(",")[0]
            if not text.strip().isdecimal() or int(text) < 1:
                raise UserError(f"{name}={value}: not a positive number of threads")
            return int(text)
    quota = cpu_quota()
    return affinity() if quota >= affinity() else math.ceil(quota)
