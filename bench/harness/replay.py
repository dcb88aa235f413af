"""Replay: the steps that decoding with a drafter would have taken for a known output, without running the target.

Drafts that are point masses change no token, neither greedy nor sampled with a seed. So a drafter that is led along an
output of plain decoding sees the steps of decoding with drafts, at any temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState, Draft, Verification


@torch.inference_mode()
def replay(drafter: Drafter, sources: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], draft_tokens: int,
           start_token: int = 0, end_token: int = 1, batch_size: int = 64,
           beside: Drafter | None = None) -> dict[str, float]:
    """Lead a drafter along the target's outputs.

    Parameters
    ----------
    beside : Drafter, optional
        A second drafter: each step then takes the draft that is accepted further, the upper bound of choosing between the
        two.

    Returns
    -------
    dict
        tokens_per_step (the target's own token included), drafted_per_step, acceptance_rate (accepted / tested), coverage.
    """
    steps = emitted = drafted = tested = accepted = covered = 0
    for begin in range(0, len(outputs), batch_size):
        state, _ = _follow([drafter, *([beside] if beside else [])], sources[begin : begin + batch_size],
                           outputs[begin : begin + batch_size], draft_tokens, start_token, end_token, every_prefix=False)
        steps, drafted = steps + int(state.num_steps.sum()), drafted + int(state.drafted.sum())
        covered += int(state.covered.sum())
        tested, accepted = tested + int(state.tested_at.sum()), accepted + int(state.accepted_at.sum())
        emitted += sum(map(len, outputs[begin : begin + batch_size]))
    return {"tokens_per_step": emitted / steps, "drafted_per_step": drafted / steps,
            "acceptance_rate": accepted / tested if tested else 0.0, "coverage": covered / steps}


@torch.inference_mode()
def first_drafts(drafter: Drafter, sources: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]],
                 start_token: int = 0, end_token: int = 1, batch_size: int = 64) -> list[np.ndarray]:
    """For each output of n tokens, whether the first draft after each prefix is the next token: [n] bool.

    The mean is alpha: exactly at temperature 0, in expectation for sampled outputs.
    """
    right = []
    for begin in range(0, len(outputs), batch_size):
        part = outputs[begin : begin + batch_size]
        _, hits = _follow([drafter], sources[begin : begin + batch_size], part, 1, start_token, end_token,
                          every_prefix=True)
        right += [row[: len(ids)] for row, ids in zip(hits.numpy(), part, strict=True)]
    return right


def steps_of(right: np.ndarray, draft_tokens: int) -> int:
    """Steps of an output whose token at each position is drafted right or not (`right` [n] bool), wherever a step begins."""
    position = steps = 0
    while position < len(right):
        run = right[position : position + draft_tokens]
        position += (len(run) if run.all() else int(run.argmin())) + 1
        steps += 1
    return steps


def _follow(drafters, sources, outputs, K, start_token, end_token, every_prefix: bool):
    """Lead drafters along the outputs: the final state and, with every_prefix (one token a step), which first drafts were
    right."""
    B, longest = len(outputs), max(map(len, outputs))
    known = torch.full((B, longest + K + 2), end_token)
    for b, ids in enumerate(outputs):
        known[b, : len(ids)] = torch.tensor(ids)
    state = DecodeState(
        limits=torch.tensor([len(ids) + 1 for ids in outputs]), draft_tokens=torch.full((B,), K),
        temperature=torch.zeros(B), top_k=torch.zeros(B, dtype=torch.int64), top_p=torch.ones(B), seeds=torch.arange(B),
        start_token=start_token, end_token=end_token, width=1)
    if every_prefix:
        # the draft before the last token counts too; a decode would have no room for one
        state.limits += 1
    for drafter in drafters:
        drafter.admit(range(B), [torch.tensor(list(source)) for source in sources], [torch.zeros(0)] * B)
    offsets, hidden, hits = torch.arange(K + 1), torch.zeros(B, K + 1, 1), []
    ends = torch.tensor([len(ids) + 1 for ids in outputs])
    while not bool(state.finished.all()):
        rest = known.gather(1, state.lengths[:, None] - 1 + offsets)
        draft, accepted = None, torch.full((B,), -1)
        for drafter in drafters:
            this = drafter.draft(state)
            right = (this.tokens == rest[:, :K]) & (offsets[:K] < this.lengths[:, None])
            kept = right.long().cumprod(1).sum(1)
            draft = this if draft is None else _mixed(draft, this, kept > accepted)
            accepted = torch.maximum(accepted, kept)
        counts = accepted + 1
        if every_prefix:
            hits.append(right[:, 0])
            draft, counts = Draft.empty(B, K), torch.ones(B, dtype=torch.int64)
        state.commit(draft, Verification(rest.contiguous(), counts), hidden)
        state.finished |= state.lengths >= ends
    for drafter in drafters:
        drafter.release(range(B))
    return state, torch.stack(hits, 1) if every_prefix else None


def _mixed(one: Draft, other: Draft, take: torch.Tensor) -> Draft:
    """Point masses of `other` where take [B] is true, of `one` elsewhere."""
    one.tokens = torch.where(take[:, None], other.tokens, one.tokens)
    one.lengths = torch.where(take, other.lengths, one.lengths)
    one.proposer = torch.where(take[:, None], other.proposer, one.proposer)
    return one
