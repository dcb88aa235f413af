"""The n-gram drafter on a DecodeState, and which tables it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from doubles import TableTarget, chi_square, make_state

from foredraft.engine.drafters.ngram import NgramDrafter
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.loop import decode
from foredraft.engine.state import DecodeState
from foredraft.errors import UserError
from foredraft.ngram_native.count import count
from foredraft.ngram_native.query import distribution, draft_reference
from foredraft.ngram_native.smooth import fit
from foredraft.ngram_native.table import vocabulary_fingerprint

V, END = 30, 1


class Vocabulary:
    def __init__(self, tokens: str):
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}


@pytest.fixture(scope="module")
def table():
    draw = np.random.default_rng(0)
    sequences = [[0, *np.minimum(draw.geometric(0.2, 10) + 1, V - 1), END] for _ in range(50)]
    counts = count(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]), 3, V)
    counts.tokenizer = vocabulary_fingerprint(Vocabulary("abc").get_vocab())
    return fit(counts)


def test_drafts_equal_brute_force(table):
    """Ragged: lengths, each sequence's own K and limit, a finished one; the start token is part of the context."""
    B = 6
    state = DecodeState(
        limits=torch.tensor([12, 12, 12, 12, 9, 12]), draft_tokens=torch.tensor([5, 5, 2, 0, 5, 5]),
        temperature=torch.zeros(B), top_k=torch.zeros(B, dtype=torch.int64), top_p=torch.ones(B),
        seeds=torch.arange(B), start_token=0, end_token=END, width=4,
    )  # fmt: skip
    state.tokens[:, 1:] = torch.randint(2, 8, (B, 12), generator=torch.Generator().manual_seed(0))
    state.lengths[:] = torch.tensor([1, 2, 5, 5, 7, 5])
    state.finished[5] = True
    drafter = NgramDrafter(table, cost=0.0)
    drafter.admit(range(B), [], [])
    draft = drafter.draft(state)
    assert draft.tokens.shape == (B, 5) and not draft.dense.any() and draft.logits is None
    assert (draft.proposer == PROPOSERS.index("ngram")).all()
    assert draft.lengths[3:].tolist() == [0, 1, 0] and 0 < draft.lengths[2] <= 2
    for row, allowed in enumerate(state.allowed().tolist()):
        expected = draft_reference(table, state.tokens[row, : state.lengths[row]].tolist(), allowed, END, 0.0)
        assert draft.tokens[row, : draft.lengths[row]].tolist() == expected
    confident = NgramDrafter(table, cost=0.1).draft(state)
    assert (confident.lengths <= draft.lengths).all() and confident.lengths.sum() < draft.lengths.sum()
    drafter.release(range(B))


def test_open_checks_the_target(table, tmp_path):
    path = tmp_path / "t.ngram"
    table.save(path)
    drafter = NgramDrafter.open(path, vocab_size=V, tokenizer=Vocabulary("abc"))
    assert drafter.name == "ngram" and drafter.table.tokenizer == table.tokenizer
    NgramDrafter.open(path)
    with pytest.raises(UserError, match=r"30 tokens, the target 32"):
        NgramDrafter.open(path, vocab_size=32)
    with pytest.raises(UserError, match="another tokenizer"):
        NgramDrafter.open(path, vocab_size=V, tokenizer=Vocabulary("acb"))


@pytest.mark.parametrize("cost", [0.0, 0.3])
def test_draws_keep_the_targets_distribution(cost):
    """The joint chi-square of the first two tokens (df + 10 sqrt(2 df)), whatever the drafts' lengths; V = 16, K = 2."""
    size, trials, rows = 16, 60_000, 3_000
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, size, size, generator=generator)
    draw = np.random.default_rng(0)
    sequences = [[0, *np.minimum(draw.geometric(0.2, 4), size - 1)] for _ in range(40)]
    drafter = NgramDrafter(fit(count(np.concatenate(sequences), np.arange(0, 201, 5), 2, size)), cost, sampled=True)
    counts, accepted, drafted = torch.zeros(size * size, dtype=torch.int64), 0, 0
    for start in range(0, trials, rows):
        state = make_state(rows, 3, 2, size, temperature=1.0, seeds=range(start, start + rows), end_token=-1)
        decode(state, TableTarget(logits), drafter)
        counts += torch.bincount(state.tokens[:, 1] * size + state.tokens[:, 2], minlength=size * size)
        accepted, drafted = accepted + int(state.accepted_at.sum()), drafted + int(state.drafted.sum())
    first = torch.softmax(logits[0, 0].double(), -1)
    distribution = (first[:, None] * torch.softmax(logits[1].double(), -1)).reshape(-1)
    value, freedom = chi_square(counts, distribution)
    assert value < freedom + 10 * (2 * freedom) ** 0.5
    assert 0 < accepted < drafted < 4 * trials


def test_greedy_sequences_beside_sampled_ones_are_point_masses(table):
    drafter = NgramDrafter(table, cost=0.0, sampled=True)
    state = make_state(2, 8, 3, V, temperature=torch.tensor([0.0, 1.0]))
    draft = drafter.draft(state)
    assert draft.dense.tolist() == [False, True] and draft.logits.shape == (2, 3, V)
    length = int(draft.lengths[0])
    assert draft.tokens[0, :length].tolist() == draft_reference(table, [0], 3, END, 0.0)[:length] and length
    q = torch.softmax(draft.logits[1, 0].double(), -1).numpy()
    np.testing.assert_allclose(q, distribution(table, np.array([0])), atol=1e-6)


def test_the_threshold_is_checked(table):
    with pytest.raises(UserError, match="cost"):
        NgramDrafter(table, cost=2)
