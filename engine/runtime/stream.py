"""Results of many requests, as they end or in their order, with as many requests in hand as the machine holds."""

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
    from foredraft.engine.runtime.static_batches import FixedBatches


class Stream:
    """An iterator of one Result for each request; a context manager, too, that closes.

    Requests are read as rows become free, a batch ahead at most: an endless source of them is fine. One that cannot be
    decoded yields a Result with its `error`, and the others go on. `stats`: sums of what has ended so far.
    """

    def __init__(self, open_scheduler: Callable[[], Scheduler | FixedBatches], jobs: Iterator[Job | Result],
                 text: Callable[[list[int]], str | None], in_order: bool = False):
        self._open, self._jobs, self._text, self._in_order = open_scheduler, jobs, text, in_order
        self._scheduler: Scheduler | FixedBatches | None = None
        self._ready: deque[Result] = deque()
        # results that wait for an earlier one: the oldest request always runs, so they are few
        self._held: dict[int, Result] = {}
        self._next, self._is_open, self._has_more = 0, True, True
        self._known: dict[Any, int] = {}
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
        """Of all requests that have ended, with the seconds of the whole stream by part, "total" left to the caller."""
        total = DecodeStats()
        total.merge(self._stats)
        if self._scheduler is not None:
            total.passes, total.slots = self._scheduler.passes, self._scheduler.passes * self._scheduler.rows
            total.add_seconds(self._scheduler.clock.seconds)
        return total

    def cancel(self, id: Any) -> bool:
        """Stop the request of this id (its index where it has none); its result says "cancelled". False: not in hand."""
        index = self._known.get(id)
        if self._scheduler is None or index is None:
            return False
        with torch.inference_mode():
            result = self._scheduler.cancel(index)
        if result is not None:
            self._deliver(result)
        return result is not None

    def close(self) -> None:
        """Drop what is not finished and hand the model back; no further result comes."""
        was_open, self._is_open = self._is_open, False
        if was_open and self._scheduler is not None:
            with torch.inference_mode():
                self._scheduler.close()

    def _advance(self) -> None:
        """One round, after taking in what there is room for."""
        if self._scheduler is None:
            self._scheduler = self._open()
        while self._has_more and self._scheduler.has_room:
            job = next(self._jobs, None)
            self._has_more = job is not None
            # an error is handed on before more is read, so that a run of them does not pile up
            if job is None or not self._submit(job):
                break
        if not self._has_more and not self._scheduler.is_busy:
            self.close()
            return
        for result in self._scheduler.round():
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
        self._known[job.index if job.id is None else job.id] = job.index
        return True

    def _deliver(self, result: Result) -> None:
        self._known.pop(result.index if result.id is None else result.id, None)
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
