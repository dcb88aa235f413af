"""The draft-length policy in the decode loop: no greedy, point-mass or seeded output changes, and useless drafters rest."""

import pytest
import torch
from doubles import ScriptedDrafter, TableTarget, make_state

import foredraft
from foredraft.engine.draft_length.policy import DraftLengthPolicy
from foredraft.engine.drafters.auto_arms import AutoDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import model_class
from foredraft.engine.loop import decode, step
from foredraft.engine.protocols import Capabilities

SOURCES = [[5, 6, 7, 5, 6, 7, 5, 6, 1], [9, 8, 1], [20, 21, 22, 23, 1]]


def with_policy(model):
    # in the place of the cached property
    model.__dict__["adaptive"] = DraftLengthPolicy(model.drafter)
    return model


@pytest.fixture
def lstm(tiny_model_path, tmp_path):
    torch.manual_seed(0)
    model_class("lstm").from_target(tiny_model_path, hidden_size=16).save(tmp_path)
    return with_policy(foredraft.load(tiny_model_path, drafter=tmp_path))


@pytest.mark.parametrize("sampling", [dict(), dict(do_sample=True, seed=3)])
def test_output_equals_plain_output(tiny_model_path, sampling):
    model = with_policy(foredraft.load(tiny_model_path, drafter="lookup"))
    plain = model.generate(SOURCES, max_new_tokens=40, draft_tokens=0, **sampling)
    outs = [model.generate(SOURCES, max_new_tokens=40, draft_tokens="auto", **sampling) for _ in range(4)]
    assert all(out.token_ids == plain.token_ids for out in outs)
    assert 0 < sum(out.stats.covered for out in outs) < sum(out.stats.steps for out in outs)


def test_greedy_output_of_a_drafter_that_stops_early_equals_plain_output(lstm):
    plain = lstm.generate(SOURCES, max_new_tokens=30, draft_tokens=0)
    assert lstm.generate(SOURCES, max_new_tokens=30, draft_tokens="auto").token_ids == plain.token_ids


class Clock:
    """Seconds: a plain step takes 1, a call 0.2, a query position 0.05. It replaces a target's and a drafter's methods."""

    def __init__(self, target, drafter):
        self.now, decode_of, draft_of = 0.0, target.decode, drafter.draft

        def decoded(tokens, positions, parents=None):
            self.now += 0.95 + 0.05 * int((positions >= 0).sum())
            return decode_of(tokens, positions, parents)

        def drafted(*arguments):
            self.now += 0.2
            return draft_of(*arguments)

        target.decode, drafter.draft = decoded, drafted

    def __call__(self):
        return self.now


def tables(length, sequences=1, **options):
    """A target, and what it emits without drafts."""
    table = torch.randn(length + 50, 20, 20, generator=torch.Generator().manual_seed(1))
    plain = make_state(sequences, length, 0, 20, end_token=-1, **options)
    decode(plain, TableTarget(table), NoDrafter())
    return TableTarget(table), plain.tokens[:, 1 : length + 1]


@pytest.mark.parametrize("right", [False, True])
def test_a_useless_drafter_costs_little_and_a_good_one_drafts(right):
    target, truth = tables(400)
    drafter = ScriptedDrafter(truth.tolist(), lambda sequence, at: not right, vocabulary=20)
    clock = Clock(target, drafter)
    policy = DraftLengthPolicy(drafter, clock)
    for _ in range(2):
        before, calls = clock.now, drafter.round
        state = make_state(1, 400, 6, 20, end_token=-1)
        decode(state, target, policy)
        assert torch.equal(state.tokens[:, 1:401], truth)
    seconds = clock.now - before
    assert seconds < (250 if right else 1.03 * 400)
    # steps without a draft do not call the drafter
    assert drafter.round - calls == int(state.covered.sum())


@pytest.mark.parametrize("right", [False, True])
def test_repeatable_lengths_do_not_depend_on_the_sequences_beside(right):
    class Sampled(ScriptedDrafter):
        capabilities = Capabilities()

    def drafted(starts):
        """By sequence 0 in each step, where sequence 1 starts anew in the steps `starts`."""
        drafter = Sampled(truth.tolist(), lambda sequence, at: not right or at % 3 == 0, vocabulary=20)
        policy = DraftLengthPolicy(drafter)
        policy.repeatable = True
        state, seen = make_state(2, [300, 20], 6, 20, temperature=1.0, seeds=[1, 2], end_token=-1), []
        state.finished[1] = True
        while not state.finished[0] and len(seen) < 250:
            if len(seen) in starts:
                state.start(1, limit=20, draft_tokens=6, temperature=1.0, top_k=0, top_p=1.0, seed=len(seen))
                policy.admit([1], [torch.ones(1, dtype=torch.int64)], [torch.zeros(1, 1)])
            before = int(state.drafted[0])
            step(state, target, policy)
            policy.end_step()
            seen.append(int(state.drafted[0]) - before)
        return seen

    target, truth = tables(330, 2, temperature=1.0, seeds=[1, 2])
    alone = drafted(())
    assert 0 < sum(length > 0 for length in alone)
    assert drafted((0, 37, 38, 150)) == alone


def test_a_seeded_request_repeats_whatever_was_learned(lstm):
    options = dict(max_new_tokens=30, draft_tokens="auto", do_sample=True, temperature=0.9, seed=5)
    first = lstm.generate(SOURCES, **options)
    lstm.generate([[30, 31, 1]] * 3, max_new_tokens=40, draft_tokens="auto")
    lstm.generate([[30, 31, 1]] * 3, max_new_tokens=40, draft_tokens="auto", do_sample=True)
    assert lstm.generate(SOURCES, **options).token_ids == first.token_ids
    assert lstm.generate(SOURCES, **options | {"seed": 6}).token_ids != first.token_ids


@pytest.mark.parametrize("copies", [True, False])
def test_auto_takes_the_arm_that_is_right(copies):
    """Where copies are wrong the cascade with the trained drafter is taken, which costs another call."""
    target, truth = tables(300)
    copying = ScriptedDrafter(truth.tolist(), lambda sequence, at: not copies, lambda sequence, at: 1 + copies, 20)
    trained = ScriptedDrafter(truth.tolist(), vocabulary=20)
    clock = Clock(target, trained)
    policy = DraftLengthPolicy(AutoDrafter(copying, [trained]), clock)
    for _ in range(2):
        calls = trained.round
        state = make_state(1, 300, 6, 20, end_token=-1)
        decode(state, target, policy)
        assert torch.equal(state.tokens[:, 1:301], truth)
    assert (trained.round - calls > 10) or copies
    assert int(state.num_steps) < 250
