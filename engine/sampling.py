"""Temperature, top-k, top-p: how a neural drafter draws, under the law that the target is judged by (kernels/law.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.engine.state import DecodeState, Draft
from foredraft.kernels.sample import BACKEND, SAMPLE


def dense_draft(state: DecodeState, vocab_size: int) -> Draft:
    """An empty draft with room for laws: logits [B, K, V], lse [B, K]; greedy rows are point masses."""
    draft = Draft.empty(state.rows, state.max_draft)
    draft.logits = torch.zeros(state.max_draft, state.rows, vocab_size).transpose(0, 1)
    draft.lse = torch.zeros(state.max_draft, state.rows, dtype=torch.float64).transpose(0, 1)
    draft.dense = state.temperature > 0
    return draft


def sample_into(draft: Draft, place: int, logits: Tensor, state: DecodeState) -> Tensor:
    """Draw draft token `place` of every row from logits [B, V] float32, write it and its law, and return it, [B] int64."""
    tokens = torch.zeros(state.rows, dtype=torch.int64)
    SAMPLE[BACKEND](
        logits.numpy(), state.temperature.numpy(), state.top_k.numpy(), state.top_p.numpy(), state.seeds.numpy(),
        state.lengths.numpy(), place, tokens.numpy(), draft.logits[:, place].numpy(), draft.lse[:, place].numpy())
    draft.tokens[:, place] = tokens
    return tokens
