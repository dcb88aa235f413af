"""drafter="auto": which drafter drafts when, draft lengths, and the same tokens as plain decoding."""

from __future__ import annotations

import pytest
import torch
from doubles import ScriptedDrafter, TableDrafter, TableTarget, make_state

import foredraft
from foredraft.engine.draft_length.adaptive_drafter import AdaptiveDrafter
from foredraft.engine.drafters.auto import LONG_MATCH, MIN_EMITTED, AutoDrafter
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import model_class
from foredraft.engine.loop import decode
from foredraft.engine.params import SamplingParams
from foredraft.engine.runtime.requests import Request
from foredraft.errors import UserError

SOURCES = [[5, 6, 7, 5, 6, 7, 5, 6, 1], [9, 8, 1], [20, 21, 22, 23, 1]]


class Constant(ScriptedDrafter):
    """Drafts the same token `size` times."""

    def __init__(self, token, size):
        super().__init__([[token] * 50] * 2, lengths=lambda sequence, step: size)


def admitted(drafter):
    drafter.admit([1, 0], [torch.tensor([3, 1])] * 2, [torch.zeros(2, 8)] * 2)
    return drafter


@pytest.mark.parametrize(("copied", "temperature", "emitted", "token"), [
    (1, 0.0, 9, 5), (4, 0.0, 1, 5), (1, 0.0, 1, 6), (4, 1.0, 9, 6), (4, [0.0, 1.0], 9, 6)])
def test_which_drafter_drafts(copied, temperature, emitted, token):
    """Greedy sequences copy; where steps of copies emitted little, a short copy is replaced by the first trained drafter's
    draft. A batch with a sampled sequence uses that drafter alone."""
    drafter = admitted(AutoDrafter(Constant(5, copied), [Constant(6, 3), Constant(7, 3)]))
    drafter.emitted = emitted
    draft = drafter.draft(make_state(2, 30, 6, 8, temperature=temperature))
    assert draft.tokens[:, 0].tolist() == [token] * 2


@pytest.mark.parametrize("is_accepted", [True, False])
def test_the_trained_drafter_is_called_after_copies_only_if_they_are_rejected(is_accepted):
    table = torch.randn(90, 20, 20, generator=torch.Generator().manual_seed(1))
    plain = make_state(2, 80, 0, 20, end_token=-1)
    decode(plain, TableTarget(table), NoDrafter())
    truth = plain.tokens[:, 1:81].tolist()
    copying = ScriptedDrafter(truth, lambda sequence, position: not is_accepted, vocabulary=20)
    trained = ScriptedDrafter(truth, vocabulary=20)
    drafter = AutoDrafter(copying, [trained])
    state = make_state(2, 80, 4, 20, end_token=-1)
    decode(state, TableTarget(table), drafter)
    assert torch.equal(state.tokens, plain.tokens)
    assert (drafter.emitted > MIN_EMITTED) == is_accepted
    if is_accepted:
        assert trained.round == 0
        return
    # only short copies are replaced
    copying.lengths = lambda sequence, step: 1
    state = make_state(2, 80, 4, 20, end_token=-1)
    decode(state, TableTarget(table), drafter)
    assert torch.equal(state.tokens, plain.tokens) and trained.round > 0


def test_without_a_trained_drafter_sampled_batches_copy():
    drafter = admitted(AutoDrafter(Constant(5, 1)))
    assert drafter.draft(make_state(2, 30, 6, 8, temperature=1.0)).tokens[:, 0].tolist() == [5, 5]
    assert drafter.name.startswith("auto:")


@torch.inference_mode()
def test_a_sampled_sequence_that_is_alone_copies_after_a_long_match():
    """Instead of the trained drafter's draft, and independently of earlier requests."""
    class Counted(TableDrafter):
        calls = 0

        def draft(self, state, budget=None):
            self.calls += 1
            return super().draft(state, budget)

    # by position alone, and sharp: what was sampled once is sampled again
    table = (16 * torch.randn(90, 1, 20, generator=torch.Generator().manual_seed(1))).expand(90, 20, 20).contiguous()
    target, trained = TableTarget(table), Counted(table)
    auto = AutoDrafter(LookupDrafter(), [trained])
    drafter = AdaptiveDrafter(auto)
    drafter.repeatable = True

    def decoded(source, B=1):
        state = make_state(B, 80, 6, 20, temperature=1.0, seeds=[5] * B, end_token=-1)
        drafter.admit(range(B), [source] * B, [torch.zeros(1, 20)] * B)
        decode(state, target, drafter)
        drafter.release(range(B))
        return state.tokens[0, 1:81], state.proposer[0, 1:81]

    no_match = torch.tensor([19])
    sampled, proposer = decoded(no_match)
    assert not (proposer == 1)[:LONG_MATCH].any()
    tokens, proposer = decoded(sampled)
    calls, copied = trained.calls, int((proposer == 1).sum())
    assert copied > 10
    # acceptance of copies was recorded, for greedy and unseeded requests
    again, proposer = decoded(sampled)
    assert torch.equal(again, tokens) and int((proposer == 1).sum()) == copied and trained.calls > calls
    # never in a batch
    assert not (decoded(sampled, 2)[1] == 1).any()


@pytest.fixture(scope="module")
def trained(tiny_model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto-lstm")
    torch.manual_seed(0)
    model_class("lstm").from_target(tiny_model_path, hidden_size=16).save(folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny_model_path, trained):
    return foredraft.load(tiny_model_path, drafter=f"auto:{trained}")


def test_greedy_output_equals_plain_output_beside_sampled_requests(model):
    plain = model.with_drafter(None).generate(SOURCES * 3, max_new_tokens=30)
    requests = [Request(tokens, do_sample=i % 4 == 3) for i, tokens in enumerate(SOURCES * 3)]
    results = list(model.stream(requests, max_new_tokens=30, batch_size=3, in_order=True))
    for i, result in enumerate(results):
        if i % 4 != 3:
            assert result.token_ids == plain.token_ids[i]
    out = model.generate(SOURCES * 3, max_new_tokens=30, batch_size=3)
    assert out.token_ids == plain.token_ids


def test_a_seeded_request_repeats_after_and_beside_other_requests(model):
    options = dict(max_new_tokens=30, batch_size=3, do_sample=True)
    seeded = [Request(tokens, seed=i) for i, tokens in enumerate(SOURCES)]
    first = [result.token_ids for result in model.stream(seeded, in_order=True, **options)]
    model.generate([[30, 31, 1]] * 3, max_new_tokens=40)
    others = [Request([40 + i, 41, 1], seed=50 + i, max_new_tokens=3 + i) for i in range(4)]
    again = list(model.stream([*others, *seeded], in_order=True, **options))
    assert [result.token_ids for result in again[4:]] == first
    assert first != [result.token_ids for result in model.stream(
        [Request(tokens, seed=9 + i) for i, tokens in enumerate(SOURCES)], in_order=True, **options)]


def test_seeded_copies_equal_plain_sampling(tiny_model_path):
    model = foredraft.load(tiny_model_path, drafter="auto")
    assert len(model.drafter.drafters) == 1
    options = dict(max_new_tokens=30, do_sample=True, seed=3)
    plain = model.with_drafter(None).generate(SOURCES, **options)
    assert model.generate(SOURCES, **options).token_ids == plain.token_ids


def test_a_number_is_the_longest_draft_and_zero_is_plain(model):
    out = model.generate(SOURCES, max_new_tokens=30, draft_tokens=2)
    assert len(out.stats.tested_at) == 2 and 0 < out.stats.covered < out.stats.steps
    assert len(model.generate(SOURCES, max_new_tokens=30).stats.tested_at) == 12
    assert model.generate(SOURCES, max_new_tokens=5, draft_tokens=0).stats.drafted == 0
    lookup = model.with_drafter("lookup").generate(SOURCES, max_new_tokens=5)
    assert len(lookup.stats.tested_at) == SamplingParams.draft_tokens


@pytest.mark.full
def test_auto_uses_the_embedded_drafter_for_the_embedded_target(model):
    assert foredraft.load(drafter="auto").drafter.name == "auto:lookup+ngram,lstm"
    with pytest.raises(UserError, match="'gru' is not known"):
        model.with_drafter("auto:gru")


def test_summarize_with_auto_prints_the_plain_summary(command, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("The old ferry crosses the harbour at noon. The old ferry carries cars.")
    outs = [command("summarize", text, "--drafter", drafter, "--max-new-tokens", 12)[1] for drafter in ("auto", "none")]
    assert outs[0] == outs[1] != ""
