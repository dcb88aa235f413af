"""The judge: the target's hidden states and a draft in, a Verdict out. All randomness of a round is spent here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foredraft.engine.state import DecodeState, Draft, Verdict
from foredraft.kernels.accept import ACCEPT_GREEDY, ACCEPT_SAMPLED, BACKEND

if TYPE_CHECKING:
    from foredraft.engine.decode import Target


def judge(state: DecodeState, draft: Draft, hidden: Tensor, target: Target) -> Verdict:
    """Which drafts stand, and what follows them, so that the target's law is unchanged (kernels/accept.py).

    An all-greedy batch never computes logits. Trees may hold point masses only.
    """
    B, K = draft.tokens.shape
    tokens, path = torch.zeros(B, K + 1, dtype=torch.int64), torch.zeros(B, K + 1, dtype=torch.int64)
    counts = torch.ones(B, dtype=torch.int64)
    parents = state.chain if draft.parents is None else draft.parents
    outputs = (tokens.numpy(), counts.numpy(), path.numpy())
    if state.greedy:
        ACCEPT_GREEDY[BACKEND](target.choose(hidden).numpy(), draft.tokens.numpy(), draft.lengths.numpy(), parents.numpy(),
                               *outputs)
    else:
        if draft.logits is None:
            logits, lse = torch.zeros(0, 0, 0), torch.zeros(0, 0, dtype=torch.float64)
        else:
            logits, lse = draft.logits.contiguous(), draft.lse.contiguous()
        ACCEPT_SAMPLED[BACKEND](
            target.logits(hidden).numpy(), draft.tokens.numpy(), draft.lengths.numpy(), parents.numpy(),
            draft.dense.numpy(), logits.numpy(), lse.numpy(), state.temperature.numpy(), state.top_k.numpy(),
            state.top_p.numpy(), state.seeds.numpy(), state.lengths.numpy(), *outputs)
    return Verdict(tokens, counts, None if draft.parents is None else path)
