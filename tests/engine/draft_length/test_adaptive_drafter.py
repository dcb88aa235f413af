"""Draft lengths that adapt: they change no greedy or point-mass output, no distribution, and no seeded one."""

import itertools
import random

import pytest
import torch
from doubles import ScriptedDrafter, TableDrafter, TableTarget, chi_square, make_state

import foredraft
from foredraft.engine.draft_length import adaptive_drafter as adaptive
from foredraft.engine.draft_length.adaptive_drafter import WIDEST, AdaptiveDrafter
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import model_class
from foredraft.engine.loop import decode, step
from foredraft.engine.runtime.requests import Request
from foredraft.errors import UserError
from foredraft.kernels.drafting.draft_length_costs import REST, pace_numba

SOURCES = [[5, 6, 7, 5, 6, 7, 5, 6, 1], [9, 8, 1], [20, 21, 22, 23, 1]]


@pytest.fixture
def lstm(tiny_model_path, tmp_path):
    torch.manual_seed(0)
    model_class("lstm").from_target(tiny_model_path, hidden_size=16).save(tmp_path)
    return foredraft.load(tiny_model_path, drafter=tmp_path)


@pytest.mark.parametrize("distribution", [dict(), dict(do_sample=True, seed=3)])
def test_output_equals_plain_output(tiny_model_path, distribution):
    model = foredraft.load(tiny_model_path, drafter="lookup")
    plain = model.generate(SOURCES, max_new_tokens=40, draft_tokens=0, **distribution)
    out = model.generate(SOURCES, max_new_tokens=40, draft_tokens="auto", **distribution)
    assert out.token_ids == plain.token_ids
    # at the start some rounds are plain on purpose
    assert 0 < out.stats.covered < out.stats.steps


def rounds(state, target, drafter):
    """decode(), with the adaptive drafter told of each round's end."""
    decode(state, target, drafter)


def test_a_useless_drafter_is_hardly_asked():
    table = torch.randn(300, 20, 20, generator=torch.Generator().manual_seed(1))
    plain = make_state(2, 250, 0, 20, end_token=-1)
    decode(plain, TableTarget(table), NoDrafter())
    truth = plain.tokens[:, 1:251].tolist()
    wrong = AdaptiveDrafter(ScriptedDrafter(truth, lambda row, at: True, vocabulary=20))
    for _ in range(2):
        state = make_state(2, 250, 6, 20, end_token=-1)
        rounds(state, TableTarget(table), wrong)
        assert torch.equal(state.tokens, plain.tokens)
    # in the second request what the first one learned holds from the start
    assert int(state.covered.max()) < 25


def test_a_round_without_drafts_asks_nobody():
    class Asked(ScriptedDrafter):
        def draft(self, state, budget=None):
            assert int(state.draft_tokens.max()) > 0
            return super().draft(state, budget)

    table = torch.randn(60, 20, 20, generator=torch.Generator().manual_seed(1))
    state = make_state(1, 50, 6, 20, end_token=-1)
    drafter = Asked([[0] * 60], vocabulary=20)
    rounds(state, TableTarget(table), AdaptiveDrafter(drafter))
    assert 0 < drafter.round < int(state.num_steps.max())


def test_rounds_after_one_without_a_draft_are_plain_until_a_row_comes(monkeypatch):
    thought = []

    def choose(*arguments):
        *prices, drafts, rest = pace_numba(*arguments)
        thought.append((int(state.lengths.max()), drafts, rest))
        return *prices, drafts, rest

    table = torch.randn(300, 20, 20, generator=torch.Generator().manual_seed(1))
    drafter = AdaptiveDrafter(ScriptedDrafter([[0] * 300], vocabulary=20))
    monkeypatch.setattr(adaptive, "pace_numba", choose)
    state = make_state(1, 250, 6, 20, end_token=-1)
    rounds(state, TableTarget(table), drafter)
    pairs = [(before, after) for before, after in itertools.pairwise(thought) if before[2] > 0]
    assert len(pairs) > 30 and all(after[0] - before[0] == 1 + REST for before, after in pairs)
    # a row that comes ends the rest
    state = make_state(1, 250, 6, 20, end_token=-1)
    drafter.draft(state)
    while not drafter._rest:
        drafter.draft(state)
    seen = len(thought)
    drafter.draft(state)
    assert len(thought) == seen
    drafter.admit([0], [torch.ones(1, dtype=torch.int64)], [torch.zeros(1, 1)])
    drafter.draft(state)
    assert len(thought) == seen + 1


def test_a_seeded_request_repeats_whatever_was_learned(lstm):
    options = dict(max_new_tokens=30, draft_tokens="auto", do_sample=True, temperature=0.9, seed=5)
    first = lstm.generate(SOURCES, **options)
    lstm.generate([[30, 31, 1]] * 3, max_new_tokens=40, draft_tokens="auto")
    lstm.generate([[30, 31, 1]] * 3, max_new_tokens=40, draft_tokens="auto", do_sample=True)
    again = lstm.generate(SOURCES, **options)
    assert again.token_ids == first.token_ids
    assert lstm.generate(SOURCES, **options | {"seed": 6}).token_ids != first.token_ids


@pytest.mark.parametrize("right", [False, True])
def test_repeatable_widths_do_not_depend_on_who_comes_beside_a_row(right):
    """Rests, which end for all where a row comes, included."""
    class Drawn(ScriptedDrafter):
        point_masses = False

    def drafted(comes):
        """Of row 0 in each round, where row 1 is started anew in rounds `comes`."""
        drafter = AdaptiveDrafter(Drawn(truth, lambda row, at: not right or at % 3 == 0, vocabulary=20))
        drafter.repeatable = True
        state = make_state(2, [700, 20], 6, 20, temperature=1.0, seeds=[1, 2], end_token=-1)
        state.finished[1], seen = True, []
        while not state.finished[0] and len(seen) < 600:
            if len(seen) in comes:
                state.start(1, limit=20, draft_tokens=6, temperature=1.0, top_k=0, top_p=1.0, seed=len(seen))
                drafter.admit([1], [torch.ones(1, dtype=torch.int64)], [torch.zeros(1, 1)])
            before = int(state.drafted[0])
            step(state, target, drafter)
            drafter.end_step()
            seen.append(int(state.drafted[0]) - before)
        return seen

    target = TableTarget(torch.randn(800, 20, 20, generator=torch.Generator().manual_seed(1)))
    plain = make_state(2, 750, 0, 20, temperature=1.0, seeds=[1, 2], end_token=-1)
    decode(plain, target, NoDrafter())
    truth = plain.tokens[:, 1:751].tolist()
    alone = drafted(())
    assert 0 < sum(width > 0 for width in alone) < len(alone)
    assert drafted((0, 37, 38, 150, 301, 402)) == alone


def test_a_drafter_learns_what_a_row_costs_here():
    class Seen(LookupDrafter):
        costs = []

        def draft(self, state, budget=None):
            self.costs.append(budget.costs)
            return super().draft(state, budget)

    table = torch.zeros(60, 20, 20)
    drafter, target = Seen(), TableTarget(table)
    adaptive = AdaptiveDrafter(drafter)
    adaptive.admit([0], [torch.arange(2, 19)], [torch.zeros(1, 1)])
    rounds(make_state(1, 50, 6, 20, end_token=-1), target, adaptive)
    assert len(set(drafter.costs)) > 1
    assert all(0 <= row <= 1 and each >= 0 for row, each in drafter.costs)


class Wavering(TableDrafter):
    """Two ids after a round whose drafts all stood, else one or none by the last id; with `peeking` a draft whose first id
    is even is thrown away, which no distribution survives."""

    peeking = False

    def draft(self, state, budget=None):
        last = state.tokens.gather(1, state.lengths[:, None] - 1)[:, 0]
        state.draft_tokens[:] = torch.where(state.last_accepted == state.last_tested, 2, last % 2)
        draft = super().draft(state, budget)
        if self.peeking:
            draft.lengths *= draft.tokens[:, 0] % 2
        return draft


@pytest.mark.parametrize("peeking", [False, True])
def test_lengths_from_what_was_seen_keep_the_distribution_and_lengths_from_the_draft_do_not(peeking):
    V, rows, counts = 8, 4000, torch.zeros(64, dtype=torch.int64)
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(6, V, V, generator=generator)
    drafter = Wavering(table + torch.randn(6, V, V, generator=generator))
    drafter.peeking = peeking
    for start in range(0, 20 * rows, rows):
        state = make_state(rows, 5, 2, V, temperature=1.0, seeds=range(start, start + rows), end_token=-1)
        decode(state, TableTarget(table), drafter)
        counts += torch.bincount(state.tokens[:, 3] * V + state.tokens[:, 4], minlength=V * V)
    reached = torch.softmax(table[0, 0].double(), -1)
    distributions = [torch.softmax(table[place].double(), -1) for place in range(1, 4)]
    joint = (reached @ distributions[0] @ distributions[1])[:, None] * distributions[2]
    value, freedom = chi_square(counts, joint.reshape(-1))
    assert (value < freedom + 10 * (2 * freedom) ** 0.5) != peeking


def test_only_a_number_or_auto(tiny_model_path):
    model = foredraft.load(tiny_model_path)
    with pytest.raises(UserError, match="draft_tokens is 'much'"):
        model.generate([[5, 1]], draft_tokens="much")
    assert WIDEST > 5


def test_blocks_and_adapting_lengths_go_together(lstm):
    options = dict(max_new_tokens=20, do_sample=True, seed=5)
    out = lstm.generate(SOURCES, draft_tokens="auto", verification="block", **options)
    assert all(out.token_ids) and out.stats.drafted
    # greedy rows have nothing to weigh as a block
    assert lstm.generate(SOURCES, max_new_tokens=20, verification="block").token_ids == lstm.generate(
        SOURCES, max_new_tokens=20, draft_tokens=0).token_ids
    with pytest.raises(UserError, match="verification is 'tree'"):
        lstm.generate(SOURCES, verification="tree")


def test_in_a_stream_a_requests_number_is_its_longest_draft(tiny_model_path):
    model = foredraft.load(tiny_model_path, drafter="lookup")
    requests = [Request(ids, draft_tokens=most) for ids, most in zip(SOURCES * 3, [None, 0, 2] * 3, strict=True)]
    plain = model.generate(SOURCES * 3, max_new_tokens=30, draft_tokens=0)
    results = list(model.stream(requests, draft_tokens="auto", max_new_tokens=30, batch_size=2, in_order=True))
    assert [result.token_ids for result in results] == plain.token_ids
    drafted = [result.stats.drafted for result in results]
    assert sum(drafted[1::3]) == 0 < sum(drafted[0::3])
    assert all(len([at for at in result.stats.tested_at if at]) <= 2 for result in results[2::3])
    refused = list(model.stream([Request([5, 1], draft_tokens="auto")], draft_tokens=3))
    assert "open the stream with it" in str(refused[0].error)


def test_a_seeded_request_with_drawn_drafts_knows_nothing_of_the_load(lstm):
    """In a stream of rows that come and go, greedy ones among them, each is what it is alone in as many rows."""
    draw = random.Random(4)
    lstm.target.end_token = -1  # random weights end too early to see anything
    requests = [Request(draw.choice(SOURCES), id=i, do_sample=bool(i % 3), temperature=draw.choice((0.3, 1.0)), top_k=0,
                        seed=draw.randrange(2**40), max_new_tokens=draw.randint(3, 24)) for i in range(30)]
    options, results = dict(draft_tokens="auto", max_new_tokens=24, batch_size=2), {}
    with lstm.stream(requests, **options) as stream:
        for result in stream:
            results[result.id] = result
            if draw.random() < 0.2:
                stream.cancel(draw.randrange(30))
    assert 0 < sum(result.finish_reason == "cancelled" for result in results.values()) < 15
    for request in requests:
        alone, result = next(lstm.stream([request], **options)).token_ids, results[request.id]
        assert result.token_ids == alone[: len(result.token_ids)]
        assert result.finish_reason == "cancelled" or len(result.token_ids) == request.max_new_tokens
    assert sum(result.stats.drafted for result in results.values() if result.id % 3) > 30
