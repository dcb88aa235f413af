"""The lines of a text file from outside, plain or compressed, whatever it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

# A compressed file of a megabyte may hold a line of a gigabyte.
LONGEST_LINE = 64 << 20
TOO_LONG = f"longer than {LONGEST_LINE >> 20} MB"
_BLOCK = 1 << 20


def bounded_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Each line with its end; None in place of a line of more than LONGEST_LINE bytes."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_BLOCK)
        yield None
