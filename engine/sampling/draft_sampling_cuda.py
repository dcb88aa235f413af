"""draft_sampling.py on CUDA, by Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.engine.state import DecodeState, Draft
from foredraft.kernels.core.split_softmax_triton import make_scratch
from foredraft.kernels.sampling.sample_triton import sample_triton
from foredraft.kernels.sampling.top_k_top_p_triton import top_k_top_p_triton


class Sampler:
    """Buffers for sampling one state's drafts on CUDA: top-k and top-p thresholds [B, 1], and scratch memory."""

    def __init__(self, state: DecodeState, vocab_size: int):
        B, device = state.batch_size, state.tokens.device
        self.floors = torch.empty(B, 1, device=device)
        self.ties = torch.empty(B, 1, dtype=torch.int32, device=device)
        self.first = torch.zeros(B, dtype=torch.int64, device=device)
        self.scratch = make_scratch(B, 1, vocab_size, device)


def sample_on_cuda(draft: Draft, position: int, logits: Tensor, state: DecodeState) -> Tensor:
    """The tokens [B], a view into the draft."""
    if state.sampler is None:
        state.sampler = Sampler(state, logits.shape[1])
    space, thresholds = state.sampler, (None, None)
    if state.has_top_k_top_p:
        thresholds = space.floors, space.ties
        top_k_top_p_triton(logits[:, None], space.first, state.finished, state.temperature, state.top_k, state.top_p,
                           *thresholds)
    tokens = draft.tokens[:, position]
    sample_triton(logits, state.temperature, *thresholds, state.seeds, state.lengths, position, tokens,
                  draft.logits[:, position], draft.lse[:, position], space.scratch)
    return tokens
