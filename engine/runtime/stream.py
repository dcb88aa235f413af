"""Results of many requests, as they end or in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from foredraft.engine.runtime.requests import Job, Result
from foredraft.engine.stats import DecodeStats
from foredraft.errors import UserError

if TYPE_CHECKING:
    from foredraft.engine.runtime.scheduler import Scheduler


class Stream:
    """An iterator of one Result for each request, and a context manager that closes it.

    Requests are read as sequences become free, at most a batch ahead, so they may come from an endless iterator. A request
    that cannot be decoded gives a Result with its `error`, and the others go on.
    """

    def __init__(self, open_scheduler: Callable[[], Scheduler], jobs: Iterator[Job | Result],
                 text: Callable[[list[int]], str | None], in_order: bool = False):
        self._open, self._jobs, self._text, self._in_order = open_scheduler, jobs, text, in_order
        self._scheduler: Scheduler | None = None
        self._ready: deque[Result] = deque()
        # results that wait for an earlier one; the oldest request always runs, so they are few
        self._held: dict[int, Result] = {}
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
        self.close()

    def __next__(self) -> Result:
        try:
            with torch.inference_mode():
                while not self._ready and self._is_open:
                    self._advance()
        except BaseException:
            self.close()
            raise
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    @property
    def stats(self) -> DecodeStats:
        """Sums over the requests that have ended, and seconds of the stream by part; "total" is the caller's to set."""
        total = DecodeStats()
        total.merge(self._stats)
        if self._scheduler is not None:
            total.passes, total.slots = self._scheduler.passes, self._scheduler.passes * self._scheduler.batch_size
            total.add_seconds(self._scheduler.timer.seconds)
        return total

    def cancel(self, id: Any) -> bool:
        """Stop the request of this id, or of this index where it has no id.

        Returns
        -------
        bool
            Whether it was unfinished; then its result says "cancelled".
        """
        index = self._indices.get(id)
        if self._scheduler is None or index is None:
            return False
        with torch.inference_mode():
            result = self._scheduler.cancel(index)
        if result is not None:
            self._deliver(result)
        return result is not None

    def close(self) -> None:
        """Drop the unfinished requests and release the model; no further result comes."""
        was_open, self._is_open = self._is_open, False
        if was_open and self._scheduler is not None:
            with torch.inference_mode():
                self._scheduler.close()

    def _advance(self) -> None:
        """Submit what there is room for, then one step of the scheduler."""
        if self._scheduler is None:
            self._scheduler = self._open()
        while self._has_more and self._scheduler.has_room:
            job = next(self._jobs, None)
            self._has_more = job is not None
            # deliver an error before reading on, so that many errors do not pile up
            if job is None or not self._submit(job):
                break
        if not self._has_more and not self._scheduler.is_busy:
            self.close()
            return
        for result in self._scheduler.step():
            self._deliver(result)

    def _submit(self, job: Job | Result) -> bool:
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
        if not self._in_order:
            self._ready.append(result)
            return
        self._held[result.index] = result
        while self._next in self._held:
            self._ready.append(self._held.pop(self._next))
            self._next += 1
