"""One writer at a time: a lock between processes, on every system that the library filelock knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foredraft.errors import UserError


class OutputLock:
    """The right to write `path`, which one process has at a time. A process that ends, however it ends, loses it.

    The lock is an empty file `.NAME.lock` beside `path`; whoever has the right deletes it at the end of its work.
    """

    def __init__(self, path: str | Path):
        from filelock import FileLock

        # the same file under every name
        path = Path(path).resolve()
        self.file = path.with_name(f".{path.name}.lock")
        self._lock = FileLock(self.file)

    def acquire(self, wait: bool = False) -> bool:
        """Take the right. False: another process has it; with `wait` the call returns when that process is done."""
        from filelock import Timeout

        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return False
        return True

    def release(self, finished: bool = True) -> None:
        """Give the right up. Unless the work is `finished` the file stays, as it does where the process is killed."""
        # while the lock is held: a process that opened the file before sees that it has lost its name, and tries again
        if finished:
            with suppress(OSError):
                self.file.unlink()
        self._lock.release()


@contextmanager
def only_writer(path: str | Path, flag: str = "--out", shown: Path | None = None) -> Iterator[None]:
    """Have the right to write `path` inside the block; the lock's file stays where the block fails.

    UserError: another process has the right; the message calls the path `shown`.
    """
    lock = OutputLock(path)
    if not lock.acquire():
        raise UserError(f"{flag} {shown or path}: another run is writing it; wait for that run, or give another {flag}")
    finished = False
    try:
        yield
        finished = True
    finally:
        lock.release(finished)
