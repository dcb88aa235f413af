"""Results of many requests, as they end or in their order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from foredraft.engine.runtime.ownership import Ownership
from foredraft.engine.runtime.requests import Job, Result
from foredraft.engine.stats import DecodeStats
from foredraft.errors import UserError

if TYPE_CHECKING:
    from foredraft.engine.runtime.scheduler import Scheduler


_END = object()


class Stream:
    """An iterator of one Result for each request, and a context manager that closes it.

    Requests are read as sequences become free, at most a batch ahead, so they may come from an endless iterator. If the
    iterator gives None, the stream decodes what it has and reads on after the next step. With nothing left to decode the
    iterator should wait instead. A request that cannot be decoded gives a Result with its `error`, and the others go on.

    The stream owns the model from its first step until it ends or is closed. Any thread may read, cancel and close the
    stream; the call waits for the running step and the iterator at most.
    """

    def __init__(self, ownership: Ownership, open_scheduler: Callable[[], Scheduler], jobs: Iterator[Job | Result | None],
                 text: Callable[[list[int]], str | None], in_order: bool = False):
        # `_lock` guards all fields; `_opening` is held while the stream waits for the model, so that close() need not wait
        self._lock, self._opening = threading.Condition(threading.RLock()), threading.Lock()
        # threads that want the lock; the reader lets them go first between two steps
        self._visitors: deque[None] = deque()
        # the owner is not the stream itself: the reference would keep a forgotten stream from being collected
        self._ownership, self._owner, self._is_started = ownership, object(), False
        self._open, self._jobs, self._text, self._in_order = open_scheduler, jobs, text, in_order
        self._scheduler: Scheduler | None = None
        self._ready: deque[Result] = deque()
        # results before their turn in order; few, because the oldest request always runs
        self._early: dict[int, Result] = {}
        self._next, self._is_open, self._has_more = 0, True, True
        self._indices: dict[Any, int] = {}
        self._stats = DecodeStats()

    def __iter__(self) -> Stream:
        return self

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    def __del__(self) -> None:
        # an interrupt in __init__ may have left fields unset
        if hasattr(self, "_stats"):
            self.close()

    def __next__(self) -> Result:
        try:
            self._start()
            with self._lock, torch.inference_mode():
                while not self._ready and self._is_open:
                    self._ownership.mark(self._owner)
                    self._advance()
                    self._lock.wait_for(lambda: not self._visitors)
                if self._ready:
                    return self._ready.popleft()
        except BaseException:
            self.close()
            raise
        raise StopIteration

    @property
    def stats(self) -> DecodeStats:
        """Sums over the requests that have ended, and seconds of the stream by part, without "total"."""
        total = DecodeStats()
        with self._visit():
            total.merge(self._stats)
            if self._scheduler is not None:
                total.passes, total.slots = self._scheduler.passes, self._scheduler.passes * self._scheduler.batch_size
                total.add_seconds(self._scheduler.timer.seconds)
        return total

    def cancel(self, id: Any) -> bool:
        """Stop the request with this id, or with this index if it has no id.

        Returns
        -------
        bool
            Whether the request was running or waiting here; its finish_reason is then "cancelled".
        """
        with self._visit(), torch.inference_mode():
            index = self._indices.get(id)
            if self._scheduler is None or index is None or not self._is_open:
                return False
            result = self._scheduler.cancel(index)
            if result is not None:
                self._deliver(result)
            return result is not None

    def close(self) -> None:
        """Drop the unfinished requests and release the model. Results that are ready can still be read."""
        with self._visit(), torch.inference_mode():
            self._is_open = False
            try:
                # a second call, after an interrupt, must not touch what the next owner uses
                if self._scheduler is not None and self._ownership.is_owned_by(self._owner):
                    self._scheduler.close()
            finally:
                self._ownership.release(self._owner)

    @contextmanager
    def _visit(self) -> Iterator[None]:
        """Hold the lock, between two steps of the reading thread."""
        self._visitors.append(None)
        try:
            with self._lock:
                yield
        finally:
            self._visitors.pop()
            with self._lock:
                self._lock.notify_all()

    def _start(self) -> None:
        """Acquire the model at the first call, unless the stream is closed."""
        if self._is_started or not self._is_open:
            return
        with self._opening:
            if self._is_started or not self._is_open:
                return
            self._ownership.acquire(self._owner)
            with self._lock:
                self._is_started = True
                if not self._is_open:
                    self._ownership.release(self._owner)

    def _advance(self) -> None:
        """Submit requests while there is room, then run one step of the scheduler."""
        if self._scheduler is None:
            self._scheduler = self._open()
        while self._has_more and self._scheduler.has_room:
            job = next(self._jobs, _END)
            self._has_more = job is not _END
            # deliver an error before reading on, so that many errors do not pile up
            if job is _END or job is None or not self._submit(job):
                break
        if not self._has_more and not self._scheduler.is_busy:
            self.close()
            return
        for result in self._scheduler.step():
            self._deliver(result)

    def _submit(self, job: Job | Result) -> bool:
        """Whether it was submitted; otherwise its error is delivered."""
        if isinstance(job, Job):
            try:
                self._scheduler.submit(job)
            except UserError as error:
                job = Result(job.index, job.id, "error", warnings=job.warnings, error=error)
        if isinstance(job, Result):
            self._deliver(job)
            return False
        self._indices[job.index if job.id is None else job.id] = job.index
        return True

    def _deliver(self, result: Result) -> None:
        self._indices.pop(result.index if result.id is None else result.id, None)
        self._stats.merge(result.stats)
        if result.error is None:
            result.text = self._text(result.token_ids)
            for hypothesis in result.hypotheses or ():
                hypothesis.text = self._text(hypothesis.token_ids)
        if not self._in_order:
            self._ready.append(result)
            return
        self._early[result.index] = result
        while self._next in self._early:
            self._ready.append(self._early.pop(self._next))
            self._next += 1
