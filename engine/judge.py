"""The judge: the target's hidden states and a draft in, a Verdict out. All randomness of a round is spent here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.shortlists import NO_LAWS
from foredraft.engine.state import DecodeState, Draft, Verdict
from foredraft.kernels.accept import ACCEPT_GREEDY, ACCEPT_SAMPLED
from foredraft.kernels.block import BLOCK
from foredraft.kernels.cut import cut_triton
from foredraft.kernels.draw import Scratch, make_scratch
from foredraft.kernels.rollback import ROLLBACK
from foredraft.kernels.verdict import verdict_greedy_triton, verdict_triton

if TYPE_CHECKING:
    from foredraft.engine.decode import Target


def judge(state: DecodeState, draft: Draft, hidden: Tensor, target: Target) -> Verdict:
    """Which drafts stand, and what follows them, so that the target's law is unchanged (kernels/accept.py), and where the
    state says so, dense chains as blocks (kernels/block.py).

    An all-greedy batch never computes logits, unless the state says `rollback`, which is LOSSY (kernels/rollback.py). On a
    device trees may hold point masses only, and a chain's verdict is committed by the kernel that reaches it.
    """
    if state.backend == "triton":
        return _judge_on_device(state, draft, hidden, target)
    B, K = draft.tokens.shape
    tokens, counts, path = outputs = np.zeros((B, K + 1), np.int64), np.ones(B, np.int64), np.zeros((B, K + 1), np.int64)
    parents = state.chain if draft.parents is None else draft.parents
    proposed = draft.tokens.numpy(), draft.lengths.numpy()
    if state.rollback is not None:
        ROLLBACK[state.backend](target.logits(hidden).numpy(), *proposed, state.rollback, tokens, counts)
    elif state.greedy:
        ACCEPT_GREEDY[state.backend](target.choose(hidden).numpy(), *proposed, parents.numpy(), *outputs)
    else:
        host, laws = state.host, NO_LAWS
        if draft.logits is not None:
            laws = draft.logits.contiguous().numpy(), draft.lse.contiguous().numpy()
        (BLOCK if state.block and draft.parents is None else ACCEPT_SAMPLED)[state.backend](
            target.logits(hidden).numpy(), *proposed, parents.numpy(), draft.dense.numpy(), *laws, host.temperature,
            host.top_k, host.top_p, host.seeds, host.lengths, *outputs)
    tokens, counts, path = map(torch.from_numpy, outputs)
    return Verdict(tokens, counts, None if draft.parents is None else path)


class Workspace:
    """A device's verdict buffers for B rows of R: tokens, path [B, R], counts [B] int64; and what sampled ones need."""

    def __init__(self, B: int, R: int, device: torch.device | str):
        self.device = device
        self.tokens, self.path = (torch.zeros(B, R, dtype=torch.int64, device=self.device) for _ in range(2))
        self.counts = torch.ones(B, dtype=torch.int64, device=self.device)
        self.floors = torch.empty(B, R, device=self.device)
        self.ties = torch.empty(B, R, dtype=torch.int32, device=self.device)
        self.scratch: Scratch | None = None

    def sampled(self, logits: Tensor) -> Scratch:
        """Made for the first logits [B, R, V]."""
        if self.scratch is None:
            self.scratch = make_scratch(*logits.shape, self.device)
        return self.scratch


def workspace_bytes(B: int, R: int, V: int) -> int:
    """What a Workspace takes of a device, that of a sampled verdict included."""
    space, scratch = Workspace(B, R, "meta"), make_scratch(B, R, V, "meta")
    return sum(tensor.nbytes for tensor in (space.tokens, space.path, space.counts, space.floors, space.ties, *scratch))


def _judge_on_device(state: DecodeState, draft: Draft, hidden: Tensor, target: Target) -> Verdict:
    """One launch after the target's logits or choice, two with top-k or top-p, into buffers that stay in place."""
    if state.workspace is None:
        state.workspace = Workspace(state.rows, state.max_draft + 1, state.tokens.device)
    space, rows, commit = state.workspace, state.committed_into(draft, hidden), draft.parents is None
    outputs = (space.tokens, space.counts, space.path)
    if state.greedy:
        verdict_greedy_triton(target.choose(hidden), draft.tokens, draft.lengths, draft.parents, rows, *outputs, commit)
    else:
        logits, cuts = target.logits(hidden), (None, None)
        if state.cuts:
            cuts = space.floors, space.ties
            cut_triton(logits, draft.lengths, state.finished, state.temperature, state.top_k, state.top_p, *cuts)
        verdict_triton(
            logits, draft.tokens, draft.lengths, draft.parents, draft.dense, draft.logits, draft.lse, state.temperature,
            *cuts, state.seeds, rows, *outputs, space.sampled(logits), commit, state.block)
    return Verdict(space.tokens, space.counts, None if commit else space.path, commit)
