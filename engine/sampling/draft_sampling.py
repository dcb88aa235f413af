"""Sampling of drafts: temperature, top-k and top-p as in the target's verification (kernels/sampling/top_k_top_p.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.engine.state import DecodeState, Draft
from foredraft.kernels.sampling.sample import SAMPLE


def dense_draft(state: DecodeState, vocab_size: int) -> Draft:
    """An empty draft with room for distributions, logits [B, K, V] and lse [B, K]; greedy sequences are point masses.

    A drafter on CUDA keeps it between steps, as captured graphs need (engine/drafters/cuda/draft_buffers.py).
    """
    B, K, device = state.batch_size, state.max_draft, state.tokens.device
    draft = Draft.empty(B, K, device)
    draft.logits = torch.zeros(K, B, vocab_size, device=device).transpose(0, 1)
    draft.lse = torch.zeros(K, B, dtype=torch.float64, device=device).transpose(0, 1)
    draft.dense = state.temperature > 0
    return draft


def sample_into(draft: Draft, position: int, logits: Tensor, state: DecodeState) -> Tensor:
    """Sample token `position` of every sequence's draft, and write it and its distribution into the draft.

    Parameters
    ----------
    draft : Draft
        From `dense_draft`.
    position : int
        Of the token in the draft, 0..K-1.
    logits : Tensor [B, V] float32
        Before temperature, top-k and top-p; on CUDA bfloat16 too.
    state : DecodeState

    Returns
    -------
    Tensor [B] int64
        The tokens; on CUDA a view into the draft.
    """
    if state.backend == "triton":
        from foredraft.engine.sampling.draft_sampling_cuda import sample_on_cuda

        return sample_on_cuda(draft, position, logits, state)
    tokens, host = torch.zeros(state.batch_size, dtype=torch.int64), state.host
    SAMPLE[state.backend](
        logits.numpy(), host.temperature, host.top_k, host.top_p, host.seeds, host.lengths, position, tokens.numpy(),
        draft.logits[:, position].numpy(), draft.lse[:, position].numpy())
    draft.tokens[:, position] = tokens
    return tokens
