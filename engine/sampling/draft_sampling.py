"""Temperature, top-k, top-p: how a neural drafter draws, under the distribution that the target is verified by (kernels/sampling/top_k_top_p.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.engine.state import DecodeState, Draft
from foredraft.kernels.core.split_softmax_triton import make_scratch
from foredraft.kernels.sampling.sample import SAMPLE
from foredraft.kernels.sampling.sample_triton import sample_triton
from foredraft.kernels.sampling.top_k_top_p_triton import top_k_top_p_triton


def dense_draft(state: DecodeState, vocab_size: int) -> Draft:
    """An empty draft with room for distributions: logits [B, K, V], lse [B, K]; greedy rows are point masses.

    A drafter on a device keeps it from round to round, as a captured graph needs it (engine/drafters/cuda/draft_buffers.py)."""
    B, K, device = state.batch_size, state.max_draft, state.tokens.device
    draft = Draft.empty(B, K, device)
    draft.logits = torch.zeros(K, B, vocab_size, device=device).transpose(0, 1)
    draft.lse = torch.zeros(K, B, dtype=torch.float64, device=device).transpose(0, 1)
    draft.dense = state.temperature > 0
    return draft


class Sampler:
    """A device's buffers for drawing drafts of one state: the cut of a row's distribution [B, 1], and the draw's scratch."""

    def __init__(self, state: DecodeState, vocab_size: int):
        B, device = state.batch_size, state.tokens.device
        self.floors = torch.empty(B, 1, device=device)
        self.ties = torch.empty(B, 1, dtype=torch.int32, device=device)
        self.first = torch.zeros(B, dtype=torch.int64, device=device)
        self.scratch = make_scratch(B, 1, vocab_size, device)


def sample_into(draft: Draft, place: int, logits: Tensor, state: DecodeState) -> Tensor:
    """Draw draft token `place` of every row from logits [B, V], write it and its distribution, and return it, [B] int64.

    logits are float32; on a device they may be bfloat16, and the result is a view into the draft."""
    if state.backend == "triton":
        if state.sampler is None:
            state.sampler = Sampler(state, logits.shape[1])
        space, cuts = state.sampler, (None, None)
        if state.cuts:
            cuts = space.floors, space.ties
            top_k_top_p_triton(logits[:, None], space.first, state.finished, state.temperature, state.top_k, state.top_p, *cuts)
        sample_triton(logits, state.temperature, *cuts, state.seeds, state.lengths, place, draft.tokens[:, place],
                      draft.logits[:, place], draft.lse[:, place], space.scratch)
        return draft.tokens[:, place]
    tokens, host = torch.zeros(state.batch_size, dtype=torch.int64), state.host
    SAMPLE[state.backend](
        logits.numpy(), host.temperature, host.top_k, host.top_p, host.seeds, host.lengths, place, tokens.numpy(),
        draft.logits[:, place].numpy(), draft.lse[:, place].numpy())
    draft.tokens[:, place] = tokens
    return tokens
