"""Adaptive draft lengths: they change no greedy or point-mass output, no distribution, and no seeded output."""

import itertools
import random

import pytest
import torch
from doubles import ScriptedDrafter, TableDrafter, TableTarget, chi_square, make_state

import foredraft
from foredraft.engine.draft_length import adaptive_drafter as adaptive
from foredraft.engine.draft_length.adaptive_drafter import MAX_DRAFT, AdaptiveDrafter
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import model_class
from foredraft.engine.loop import decode, step
from foredraft.engine.runtime.requests import Request
from foredraft.errors import UserError
from foredraft.kernels.drafting.draft_length_choice import REUSES_PLAIN, choose_numba

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
    # at the start some steps are plain on purpose
    assert 0 < out.stats.covered < out.stats.steps


def test_a_useless_drafter_is_rarely_called():
    table = torch.randn(300, 20, 20, generator=torch.Generator().manual_seed(1))
    plain = make_state(2, 250, 0, 20, end_token=-1)
    decode(plain, TableTarget(table), NoDrafter())
    truth = plain.tokens[:, 1:251].tolist()
    wrong = AdaptiveDrafter(ScriptedDrafter(truth, lambda sequence, position: True, vocabulary=20))
    for _ in range(2):
        state = make_state(2, 250, 6, 20, end_token=-1)
        decode(state, TableTarget(table), wrong)
        assert torch.equal(state.tokens, plain.tokens)
    # the second request starts with the estimates of the first
    assert int(state.covered.max()) < 25


def test_a_plain_step_does_not_call_the_drafter():
    class Called(ScriptedDrafter):
        def draft(self, state, budget=None):
            assert int(state.draft_tokens.max()) > 0
            return super().draft(state, budget)

    table = torch.randn(60, 20, 20, generator=torch.Generator().manual_seed(1))
    state = make_state(1, 50, 6, 20, end_token=-1)
    drafter = Called([[0] * 60], vocabulary=20)
    decode(state, TableTarget(table), AdaptiveDrafter(drafter))
    assert 0 < drafter.round < int(state.num_steps.max())


def test_steps_after_a_plain_choice_are_plain_until_a_request_starts(monkeypatch):
    choices = []

    def choose(*arguments):
        *costs, is_drafting, num_reuses = choose_numba(*arguments)
        choices.append((int(state.lengths.max()), is_drafting, num_reuses))
        return *costs, is_drafting, num_reuses

    table = torch.randn(300, 20, 20, generator=torch.Generator().manual_seed(1))
    drafter = AdaptiveDrafter(ScriptedDrafter([[0] * 300], vocabulary=20))
    monkeypatch.setattr(adaptive, "choose_numba", choose)
    state = make_state(1, 250, 6, 20, end_token=-1)
    decode(state, TableTarget(table), drafter)
    pairs = [(before, after) for before, after in itertools.pairwise(choices) if before[2] > 0]
    assert len(pairs) > 30 and all(after[0] - before[0] == 1 + REUSES_PLAIN for before, after in pairs)
    # a request that starts ends the reuses
    state = make_state(1, 250, 6, 20, end_token=-1)
    drafter.draft(state)
    while not drafter._num_reuses:
        drafter.draft(state)
    before = len(choices)
    drafter.draft(state)
    assert len(choices) == before
    drafter.admit([0], [torch.ones(1, dtype=torch.int64)], [torch.zeros(1, 1)])
    drafter.draft(state)
    assert len(choices) == before + 1


def test_a_seeded_request_repeats_whatever_was_decoded_before(lstm):
    options = dict(max_new_tokens=30, draft_tokens="auto", do_sample=True, temperature=0.9, seed=5)
    first = lstm.generate(SOURCES, **options)
    lstm.generate([[30, 31, 1]] * 3, max_new_tokens=40, draft_tokens="auto")
    lstm.generate([[30, 31, 1]] * 3, max_new_tokens=40, draft_tokens="auto", do_sample=True)
    again = lstm.generate(SOURCES, **options)
    assert again.token_ids == first.token_ids
    assert lstm.generate(SOURCES, **options | {"seed": 6}).token_ids != first.token_ids


@pytest.mark.parametrize("right", [False, True])
def test_repeatable_lengths_do_not_depend_on_requests_that_start_in_the_batch(right):
    """Reused choices included, which a request that starts ends for all sequences."""
    def drafted(starts):
        """Tokens drafted for sequence 0 in each step, where sequence 1 starts another request in the steps `starts`."""
        drafter = AdaptiveDrafter(ScriptedDrafter(truth, lambda sequence, position: not right or position % 3 == 0,
                                                  vocabulary=20))
        drafter.repeatable = True
        state = make_state(2, [700, 20], 6, 20, temperature=1.0, seeds=[1, 2], end_token=-1)
        state.finished[1], counts = True, []
        while not state.finished[0] and len(counts) < 600:
            if len(counts) in starts:
                state.start(1, limit=20, draft_tokens=6, temperature=1.0, top_k=0, top_p=1.0, seed=len(counts))
                drafter.admit([1], [torch.ones(1, dtype=torch.int64)], [torch.zeros(1, 1)])
            before = int(state.drafted[0])
            step(state, target, drafter)
            drafter.end_step()
            counts.append(int(state.drafted[0]) - before)
        return counts

    target = TableTarget(torch.randn(800, 20, 20, generator=torch.Generator().manual_seed(1)))
    plain = make_state(2, 750, 0, 20, temperature=1.0, seeds=[1, 2], end_token=-1)
    decode(plain, target, NoDrafter())
    truth = plain.tokens[:, 1:751].tolist()
    alone = drafted(())
    assert 0 < sum(count > 0 for count in alone) < len(alone)
    assert drafted((0, 37, 38, 150, 301, 402)) == alone


def test_a_drafter_receives_measured_costs():
    class Recorder(LookupDrafter):
        costs = []

        def draft(self, state, budget=None):
            self.costs.append(budget.costs)
            return super().draft(state, budget)

    table = torch.zeros(60, 20, 20)
    drafter, target = Recorder(), TableTarget(table)
    wrapped = AdaptiveDrafter(drafter)
    wrapped.admit([0], [torch.arange(2, 19)], [torch.zeros(1, 1)])
    decode(make_state(1, 50, 6, 20, end_token=-1), target, wrapped)
    assert len(set(drafter.costs)) > 1
    assert all(0 <= position <= 1 and token >= 0 for position, token in drafter.costs)


class VaryingLengths(TableDrafter):
    """Two tokens after a step whose drafts were all accepted, else one or none by the last token. With `peeking` a draft
    whose first token is even is dropped, which changes the distribution."""

    peeking = False

    def draft(self, state, budget=None):
        last = state.tokens.gather(1, state.lengths[:, None] - 1)[:, 0]
        state.draft_tokens[:] = torch.where(state.last_accepted == state.last_tested, 2, last % 2)
        draft = super().draft(state, budget)
        if self.peeking:
            draft.lengths *= draft.tokens[:, 0] % 2
        return draft


@pytest.mark.parametrize("peeking", [False, True])
def test_lengths_by_earlier_steps_keep_the_distribution_and_lengths_by_the_draft_do_not(peeking):
    V, B, counts = 8, 4000, torch.zeros(64, dtype=torch.int64)
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(6, V, V, generator=generator)
    drafter = VaryingLengths(table + torch.randn(6, V, V, generator=generator))
    drafter.peeking = peeking
    for start in range(0, 20 * B, B):
        state = make_state(B, 5, 2, V, temperature=1.0, seeds=range(start, start + B), end_token=-1)
        decode(state, TableTarget(table), drafter)
        counts += torch.bincount(state.tokens[:, 3] * V + state.tokens[:, 4], minlength=V * V)
    reached = torch.softmax(table[0, 0].double(), -1)
    distributions = [torch.softmax(table[position].double(), -1) for position in range(1, 4)]
    joint = (reached @ distributions[0] @ distributions[1])[:, None] * distributions[2]
    value, freedom = chi_square(counts, joint.reshape(-1))
    assert (value < freedom + 10 * (2 * freedom) ** 0.5) != peeking


def test_draft_tokens_are_a_number_or_auto(tiny_model_path):
    model = foredraft.load(tiny_model_path)
    with pytest.raises(UserError, match="draft_tokens is 'much'"):
        model.generate([[5, 1]], draft_tokens="much")
    assert MAX_DRAFT > 5


def test_block_verification_works_with_adaptive_lengths(lstm):
    options = dict(max_new_tokens=20, do_sample=True, seed=5)
    out = lstm.generate(SOURCES, draft_tokens="auto", verification="block", **options)
    assert all(out.token_ids) and out.stats.drafted
    # greedy sequences have no blocks
    assert lstm.generate(SOURCES, max_new_tokens=20, verification="block").token_ids == lstm.generate(
        SOURCES, max_new_tokens=20, draft_tokens=0).token_ids
    with pytest.raises(UserError, match="verification is 'tree'"):
        lstm.generate(SOURCES, verification="tree")


def test_in_a_stream_a_number_is_the_longest_draft_of_its_request(tiny_model_path):
    model = foredraft.load(tiny_model_path, drafter="lookup")
    requests = [Request(tokens, draft_tokens=longest) for tokens, longest in zip(SOURCES * 3, [None, 0, 2] * 3, strict=True)]
    plain = model.generate(SOURCES * 3, max_new_tokens=30, draft_tokens=0)
    results = list(model.stream(requests, draft_tokens="auto", max_new_tokens=30, batch_size=2, in_order=True))
    assert [result.token_ids for result in results] == plain.token_ids
    drafted = [result.stats.drafted for result in results]
    assert sum(drafted[1::3]) == 0 < sum(drafted[0::3])
    assert all(len([tested for tested in result.stats.tested_at if tested]) <= 2 for result in results[2::3])
    refused = list(model.stream([Request([5, 1], draft_tokens="auto")], draft_tokens=3))
    assert "open the stream with it" in str(refused[0].error)


def test_a_seeded_request_with_sampled_drafts_does_not_depend_on_the_load(lstm):
    """In a stream of requests, some greedy, some cancelled, each output is that of the request alone in as large a batch."""
    rng = random.Random(4)
    lstm.target.end_token = -1  # random weights end too early
    requests = [Request(rng.choice(SOURCES), id=i, do_sample=bool(i % 3), temperature=rng.choice((0.3, 1.0)), top_k=0,
                        seed=rng.randrange(2**40), max_new_tokens=rng.randint(3, 24)) for i in range(30)]
    options, results = dict(draft_tokens="auto", max_new_tokens=24, batch_size=2), {}
    with lstm.stream(requests, **options) as stream:
        for result in stream:
            results[result.id] = result
            if rng.random() < 0.2:
                stream.cancel(rng.randrange(30))
    assert 0 < sum(result.finish_reason == "cancelled" for result in results.values()) < 15
    for request in requests:
        alone, result = next(lstm.stream([request], **options)).token_ids, results[request.id]
        assert result.token_ids == alone[: len(result.token_ids)]
        assert result.finish_reason == "cancelled" or len(result.token_ids) == request.settings["max_new_tokens"]
    assert sum(result.stats.drafted for result in results.values() if result.id % 3) > 30
