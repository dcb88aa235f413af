"""The plain data of a decode step: Draft, Verification, DraftBudget, DecodeState.

Letters: B sequences, K drafted tokens per step, R = K + 1 query positions of the target's pass, V vocabulary, T decoder
positions, C model width. All tensors lie on one device and are updated in place. Nothing here reads a value back to the
host, except `truncate`, which the host calls between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from foredraft.kernels.core.backend import backend_of
from foredraft.kernels.step.commit import COMMIT
from foredraft.kernels.step.end_tokens import MAX_END_TOKENS
from foredraft.kernels.step.step_inputs import ALLOWED, STEP_INPUTS

if TYPE_CHECKING:
    from foredraft.kernels.verify.accept_triton import CommitTensors

# Logits and log-sum-exps of a draft without distributions, for the CPU's kernels.
NO_DISTRIBUTIONS = np.zeros((0, 0, 0), np.float32), np.zeros((0, 0))


@dataclass
class Draft:
    """The tokens that a drafter proposes in one step.

    Attributes
    ----------
    tokens : Tensor [B, K] int64
        K is `state.max_draft`, or fewer columns on the CPU. Columns past a sequence's length are ignored.
    lengths : Tensor [B] int64
        How many tokens of each sequence are proposed, 0..K.
    dense : Tensor [B] bool
        True: token i was sampled from softmax(logits[b, i]). False: the tokens are point masses (q = 1).
    proposer : Tensor [B, K] uint8
        Who proposed each token, an index into `registry.PROPOSERS`.
    logits : Tensor [B, K, V] float32 or None
        The drafter's warped logits: exactly the distribution that was sampled, after temperature, top-k and top-p. Among the
        children of one tree node it may exclude the siblings sampled before.
    lse : Tensor [B, K] float64 or None
        Log-sum-exp of the logits.
    parents : Tensor [B, K] int64 or None
        A tree: the query position that each token follows, an earlier one; 0 is the last committed token, i + 1 token i.
        None: each token follows the one before.
    """

    tokens: Tensor
    lengths: Tensor
    dense: Tensor
    proposer: Tensor
    logits: Tensor | None = None
    lse: Tensor | None = None
    parents: Tensor | None = None

    @classmethod
    def empty(cls, batch_size: int, width: int, device: torch.device | str = "cpu") -> Draft:
        """A draft of `width` = K columns that proposes nothing."""
        def zeros(*shape: int, dtype: str) -> Tensor:
            # on the CPU through numpy, which takes a third of the time
            return (torch.from_numpy(np.zeros(shape, dtype)) if device == "cpu"
                    else torch.zeros(shape, dtype=getattr(torch, dtype), device=device))

        B, K = batch_size, width
        return cls(zeros(B, K, dtype="int64"), zeros(B, dtype="int64"), zeros(B, dtype="bool"), zeros(B, K, dtype="uint8"))


@dataclass
class DraftBudget:
    """What the drafts of one step may use; a draft-length policy or a cascade passes it to the drafter inside it (CPU only).

    Attributes
    ----------
    max_tokens : ndarray [B] int64
        The most tokens that each sequence may draft in this step; 0 skips the sequence.
    costs : (float, float) or None
        Of one more query position of the target's pass, and of one more drafted token, as shares of a plain step; None where
        they were not measured.
    """

    max_tokens: np.ndarray
    costs: tuple[float, float] | None = None


@dataclass
class Verification:
    """The tokens that one step emits.

    Attributes
    ----------
    tokens : Tensor [B, R] int64
        Sequence b emits tokens[b, :counts[b]]: the accepted drafts and one token of the target.
    counts : Tensor [B] int64
        1..R.
    path : Tensor [B, R] int64 or None
        A tree's accepted query positions, root first; 0 past them.
    committed : bool
        A CUDA kernel has committed the tokens already.
    """

    tokens: Tensor
    counts: Tensor
    path: Tensor | None = None
    committed: bool = False


class Host(NamedTuple):
    """NumPy views of a CPU state's tensors, by name; Tensor.numpy() would take as long as some kernels."""

    tokens: np.ndarray
    lengths: np.ndarray
    draft_tokens: np.ndarray
    hidden: np.ndarray
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    seeds: np.ndarray
    num_steps: np.ndarray
    last_tested: np.ndarray
    last_accepted: np.ndarray


class LogitsPipeline(Protocol):
    """The interface of logits processors to verification (engine/sampling/logits_pipeline.py)."""

    is_active: bool  # whether a sequence has any

    def force(self, state: DecodeState, draft: Draft) -> None: ...
    def process(self, state: DecodeState, draft: Draft, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
    def record(self, tokens: np.ndarray, counts: np.ndarray, path: np.ndarray) -> None: ...


def state_bytes(batch_size: int, draft_tokens: int, capacity: int, width: int) -> int:
    """Bytes of a DecodeState with B = batch_size, K = draft_tokens, T = capacity, C = width."""
    R = draft_tokens + 1
    # tokens and proposers, hidden, counts by draft position and default parents, step inputs and default path; end tokens;
    # scalars
    sequence = 9 * (capacity + 1) + 4 * width + 24 * draft_tokens + 32 * R + 8 * MAX_END_TOKENS + 105
    return batch_size * sequence + 8 * R


class DecodeState:
    """What is known about a batch of B sequences between steps.

    Invariant: the target's caches hold positions [0, lengths - 1). The last committed token is fed next, so that a rejected
    draft needs no clean-up.

    Attributes
    ----------
    tokens : Tensor [B, T + 1] int64
        Committed tokens, the start token first; column T takes masked writes on CUDA.
    lengths : Tensor [B] int64
        Committed tokens, the start token included.
    finished : Tensor [B] bool
    limits : Tensor [B] int64
        The length at which a sequence ends, at most T.
    end_token : int
        The model's end token, where drafts stop; -1: it has none.
    end_tokens : Tensor [B, MAX_END_TOKENS] int64
        The tokens that end each sequence, filled up with -1.
    proposer : Tensor [B, T + 1] uint8
        Who proposed each token, an index into `registry.PROPOSERS`.
    draft_tokens : Tensor [B] int64
        K of each request; `max_draft` is the largest.
    temperature, top_k, top_p, seeds : Tensor [B] float32, int64, float32, int64
        Temperature 0 is greedy, top_k 0 and top_p 1 are off.
    hidden : Tensor [B, C] float32
        The target's output that gave the last committed token.
    num_steps, covered, drafted : Tensor [B] int64
        Steps, steps with a draft, and drafted tokens.
    tested_at, accepted_at : Tensor [B, K] int64
        Tokens tested and accepted, by position in the draft; testing ends at the first rejection.
    last_tested, last_accepted, last_counts : Tensor [B] int64
        Of the last step.
    last_draft : Draft or None
        Of the last step; None before the first one, and always where a CUDA kernel commits.
    block : bool
        Verify dense drafts as blocks.
    fallback, rollback : float, float or None
        Thresholds of Big Little Decoder, LOSSY (kernels/verify/big_little_rollback.py).
    pipeline : LogitsPipeline or None
        The logits processors of the sequences (CPU only).
    """

    def __init__(self, *, limits: Tensor, draft_tokens: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor,
                 seeds: Tensor, start_token: int, end_token: int, width: int, capacity: int | None = None):
        B, device = limits.shape[0], limits.device
        self.capacity = int(limits.max()) if capacity is None else capacity
        # set before the first step
        self.block, self.fallback, self.rollback = False, 0.0, None
        self.pipeline: LogitsPipeline | None = None
        self.last_draft: Draft | None = None
        self.max_draft = int(draft_tokens.max())
        self.backend = backend_of(limits)
        self.start_token, self.end_token = start_token, end_token
        self.end_tokens = torch.full((B, MAX_END_TOKENS), -1, dtype=torch.int64, device=device)
        self.end_tokens[:, 0] = end_token
        self.tokens = torch.full((B, self.capacity + 1), start_token, dtype=torch.int64, device=device)
        self.proposer = torch.zeros(B, self.capacity + 1, dtype=torch.uint8, device=device)
        self.lengths = torch.ones(B, dtype=torch.int64, device=device)
        self.finished = torch.zeros(B, dtype=torch.bool, device=device)
        self.limits, self.draft_tokens = limits, draft_tokens
        self.temperature, self.top_k, self.top_p, self.seeds = temperature, top_k, top_p, seeds
        self._update_flags()
        self.hidden = torch.zeros(B, width, device=device)
        K = self.max_draft
        self.num_steps, self.covered, self.drafted = (torch.zeros(B, dtype=torch.int64, device=device) for _ in range(3))
        self.tested_at, self.accepted_at = (torch.zeros(B, K, dtype=torch.int64, device=device) for _ in range(2))
        self.last_tested, self.last_accepted, self.last_counts = (
            torch.zeros(B, dtype=torch.int64, device=device) for _ in range(3))
        self._steps = torch.arange(K + 1, device=device)
        # of a draft without branches: parents [B, K] and path [B, R]
        self.chain_parents = self._steps[:K].expand(B, K).contiguous()
        self._chain_path = self._steps.expand(B, K + 1).contiguous()
        self._written = (
            self.tokens, self.proposer, self.lengths, self.finished, self.hidden, self.num_steps, self.covered, self.drafted,
            self.tested_at, self.accepted_at, self.last_counts, self.last_tested, self.last_accepted)
        self._room = (self.lengths, limits, self.finished, draft_tokens)
        self._inside = (self.tokens, self.lengths, self.finished)
        if device.type == "cpu":
            self.host = Host(*(getattr(self, name).numpy() for name in Host._fields))
            self._host_written, self._host_room, self._host_inside, self._host_chain = (
                tuple(tensor.numpy() for tensor in tensors)
                for tensors in (self._written, self._room, self._inside, (self.chain_parents, self._chain_path)))
            self._host_ends = self.end_tokens.numpy()
        # buffers of a CUDA state: its own, and those of verify_cuda.py and draft_sampling_cuda.py, made in the first step
        self._allowed = torch.zeros(B, dtype=torch.int64, device=device)
        self._inputs = tuple(torch.zeros(B, K + 1, dtype=torch.int64, device=device) for _ in range(3))
        self.workspace = self.sampler = None

    @property
    def batch_size(self) -> int:
        return self.tokens.shape[0]

    @property
    def rows(self) -> int:
        """The former name of `batch_size`, for drafters that use it."""
        return self.batch_size

    @property
    def lossy(self) -> str:
        """Names a lossy decoding policy; "" is lossless."""
        return "" if self.rollback is None else f"big-little fallback {self.fallback:g} rollback {self.rollback:g}"

    def allowed(self, budget: DraftBudget | None = None) -> Tensor:
        """How many tokens each sequence may draft now, [B] int64: its K or its budget, as room is left; 0 if finished."""
        if self.backend == "triton":
            from foredraft.kernels.step.step_inputs_triton import allowed_triton

            allowed_triton(*self._room, self._allowed)
            return self._allowed
        allowed = np.empty(self.batch_size, np.int64)
        *room, draft_tokens = self._host_room
        ALLOWED[self.backend](*room, draft_tokens if budget is None else budget.max_tokens, allowed)
        return torch.from_numpy(allowed)

    def inputs(self, draft: Draft) -> tuple[Tensor, Tensor, Tensor | None]:
        """The query positions of the target's pass.

        Returns
        -------
        tokens, positions : Tensor [B, R] int64
            Query position 0 is the last committed token. Position -1: not read, past the draft or in a finished sequence.
        parents : Tensor [B, R] int64 or None
            Of a tree: the query position that each one follows, -1 for query position 0.
        """
        if self.backend == "triton":
            from foredraft.kernels.step.step_inputs_triton import step_inputs_triton

            tokens, positions, above = self._inputs
            above = None if draft.parents is None else above
            step_inputs_triton(*self._inside, draft.tokens, draft.lengths, draft.parents, tokens, positions, above)
            return tokens, positions, above
        proposed, parents = draft.tokens.numpy(), None if draft.parents is None else draft.parents.numpy()
        read = np.empty((self.batch_size, 1 + proposed.shape[1]), np.int64)
        positions, above = np.empty_like(read), None if parents is None else np.empty_like(read)
        STEP_INPUTS[self.backend](*self._host_inside, proposed, draft.lengths.numpy(), parents, read, positions, above)
        return torch.from_numpy(read), torch.from_numpy(positions), None if above is None else torch.from_numpy(above)

    def commit(self, draft: Draft, verification: Verification, hidden: Tensor) -> None:
        """Append the emitted tokens, cut at the end token and at the limit, and update the counts (kernels/step/commit.py).

        hidden [B, R, C]: the target's output of this step. Finished sequences emit nothing.
        """
        if verification.committed:
            return
        verified = (verification.tokens, verification.counts)
        if self.backend == "triton":
            from foredraft.kernels.step.commit_triton import commit_triton

            path = self._chain_path if verification.path is None else verification.path
            commit_triton(*verified, path, draft.lengths, draft.parents, *self.committed_into(draft, hidden))
            return
        self.last_draft = draft
        parents, path = self._host_chain
        if draft.parents is not None:
            parents, path = draft.parents.numpy(), verification.path.numpy()
        COMMIT[self.backend](*(tensor.numpy() for tensor in verified), path, draft.lengths.numpy(), parents,
                             draft.proposer.numpy(), hidden.numpy(), self._host_room[1], self._host_ends,
                             *self._host_written)

    def committed_into(self, draft: Draft, hidden: Tensor) -> CommitTensors:
        """What a commit on CUDA reads of the draft and the state, and what it writes."""
        from foredraft.kernels.verify.accept_triton import CommitTensors

        return CommitTensors(draft.proposer, hidden, self.limits, self.end_tokens, *self._written)

    def start(self, sequence: int, *, limit: int, draft_tokens: int, temperature: float, top_k: int, top_p: float,
              seed: int, end_tokens: Sequence[int] | None = None, start_token: int | None = None) -> None:
        """Start a new request in a sequence (between steps, CPU only). limit <= capacity, draft_tokens <= max_draft.

        end_tokens, start_token: None takes the model's.
        """
        if limit > self.capacity or draft_tokens > self.max_draft:
            raise ValueError(f"limit {limit} and {draft_tokens} drafts in a state of {self.capacity} and {self.max_draft}")
        _tokens, _proposer, lengths, finished, *counters = self._host_written
        for counter in counters:
            counter[sequence] = 0
        lengths[sequence], finished[sequence] = 1, False
        self.tokens[sequence, 0] = self.start_token if start_token is None else start_token
        self.set_end_tokens(sequence, [self.end_token] if end_tokens is None else end_tokens)
        self.limits[sequence], self.draft_tokens[sequence], self.seeds[sequence] = limit, draft_tokens, seed
        self.temperature[sequence], self.top_k[sequence], self.top_p[sequence] = temperature, top_k, top_p
        self._update_flags()

    def set_end_tokens(self, sequence: int, tokens: Sequence[int]) -> None:
        """The tokens that end a sequence, at most MAX_END_TOKENS."""
        self.end_tokens[sequence] = -1
        self.end_tokens[sequence, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)

    def stop(self, sequence: int) -> None:
        """Leave a sequence idle: finished and greedy until it is started again."""
        self.finished[sequence] = True
        self.temperature[sequence], self.top_k[sequence], self.top_p[sequence] = 0, 0, 1
        self._update_flags()

    def _update_flags(self) -> None:
        self.greedy = not any(self.temperature.tolist())
        self.has_top_k_top_p = any(self.top_k.tolist()) or min(self.top_p.tolist()) < 1

    def truncate(self, sequence: int, length: int) -> None:
        """Finish a sequence at `length` tokens, inside its last step (a stop string)."""
        cut = int(self.lengths[sequence]) - length
        kept = int(self.last_counts[sequence]) - cut
        for last, at in ((self.last_accepted, self.accepted_at), (self.last_tested, self.tested_at)):
            before, after = int(last[sequence]), min(int(last[sequence]), kept)
            at[sequence, after:before] -= 1
            last[sequence] = after
        # for another rule that truncates the same step further
        self.last_counts[sequence] = kept
        self.lengths[sequence] = length
        self.finished[sequence] = True
