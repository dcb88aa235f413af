"""The interface of the schedulers: which requests are decoded together, and when."""

from __future__ import annotations

from collections import deque

from foredraft.engine.runtime.requests import Job, Result
from foredraft.engine.runtime.timers import Timer


class Scheduler:
    """Runs the requests of one stream, up to `batch_size` at a time, in the order in which they were submitted.

    Attributes
    ----------
    batch_size : int
        Sequences of the batch.
    timer : Timer
        Seconds by part: encode, draft, verify.
    passes : int
        Passes of the target so far.
    """

    def __init__(self, batch_size: int):
        self.batch_size, self.timer, self.passes = batch_size, Timer(), 0
        self.waiting: deque[Job] = deque()

    @property
    def has_room(self) -> bool:
        """Whether another request may be submitted: at most one batch of them waits."""
        return len(self.waiting) < self.batch_size

    @property
    def is_busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.waiting)

    def submit(self, job: Job) -> None:
        """Queue a request. UserError: it asks for more than this scheduler can ever give."""
        self.waiting.append(job)

    def step(self) -> list[Result]:
        """Start what fits, decode, and return the results of the requests that ended, without texts."""
        raise NotImplementedError

    def cancel(self, index: int) -> Result | None:
        """Remove a request. Its result holds the tokens so far; None: it is not here."""
        for job in self.waiting:
            if job.index == index:
                self.waiting.remove(job)
                return Result(job.index, job.id, "cancelled", warnings=job.warnings)
        return None

    def close(self) -> None:
        """Drop all requests and release the target; may be called again."""
        self.waiting.clear()
