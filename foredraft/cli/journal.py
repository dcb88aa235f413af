"""An output file of complete lines, each synced to disk before the next, that a later run resumes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from foredraft.atomic_write import sync_folder, why_full
from foredraft.errors import UserError
from foredraft.output_lock import OutputLock

BLOCK = 1 << 16
STDOUT = "-"
# what every line begins with
BEGINNING = b'{"id": '


class Journal:
    """Appends JSON objects with an `index`, one a line, each synced to disk; a context manager.

    A half-written last line of an earlier run is removed. The file is locked: one writer at a time. A path that is no
    regular file, such as a pipe, is written and never read; "-" is standard output.

    Parameters
    ----------
    path : Path
    is_begun : bool
        Whether an earlier run began this file; only then its last line may be half-written.

    Attributes
    ----------
    done : dict[int, object]
        {index: id} of the lines that the file had.
    is_file : bool
        Whether the path is a regular file.

    Raises
    ------
    UserError
        Another process has the file open, or a line is not one of ours; the file is unchanged.
    """

    def __init__(self, path: str | Path, is_begun: bool):
        self.path, self._is_begun = Path(path), is_begun
        self._lock: OutputLock | None = None
        if str(path) == STDOUT:
            self._fd = os.dup(1)
        else:
            # Windows would change line ends
            binary = getattr(os, "O_BINARY", 0)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | binary, 0o644)
        try:
            self.is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self.done: dict[int, object] = {}
            # a regular file that standard output was redirected to belongs to the shell
            self.is_file &= str(path) != STDOUT
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
        if self._lock is not None:
            self._lock.release()

    def append(self, record: dict) -> None:
        """Write a line and sync it. UserError if the disk is full: the earlier lines stay intact."""
        line = memoryview(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
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
            if (reason := why_full(error)) is None:
                raise
            raise UserError(f"{self.path}: {reason}; all finished lines are written; free some space and "
                            "run the same command again to resume") from None

    def _open_file(self) -> None:
        lock = OutputLock(self.path)
        if not lock.acquire():
            raise UserError(f"{self.path}: another run is writing it; wait for that run, or give another --output")
        self._lock = lock
        size = os.fstat(self._fd).st_size
        end = self._end_of_last_line(size)
        for number, line in enumerate(self._lines(), 1):
            if not line.endswith(b"\n") and self._is_begun and line[: len(BEGINNING)] == BEGINNING[: len(line)]:
                break
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("no line of an earlier run")
                record = json.loads(line)
                self.done[int(record["index"])] = record["id"]
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                raise UserError(f"{self.path}, line {number}: not a result of an earlier run; give another --output, or "
                                "delete the line") from None
        if end < size:
            os.ftruncate(self._fd, end)
        sync_folder(self.path.parent)

    def _end_of_last_line(self, size: int) -> int:
        """Bytes up to the last line end, inclusive."""
        end = size
        while end > 0:
            start = max(0, end - BLOCK)
            os.lseek(self._fd, start, os.SEEK_SET)
            at = os.read(self._fd, end - start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
        return 0

    def _lines(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            yield from file
