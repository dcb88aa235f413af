"""Which stream uses a model: one at a time, others wait."""

from __future__ import annotations

import os
import threading

from foredraft.engine.threads import start_threads
from foredraft.errors import UserError

_process: int | None = None


def check_process() -> None:
    """Called before anything that uses threads. UserError in a fork of a process that has used some.

    A fork copies only the thread that called it. GNU OpenMP ends such a process, PyTorch waits forever.
    """
    global _process
    if _process is None:
        _process = os.getpid()
        start_threads()
    elif _process != os.getpid():
        raise UserError("this process was forked from one that had already loaded a model; load the first model after the "
                        "fork, or start the process with multiprocessing's 'spawn' method")


class Ownership:
    """A lock that a thread never waits for while it holds it, and that any thread may release."""

    def __init__(self):
        self._lock = threading.Lock()
        self._thread: int | None = None

    def acquire(self) -> None:
        """Wait until no stream uses the model. UserError: this thread would wait for itself; a forked process."""
        check_process()
        if self._thread == threading.get_ident():
            raise UserError("a stream of this model is still running; read it to its end, or close() it, before the next")
        self._lock.acquire()
        self.mark()

    def mark(self) -> None:
        """The calling thread is the one that runs the stream now."""
        self._thread = threading.get_ident()

    def release(self) -> None:
        """Let the next one in."""
        self._thread = None
        self._lock.release()
