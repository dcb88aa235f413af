"""Resident memory of this process; a leaf that every room may ask."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path


def resident_bytes(peak: bool = False) -> int | None:
    """What is held now, libraries included, or the most since the start or forget_peak(); None where the system does not
    tell."""
    status, name = Path("/proc/self/status"), "VmHWM:" if peak else "VmRSS:"
    if not status.is_file():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name))


def forget_peak() -> None:
    """Start the peak anew; where the system refuses, it stays that of the whole process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back_freed() -> None:
    """Freed memory goes back to the system: glibc keeps blocks of up to 32 MB for itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
