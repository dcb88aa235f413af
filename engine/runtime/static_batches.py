"""Static batches on CUDA: requests start together, and the next batch starts when all have ended.

A captured graph works on the state that it was captured on, so no request enters a running batch.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch

from foredraft.engine.clock import now
from foredraft.engine.protocols import CapturableTarget, Drafter
from foredraft.engine.runtime.cuda_graphs import CapturedSteps, HostView
from foredraft.engine.runtime.requests import Job, Result
from foredraft.engine.runtime.scheduler import Scheduler
from foredraft.engine.state import DecodeState, state_bytes
from foredraft.engine.verify_cuda import workspace_bytes

# Positions of a state are a multiple of this, so that requests of about the same length share captured graphs.
POSITION_STEP = 64


class StaticBatches(Scheduler):
    """Decodes all waiting requests together, up to `batch_size`; a running batch cannot be cancelled.

    `block`: verify sampled drafts as blocks.
    """

    def __init__(self, target: CapturableTarget, drafter: Drafter, graphs: CapturedSteps, batch_size: int,
                 block: bool = False):
        super().__init__(batch_size)
        self.target, self.drafter, self.graphs, self.block = target, drafter, graphs, block

    def step(self) -> list[Result]:
        if not self.waiting:
            return []
        jobs, device = list(self.waiting), self.target.device
        self.waiting.clear()
        sequences, sources = range(len(jobs)), [job.source for job in jobs]
        B, K, config = len(jobs), max(job.draft_tokens for job in jobs), self.target.config
        self.target.reserve(B, max(job.limit for job in jobs), K, max(map(len, sources)))
        capacity = self._capacity(jobs)
        self.target.check_memory(
            state_bytes(B, K, capacity, config.d_model) + workspace_bytes(B, K + 1, config.vocab_size),
            f"the state of {B} sequences of {capacity} positions and {K} drafts",
            "lower batch_size, max_new_tokens or draft_tokens")
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            since = now()
            encoded = self.target.admit(sequences, sources)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.timer.add("encode", since)
            self.drafter.admit(sequences, sources, encoded)
            state = self.graphs.decode(self._state(jobs, capacity), self.target, self.drafter, self._observer(jobs),
                                       in_step=any(job.stop_rules for job in jobs))
            results = [job.result(state, sequence) for sequence, job in enumerate(jobs)]
            self.passes += int(state.num_steps.max())
            self.target.release(sequences)
            self.drafter.release(sequences)
        return results

    @staticmethod
    def _capacity(jobs: list[Job]) -> int:
        """Positions of the state, T; drafters use two more."""
        return -(-(max(job.limit for job in jobs) + 2) // POSITION_STEP) * POSITION_STEP - 2

    def _state(self, jobs: list[Job], capacity: int) -> DecodeState:
        def column(values: list, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=self.target.device)

        distributions = [job.distribution for job in jobs]
        state = DecodeState(
            limits=column([job.limit for job in jobs], torch.int64),
            draft_tokens=column([job.draft_tokens for job in jobs], torch.int64),
            temperature=column([one["temperature"] for one in distributions], torch.float32),
            top_k=column([one["top_k"] for one in distributions], torch.int64),
            top_p=column([one["top_p"] for one in distributions], torch.float32),
            seeds=column([job.seed for job in jobs], torch.int64), start_token=self.target.start_token,
            end_token=self.target.end_token, width=self.target.config.d_model, capacity=capacity)
        state.block = self.block
        for sequence, job in enumerate(jobs):
            if job.end_tokens is not None:
                state.set_end_tokens(sequence, job.end_tokens)
            if job.start_token is not None:
                state.tokens[sequence, 0] = job.start_token
        return state

    def _observer(self, jobs: list[Job]):
        """What the host does after a step, or None where no request is watched."""
        watched = [(sequence, job) for sequence, job in enumerate(jobs) if job.is_watched]
        if not watched:
            return None

        def observe(state: DecodeState | HostView) -> None:
            for sequence, job in watched:
                job.observe(state, sequence)

        for _, job in watched:
            if job.listener is not None:
                # transformers' streamers receive the prompt first; an encoder-decoder's prompt is the start token
                job.listener(torch.tensor([self.target.start_token if job.start_token is None else job.start_token]))
                job.sent = 1
        return observe
