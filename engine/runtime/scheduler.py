"""Continuous batching: requests enter rows of one state as others leave them (Yu et al. 2022, Orca: iteration-level
scheduling), over the same `step` as everything else.

A row's tokens do not depend on the rows beside it, so neither do they on when it came. Sources are encoded one by one,
between rounds: a product of an article's rows is bound by arithmetic already. Short sources would gain by being encoded
together, but a row's bits would then rest on how many rows the library's products have: fewer than 4 have other bits than
more.
"""

from __future__ import annotations

import os
from collections import deque
from time import perf_counter

import numpy as np
import torch

from foredraft.engine.loop import step
from foredraft.engine.models.kv_cache import KVCache, pages_of
from foredraft.engine.models.t5 import T5
from foredraft.engine.protocols import Drafter
from foredraft.engine.runtime.requests import Job, Result
from foredraft.engine.runtime.timers import Stopwatch
from foredraft.engine.state import DecodeState
from foredraft.errors import UserError

# Of the memory that is free, where no limit is given.
SHARE = 0.5


def available_memory() -> int:
    """Bytes that this machine could still give."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class Scheduler:
    """Up to `rows` requests at a time, first come, first served; a request waits until a row and its pages are free.

    rows: the most of them, fewer where memory is short. max_new_tokens, draft_tokens: the most that a request may ask for.
    longest: ids of the longest source that must find room. pages: of sources that may ever be held at once, None where that
    is not known. kv_memory: bytes, as DecodeConfig says. block: sampled drafts are verified as blocks. big_little: fallback
    and rollback, LOSSY. UserError: the target is in use, or the memory is too small.
    """

    def __init__(self, target: T5, drafter: Drafter, *, rows: int, max_new_tokens: int, draft_tokens: int, longest: int,
                 pages: int | None = None, kv_memory: int | None = None, block: bool = False,
                 big_little: tuple[float, float] | None = None):
        cache: KVCache = target.cache
        if cache.is_lent:
            raise UserError("a stream of this model is still running; read it to its end, or close() it, before the next")
        # rows that others have left admitted would keep their pages for good
        target.release(range(cache.rows))
        limit = int(available_memory() * SHARE) + cache.used_bytes() if kv_memory is None else kv_memory
        slots = max_new_tokens + draft_tokens + 2
        self.rows, pages = cache.plan(rows, slots, longest, pages, limit)
        if cache.nbytes(self.rows, slots, pages) > limit:
            # what earlier calls have left
            cache.clear()
        target.reserve(self.rows, max_new_tokens + 1, draft_tokens, longest, pages)
        self.cache, self.clock, self._target, self._drafter = cache, Stopwatch(), target, drafter
        self.target = self.clock.watch(target, {"decode": "verify", "choose": "verify", "logits": "verify"})
        self.drafter = self.clock.watch(drafter, {"draft": "draft"})

        def column(value: float) -> torch.Tensor:
            return torch.full((self.rows,), value)

        self.state = DecodeState(
            limits=column(max_new_tokens + 1), draft_tokens=column(draft_tokens), temperature=column(0.0), top_k=column(0),
            top_p=column(1.0), seeds=column(0), start_token=target.start_token, end_token=target.end_token,
            width=target.config.d_model)
        self.state.finished.fill_(True)
        self.state.block = block
        if big_little is not None:
            self.state.fallback, self.state.rollback = map(float, big_little)
        self._finished = self.state.finished.numpy()
        self.waiting: deque[Job] = deque()
        self.running: dict[int, Job] = {}
        self._watched: dict[int, Job] = {}
        # the highest row first: drafters make room for all rows at once
        self._idle = list(range(self.rows))
        self.passes = 0
        cache.is_lent = True

    @property
    def has_room(self) -> bool:
        """Whether another request may be submitted: a batch of them waits at most."""
        return len(self.waiting) < self.rows

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, job: Job) -> None:
        """Let a request wait for its turn. UserError: it asks for more than there will ever be."""
        most = self.state
        for name, asked, there in (("max_new_tokens", job.config.max_new_tokens, most.capacity - 1),
                                   ("draft_tokens", job.draft_tokens, most.max_draft)):
            if asked > there:
                raise UserError(f"{name} is {asked}, the stream's is {there}; open it with the most that a request asks for")
        if pages_of(len(job.source)) > self.cache.pool.pages:
            needed, there = (pages * self.cache.page_bytes / 1e6 for pages in (pages_of(len(job.source)),
                                                                               self.cache.pool.pages))
            raise UserError(f"{len(job.source)} source tokens need {needed:,.1f} MB of keys and values, kv_memory leaves "
                            f"{there:,.1f} MB; raise it, or lower max_source")
        self.waiting.append(job)

    def round(self) -> list[Result]:
        """Admit what fits, decode one round, and return what has ended, without texts."""
        if self.waiting and self._idle:
            self._admit()
        if not self.running:
            return []
        step(self.state, self.target, self.drafter)
        self.passes += 1
        self._drafter.end_step()
        for row, job in self._watched.items():
            job.look(self.state, row)
        if np.count_nonzero(self._finished) == len(self._idle):
            return []
        return self._leave([row for row in self.running if self._finished[row]])

    def cancel(self, index: int) -> Result | None:
        """Take a request out; its result holds what was decoded. None: it is not here."""
        for job in self.waiting:
            if job.index == index:
                self.waiting.remove(job)
                return Result(job.index, job.id, "cancelled", warnings=job.warnings)
        for row, job in self.running.items():
            if job.index == index:
                return self._leave([row], "cancelled")[0]
        return None

    def close(self) -> None:
        """Drop all requests and hand the target back; may be called again."""
        if self.cache.is_lent and self._target is not None:
            rows = list(self.running)
            # every row: an admission may have been interrupted
            self._target.release(range(self.rows))
            self._drafter.release(rows)
            self.waiting.clear()
            self.running.clear()
            self._target, self.cache.is_lent = None, False

    def _admit(self) -> None:
        while self.waiting and self._idle and self.cache.fits(len(self.waiting[0].source)):
            job, row = self.waiting.popleft(), self._idle.pop()
            since = perf_counter()
            encoded = self.target.admit([row], [job.source])
            self.clock.add("encode", since)
            self.drafter.admit([row], [job.source], encoded)
            self.state.start(row, limit=job.limit, draft_tokens=job.draft_tokens, seed=job.seed, **job.distribution)
            self.running[row] = job
            if job.is_watched:
                self._watched[row] = job
                job.look(self.state, row)

    def _leave(self, rows: list[int], reason: str | None = None) -> list[Result]:
        results = [self.running.pop(row).result(self.state, row, reason) for row in rows]
        # before the rows are stopped: a drafter may read what they hold
        self._target.release(rows)
        self._drafter.release(rows)
        for row in rows:
            self.state.stop(row)
            self._watched.pop(row, None)
            self._idle.append(row)
        return results
