"""Drafters made of drafters: the cascade, and a T5 that another drafter drafts for."""

import doubles
import pytest
import torch
from doubles import ScriptedDrafter, TableDrafter, TableTarget, chi_square, make_state

from foredraft.engine.drafters.cascade import CascadeDrafter
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import PROPOSERS, make_drafter, model_class, open_drafter
from foredraft.engine.drafters.staged import StagedDrafter
from foredraft.engine.loop import decode
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.protocols import Capabilities
from foredraft.errors import UserError

SOURCES = [torch.tensor(ids) for ids in ([5, 9, 33, 1], [7, 8] * 15 + [1], [50, 51, 52, 53, 54, 1], [3, 1])]


class Named(ScriptedDrafter):
    """Proposes `size` tokens for the sequences it names, and notes which sequences it was asked for."""

    def __init__(self, token, size, rows, proposer):
        super().__init__([[token] * 50] * 4, lengths=lambda row, round_: size if row in rows else 0)
        self.proposer, self.asked = proposer, []

    def draft(self, state, budget=None):
        self.asked.append((state.allowed(budget) > 0).nonzero()[:, 0].tolist())
        draft = super().draft(state, budget)
        draft.proposer[:] = self.proposer
        return draft


def test_each_sequence_takes_the_first_draft_that_is_long_enough():
    first, second, third = Named(5, 4, [0], 1), Named(6, 2, [1, 2], 2), Named(7, 3, [2], 3)
    state = make_state(4, 30, 6, 8)
    draft = CascadeDrafter([first, second, third]).draft(state)
    assert draft.lengths.tolist() == [4, 2, 3, 0]
    assert draft.tokens[:, 0].tolist()[:3] == [5, 6, 7]
    assert draft.proposer[:, 0].tolist()[:3] == [1, 2, 3]
    assert (first.asked, second.asked, third.asked) == ([[0, 1, 2, 3]], [[1, 2, 3]], [[1, 2, 3]])
    assert state.draft_tokens.tolist() == [6] * 4
    # all that a sequence may draft is enough, and who is not needed is not asked
    state.draft_tokens[:] = torch.tensor([2, 1, 0, 0])
    second.lengths = first.lengths = lambda row, round_: 9
    assert CascadeDrafter([first, second]).draft(state).lengths.tolist() == [2, 1, 0, 0]
    assert len(second.asked) == 1


def test_a_cascade_goes_by_costs_where_one_of_its_drafters_does():
    first, second = Named(5, 4, [0], 1), Named(6, 2, [1], 2)
    assert not CascadeDrafter([first, second]).capabilities.stops_early
    second.capabilities = Capabilities(stops_early=True)
    assert CascadeDrafter([first, second]).capabilities.stops_early


class Short(TableDrafter):
    """A sampled draft that stops at an even token, as at an end of text."""

    point_masses = False

    def draft(self, state, budget=None):
        draft = super().draft(state, budget)
        draft.lengths = torch.minimum(draft.lengths, 2 - (draft.tokens[:, 0] % 2 == 0).long())
        return draft


@pytest.mark.parametrize("drops", [False, True])
def test_a_cascade_keeps_the_distribution_where_no_sampled_draft_is_dropped(drops, monkeypatch):
    """Sampled drafts of one token meet point masses of two; to prefer the longer one, as the mutant does, is a bias."""
    V, rows, counts = 6, 4000, torch.zeros(36, dtype=torch.int64)
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(4, V, V, generator=generator)
    sampled, fixed = Short(table + torch.randn(4, V, V, generator=generator)), ScriptedDrafter([[2, 3, 4]] * rows)

    class Drops(CascadeDrafter):
        def draft(self, state, budget=None):
            first, other = (drafter.draft(state) for drafter in self.drafters)
            longer = other.lengths > first.lengths
            first.tokens[longer], first.lengths[longer] = other.tokens[longer], other.lengths[longer]
            first.dense = first.dense & ~longer
            return first

    drafter = (Drops if drops else CascadeDrafter)([sampled, fixed])
    for start in range(0, 15 * rows, rows):
        state = make_state(rows, 3, 2, V, temperature=1.0, seeds=range(start, start + rows), end_token=-1)
        decode(state, TableTarget(table), drafter)
        counts += torch.bincount(state.tokens[:, 1] * V + state.tokens[:, 2], minlength=V * V)
    joint = torch.softmax(table[0, 0].double(), -1)[:, None] * torch.softmax(table[1].double(), -1)
    value, freedom = chi_square(counts, joint.reshape(-1))
    assert (value < freedom + 10 * (2 * freedom) ** 0.5) != drops


@pytest.fixture(scope="module")
def target(tiny_checkpoints):
    target = T5(load_weights(tiny_checkpoints["v1.1"]))
    target.folder = tiny_checkpoints["v1.1"]
    return target


@pytest.fixture(scope="module", params=[0, 40])
def middle(request, target, tmp_path_factory):
    """A shallow T5 over all tokens, and over 40 and the source's."""
    folder = tmp_path_factory.mktemp("shallow")
    model = model_class("t5shallow").from_target(target.folder, layers=[2, 0])
    if request.param:
        model.restrict(torch.randperm(100, generator=torch.Generator().manual_seed(2))[: request.param])
    model.save(folder)
    return folder


def run(target, drafter, state, sources=SOURCES):
    return doubles.decoded(target, drafter, state, sources)


def staged(target, folder, drafter):
    return StagedDrafter(open_drafter(folder, target.weights, target.folder, None), drafter)


@pytest.mark.parametrize("inner", [LookupDrafter, NoDrafter])
def test_greedy_staged_drafts_are_the_t5s_own(target, middle, inner):
    new = [24, 5, 24, 24]
    truth = run(target, NoDrafter(), make_state(4, new, 0, 32, end_token=-1))
    alone = make_state(4, new, 4, 32, end_token=-1)
    assert run(target, open_drafter(middle, target.weights, target.folder, None), alone) == truth
    state = make_state(4, new, 4, 32, end_token=-1)
    drafter = staged(target, middle, inner())
    assert run(target, drafter, state) == truth
    assert state.accepted_at.tolist() == alone.accepted_at.tolist()
    assert state.tested_at.tolist() == alone.tested_at.tolist()
    if inner is LookupDrafter:
        found = {PROPOSERS[int(proposer)] for proposer in state.proposer.unique()}
        assert found <= {"target", "lookup", "t5"}


def test_the_inner_drafter_saves_passes_of_the_t5(target, middle):
    class Counted(T5):
        passes = 0

        def decode(self, *arguments):
            self.passes += 1
            return super().decode(*arguments)

    passes = []
    for inner in (NoDrafter(), LookupDrafter()):
        drafter = staged(target, middle, inner)
        drafter.t5 = Counted(drafter.t5.weights)
        run(target, drafter, make_state(4, 40, 6, 32, end_token=-1))
        passes.append(drafter.t5.passes)
    # random weights repeat themselves, which a copy foresees
    assert passes[1] < passes[0]


@torch.inference_mode()
def test_a_sampled_staged_draft_reports_the_distribution_of_the_t5(target, middle):
    """Its distributions are those that the T5 alone reports after the same tokens, wherever they were sampled."""
    options = dict(temperature=0.9, top_k=30, end_token=-1)
    drafter = staged(target, middle, LookupDrafter())
    alone = open_drafter(middle, target.weights, target.folder, None)
    state = make_state(4, 20, 3, 32, **options)
    target.reserve(4, 21, 3, 70)
    encoded = target.admit(range(4), SOURCES)
    for one in (drafter, alone):
        one.admit(range(4), SOURCES, encoded)
    draft = drafter.draft(state)
    assert draft.lengths.tolist() == [3] * 4 and draft.dense.all()
    for place in range(3):
        led = make_state(4, 20, 1, 32, **options)
        led.tokens[:, 1 : 1 + place], led.lengths[:] = draft.tokens[:, :place], 1 + place
        distribution = alone.draft(led)
        ours, theirs = ((d.logits[:, at].double() - d.lse[:, at, None]).exp()
                        for d, at in ((draft, place), (distribution, 0)))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        assert (ours.gather(1, draft.tokens[:, place : place + 1]) > 0).all()


@torch.inference_mode()
def test_sampled_tokens_follow_the_target(target, middle):
    """The second token of staged speculation against that of plain sampling by exact distributions."""
    # at this target's own temperature one token has nearly all the mass
    rows, times, source, temperature = 100, 25, SOURCES[2], 3.0
    drafter = staged(target, middle, LookupDrafter())
    run(target, drafter, make_state(rows, 3, 2, 32, temperature=temperature, end_token=-1), [source] * rows)
    counts = torch.zeros(100, dtype=torch.int64)
    for time in range(times):
        seeds = range(time * rows, (time + 1) * rows)
        state = make_state(rows, 3, 2, 32, end_token=-1, seeds=seeds, temperature=temperature)
        decode(state, target, drafter)
        counts += torch.bincount(state.tokens[:, 2], minlength=100)

    value, freedom = doubles.second_id_chi_square(target, counts, temperature=temperature)
    assert value < freedom + 10 * (2 * freedom) ** 0.5


def test_by_name(target, middle):
    def made(spec):
        return make_drafter(spec, target, target.folder, None)

    assert made(f"cascade:lookup,{middle}").name == "cascade:lookup,t5"
    assert made(f"staged:lookup,{middle}").name == "staged:lookup,t5"
    with pytest.raises(UserError, match="two or more"):
        made("cascade:lookup")
    with pytest.raises(UserError, match="folder of the T5"):
        made("staged:lookup,lookup")
    with pytest.raises(UserError, match="'gru' is not known"):
        made("cascade:lookup,gru")
