"""Drafters measured on outputs that are known: what decoding with their drafts would have taken, without the target.

Drafts that are point masses change no token, neither greedy nor drawn with a seed (foredraft.engine.verify): a drafter led
along an output of plain decoding meets just the rounds of decoding with drafts, whatever the temperature.
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
    """Lead a drafter along the target's own outputs.

    Returns tokens_per_step (the target's own token included), drafted_per_step, acceptance_rate (accepted / tested) and
    coverage. With a drafter `beside` it, every round of a row takes the one of the two drafts that is accepted further: what
    choosing between them round by round could give at most, if the choice were always right.
    """
    rounds = emitted = drafted = tested = accepted = covered = 0
    for begin in range(0, len(outputs), batch_size):
        state, _ = _follow([drafter, *([beside] if beside else [])], sources[begin : begin + batch_size],
                           outputs[begin : begin + batch_size], draft_tokens, start_token, end_token, every_prefix=False)
        rounds, drafted = rounds + int(state.num_steps.sum()), drafted + int(state.drafted.sum())
        covered += int(state.covered.sum())
        tested, accepted = tested + int(state.tested_at.sum()), accepted + int(state.accepted_at.sum())
        emitted += sum(map(len, outputs[begin : begin + batch_size]))
    return {"tokens_per_step": emitted / rounds, "drafted_per_step": drafted / rounds,
            "acceptance_rate": accepted / tested if tested else 0.0, "coverage": covered / rounds}


@torch.inference_mode()
def first_drafts(drafter: Drafter, sources: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]],
                 start_token: int = 0, end_token: int = 1, batch_size: int = 64) -> list[np.ndarray]:
    """For each output [n], whether the drafter's first draft after each prefix is the token that comes, [n] bool.

    Their mean is alpha, of outputs at temperature 0 exactly and of drawn ones on average (bench/harness/alpha.py).
    """
    right = []
    for begin in range(0, len(outputs), batch_size):
        part = outputs[begin : begin + batch_size]
        _, hits = _follow([drafter], sources[begin : begin + batch_size], part, 1, start_token, end_token,
                          every_prefix=True)
        right += [row[: len(ids)] for row, ids in zip(hits.numpy(), part, strict=True)]
    return right


def rounds_of(right: np.ndarray, draft_tokens: int) -> int:
    """Rounds that an output takes when the id at each place is drafted right or not, [n] bool, wherever a round begins."""
    place = rounds = 0
    while place < len(right):
        run = right[place : place + draft_tokens]
        place += (len(run) if run.all() else int(run.argmin())) + 1
        rounds += 1
    return rounds


def _follow(drafters, sources, outputs, K, start_token, end_token, every_prefix: bool):
    """Decode the outputs: the final state, and with every_prefix, one token a round, which first drafts were right."""
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
    for drafter in drafters:
        drafter.admit(range(B), [torch.tensor(list(source)) for source in sources], [torch.zeros(0)] * B)
    steps, hidden, hits = torch.arange(K + 1), torch.zeros(B, K + 1, 1), []
    ends = torch.tensor([len(ids) + 1 for ids in outputs])
    while not bool(state.finished.all()):
        rest = known.gather(1, state.lengths[:, None] - 1 + steps)
        draft, accepted = None, torch.full((B,), -1)
        for drafter in drafters:
            this = drafter.draft(state)
            right = (this.tokens == rest[:, :K]) & (steps[:K] < this.lengths[:, None])
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
    """Point masses of `other` for the rows with take [B] bool, of `one` for the rest."""
    one.tokens = torch.where(take[:, None], other.tokens, one.tokens)
    one.lengths = torch.where(take, other.lengths, one.lengths)
    one.proposer = torch.where(take[:, None], other.proposer, one.proposer)
    return one
