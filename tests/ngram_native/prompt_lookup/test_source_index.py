"""The suffix index against brute force."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from foredraft.engine.state import PROPOSERS
from foredraft.ngram_native.count import count
from foredraft.ngram_native.prompt_lookup.copy_rules import propose_reference
from foredraft.ngram_native.prompt_lookup.hash_chains import WINDOW
from foredraft.ngram_native.prompt_lookup.source_index import PromptLookupIndex
from foredraft.ngram_native.smooth import fit

END = 1


class Rows:
    """Rows that decode: tokens [B, T + 1] with a start token, grown id by id, proposing through one index."""

    def __init__(self, rows: int, capacity: int):
        self.tokens = np.zeros((rows, capacity + 1), np.int64)
        self.lengths = np.ones(rows, np.int64)

    def extend(self, row: int, ids: list[int]) -> None:
        self.tokens[row, self.lengths[row] : self.lengths[row] + len(ids)] = ids
        self.lengths[row] += len(ids)

    def output(self, row: int) -> list[int]:
        return self.tokens[row, 1 : self.lengths[row]].tolist()

    def propose(self, index: PromptLookupIndex, allowed: list[int], width: int, cost: float = 0.0, table=None) -> list[list[int]]:
        proposed = np.full((len(self.tokens), width), -7, np.int64)
        lengths = np.full(len(self.tokens), -7, np.int64)
        self.proposers = np.zeros((len(self.tokens), width), np.uint8)
        index.propose(self.tokens, self.lengths, np.array(allowed), END, proposed, lengths, self.proposers, cost, table)
        for row, length in enumerate(lengths):
            assert (proposed[row, length:] == 0).all(), "padding must be a valid id"
        return [proposed[row, :length].tolist() for row, length in enumerate(lengths)]


def some_ids(draw: np.random.Generator, alphabet: int, size: int) -> list[int]:
    """Random ids; 0 is among them, so that a match which ran into the start token would show."""
    return np.array([0, *range(2, 1 + alphabet)])[draw.integers(0, alphabet, size)].tolist()


@pytest.mark.parametrize(("min_match", "max_match"), [(1, 1), (1, 4), (2, 3), (3, 20)])
@pytest.mark.parametrize("alphabet", [2, 4, 12])
def test_equals_brute_force_at_every_round(min_match, max_match, alphabet):
    """Ragged rows, ids committed a few at a time, rows admitted anew in used slots, sources with and without an end."""
    draw = np.random.default_rng(min_match * 100 + max_match * 10 + alphabet)
    index, trust = PromptLookupIndex(min_match, max_match), [0.5] * (max_match + 1)
    for rows in (3, 1, 5):
        state = Rows(rows, 80)
        sources = [some_ids(draw, alphabet, draw.integers(0, 40)) for _ in range(rows)]
        for row in draw.permutation(rows):
            sources[row] += [END] * int(draw.integers(2))
            index.admit(int(row), np.array(sources[row], np.int64))
        for _ in range(25):
            allowed = draw.integers(0, 8, rows).tolist()
            found = state.propose(index, allowed, 7)
            for row in range(rows):
                expected = propose_reference(sources[row], state.output(row), allowed[row], min_match, max_match, END, trust)
                assert found[row] == expected[0]
                state.extend(row, some_ids(draw, alphabet, draw.integers(0, 4)))


@pytest.mark.parametrize("cost", [0.0, 0.15])
def test_with_a_table_and_a_history_equals_brute_force(cost):
    """Copies and the table take turns, ids are looked for after drafted ones, and drafts end where they stop paying."""
    draw = np.random.default_rng(7)
    texts = [[0, *some_ids(draw, 6, 12), END] for _ in range(30)]
    table = fit(count(np.concatenate(texts), np.arange(0, 14 * 30 + 1, 14), 3, 12))
    index, past, proposers = PromptLookupIndex(1, 3, history=1000), [], set()
    for _ in range(12):
        state, source = Rows(1, 80), some_ids(draw, 6, 15)
        index.admit(0, np.array(source))
        for _ in range(15):
            trust, output = index.confidence.tolist(), state.output(0)
            index.last[:] = 0
            found = state.propose(index, [6], 6, cost, table)[0]
            expected, proposers = propose_reference(source, output, 6, 1, 3, END, trust, cost, table, past)
            assert found == expected
            assert [PROPOSERS[proposer] for proposer in state.proposers[0, : len(found)]] == proposers
            proposers.update(proposers)
            state.extend(0, some_ids(draw, 6, draw.integers(1, 4)))
        past += [*state.output(0), END]
        index.remember(np.array([*state.output(0), END]))
    assert proposers == {"lookup", "ngram"} if cost == 0 else "lookup" in proposers


def test_the_history_forgets_the_oldest_and_is_bounded():
    index, state = PromptLookupIndex(1, 4, history=8), Rows(1, 20)
    index.remember(np.array([5, 6, 7, END]))
    state.extend(0, [5])
    index.admit(0, np.zeros(0, np.int64))
    assert state.propose(index, [2], 2) == [[6, 7]]
    index.remember(np.array([15, 16, 17, 18, END]))
    assert state.propose(index, [2], 2) == [[]]
    state.extend(0, [16])
    assert state.propose(index, [3], 3) == [[17, 18, END]] and len(index.history) == 8


def test_threads_share_an_index():
    """Every thread has a slot of its own; what they remember is all there at the end."""
    index = PromptLookupIndex(1, 4, history=5000)
    for slot in range(4):
        index.admit(slot, np.arange(2, 50))

    def work(slot: int) -> None:
        for i in range(200):
            index.remember(np.array([100 + 200 * slot + i, END]))
            index.admit(slot, np.arange(2, 50))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert index.remembered[0] == 1600
    assert sorted(index.history[:1600:2].tolist()) == list(range(100, 900))


def test_confidence_follows_what_is_kept():
    index, state = PromptLookupIndex(1, 2), Rows(1, 400)
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


def test_incremental_equals_rebuilt():
    draw = np.random.default_rng(0)
    source, output = draw.integers(2, 6, 50), draw.integers(2, 6, 60).tolist()
    grown, state = PromptLookupIndex(1, 4), Rows(1, 80)
    grown.admit(0, source)
    for token in output:
        state.extend(0, [token])
        rebuilt = PromptLookupIndex(1, 4)
        rebuilt.admit(0, source)
        assert state.propose(grown, [5], 5) == state.propose(rebuilt, [5], 5)


def test_a_collision_is_never_a_match():
    """20,000 distinct ids share 8,192 buckets: every chain holds several, and one id of it is the right one."""
    index, state = PromptLookupIndex(1, 4), Rows(1, 400)
    index.admit(0, np.arange(2, 20_000))
    for token in (17, 9_000, 19_998):
        state.extend(0, [token])
        assert state.propose(index, [3], 3) == [list(range(token + 1, min(token + 4, 20_000)))]


def test_an_old_output_leaves_the_window():
    """Beyond the window a position is forgotten, never misread."""
    window = WINDOW
    state, index = Rows(1, 3 * window), PromptLookupIndex(1, 4)
    index.admit(0, np.zeros(0, np.int64))
    filler = np.arange(10, 10 + 2 * window)
    state.extend(0, [5, 6, *filler[: window - 10].tolist(), 5])
    assert state.propose(index, [1], 1) == [[6]]
    state.extend(0, [7, *filler[window : 2 * window - 10].tolist(), 5])
    assert state.propose(index, [1], 1) == [[7]]
    state.extend(0, [*range(50_000, 50_000 + window + 1), 6])
    assert state.propose(index, [1], 1) == [[]]


def test_growth_keeps_the_requests_that_run():
    index, state = PromptLookupIndex(1, 4), Rows(2, 20)
    index.admit(0, np.array([5, 6, 7, 8, END]))
    state.extend(0, [5])
    assert state.propose(index, [4, 0], 4)[0] == [6, 7, 8]
    index.admit(1, np.arange(2, 3000))
    state.extend(0, [6])
    state.extend(1, [100])
    assert state.propose(index, [4, 4], 4) == [[7, 8], [101, 102, 103, 104]]


def test_release_forgets():
    index, state = PromptLookupIndex(1, 4), Rows(1, 20)
    index.admit(0, np.array([5, 6, 7, END]))
    state.extend(0, [5])
    index.release(0)
    index.release(9)
    assert state.propose(index, [4], 4) == [[]]


def test_bounds_are_checked():
    with pytest.raises(ValueError, match="min_match"):
        PromptLookupIndex(3, 2)
