"""An output file that grows by whole lines, each on the disk before the next, and goes on where it was stopped."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from foredraft.atomic_write import sync_folder
from foredraft.errors import UserError

# A disk, a quota or a file that can grow no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BLOCK = 1 << 16


class Journal:
    """JSON objects with an `index`, one a line, appended and synced; a context manager that closes.

    `done`: {index: id} of the lines that were there. A half-written last line is cut off. One writer at a time (flock).
    Not `is_file`, such as a pipe: written to and never read. UserError: in use, or a broken line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self.is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self.done: dict[int, object] = {}
            if self.is_file:
                self._open_file()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def append(self, row: dict) -> None:
        """Write a line and wait for the disk. UserError where it is full: what was there before stays whole."""
        line = memoryview(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        before = os.fstat(self._fd).st_size if self.is_file else 0
        try:
            while line:
                line = line[os.write(self._fd, line) :]
            if self.is_file:
                os.fsync(self._fd)
        except OSError as error:
            if self.is_file:
                with suppress(OSError):
                    os.ftruncate(self._fd, before)
            if error.errno not in FULL:
                raise
            raise UserError(f"{self.path}: {error.strerror.lower()}; all that was finished is written: make room, and run "
                            "the same command again to go on") from None

    def _open_file(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another run is writing it; wait for it, or give another --output") from None
        size = os.fstat(self._fd).st_size
        whole = self._end_of_last_line(size)
        if whole < size:
            os.ftruncate(self._fd, whole)
        for number, line in enumerate(self._lines(), 1):
            try:
                row = json.loads(line)
                self.done[int(row["index"])] = row["id"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self.path}, line {number}: not a summary of an earlier run; give another --output, or "
                                "delete the line") from None
        sync_folder(self.path.parent)

    def _end_of_last_line(self, size: int) -> int:
        """Bytes up to and with the last line end."""
        end = size
        while end > 0:
            start = max(0, end - BLOCK)
            at = os.pread(self._fd, end - start, start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
        return 0

    def _lines(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            yield from file
