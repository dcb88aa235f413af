"""The n-gram drafter on a DecodeState, and which tables it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foredraft.engine.draft_ngram import NgramDrafter
from foredraft.engine.state import ORIGINS, DecodeState
from foredraft.errors import UserError
from foredraft.ngram_native.count import count
from foredraft.ngram_native.query import draft_reference
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
    return fit(counts, tokenizer=vocabulary_fingerprint(Vocabulary("abc").get_vocab()))


def test_drafts_equal_brute_force(table):
    """Ragged rows: lengths, each row's own K, its limit, a finished one; the start token is part of the context."""
    B = 6
    state = DecodeState(
        limits=torch.tensor([12, 12, 12, 12, 9, 12]), draft_tokens=torch.tensor([5, 5, 2, 0, 5, 5]),
        temperature=torch.zeros(B), top_k=torch.zeros(B, dtype=torch.int64), top_p=torch.ones(B),
        seeds=torch.arange(B), start_token=0, end_token=END, width=4,
    )  # fmt: skip
    state.tokens[:, 1:] = torch.randint(2, 8, (B, 12), generator=torch.Generator().manual_seed(0))
    state.lengths = torch.tensor([1, 2, 5, 5, 7, 5])
    state.finished[5] = True
    drafter = NgramDrafter(table, min_probability=0.0)
    drafter.admit(range(B), [], [])
    draft = drafter.draft(state)
    assert draft.tokens.shape == (B, 5) and not draft.dense.any() and draft.logits is None
    assert (draft.origin == ORIGINS.index("ngram")).all()
    assert draft.lengths[3:].tolist() == [0, 1, 0] and 0 < draft.lengths[2] <= 2
    for row, allowed in enumerate(state.allowed().tolist()):
        expected = draft_reference(table, state.tokens[row, : state.lengths[row]].tolist(), allowed, END, 0.0)
        assert draft.tokens[row, : draft.lengths[row]].tolist() == expected
    confident = NgramDrafter(table, min_probability=0.2).draft(state)
    assert (confident.lengths <= draft.lengths).all() and confident.lengths.sum() < draft.lengths.sum()
    drafter.release(range(B))


def test_open_checks_the_target(table, tmp_path):
    path = tmp_path / "t.ngram"
    table.save(path)
    drafter = NgramDrafter.open(path, vocab_size=V, tokenizer=Vocabulary("abc"))
    assert drafter.name == "ngram" and drafter.table.tokenizer == table.tokenizer
    NgramDrafter.open(path)
    with pytest.raises(UserError, match=r"30 ids, the target 32"):
        NgramDrafter.open(path, vocab_size=32)
    with pytest.raises(UserError, match="another tokenizer"):
        NgramDrafter.open(path, vocab_size=V, tokenizer=Vocabulary("acb"))


def test_the_threshold_is_checked(table):
    with pytest.raises(UserError, match="min_probability"):
        NgramDrafter(table, min_probability=2)
