"""Verification: which drafted tokens are accepted, and which token of the target follows them."""

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
    """Verify a draft so that the target's distribution stays unchanged.

    Leviathan et al. 2023, Alg. 1; Sun et al. 2024, Alg. 2, for blocks; Miao et al. 2023 for trees.

    Parameters
    ----------
    state : DecodeState
        `block` selects block verification of dense drafts; `rollback` selects Big Little Decoder, which is LOSSY.
    draft : Draft
        tokens [B, K]. On CUDA a tree holds point masses only.
    hidden : Tensor [B, R, C] float32
        The target's output. A greedy batch takes its argmax and never computes logits [B, R, V].
    target : Target

    Returns
    -------
    Verification
        On CUDA it is committed already, except for a tree.
    """
    if state.backend == "triton":
        return _verify_on_cuda(state, draft, hidden, target)
    B, K = draft.tokens.shape
    tokens, counts, path = outputs = np.zeros((B, K + 1), np.int64), np.ones(B, np.int64), np.zeros((B, K + 1), np.int64)
    parents = state.chain_parents if draft.parents is None else draft.parents
    proposed = draft.tokens.numpy(), draft.lengths.numpy()
    pipeline = state.pipeline if state.pipeline is not None and state.pipeline.is_active else None
    if state.rollback is not None:
        ROLLBACK[state.backend](target.logits(hidden).numpy(), *proposed, state.rollback, tokens, counts)
    elif state.greedy and pipeline is None:
        ACCEPT_GREEDY[state.backend](target.choose(hidden).numpy(), *proposed, parents.numpy(), *outputs)
    else:
        host, distributions, logits = state.host, NO_DISTRIBUTIONS, target.logits(hidden).numpy()
        if draft.logits is not None:
            distributions = draft.logits.contiguous().numpy(), draft.lse.contiguous().numpy()
        warp = host.temperature, host.top_k, host.top_p
        if pipeline is not None:
            warp = pipeline.process(state, draft, logits)
        (BLOCK if state.block and draft.parents is None else ACCEPT_SAMPLED)[state.backend](
            logits, *proposed, parents.numpy(), draft.dense.numpy(), *distributions, *warp, host.seeds, host.lengths,
            *outputs)
        if pipeline is not None:
            pipeline.record(*outputs)
    tokens, counts, path = map(torch.from_numpy, outputs)
    return Verification(tokens, counts, None if draft.parents is None else path)


class Workspace:
    """Buffers of a verification on CUDA: tokens, path [B, R], counts [B] int64, and those of sampled sequences."""

    def __init__(self, B: int, R: int, device: torch.device | str):
        self.device = device
        self.tokens, self.path = (torch.zeros(B, R, dtype=torch.int64, device=self.device) for _ in range(2))
        self.counts = torch.ones(B, dtype=torch.int64, device=self.device)
        self.floors = torch.empty(B, R, device=self.device)
        self.ties = torch.empty(B, R, dtype=torch.int32, device=self.device)
        self.scratch: Scratch | None = None

    def sampled(self, logits: Tensor) -> Scratch:
        """Scratch memory, allocated for the first logits [B, R, V]."""
        if self.scratch is None:
            self.scratch = make_scratch(*logits.shape, self.device)
        return self.scratch


def workspace_bytes(B: int, R: int, V: int) -> int:
    """Bytes of a Workspace, that of sampled sequences included."""
    space, scratch = Workspace(B, R, "meta"), make_scratch(B, R, V, "meta")
    return sum(tensor.nbytes for tensor in (space.tokens, space.path, space.counts, space.floors, space.ties, *scratch))


def _verify_on_cuda(state: DecodeState, draft: Draft, hidden: Tensor, target: Target) -> Verification:
    """One launch after the target's logits or argmax, two with top-k or top-p, into buffers that graphs can capture."""
    if state.workspace is None:
        state.workspace = Workspace(state.batch_size, state.max_draft + 1, state.tokens.device)
    space, commit, commit_into = state.workspace, draft.parents is None, state.committed_into(draft, hidden)
    outputs = (space.tokens, space.counts, space.path)
    if state.greedy:
        accept_greedy_triton(target.choose(hidden), draft.tokens, draft.lengths, draft.parents, commit_into, *outputs,
                             commit)
    else:
        logits, thresholds = target.logits(hidden), (None, None)
        if state.has_top_k_top_p:
            thresholds = space.floors, space.ties
            top_k_top_p_triton(logits, draft.lengths, state.finished, state.temperature, state.top_k, state.top_p,
                               *thresholds)
        accept_sampled_triton(
            logits, draft.tokens, draft.lengths, draft.parents, draft.dense, draft.logits, draft.lse, state.temperature,
            *thresholds, state.seeds, commit_into, *outputs, space.sampled(logits), commit, state.block)
    return Verification(space.tokens, space.counts, None if commit else space.path, commit)
