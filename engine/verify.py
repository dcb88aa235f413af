"""Verification: which drafted tokens are accepted, and which token of the target follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.state import NO_DISTRIBUTIONS, DecodeState, Draft, Verification
from foredraft.kernels.verify.accept import ACCEPT_GREEDY, ACCEPT_SAMPLED
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
        from foredraft.engine.verify_cuda import verify_on_cuda

        return verify_on_cuda(state, draft, hidden, target)
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
