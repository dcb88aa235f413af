"""The plain data of a decode round: Draft, Verification, DecodeState.

Letters: B rows, K drafted tokens a round, R = K + 1 rows read by the target, V vocabulary, T decoder positions,
C model width. Everything lives on one device and is updated in place; nothing here reads a value back to the
host, except `truncate`, which the host calls between rounds for stop strings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foredraft.kernels.core.backend import backend_of
from foredraft.kernels.step.commit import COMMIT
from foredraft.kernels.step.step_inputs import ALLOWED, STEP_INPUTS
from foredraft.kernels.verify.accept_triton import CommitTensors

# Who proposed an accepted token; 0 is the target itself. Used for statistics and colours.
PROPOSERS = ("target", "lookup", "ngram", "t5", "lstm", "cnn", "self", "head", "staged")

# The logits and log-sum-exps of a draft of point masses, as the CPU's kernels take them.
NO_DISTRIBUTIONS = np.zeros((0, 0, 0), np.float32), np.zeros((0, 0))


@dataclass
class Draft:
    """What a drafter proposes for one round. K is the state's max_draft, whatever a row may draft.

    tokens [B, K] int64, padding repeats a valid id; lengths [B] int64 in 0..K; dense [B] bool: draft i was sampled
    from softmax(logits[b, i]), else the row's tokens are point masses; logits [B, K, V] float32 or None: the drafter's
    processed logits (after temperature, top-k and top-p: exactly the distribution that was sampled, which among drafts of one parent
    may leave out those before); lse [B, K] float64: their log-sum-exp; parents [B, K] int64 or None: row (0 = the last
    committed token, i + 1 = draft i) that each draft follows, an earlier one, None for a chain; proposer [B, K] uint8 indexes
    PROPOSERS.
    """

    tokens: Tensor
    lengths: Tensor
    dense: Tensor
    proposer: Tensor
    logits: Tensor | None = None
    lse: Tensor | None = None
    parents: Tensor | None = None

    @classmethod
    def empty(cls, rows: int, width: int, device: torch.device | str = "cpu") -> Draft:
        """A draft of `width` = K columns that proposes nothing."""
        def zeros(*shape: int, dtype: str) -> Tensor:
            # on the CPU through numpy, which takes a third of the time
            return (torch.from_numpy(np.zeros(shape, dtype)) if device == "cpu"
                    else torch.zeros(shape, dtype=getattr(torch, dtype), device=device))

        return cls(zeros(rows, width, dtype="int64"), zeros(rows, dtype="int64"), zeros(rows, dtype="bool"),
                   zeros(rows, width, dtype="uint8"))


@dataclass
class Verification:
    """What the verification emits: tokens [B, R] int64, of which row b emits tokens[b, :counts[b]]; counts [B] int64 in 1..R
    (accepted drafts + the target's own token); path [B, R] int64 or None: the accepted rows of a tree, root first, on
    the CPU 0 past them; committed: a device's kernel committed a chain in the same launch."""

    tokens: Tensor
    counts: Tensor
    path: Tensor | None = None
    committed: bool = False


@dataclass
class DraftBudget:
    """What the drafts of one step may use, passed by a draft-length policy or a cascade to the drafter inside it (CPU only).

    max_tokens [B] int64: the most tokens that each sequence may draft in this step; 0 skips the sequence. costs: of one more
    query position of the target's pass and of one more drafted token, as shares of a plain step; None where not measured.
    """

    max_tokens: np.ndarray
    costs: tuple[float, float] | None = None


class Host(NamedTuple):
    """A CPU state's own memory as arrays, by the names of its tensors: to ask a tensor for its array takes as long as some
    kernels."""

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


def state_bytes(rows: int, draft_tokens: int, capacity: int, width: int) -> int:
    """What a DecodeState of B rows takes of a device, with K = draft_tokens, T = capacity, C = width; a single row's shares
    a few bytes."""
    reads = draft_tokens + 1
    # ids and who proposed them, what the target said last, counts by draft and a chain's rows, a round's inputs and a
    # chain's path; and what there is once a row
    row = 9 * (capacity + 1) + 4 * width + 24 * draft_tokens + 32 * reads + 105
    return rows * row + 8 * reads


class DecodeState:
    """Everything a batch of B rows knows between rounds.

    tokens [B, T + 1] int64: committed ids from the start token on; column T is a spill slot for a device's masked writes.
    lengths [B] int64: committed ids, the start token included. finished [B] bool. limits [B] int64: the length at
    which a row stops, at most T. proposer [B, T + 1] uint8: who proposed each id (PROPOSERS).
    draft_tokens [B] int64 (each row's K), temperature [B] float32 (0 is greedy), top_k [B] int64 (0 is off),
    top_p [B] float32 (1 is off), seeds [B] int64. hidden [B, C] float32: the target's state that produced the last
    committed token. T is the largest limit, or a larger `capacity`. Counters, per row: rounds, covered (rounds with a
    draft), drafted [B]; tested_at, accepted_at [B, K].

    Invariant: the target's caches hold positions [0, lengths - 1); the last committed id is fed next, so that rejecting
    a draft costs nothing.
    """

    def __init__(self, *, limits: Tensor, draft_tokens: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor,
                 seeds: Tensor, start_token: int, end_token: int, width: int, capacity: int | None = None):
        B, device = limits.shape[0], limits.device
        # host values: reading them costs no synchronisation; greedy and cuts change where rows are started and stopped only
        self.capacity = int(limits.max()) if capacity is None else capacity
        # set before the first round. Dense drafts are verified as blocks
        self.block = False
        # LOSSY (Big Little Decoder): drafters end a draft at a distribution whose largest probability is below `fallback`, and greedy
        # drafts stand up to `rollback` nats from the target (kernels/verify/big_little_rollback.py)
        self.fallback, self.rollback = 0.0, None
        self.max_draft = int(draft_tokens.max())
        self.backend = backend_of(limits)
        self.end_token = end_token
        self.tokens = torch.full((B, self.capacity + 1), start_token, dtype=torch.int64, device=device)
        self.proposer = torch.zeros(B, self.capacity + 1, dtype=torch.uint8, device=device)
        self.lengths = torch.ones(B, dtype=torch.int64, device=device)
        self.finished = torch.zeros(B, dtype=torch.bool, device=device)
        self.limits, self.draft_tokens = limits, draft_tokens
        self.temperature, self.top_k, self.top_p, self.seeds = temperature, top_k, top_p, seeds
        self._look_at_distributions()
        self.hidden = torch.zeros(B, width, device=device)
        K = self.max_draft
        self.num_steps, self.covered, self.drafted = (torch.zeros(B, dtype=torch.int64, device=device) for _ in range(3))
        self.tested_at, self.accepted_at = (torch.zeros(B, K, dtype=torch.int64, device=device) for _ in range(2))
        self.last_tested, self.last_accepted, self.last_counts = (
            torch.zeros(B, dtype=torch.int64, device=device) for _ in range(3))
        self._steps = torch.arange(K + 1, device=device)
        # a chain's parents [B, K], draft i follows row i, and its path [B, R]
        self.chain = self._steps[:K].expand(B, K).contiguous()
        self._straight = self._steps.expand(B, K + 1).contiguous()
        self._written = (
            self.tokens, self.proposer, self.lengths, self.finished, self.hidden, self.num_steps, self.covered, self.drafted,
            self.tested_at, self.accepted_at, self.last_counts, self.last_tested, self.last_accepted)
        self._room = (self.lengths, limits, self.finished, draft_tokens)
        self._inside = (self.tokens, self.lengths, self.finished)
        if device.type == "cpu":
            self.host = Host(*(getattr(self, name).numpy() for name in Host._fields))
            self._host_written, self._host_room, self._host_inside, self._host_chain = (
                tuple(tensor.numpy() for tensor in tensors)
                for tensors in (self._written, self._room, self._inside, (self.chain, self._straight)))
        # a device's buffers, the same in every round: allowed, inputs and, made in the first round, those of verification.py and
        # sampling.py
        self._allowed = torch.zeros(B, dtype=torch.int64, device=device)
        self._inputs = tuple(torch.zeros(B, K + 1, dtype=torch.int64, device=device) for _ in range(3))
        self.workspace = self.sampler = None

    @property
    def batch_size(self) -> int:
        return self.tokens.shape[0]

    @property
    def lossy(self) -> str:
        """What outputs call a policy that is not lossless; "" where there is none."""
        return "" if self.rollback is None else f"big-little fallback {self.fallback:g} rollback {self.rollback:g}"

    def allowed(self, budget: DraftBudget | None = None) -> Tensor:
        """How many tokens each sequence may draft now: [B] int64, its K or the budget, at most the room left, 0 once finished."""
        if self.backend == "triton":
            ALLOWED["triton"](*self._room, self._allowed)
            return self._allowed
        allowed = np.empty(self.batch_size, np.int64)
        *room, draft_tokens = self._host_room
        ALLOWED[self.backend](*room, draft_tokens if budget is None else budget.max_tokens, allowed)
        return torch.from_numpy(allowed)

    def inputs(self, draft: Draft) -> tuple[Tensor, Tensor, Tensor | None]:
        """The target's next rows: tokens [B, R], positions [B, R] (-1: nothing to read there), parents [B, R] or None.

        Row 0 is the last committed id; rows past a row's draft, and all rows of a finished one, are not read.
        """
        if self.backend == "triton":
            tokens, positions, above = self._inputs
            above = None if draft.parents is None else above
            STEP_INPUTS["triton"](*self._inside, draft.tokens, draft.lengths, draft.parents, tokens, positions, above)
            return tokens, positions, above
        proposed, parents = draft.tokens.numpy(), None if draft.parents is None else draft.parents.numpy()
        read = np.empty((self.batch_size, 1 + proposed.shape[1]), np.int64)
        positions, above = np.empty_like(read), None if parents is None else np.empty_like(read)
        STEP_INPUTS[self.backend](*self._host_inside, proposed, draft.lengths.numpy(), parents, read, positions, above)
        return torch.from_numpy(read), torch.from_numpy(positions), None if above is None else torch.from_numpy(above)

    def commit(self, draft: Draft, verification: Verification, hidden: Tensor) -> None:
        """Append each row's verification, cut at the end token and at the row's limit, and count (kernels/step/commit.py).

        hidden [B, R, C] is the target's output of this round. Finished rows emit nothing.
        """
        if verification.committed:
            return
        verified = (verification.tokens, verification.counts)
        if self.backend == "triton":
            path = self._straight if verification.path is None else verification.path
            COMMIT["triton"](*verified, path, draft.lengths, draft.parents, *self.committed_into(draft, hidden))
            return
        parents, path = self._host_chain
        if draft.parents is not None:
            parents, path = draft.parents.numpy(), verification.path.numpy()
        COMMIT[self.backend](*(tensor.numpy() for tensor in verified), path, draft.lengths.numpy(), parents,
                             draft.proposer.numpy(), hidden.numpy(), self._host_room[1], self.end_token, *self._host_written)

    def committed_into(self, draft: Draft, hidden: Tensor) -> CommitTensors:
        """What a commit on a device reads of the draft and the state, and what it writes."""
        return CommitTensors(draft.proposer, hidden, self.limits, self.end_token, *self._written)

    def start(self, row: int, *, limit: int, draft_tokens: int, temperature: float, top_k: int, top_p: float,
              seed: int) -> None:
        """Give a row to a new request (called by the host between rounds, on the CPU): nothing of its last one is left but
        stale memory past `lengths`. limit is at most the capacity, draft_tokens at most max_draft."""
        if limit > self.capacity or draft_tokens > self.max_draft:
            raise ValueError(f"limit {limit} and {draft_tokens} drafts in a state of {self.capacity} and {self.max_draft}")
        _tokens, _proposer, lengths, finished, *counters = self._host_written
        for counter in counters:
            counter[row] = 0
        lengths[row], finished[row] = 1, False
        self.limits[row], self.draft_tokens[row], self.seeds[row] = limit, draft_tokens, seed
        self.temperature[row], self.top_k[row], self.top_p[row] = temperature, top_k, top_p
        self._look_at_distributions()

    def stop(self, row: int) -> None:
        """Leave a row idle: it counts as finished and greedy until it is started again."""
        self.finished[row] = True
        self.temperature[row], self.top_k[row], self.top_p[row] = 0, 0, 1
        self._look_at_distributions()

    def _look_at_distributions(self) -> None:
        self.greedy = not any(self.temperature.tolist())
        self.cuts = any(self.top_k.tolist()) or min(self.top_p.tolist()) < 1

    def truncate(self, row: int, length: int) -> None:
        """Cut a row back to `length` ids inside its last round and finish it (a stop string; called by the host)."""
        cut = int(self.lengths[row]) - length
        kept = int(self.last_counts[row]) - cut
        for last, at in ((self.last_accepted, self.accepted_at), (self.last_tested, self.tested_at)):
            before, after = int(last[row]), min(int(last[row]), kept)
            at[row, after:before] -= 1
            last[row] = after
        self.lengths[row] = length
        self.finished[row] = True
