"""The lookup drafter on a DecodeState: ragged sequences, steps, reuse across batches."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models

import foredraft
from foredraft.engine.drafters.lookup import LookupDrafter, word_starts
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.state import DecodeState, Draft, Verification
from foredraft.ngram_native.prompt_lookup.copy_rules import propose_reference

END = 1


def make_state(limits: list[int], draft_tokens: list[int]) -> DecodeState:
    B = len(limits)
    return DecodeState(
        limits=torch.tensor(limits), draft_tokens=torch.tensor(draft_tokens), temperature=torch.zeros(B),
        top_k=torch.zeros(B, dtype=torch.int64), top_p=torch.ones(B), seeds=torch.arange(B), start_token=0,
        end_token=END, width=4,
    )  # fmt: skip


def follow(state: DecodeState, draft: Draft, outputs: list[list[int]]) -> None:
    """Commit what a greedy target with fixed outputs would: the drafts that agree with them, and one token more."""
    B, K = draft.tokens.shape
    tokens, counts = torch.zeros(B, K + 1, dtype=torch.int64), torch.ones(B, dtype=torch.int64)
    for row, output in enumerate(outputs):
        rest = output[int(state.lengths[row]) - 1 :] + [END] * (K + 1)
        tokens[row] = torch.tensor(rest[: K + 1])
        for offset in range(int(draft.lengths[row])):
            if draft.tokens[row, offset] != rest[offset]:
                break
            counts[row] += 1
    state.commit(draft, Verification(tokens, counts), torch.zeros(B, K + 1, 4))


@pytest.mark.parametrize("K", [0, 1, 4, 7])
def test_steps_equal_brute_force(K):
    """Every step of two batches of different sizes, one drafter: acceptances, rejections, end and limit in a draft."""
    draw = torch.Generator().manual_seed(K)
    drafter = LookupDrafter(cost=0.0)
    for B in (4, 2):
        sources = [torch.randint(2, 9, (10 + 7 * row,), generator=draw) for row in range(B)]
        sources = [torch.cat((source, torch.tensor([END]))) for source in sources]
        outputs = [[*source[3:9].tolist(), 8, 8, *source[:5].tolist(), 3, *source[2:].tolist()] for source in sources]
        state = make_state([40, 30, 20, 9][:B], [K, max(K - 1, 0), K, K][:B])
        drafter.admit(range(B), sources, [torch.zeros(0)] * B)
        while not state.finished.all():
            allowed, trust = state.allowed(), drafter.index.confidence.tolist()
            drafter.index.starts[1:] = -100
            draft = drafter.draft(state)
            assert draft.tokens.shape == (B, K) and not draft.dense.any() and draft.logits is None
            drafted = torch.arange(K) < draft.lengths[:, None]
            assert (draft.proposer[drafted] == PROPOSERS.index("lookup")).all()
            for row in range(B):
                output = state.tokens[row, 1 : state.lengths[row]].tolist()
                expected = propose_reference(sources[row].tolist(), output, int(allowed[row]), 1, 4, END,
                                             trust, drafter.cost)
                assert draft.tokens[row, : draft.lengths[row]].tolist() == expected[0]
            follow(state, draft, outputs)
        for row, output in enumerate(outputs):
            got = state.tokens[row, 1 : state.lengths[row]].tolist()
            assert got == (output + [END])[: int(state.limits[row]) - 1][: len(got)] and len(got) > 7
        if K:
            assert 0 < int(state.accepted_at.sum()) < int(state.drafted.sum())
        drafter.release(range(B))


def test_the_tokens_that_begin_a_word():
    model = foredraft.load(drafter="lookup")
    pieces = model.tokenizer.get_vocab()
    starts = model.drafter.index.word_starts
    assert [bool(starts[pieces[piece]]) for piece in ("▁the", "▁", "the", ",", "</s>")] == [True, True, False, False, False]
    assert (model.with_drafter("auto").drafter.drafters[0].index.word_starts == starts).all()
    # a vocabulary without SentencePiece's marks
    assert word_starts(Tokenizer(models.WordLevel({"the": 0, "Ġend": 1}))) is None and word_starts(None) is None


def test_a_sequence_is_admitted_anew_while_others_run():
    drafter, state = LookupDrafter(), make_state([20, 20], [3, 3])
    sources = [torch.tensor([5, 6, 7, 8, END]), torch.tensor([9, 5, 4, 3, END])]
    drafter.admit([0, 1], sources, [])
    for row in (0, 1):
        state.tokens[row, 1], state.lengths[row] = 5, 2
    assert drafter.draft(state).tokens.tolist() == [[6, 7, 8], [4, 3, 0]]
    drafter.release([0])
    drafter.admit([0], [torch.tensor([5, 2, 2, 2, 2, END])], [])
    assert drafter.draft(state).tokens.tolist() == [[2, 2, 2], [4, 3, 0]]


def test_a_finished_sequence_proposes_nothing():
    drafter, state = LookupDrafter(), make_state([20], [3])
    drafter.admit([0], [torch.tensor([5, 6, 7, END])], [])
    state.tokens[0, 1], state.lengths[0] = 5, 2
    assert drafter.draft(state).lengths.tolist() == [2]
    state.finished[0] = True
    assert drafter.draft(state).lengths.tolist() == [0]
