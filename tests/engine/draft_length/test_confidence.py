"""Drafts that stop early keep greedy output and the sampled distribution; a stop by the sampled token does not. Big Little
Decoder lies between plain decoding and the drafter's own text."""

import pytest
import torch
from doubles import SIZES, TableDrafter, TableTarget, chi_square, make_state

import foredraft
from foredraft.engine.drafters.registry import model_class, open_drafter
from foredraft.engine.loop import decode
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.protocols import Drafter
from foredraft.engine.runtime.requests import Request
from foredraft.engine.state import DraftBudget
from foredraft.errors import UserError

SOURCES = [[5, 6, 7, 5, 6, 7, 5, 6, 1], [9, 8, 1], [20, 21, 22, 23, 1]]
KINDS = {**SIZES, "head": dict(d_kv=12, d_ff=20)}


@pytest.fixture(params=sorted(KINDS))
def trained(request, tiny_model_path, tmp_path):
    """A folder of a random drafter of each kind."""
    torch.manual_seed(3)
    model_class(request.param).from_target(tiny_model_path, **KINDS[request.param]).save(tmp_path)
    return tmp_path


class WithCosts(Drafter):
    """A drafter whose budget has fixed costs."""

    def __init__(self, drafter, costs):
        self.drafter, self.costs, self.name, self.capabilities = drafter, costs, drafter.name, drafter.capabilities
        self.admit, self.release = drafter.admit, drafter.release

    def draft(self, state, budget=None):
        return self.drafter.draft(state, DraftBudget(state.host.draft_tokens, self.costs))


def test_costs_shorten_drafts_and_keep_greedy_output(tiny_model_path, trained):
    model = foredraft.load(tiny_model_path, drafter=trained)
    plain = model.generate(SOURCES, max_new_tokens=20, draft_tokens=0)
    whole = model.generate(SOURCES, max_new_tokens=20, draft_tokens=4)
    model.drafter = WithCosts(model.drafter, (0.1, 0.1))
    out = model.generate(SOURCES, max_new_tokens=20, draft_tokens=4)
    assert plain.token_ids == whole.token_ids == out.token_ids
    assert out.stats.drafted < whole.stats.drafted


@torch.inference_mode()
@pytest.mark.parametrize("block", [False, True])
def test_sampled_tokens_follow_the_target(tiny_checkpoints, tiny_model_path, trained, block):
    """The joint distribution of the first two tokens, where some drafts stop early and others do not."""
    folder, source = tiny_checkpoints["v1.1"], torch.tensor([50, 51, 52, 53, 54, 1])
    target = T5(load_weights(folder))
    drafter = open_drafter(trained, target.weights, tiny_model_path, None)
    B, repeats, distribution = 100, 25, dict(temperature=3.0, top_k=6)
    target.reserve(B, 4, 2, len(source))
    drafter.admit(range(B), [source] * B, target.admit(range(B), [source] * B))

    def next_token(tokens, positions):
        logits = target.logits(target.decode(tokens, positions))[:, -1].double() / distribution["temperature"]
        least = logits.topk(distribution["top_k"]).values[:, -1:]
        return torch.softmax(logits.masked_fill(logits < least, float("-inf")), -1)

    first = next_token(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))[0]
    pairs = torch.stack((torch.zeros(100, dtype=torch.int64), torch.arange(100)), 1)
    joint = torch.cat([next_token(pairs[i : i + 50], torch.tensor([[0, 1]] * 50)) for i in (0, 50)])
    joint = (first[:, None] * joint).reshape(-1)
    counts = torch.zeros(100 * 100, dtype=torch.int64)
    for repeat in range(repeats):
        state = make_state(B, 3, 2, 32, end_token=-1, seeds=range(repeat * B, (repeat + 1) * B), **distribution)
        state.block = block
        decode(state, target, WithCosts(drafter, (0.25, 0.1)))
        counts += torch.bincount(state.tokens[:, 1] * 100 + state.tokens[:, 2], minlength=100 * 100)
    assert counts[joint == 0].sum() == 0
    common = joint * B * repeats >= 5
    pooled = torch.cat((counts[common], counts[~common].sum()[None]))
    value, freedom = chi_square(pooled, torch.cat((joint[common], joint[~common].sum()[None])))
    assert value < freedom + 10 * (2 * freedom) ** 0.5


class Stopping(TableDrafter):
    """Ends a draft before a token whose distribution is flat; with `peeking` before a token that is itself unlikely."""

    peeking = False

    def draft(self, state, budget=None):
        draft = super().draft(state, budget)
        distributions = torch.softmax(draft.logits.double(), -1)
        chosen = distributions.gather(2, draft.tokens[..., None])[..., 0] if self.peeking else distributions.max(-1).values
        is_kept = (chosen >= (0.2 if self.peeking else 0.45)).cumprod(1)
        draft.lengths = torch.minimum(draft.lengths, is_kept.sum(1))
        return draft


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("peeking", [False, True])
def test_a_stop_by_the_distribution_is_lossless_and_one_by_the_sampled_token_is_not(peeking, block):
    V, B, counts, lengths = 6, 4000, torch.zeros(6**3, dtype=torch.int64), []
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(6, V, V, generator=generator)
    drafter = Stopping(table + torch.randn(6, V, V, generator=generator))
    drafter.peeking = peeking
    for start in range(0, 12 * B, B):
        state = make_state(B, 4, 3, V, temperature=1.0, seeds=range(start, start + B), end_token=-1)
        state.block = block
        decode(state, TableTarget(table), drafter, lambda state: lengths.append(state.drafted.clone()))
        counts += torch.bincount((state.tokens[:, 1] * V + state.tokens[:, 2]) * V + state.tokens[:, 3], minlength=V**3)
    first, *distributions = (torch.softmax(table[position].double(), -1) for position in range(3))
    joint = first[0][:, None, None] * distributions[0][:, :, None] * distributions[1][None]
    value, freedom = chi_square(counts, joint.reshape(-1))
    assert (value < freedom + 10 * (2 * freedom) ** 0.5) != peeking
    assert {1, 2, 3} <= set(lengths[0].tolist())


@pytest.fixture
def model(tiny_model_path, tmp_path):
    """A random target whose drafter is sometimes accepted: two of its own layers."""
    torch.manual_seed(3)
    model_class("t5shallow").from_target(tiny_model_path, layers=[0, 2]).save(tmp_path)
    return foredraft.load(tiny_model_path, drafter=tmp_path)


def test_rollback_0_is_lossless_and_infinity_accepts_every_draft(model):
    options = dict(max_new_tokens=20, draft_tokens=4)
    plain = model.generate(SOURCES, max_new_tokens=20, draft_tokens=0)
    assert plain.stats.lossy == ""
    # a fallback alone sets only the draft lengths
    for fallback in (0, 0.02, 0.5, 1):
        strict = model.generate(SOURCES, big_little=(fallback, 0), **options)
        assert strict.token_ids == plain.token_ids
    loose = model.generate(SOURCES, big_little=(0, float("inf")), **options)
    assert loose.token_ids != plain.token_ids
    assert loose.stats.accepted == loose.stats.drafted == loose.stats.tested > 0
    # no probability reaches 1: nothing is drafted
    never = model.generate(SOURCES, big_little=(1, float("inf")), **options)
    assert never.token_ids == plain.token_ids and never.stats.drafted == 0
    between = model.generate(SOURCES, big_little=(0, 4.2), **options)
    assert plain.stats.steps > between.stats.steps > loose.stats.steps


def test_every_result_says_lossy(model):
    name = "big-little fallback 0.1 rollback 4"
    out = model.generate(SOURCES, max_new_tokens=5, big_little=(0.1, 4))
    assert out.stats.lossy == name == out.stats.as_dict()["lossy"]
    with model.stream(SOURCES, max_new_tokens=5, big_little=(0.1, 4)) as stream:
        assert [result.stats.lossy for result in stream] == [name] * 3
    # the next call is lossless again
    assert model.generate(SOURCES, max_new_tokens=5).stats.lossy == ""


def test_a_sequence_does_not_depend_on_its_batch(model):
    together = model.generate(SOURCES, max_new_tokens=20, draft_tokens=4, big_little=(0.02, 3)).token_ids
    assert [model.generate([source], max_new_tokens=20, draft_tokens=4, big_little=(0.02, 3)).token_ids[0]
            for source in SOURCES] == together


@pytest.mark.parametrize(("options", "message"), [
    (dict(big_little=(1.5, 2)), "big_little is"), (dict(big_little=(0.5, -1)), "big_little is"),
    (dict(big_little=(0.5, float("nan"))), "big_little is"), (dict(big_little=(0.5, 2), do_sample=True), "greedy only"),
    (dict(big_little=(0.5, 2), draft_tokens="auto"), "give draft_tokens a number")])
def test_wrong_options_are_errors(model, options, message):
    with pytest.raises(UserError, match=message):
        model.generate(SOURCES, **options)


def test_big_little_needs_a_neural_drafter_and_greedy_requests(model):
    with pytest.raises(UserError, match="needs a neural drafter"):
        model.with_drafter("lookup").generate(SOURCES, big_little=(0.5, 2))
    results = list(model.stream([Request([5, 1], do_sample=True), [9, 1]], big_little=(0.5, 2), max_new_tokens=4))
    assert "greedy only" in str(results[0].error) and results[1].error is None
