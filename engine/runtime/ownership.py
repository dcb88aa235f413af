"""Which stream uses a model: one at a time, others wait."""

from __future__ import annotations

import os
import threading

from foredraft.engine.threads import limit_torch_threads
from foredraft.errors import UserError

_process: int | None = None


def check_process() -> None:
    """Call this before anything that uses threads. UserError: the process was forked from one that has used threads.

    A fork copies only the thread that called it. In such a process GNU OpenMP exits and PyTorch waits forever.
    """
    global _process
    if _process is None:
        _process = os.getpid()
        limit_torch_threads()
    elif _process != os.getpid():
        raise UserError("this process was forked from one that had already loaded a model; load the first model after the "
                        "fork, or start the process with multiprocessing's 'spawn' method")


class Ownership:
    """At most one object owns the model. A thread is refused instead of waiting for itself. Any thread may release.

    An interrupt (Ctrl-C) may come anywhere between two calls. Therefore the owner is an object that exists before `acquire`:
    whoever was interrupted calls `release`, which does nothing for an object that is not the owner.
    """

    def __init__(self):
        # reentrant: the garbage collector may close a stream while its thread holds this lock
        self._lock = threading.RLock()
        self._owner: object | None = None
        self._thread: int | None = None
        # locked while there is an owner: those that wait acquire it
        self._busy = threading.Lock()

    def acquire(self, owner: object) -> None:
        """Wait until nobody owns the model. UserError: this thread would wait for itself; a forked process."""
        check_process()
        busy = threading.Lock()
        busy.acquire()
        while True:
            with self._lock:
                if self._owner is None:
                    self._busy, self._thread, self._owner = busy, threading.get_ident(), owner
                    return
                if self._thread == threading.get_ident():
                    raise UserError("a stream of this model is still running; read it to its end, or close() it, before the "
                                    "next")
                other = self._busy
            with other:
                pass

    def is_owned_by(self, owner: object) -> bool:
        with self._lock:
            return self._owner is owner

    def mark(self, owner: object) -> None:
        """Record that the calling thread runs the owner now."""
        with self._lock:
            if self._owner is owner:
                self._thread = threading.get_ident()

    def release(self, owner: object) -> None:
        """Give the model up, if `owner` owns it."""
        with self._lock:
            if self._owner is owner:
                self._owner = self._thread = None
                self._busy.release()
