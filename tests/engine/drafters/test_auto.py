"""drafter="auto": who is asked when, its lengths, and the same tokens as ever."""

from __future__ import annotations

import pytest
import torch
from doubles import ScriptedDrafter, TableDrafter, TableTarget, make_state

import foredraft
from foredraft.engine.draft_length.adaptive_drafter import AdaptiveDrafter
from foredraft.engine.drafters.auto import COPIES, LONG_MATCH, AutoDrafter
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import model_class
from foredraft.engine.loop import decode
from foredraft.engine.params import SamplingParams
from foredraft.engine.runtime.requests import Request
from foredraft.errors import UserError

SOURCES = [[5, 6, 7, 5, 6, 7, 5, 6, 1], [9, 8, 1], [20, 21, 22, 23, 1]]


class Named(ScriptedDrafter):
    def __init__(self, token, size):
        super().__init__([[token] * 50] * 2, lengths=lambda row, round_: size)


def admitted(drafter):
    drafter.admit([1, 0], [torch.tensor([3, 1])] * 2, [torch.zeros(2, 8)] * 2)
    return drafter


@pytest.mark.parametrize(("copied", "temperature", "emitted", "token"), [
    (1, 0.0, 9, 5), (4, 0.0, 1, 5), (1, 0.0, 1, 6), (4, 1.0, 9, 6), (4, [0.0, 1.0], 9, 6)])
def test_who_drafts(copied, temperature, emitted, token):
    """Greedy rows copy, and where copies have emitted little, short ones give way to the first trained drafter's draft; a
    batch with sampled rows takes that alone."""
    drafter = admitted(AutoDrafter(Named(5, copied), [Named(6, 3), Named(7, 3)]))
    drafter.emitted = emitted
    draft = drafter.draft(make_state(2, 30, 6, 8, temperature=temperature))
    assert draft.tokens[:, 0].tolist() == [token] * 2


@pytest.mark.parametrize("copies", [True, False])
def test_it_learns_whether_copies_do(copies):
    """From the ids that rounds emit: a copy that stands keeps the trained drafter out, one that falls brings it in."""
    table = torch.randn(90, 20, 20, generator=torch.Generator().manual_seed(1))
    plain = make_state(2, 80, 0, 20, end_token=-1)
    decode(plain, TableTarget(table), NoDrafter())
    truth = plain.tokens[:, 1:81].tolist()
    copying = ScriptedDrafter(truth, lambda row, at: not copies, vocabulary=20)
    trained = ScriptedDrafter(truth, vocabulary=20)
    drafter = AutoDrafter(copying, [trained])
    state = make_state(2, 80, 4, 20, end_token=-1)
    decode(state, TableTarget(table), drafter)
    assert torch.equal(state.tokens, plain.tokens)
    assert (drafter.emitted > COPIES) == copies
    if copies:
        assert trained.round == 0
        return
    # of wrong copies only short ones give way
    copying.lengths = lambda row, round_: 1
    state = make_state(2, 80, 4, 20, end_token=-1)
    decode(state, TableTarget(table), drafter)
    assert torch.equal(state.tokens, plain.tokens) and trained.round > 0


def test_without_a_trained_drafter_everything_is_a_copy():
    drafter = admitted(AutoDrafter(Named(5, 1)))
    assert drafter.draft(make_state(2, 30, 6, 8, temperature=1.0)).tokens[:, 0].tolist() == [5, 5]
    assert drafter.name.startswith("auto:")


@torch.inference_mode()
def test_a_sampled_row_that_is_alone_copies_after_a_long_match():
    """In the place of the trained drafter's draws, and the same whatever other requests have taught."""
    class Counted(TableDrafter):
        asked = 0

        def draft(self, state, budget=None):
            self.asked += 1
            return super().draft(state, budget)

    # by its place alone, and mostly the likeliest: what was drawn once comes again
    table = (16 * torch.randn(90, 1, 20, generator=torch.Generator().manual_seed(1))).expand(90, 20, 20).contiguous()
    target, trained = TableTarget(table), Counted(table)
    auto = AutoDrafter(LookupDrafter(), [trained])
    drafter = AdaptiveDrafter(auto)
    drafter.repeatable = True

    def decoded(source, rows=1):
        state = make_state(rows, 80, 6, 20, temperature=1.0, seeds=[5] * rows, end_token=-1)
        drafter.admit(range(rows), [source] * rows, [torch.zeros(1, 20)] * rows)
        decode(state, target, drafter)
        drafter.release(range(rows))
        return state.tokens[0, 1:81], state.proposer[0, 1:81]

    nothing = torch.tensor([19])
    drawn, proposer = decoded(nothing)
    assert not (proposer == 1)[:LONG_MATCH].any()
    tokens, proposer = decoded(drawn)
    asked, copied = trained.asked, int((proposer == 1).sum())
    assert copied > 10
    # it taught what copies are worth here, which greedy and unseeded requests go by
    again, proposer = decoded(drawn)
    assert torch.equal(again, tokens) and int((proposer == 1).sum()) == copied and trained.asked > asked
    # never in a batch
    assert not (decoded(drawn, 2)[1] == 1).any()


@pytest.fixture(scope="module")
def trained(tiny_model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto-lstm")
    torch.manual_seed(0)
    model_class("lstm").from_target(tiny_model_path, hidden_size=16).save(folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny_model_path, trained):
    return foredraft.load(tiny_model_path, drafter=f"auto:{trained}")


def test_greedy_equals_plain_in_any_company(model):
    plain = model.with_drafter(None).generate(SOURCES * 3, max_new_tokens=30)
    requests = [Request(ids, do_sample=at % 4 == 3) for at, ids in enumerate(SOURCES * 3)]
    results = list(model.stream(requests, max_new_tokens=30, batch_size=3, in_order=True))
    for at, result in enumerate(results):
        if at % 4 != 3:
            assert result.token_ids == plain.token_ids[at]
    out = model.generate(SOURCES * 3, max_new_tokens=30, batch_size=3)
    assert out.token_ids == plain.token_ids


def test_a_seeded_request_repeats_whatever_was_learned_and_whoever_is_beside_it(model):
    options = dict(max_new_tokens=30, batch_size=3, do_sample=True)
    seeded = [Request(ids, seed=at) for at, ids in enumerate(SOURCES)]
    first = [result.token_ids for result in model.stream(seeded, in_order=True, **options)]
    model.generate([[30, 31, 1]] * 3, max_new_tokens=40)
    others = [Request([40 + at, 41, 1], seed=50 + at, max_new_tokens=3 + at) for at in range(4)]
    again = list(model.stream([*others, *seeded], in_order=True, **options))
    assert [result.token_ids for result in again[4:]] == first
    assert first != [result.token_ids for result in model.stream(
        [Request(ids, seed=9 + at) for at, ids in enumerate(SOURCES)], in_order=True, **options)]


def test_seeded_copies_equal_plain_sampling(tiny_model_path):
    model = foredraft.load(tiny_model_path, drafter="auto")
    assert len(model.drafter.drafters) == 1
    options = dict(max_new_tokens=30, do_sample=True, seed=3)
    plain = model.with_drafter(None).generate(SOURCES, **options)
    assert model.generate(SOURCES, **options).token_ids == plain.token_ids


def test_a_number_is_the_longest_draft_and_none_is_plain(model):
    out = model.generate(SOURCES, max_new_tokens=30, draft_tokens=2)
    assert len(out.stats.tested_at) == 2 and 0 < out.stats.covered < out.stats.steps
    assert len(model.generate(SOURCES, max_new_tokens=30).stats.tested_at) == 12
    assert model.generate(SOURCES, max_new_tokens=5, draft_tokens=0).stats.drafted == 0
    lookup = model.with_drafter("lookup").generate(SOURCES, max_new_tokens=5)
    assert len(lookup.stats.tested_at) == SamplingParams.draft_tokens


def test_it_finds_the_drafter_that_was_trained_for_the_target(model):
    assert foredraft.load(drafter="auto").drafter.name == "auto:lookup+ngram,lstm"
    with pytest.raises(UserError, match="'gru' is not known"):
        model.with_drafter("auto:gru")


def test_the_command(command, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("The old ferry crosses the harbour at noon. The old ferry carries cars.")
    outs = [command("summarize", text, "--drafter", drafter, "--max-new-tokens", 12)[1] for drafter in ("auto", "none")]
    assert outs[0] == outs[1] != ""
