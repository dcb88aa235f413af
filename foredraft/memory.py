"""Memory of this process and of the machine."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil


def available_memory() -> int:
    """Bytes that the machine can give to processes without swapping."""
    return psutil.virtual_memory().available


def resident_bytes() -> int:
    """Resident memory of this process in bytes, shared libraries included."""
    return psutil.Process().memory_info().rss


def peak_resident_bytes() -> int | None:
    """The largest resident memory in bytes since the start, or since reset_peak(). None where the system does not report it.

    From /proc: psutil has no peak on Linux, and getrusage counts the process that this one was forked from.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM:"))


def reset_peak() -> None:
    """Start the peak anew. Where the system does not allow it, the peak remains that of the whole process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def trim_heap() -> None:
    """Return freed memory to the system: glibc keeps freed blocks of up to 32 MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
