"""Drafters measured on outputs that are known: what greedy decoding with drafts would have taken, without the target."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foredraft.engine.decode import Drafter
from foredraft.engine.state import DecodeState, Draft, Verdict


@torch.inference_mode()
def replay(drafter: Drafter, sources: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], draft_tokens: int,
           start_token: int = 0, end_token: int = 1, batch_size: int = 64) -> dict[str, float]:
    """Lead a drafter along the target's own greedy outputs, which decoding with drafts reproduces token for token.

    Returns tokens_per_round (the target's own token included), acceptance_rate (accepted / tested), coverage, and alpha,
    the share of ALL prefixes whose next token is the drafter's first draft (bench/alpha.py at temperature 0).
    """
    rounds = emitted = tested = accepted = covered = hits = 0
    for begin in range(0, len(outputs), batch_size):
        part = sources[begin : begin + batch_size], outputs[begin : begin + batch_size]
        state = _follow(drafter, *part, draft_tokens, start_token, end_token, every_prefix=False)
        rounds += int(state.rounds.sum())
        covered += int(state.covered.sum())
        tested, accepted = tested + int(state.tested_at.sum()), accepted + int(state.accepted_at.sum())
        emitted += sum(map(len, part[1]))
        hits += _follow(drafter, *part, 1, start_token, end_token, every_prefix=True)
    return {"tokens_per_round": emitted / rounds, "acceptance_rate": accepted / tested if tested else 0.0,
            "coverage": covered / rounds, "alpha": hits / emitted}


def _follow(drafter, sources, outputs, K, start_token, end_token, every_prefix: bool):
    """Decode the outputs: the final state, or with every_prefix, one token a round, how many first drafts were right."""
    B, longest = len(outputs), max(map(len, outputs))
    known = torch.full((B, longest + K + 2), end_token)
    for row, ids in enumerate(outputs):
        known[row, : len(ids)] = torch.tensor(ids)
    state = DecodeState(
        limits=torch.tensor([len(ids) + 1 for ids in outputs]), draft_tokens=torch.full((B,), K),
        temperature=torch.zeros(B), top_k=torch.zeros(B, dtype=torch.int64), top_p=torch.ones(B), seeds=torch.arange(B),
        start_token=start_token, end_token=end_token, width=1)
    if every_prefix:
        # a draft is looked at even before the last token, where a decode would have no room for one
        state.limits += 1
    drafter.admit(range(B), [torch.tensor(list(source)) for source in sources], [torch.zeros(0)] * B)
    steps, hidden, hits = torch.arange(K + 1), torch.zeros(B, K + 1, 1), 0
    ends = torch.tensor([len(ids) + 1 for ids in outputs])
    while not bool(state.finished.all()):
        draft = drafter.draft(state)
        rest = known.gather(1, state.lengths[:, None] - 1 + steps)
        right = (draft.tokens == rest[:, :K]) & (steps[:K] < draft.lengths[:, None])
        if every_prefix:
            hits += int((right[:, 0] & ~state.finished).sum())
            draft = Draft.empty(B, K)
            counts = torch.ones(B, dtype=torch.int64)
        else:
            counts = right.long().cumprod(1).sum(1) + 1
        state.commit(draft, Verdict(rest.contiguous(), counts), hidden)
        state.finished |= state.lengths >= ends
    drafter.release(range(B))
    return hits if every_prefix else state
