"""Continuous batching on the CPU (Orca, Yu et al. 2022): a request enters the batch as soon as another one leaves.

A sequence's tokens do not depend on the other sequences of the batch, so they do not depend on when its request came.
Sources are encoded one by one: the number of positions in a library GEMM changes the order of its sums.
"""

from __future__ import annotations

import torch

from foredraft.engine.clock import now
from foredraft.engine.loop import step
from foredraft.engine.protocols import Drafter, PagedTarget
from foredraft.engine.runtime.beam_batch import BeamBatch
from foredraft.engine.runtime.beam_draft_length import BeamDraftLength
from foredraft.engine.runtime.beam_search import BeamSearch
from foredraft.engine.runtime.requests import Job, Result
from foredraft.engine.runtime.scheduler import Scheduler
from foredraft.engine.sampling.logits_pipeline import LogitsPipeline
from foredraft.engine.state import DecodeState
from foredraft.errors import UserError
from foredraft.memory import available_memory

# The share of the free memory that keys and values may take where no limit is given.
MEMORY_SHARE = 0.5


class ContinuousBatches(Scheduler):
    """A request waits until a sequence of the batch and enough cache pages for its source are free.

    Parameters
    ----------
    target : PagedTarget
    drafter : Drafter
    batch_size : int
        The most requests; fewer where memory is short.
    max_new_tokens, draft_tokens : int
        The most that a request may ask for.
    longest : int
        Tokens of the longest source that must fit.
    pages : int or None
        The most cache pages that sources can take at once; None: not known.
    kv_memory : int or None
        Bytes for keys and values (params.BatchConfig).
    block : bool
        Verify sampled drafts as blocks.
    big_little : (float, float) or None
        Fallback and rollback of Big Little Decoder, LOSSY.
    num_beams : int
        The most beams that a request may ask for; each is a sequence.
    beam_drafter : Drafter or None
        Drafts for beams; None is `drafter`.
    beam_draft_length : BeamDraftLength or None
        Estimates kept from earlier batches; None: no estimates yet.
    constraint_proposer : int
        The entry of `registry.PROPOSERS` for tokens that a constraint forces.

    Raises
    ------
    UserError
        The memory is too small.
    """

    def __init__(self, target: PagedTarget, drafter: Drafter, *, batch_size: int, max_new_tokens: int, draft_tokens: int,
                 longest: int, pages: int | None = None, kv_memory: int | None = None, block: bool = False,
                 big_little: tuple[float, float] | None = None, constraint_proposer: int = 0, num_beams: int = 1,
                 beam_drafter: Drafter | None = None, beam_draft_length: BeamDraftLength | None = None):
        cache = target.cache
        # sequences that an interrupted call left admitted would keep their pages
        target.release(range(cache.num_sequences))
        limit = int(available_memory() * MEMORY_SHARE) + cache.used_bytes() if kv_memory is None else kv_memory
        slots = max_new_tokens + draft_tokens + 2
        batch_size, pages = cache.plan(batch_size * num_beams, slots, longest, pages, limit)
        if batch_size < num_beams:
            raise UserError(f"kv_memory is {limit / 1e6:,.1f} MB, room for {batch_size} of {num_beams} beams; raise it, or "
                            "lower num_beams, max_source or max_new_tokens")
        if cache.nbytes(batch_size, slots, pages) > limit:
            # the buffers of earlier calls are larger than the limit
            cache.clear()
        target.reserve(batch_size, max_new_tokens + 1, draft_tokens, longest, pages)
        super().__init__(batch_size)
        self.cache, self._target, self._drafter = cache, target, drafter
        self.target = self.timer.watch(target, {"decode": "verify", "choose": "verify", "logits": "verify"})
        self.drafter = self.timer.watch(drafter, {"draft": "draft"})

        def column(value: float) -> torch.Tensor:
            return torch.full((batch_size,), value)

        def idle_state() -> DecodeState:
            state = DecodeState(
                limits=column(max_new_tokens + 1), draft_tokens=column(draft_tokens), temperature=column(0.0),
                top_k=column(0), top_p=column(1.0), seeds=column(0), start_token=target.start_token,
                end_token=target.end_token, width=target.config.d_model)
            state.finished.fill_(True)
            return state

        self.state, self._num_beams = idle_state(), num_beams
        # beams have a state of their own, because their passes are separate and are not verified
        self.beams = BeamBatch(self.target, self.timer.watch(beam_drafter or drafter, {"draft": "draft"}),
                               idle_state() if num_beams > 1 else self.state, beam_draft_length or BeamDraftLength())
        self.state.block, self.state.pipeline = block, LogitsPipeline(constraint_proposer)
        if big_little is not None:
            self.state.fallback, self.state.rollback = map(float, big_little)
        self._finished = self.state.finished.numpy()
        self.running: dict[int, Job] = {}
        self._watched: dict[int, Job] = {}
        # the highest sequence starts first, so that drafters allocate for all of them at once
        self._idle = list(range(batch_size))

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self.running or self.beams.running)

    def submit(self, job: Job) -> None:
        for name, wanted, most in (("max_new_tokens", job.params.max_new_tokens, self.state.capacity - 1),
                                   ("draft_tokens", job.draft_tokens, self.state.max_draft),
                                   ("num_beams", job.params.num_beams, self._num_beams)):
            if wanted > most:
                raise UserError(f"{name} is {wanted}, the stream's is {most}; open the stream with the largest {name} of "
                                "its requests")
        self.cache.check_source(len(job.source))
        super().submit(job)

    def step(self) -> list[Result]:
        if self.waiting and self._idle:
            self._admit()
        results = self._step() if self.running else []
        if self.beams.running:
            self.passes += 1
            results += [self._leave_beams(search) for search in self.beams.step()]
        return results

    def _step(self) -> list[Result]:
        """A step of the requests without beams."""
        step(self.state, self.target, self.drafter)
        self.passes += 1
        self._drafter.end_step()
        for sequence, error in self.state.pipeline.errors.items():
            job = self.running[sequence]
            job.error = UserError(f"{job.name}: {error}")
        for sequence, job in self._watched.items():
            if job.error is None:
                job.observe(self.state, sequence)
        if failed := [sequence for sequence, job in self.running.items() if job.error is not None]:
            self._finished[failed] = True
        return self._leave([sequence for sequence in self.running if self._finished[sequence]])

    def cancel(self, index: int) -> Result | None:
        for sequence, job in self.running.items():
            if job.index == index:
                return self._leave([sequence], "cancelled")[0]
        for search in self.beams.running:
            if search.job.index == index:
                return self._leave_beams(search, "cancelled")
        return super().cancel(index)

    def close(self) -> None:
        if self._target is not None:
            # every sequence: an admission may have been interrupted
            self._target.release(range(self.batch_size))
            self._drafter.release(list(self.running))
            self.beams.drafter.release([one for search in self.beams.running for one in search.sequences])
            super().close()
            self.running.clear()
            self.beams.running.clear()
            self._target = None

    def _admit(self) -> None:
        while self.waiting and self.waiting[0].params.num_beams <= len(self._idle) and self.cache.fits(
                len(self.waiting[0].source)):
            job = self.waiting.popleft()
            n = job.params.num_beams
            sequences = self._take_idle(n)
            since = now()
            encoded = self.target.admit(sequences[:1], [job.source])
            for sequence in sequences[1:]:
                self.cache.share(sequences[0], sequence)
            self.timer.add("encode", since)
            (self.drafter if n == 1 else self.beams.drafter).admit(sequences, [job.source] * n, list(encoded) * n)
            if n > 1:
                self.beams.start(job, sequences)
                continue
            (sequence,) = sequences
            self.state.start(sequence, limit=job.limit, draft_tokens=job.draft_tokens, seed=job.seed,
                             end_tokens=job.end_tokens, start_token=job.start_token, **job.distribution)
            self.state.pipeline.start(sequence, job.processors, job.recorder)
            self.running[sequence] = job
            if job.is_watched:
                self._watched[sequence] = job
                job.observe(self.state, sequence)

    def _take_idle(self, n: int) -> list[int]:
        """n idle sequences, adjacent if possible: a pass then reads the source of their beams once."""
        if n == 1:
            return [self._idle.pop()]
        idle = sorted(self._idle)
        starts = [i for i in range(len(idle) - n, -1, -1) if idle[i + n - 1] - idle[i] == n - 1]
        first = starts[0] if starts else len(idle) - n
        taken = idle[first : first + n]
        self._idle = idle[:first] + idle[first + n :]
        return taken

    def _leave(self, sequences: list[int], reason: str | None = None) -> list[Result]:
        if not sequences:
            return []
        results = [self.running.pop(sequence).result(self.state, sequence, reason) for sequence in sequences]
        # before the state is reset: a drafter may read the finished output
        self._target.release(sequences)
        self._drafter.release(sequences)
        for sequence in sequences:
            self.state.stop(sequence)
            self.state.pipeline.stop(sequence)
            self._watched.pop(sequence, None)
            self._idle.append(sequence)
        return results

    def _leave_beams(self, search: BeamSearch, reason: str | None = None) -> Result:
        result = self.beams.result(search, reason)
        self._target.release(search.sequences)
        self.beams.drafter.release(search.sequences)
        self.beams.stop(search)
        self._idle += search.sequences
        return result
