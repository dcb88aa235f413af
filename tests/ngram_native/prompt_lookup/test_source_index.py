"""The prompt-lookup index compared with brute force."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.ngram_native.count import count
from foredraft.ngram_native.prompt_lookup.copy_rules import propose_reference
from foredraft.ngram_native.prompt_lookup.hash_chains import WINDOW
from foredraft.ngram_native.prompt_lookup.source_index import PromptLookupIndex
from foredraft.ngram_native.smooth import fit

END = 1


class Batch:
    """Sequences that are decoded: tokens [B, T + 1] with a start token, which draft through one index."""

    def __init__(self, sequences: int, capacity: int):
        self.tokens = np.zeros((sequences, capacity + 1), np.int64)
        self.lengths = np.ones(sequences, np.int64)

    def extend(self, b: int, tokens: list[int]) -> None:
        self.tokens[b, self.lengths[b] : self.lengths[b] + len(tokens)] = tokens
        self.lengths[b] += len(tokens)

    def output(self, b: int) -> list[int]:
        return self.tokens[b, 1 : self.lengths[b]].tolist()

    def propose(self, index: PromptLookupIndex, allowed: list[int], width: int, cost: float = 0.0,
                table=None) -> list[list[int]]:
        proposed = np.full((len(self.tokens), width), -7, np.int64)
        lengths = np.full(len(self.tokens), -7, np.int64)
        self.proposers = np.zeros((len(self.tokens), width), np.uint8)
        index.propose(self.tokens, self.lengths, np.array(allowed), END, proposed, lengths, self.proposers, cost, table)
        for b, length in enumerate(lengths):
            assert (proposed[b, length:] == 0).all(), "padding must be a valid token"
        return [proposed[b, :length].tolist() for b, length in enumerate(lengths)]


def random_tokens(draw: np.random.Generator, alphabet: int, size: int) -> list[int]:
    """Random tokens with 0 among them, so that a match that includes the start token would be noticed."""
    return np.array([0, *range(2, 1 + alphabet)])[draw.integers(0, alphabet, size)].tolist()


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize(("min_match", "max_match"), [(1, 1), (1, 4), (2, 3), (3, 20)])
@pytest.mark.parametrize("alphabet", [2, 4, 12])
def test_drafts_equal_brute_force_at_every_step(min_match, max_match, alphabet, words):
    """Sequences of different lengths, several tokens a step, reused slots, sources with and without end token."""
    draw = np.random.default_rng(min_match * 100 + max_match * 10 + alphabet)
    starts = np.arange(1 + alphabet) % 3 == 0 if words else np.zeros(0, np.bool_)
    index, trust, behind = PromptLookupIndex(min_match, max_match, 0, starts), [0.5] * (max_match + 1), 0
    for B in (3, 1, 5):
        state = Batch(B, 80)
        sources = [random_tokens(draw, alphabet, draw.integers(0, 40)) for _ in range(B)]
        for b in draw.permutation(B):
            sources[b] += [END] * int(draw.integers(2))
            index.admit(int(b), np.array(sources[b], np.int64))
        for _ in range(25):
            allowed = draw.integers(0, 8, B).tolist()
            index.starts[1:] = -100
            # confidences that one batch hardly changes
            index.tested[:] = 1000, 500
            index.tested[-1, 1] = draw.choice([400, 600])
            found = state.propose(index, allowed, 7)
            for b in range(B):
                expected, without = (propose_reference(
                    sources[b], state.output(b), allowed[b], min_match, max_match, END, trust, word_starts=one,
                    gap_confidence=index.gap_confidence)[0] for one in (starts, ()))
                assert found[b] == expected
                behind += expected != without
                state.extend(b, random_tokens(draw, alphabet, draw.integers(0, 4)))
    # of two tokens the last two always occur
    assert (behind > 0) == (words and min_match == 1 < max_match and alphabet > 2)


@pytest.mark.parametrize("cost", [0.0, 0.15])
def test_with_a_table_and_a_history_equals_brute_force(cost):
    """Drafts of copied tokens and of the table's, matches after drafted tokens, and the stopping rule."""
    draw = np.random.default_rng(7)
    texts = [[0, *random_tokens(draw, 6, 12), END] for _ in range(30)]
    table = fit(count(np.concatenate(texts), np.arange(0, 14 * 30 + 1, 14), 3, 12))
    index, past, seen, starts = PromptLookupIndex(1, 3, history=1000), [], set(), set()
    for _ in range(12):
        state, source = Batch(1, 80), random_tokens(draw, 6, 15)
        index.admit(0, np.array(source))
        for step in range(15):
            trust, output = index.confidence.tolist(), state.output(0)
            index.last[:], start = 0, int(np.argmax(index.starts))
            starts.add(start)
            found = state.propose(index, [6], 6, cost, table)[0]
            expected, proposers = propose_reference(source, output, 6, 1, 3, END, trust, cost, table, past, start)
            assert found == expected
            assert [PROPOSERS[proposer] for proposer in state.proposers[0, : len(found)]] == proposers
            seen.update(proposers)
            state.extend(0, random_tokens(draw, 6, draw.integers(1, 4)) if step else source[2:5])
        past += [*state.output(0), END]
        index.remember(np.array([*state.output(0), END]))
    assert len(starts) > 1 and (seen == {"lookup", "ngram"} if cost == 0 else "lookup" in seen)


def test_copying_begins_where_earlier_outputs_began():
    """Sources with a prefix of two tokens, which no output contains."""
    index = PromptLookupIndex(1, 4)
    for number in range(4):
        state, first = Batch(1, 20), 10 * number
        index.admit(0, np.array([500, 501, *range(first + 10, first + 18), END]))
        begin = [first + 10, first + 11, first + 12] if number == 3 else [500, 501, first + 10]
        assert state.propose(index, [3], 3) == [begin]
        state.extend(0, [first + 10, first + 11])
        state.propose(index, [3], 3)
    # a source that is shorter than the prefix is copied from its first token
    state = Batch(1, 20)
    index.admit(0, np.array([7, END]))
    assert state.propose(index, [3], 3) == [[7]]
    # drafts that depend on the request alone do not use what was learned
    index.admit(0, np.array([500, 501, 502, END]))
    tokens, one, drafted = np.zeros((1, 9), np.int64), np.ones(1, np.int64), np.zeros((1, 3), np.int64)
    index.propose(tokens, one, 3 * one, END, drafted, one.copy(), np.zeros((1, 3), np.uint8), min_match=2)
    assert drafted.tolist() == [[500, 501, 502]]


def test_the_confidence_of_copies_from_behind_a_word_follows_acceptance():
    starts = np.ones(200, np.bool_)
    index, before = PromptLookupIndex(1, 4, 0, starts), 0.6
    for step, right in ((0, True), (1, True), (2, False), (3, False), (4, False)):
        state = Batch(1, 20)
        index.admit(0, np.arange(10, 30))
        # 12 is replaced by 100
        state.extend(0, [10, 11, 100])
        assert state.propose(index, [1], 1) == [[13]]
        state.extend(0, [13 if right else 12])
        state.propose(index, [1], 1)
        after = index.gap_confidence
        assert after > before if right else after < before, step
        before = after


def test_the_history_is_bounded_and_drops_its_oldest_tokens():
    index, state = PromptLookupIndex(1, 4, history=8), Batch(1, 20)
    index.remember(np.array([5, 6, 7, END]))
    state.extend(0, [5])
    index.admit(0, np.zeros(0, np.int64))
    assert state.propose(index, [2], 2) == [[6, 7]]
    index.remember(np.array([15, 16, 17, 18, END]))
    assert state.propose(index, [2], 2) == [[]]
    state.extend(0, [16])
    assert state.propose(index, [3], 3) == [[17, 18, END]] and len(index.history) == 8


def test_threads_share_an_index():
    """Every thread uses its own slot; the history contains the outputs of all."""
    index = PromptLookupIndex(1, 4, history=5000)
    for slot in range(4):
        index.admit(slot, np.arange(2, 50))

    def work(slot: int) -> None:
        for i in range(200):
            index.remember(np.array([100 + 200 * slot + i, END]))
            index.admit(slot, np.arange(2, 50))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert index.history_count[0] == 1600
    assert sorted(index.history[:1600:2].tolist()) == list(range(100, 900))


def test_confidence_follows_acceptance():
    index, state = PromptLookupIndex(1, 2), Batch(1, 400)
    index.admit(0, np.array([*range(10, 300), END]))
    state.extend(0, [10])
    for token in range(11, 200):
        state.propose(index, [1], 1)
        state.extend(0, [token])
    assert index.confidence[2] > 0.9
    before = index.confidence[2]
    assert state.propose(index, [1], 1) == [[200]]
    state.extend(0, [7])
    state.propose(index, [1], 1)
    assert index.confidence[2] < before


def test_an_index_grown_step_by_step_equals_a_rebuilt_one():
    draw = np.random.default_rng(0)
    source, output = draw.integers(2, 6, 50), draw.integers(2, 6, 60).tolist()
    grown, state = PromptLookupIndex(1, 4), Batch(1, 80)
    grown.admit(0, source)
    for token in output:
        state.extend(0, [token])
        rebuilt = PromptLookupIndex(1, 4)
        rebuilt.admit(0, source)
        assert state.propose(grown, [5], 5) == state.propose(rebuilt, [5], 5)


def test_a_collision_is_never_a_match():
    """20,000 distinct tokens share 8,192 buckets, so every chain contains several tokens."""
    index, state = PromptLookupIndex(1, 4), Batch(1, 400)
    index.admit(0, np.arange(2, 20_000))
    for token in (17, 9_000, 19_998):
        state.extend(0, [token])
        assert state.propose(index, [3], 3) == [list(range(token + 1, min(token + 4, 20_000)))]


def test_positions_before_the_window_are_not_found():
    window = WINDOW
    state, index = Batch(1, 3 * window), PromptLookupIndex(1, 4)
    index.admit(0, np.zeros(0, np.int64))
    filler = np.arange(10, 10 + 2 * window)
    state.extend(0, [5, 6, *filler[: window - 10].tolist(), 5])
    assert state.propose(index, [1], 1) == [[6]]
    state.extend(0, [7, *filler[window : 2 * window - 10].tolist(), 5])
    assert state.propose(index, [1], 1) == [[7]]
    state.extend(0, [*range(50_000, 50_000 + window + 1), 6])
    assert state.propose(index, [1], 1) == [[]]


def test_growing_the_arrays_keeps_running_requests():
    index, state = PromptLookupIndex(1, 4), Batch(2, 20)
    index.admit(0, np.array([5, 6, 7, 8, END]))
    state.extend(0, [5])
    assert state.propose(index, [4, 0], 4)[0] == [6, 7, 8]
    index.admit(1, np.arange(2, 3000))
    state.extend(0, [6])
    state.extend(1, [100])
    assert state.propose(index, [4, 4], 4) == [[7, 8], [101, 102, 103, 104]]


def test_release_removes_the_request():
    index, state = PromptLookupIndex(1, 4), Batch(1, 20)
    index.admit(0, np.array([5, 6, 7, END]))
    state.extend(0, [5])
    index.release(0)
    index.release(9)
    assert state.propose(index, [4], 4) == [[]]


def test_invalid_match_lengths_are_refused():
    with pytest.raises(ValueError, match="min_match"):
        PromptLookupIndex(3, 2)
