"""Fixed batches on a device: as many requests as there are rows start together, and the next when all have ended.

A captured graph (graph.py) holds the state it was captured on, so rows are not handed over in between. To a stream it looks
like the scheduler of the CPU.
"""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from time import perf_counter

import torch

from foredraft.engine.models.t5_cuda import SLOTS, T5Cuda
from foredraft.engine.models.t5_cuda_weights import check_memory
from foredraft.engine.protocols import Drafter
from foredraft.engine.runtime.cuda_graphs import CapturedSteps, HostView
from foredraft.engine.runtime.requests import Job, Result
from foredraft.engine.runtime.timers import Stopwatch
from foredraft.engine.state import DecodeState, state_bytes
from foredraft.engine.verify import workspace_bytes


class FixedBatches:
    """Batches of up to `rows` requests; what ended comes a batch at a time. block: sampled drafts are verified as blocks."""

    def __init__(self, target: T5Cuda, drafter: Drafter, graphs: CapturedSteps, rows: int, block: bool = False):
        self.target, self.drafter, self.graphs = target, drafter, graphs
        self.rows, self.block, self.clock, self.passes = rows, block, Stopwatch(), 0
        self.waiting: deque[Job] = deque()

    @property
    def has_room(self) -> bool:
        return len(self.waiting) < self.rows

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting)

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def cancel(self, index: int) -> Result | None:
        """Take a waiting request out; a batch that runs is not interrupted."""
        for job in self.waiting:
            if job.index == index:
                self.waiting.remove(job)
                return Result(job.index, job.id, "cancelled", warnings=job.warnings)
        return None

    def close(self) -> None:
        self.waiting.clear()

    def round(self) -> list[Result]:
        """Decode all that wait, together; nobody does where a request has failed at the door."""
        if not self.waiting:
            return []
        jobs, device = list(self.waiting), self.target.device
        self.waiting.clear()
        rows, sources = range(len(jobs)), [job.source for job in jobs]
        B, K, config = len(jobs), max(job.draft_tokens for job in jobs), self.target.config
        self.target.reserve(B, max(job.limit for job in jobs), K, max(map(len, sources)))
        capacity = self._capacity(jobs)
        check_memory(device, state_bytes(B, K, capacity, config.d_model) + workspace_bytes(B, K + 1, config.vocab_size),
                     f"the state of {B} rows of {capacity} positions and {K} drafts",
                     "lower batch_size, max_new_tokens or draft_tokens")
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            since = perf_counter()
            encoded = self.target.admit(rows, sources)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.clock.add("encode", since)
            self.drafter.admit(rows, sources, encoded)
            state = self.graphs.decode(self._state(jobs), self.target, self.drafter, self._look(jobs),
                                       in_step=any(job.stops for job in jobs))
            results = [job.result(state, row) for row, job in enumerate(jobs)]
            self.passes += int(state.num_steps.max())
            self.target.release(rows)
            self.drafter.release(rows)
        return results

    def _capacity(self, jobs: list[Job]) -> int:
        """One captured round for all limits that are near; drafters want room for two more ids."""
        return -(-(max(job.limit for job in jobs) + 2) // SLOTS) * SLOTS - 2

    def _state(self, jobs: list[Job]) -> DecodeState:
        def column(values: list, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=self.target.device)

        distributions = [job.distribution for job in jobs]
        state = DecodeState(
            limits=column([job.limit for job in jobs], torch.int64),
            draft_tokens=column([job.draft_tokens for job in jobs], torch.int64),
            temperature=column([distribution["temperature"] for distribution in distributions], torch.float32),
            top_k=column([distribution["top_k"] for distribution in distributions], torch.int64),
            top_p=column([distribution["top_p"] for distribution in distributions], torch.float32),
            seeds=column([job.seed for job in jobs], torch.int64), start_token=self.target.start_token,
            end_token=self.target.end_token, width=self.target.config.d_model, capacity=self._capacity(jobs))
        state.block = self.block
        return state

    def _look(self, jobs: list[Job]):
        """The host's look between rounds, or None when nobody asks for it."""
        watched = [(row, job) for row, job in enumerate(jobs) if job.is_watched]
        if not watched:
            return None

        def look(state: DecodeState | HostView) -> None:
            for row, job in watched:
                job.look(state, row)

        for _, job in watched:
            if job.listener is not None:
                # transformers sends the prompt first; for an encoder-decoder that is the start token
                job.listener(torch.tensor([self.target.start_token]))
                job.sent = 1
        return look
