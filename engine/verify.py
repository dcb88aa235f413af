"""The verification: the target's hidden states and a draft in, a Verification out. All randomness of a round is spent here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.state import NO_DISTRIBUTIONS, DecodeState, Draft, Verification
from foredraft.kernels.core.split_softmax_triton import Scratch, make_scratch
from foredraft.kernels.sampling.top_k_top_p_triton import top_k_top_p_triton
from foredraft.kernels.verify.accept import ACCEPT_GREEDY, ACCEPT_SAMPLED
from foredraft.kernels.verify.accept_triton import accept_greedy_triton, accept_sampled_triton
from foredraft.kernels.verify.big_little_rollback import ROLLBACK
from foredraft.kernels.verify.block import BLOCK

if TYPE_CHECKING:
    from foredraft.engine.protocols import Target


def verify(state: DecodeState, draft: Draft, hidden: Tensor, target: Target) -> Verification:
    """Which drafts stand, and what follows them, so that the target's distribution is unchanged (kernels/verify/accept.py), and where the
    state says so, dense chains as blocks (kernels/verify/block.py).

    An all-greedy batch never computes logits, unless the state says `rollback`, which is LOSSY (kernels/verify/big_little_rollback.py). On a
    device trees may hold point masses only, and a chain's verification is committed by the kernel that reaches it.
    """
    if state.backend == "triton":
        return _verify_on_device(state, draft, hidden, target)
    B, K = draft.tokens.shape
    tokens, counts, path = outputs = np.zeros((B, K + 1), np.int64), np.ones(B, np.int64), np.zeros((B, K + 1), np.int64)
    parents = state.chain if draft.parents is None else draft.parents
    proposed = draft.tokens.numpy(), draft.lengths.numpy()
    if state.rollback is not None:
        ROLLBACK[state.backend](target.logits(hidden).numpy(), *proposed, state.rollback, tokens, counts)
    elif state.greedy:
        ACCEPT_GREEDY[state.backend](target.choose(hidden).numpy(), *proposed, parents.numpy(), *outputs)
    else:
        host, distributions = state.host, NO_DISTRIBUTIONS
        if draft.logits is not None:
            distributions = draft.logits.contiguous().numpy(), draft.lse.contiguous().numpy()
        (BLOCK if state.block and draft.parents is None else ACCEPT_SAMPLED)[state.backend](
            target.logits(hidden).numpy(), *proposed, parents.numpy(), draft.dense.numpy(), *distributions, host.temperature,
            host.top_k, host.top_p, host.seeds, host.lengths, *outputs)
    tokens, counts, path = map(torch.from_numpy, outputs)
    return Verification(tokens, counts, None if draft.parents is None else path)


class Workspace:
    """A device's verification buffers for B rows of R: tokens, path [B, R], counts [B] int64; and what sampled ones need."""

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
    """What a Workspace takes of a device, that of a sampled verification included."""
    space, scratch = Workspace(B, R, "meta"), make_scratch(B, R, V, "meta")
    return sum(tensor.nbytes for tensor in (space.tokens, space.path, space.counts, space.floors, space.ties, *scratch))


def _verify_on_device(state: DecodeState, draft: Draft, hidden: Tensor, target: Target) -> Verification:
    """One launch after the target's logits or choice, two with top-k or top-p, into buffers that stay in place."""
    if state.workspace is None:
        state.workspace = Workspace(state.batch_size, state.max_draft + 1, state.tokens.device)
    space, rows, commit = state.workspace, state.committed_into(draft, hidden), draft.parents is None
    outputs = (space.tokens, space.counts, space.path)
    if state.greedy:
        accept_greedy_triton(target.choose(hidden), draft.tokens, draft.lengths, draft.parents, rows, *outputs, commit)
    else:
        logits, cuts = target.logits(hidden), (None, None)
        if state.cuts:
            cuts = space.floors, space.ties
            top_k_top_p_triton(logits, draft.lengths, state.finished, state.temperature, state.top_k, state.top_p, *cuts)
        accept_sampled_triton(
            logits, draft.tokens, draft.lengths, draft.parents, draft.dense, draft.logits, draft.lse, state.temperature,
            *cuts, state.seeds, rows, *outputs, space.sampled(logits), commit, state.block)
    return Verification(space.tokens, space.counts, None if commit else space.path, commit)
