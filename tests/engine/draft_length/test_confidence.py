"""Drafts that end early: greedy output and the sampled distribution stay, a stop by the sampled token is caught; Big Little
Decoder over the same loop, whose limits are plain decoding and the drafter's own text."""

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
    """A drafter under a budget that states costs."""

    def __init__(self, drafter, costs):
        self.drafter, self.costs, self.name, self.capabilities = drafter, costs, drafter.name, drafter.capabilities
        self.admit, self.release = drafter.admit, drafter.release

    def draft(self, state, budget=None):
        return self.drafter.draft(state, DraftBudget(state.host.draft_tokens, self.costs))


def test_greedy_output_stays_and_drafts_get_shorter(tiny_model_path, trained):
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
    rows, times, distribution = 100, 25, dict(temperature=3.0, top_k=6)
    target.reserve(rows, 4, 2, len(source))
    drafter.admit(range(rows), [source] * rows, target.admit(range(rows), [source] * rows))

    def after(tokens, positions):
        logits = target.logits(target.decode(tokens, positions))[:, -1].double() / distribution["temperature"]
        least = logits.topk(distribution["top_k"]).values[:, -1:]
        return torch.softmax(logits.masked_fill(logits < least, float("-inf")), -1)

    first = after(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))[0]
    pairs = torch.stack((torch.zeros(100, dtype=torch.int64), torch.arange(100)), 1)
    joint = torch.cat([after(pairs[i : i + 50], torch.tensor([[0, 1]] * 50)) for i in (0, 50)])
    joint = (first[:, None] * joint).reshape(-1)
    counts = torch.zeros(100 * 100, dtype=torch.int64)
    for time in range(times):
        state = make_state(rows, 3, 2, 32, end_token=-1, seeds=range(time * rows, (time + 1) * rows), **distribution)
        state.block = block
        decode(state, target, WithCosts(drafter, (0.25, 0.1)))
        counts += torch.bincount(state.tokens[:, 1] * 100 + state.tokens[:, 2], minlength=100 * 100)
    assert counts[joint == 0].sum() == 0
    common = joint * rows * times >= 5
    pooled = torch.cat((counts[common], counts[~common].sum()[None]))
    value, freedom = chi_square(pooled, torch.cat((joint[common], joint[~common].sum()[None])))
    assert value < freedom + 10 * (2 * freedom) ** 0.5


class Stopping(TableDrafter):
    """Ends a draft before an id whose distribution is unsure; with `peeking` before an id that was itself unlikely."""

    peeking = False

    def draft(self, state, budget=None):
        draft = super().draft(state, budget)
        distributions = torch.softmax(draft.logits.double(), -1)
        sure = distributions.gather(2, draft.tokens[..., None])[..., 0] if self.peeking else distributions.max(-1).values
        stands = (sure >= (0.2 if self.peeking else 0.45)).cumprod(1)
        draft.lengths = torch.minimum(draft.lengths, stands.sum(1))
        return draft


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("peeking", [False, True])
def test_a_stop_by_the_distribution_keeps_the_targets_distribution_and_one_by_the_drawn_id_does_not(peeking, block):
    V, rows, counts, lengths = 6, 4000, torch.zeros(6**3, dtype=torch.int64), []
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(6, V, V, generator=generator)
    drafter = Stopping(table + torch.randn(6, V, V, generator=generator))
    drafter.peeking = peeking
    for start in range(0, 12 * rows, rows):
        state = make_state(rows, 4, 3, V, temperature=1.0, seeds=range(start, start + rows), end_token=-1)
        state.block = block
        decode(state, TableTarget(table), drafter, lambda state: lengths.append(state.drafted.clone()))
        counts += torch.bincount((state.tokens[:, 1] * V + state.tokens[:, 2]) * V + state.tokens[:, 3], minlength=V**3)
    first, *distributions = (torch.softmax(table[place].double(), -1) for place in range(3))
    joint = first[0][:, None, None] * distributions[0][:, :, None] * distributions[1][None]
    value, freedom = chi_square(counts, joint.reshape(-1))
    assert (value < freedom + 10 * (2 * freedom) ** 0.5) != peeking
    assert {1, 2, 3} <= set(lengths[0].tolist())


@pytest.fixture
def model(tiny_model_path, tmp_path):
    """Another random T5's decoder drafts: it is right now and then."""
    torch.manual_seed(3)
    model_class("t5shallow").from_target(tiny_model_path, layers=[0, 2]).save(tmp_path)
    return foredraft.load(tiny_model_path, drafter=tmp_path)


def test_rollback_0_is_lossless_and_infinity_lets_the_small_model_write(model):
    options = dict(max_new_tokens=20, draft_tokens=4)
    plain = model.generate(SOURCES, max_new_tokens=20, draft_tokens=0)
    assert plain.stats.lossy == ""
    # a fallback alone only sets how much is drafted
    for fallback in (0, 0.02, 0.5, 1):
        strict = model.generate(SOURCES, big_little=(fallback, 0), **options)
        assert strict.token_ids == plain.token_ids
    loose = model.generate(SOURCES, big_little=(0, float("inf")), **options)
    assert loose.token_ids != plain.token_ids
    assert loose.stats.accepted == loose.stats.drafted == loose.stats.tested > 0
    # nobody is that sure: the target writes alone
    never = model.generate(SOURCES, big_little=(1, float("inf")), **options)
    assert never.token_ids == plain.token_ids and never.stats.drafted == 0
    between = model.generate(SOURCES, big_little=(0, 4.2), **options)
    assert plain.stats.steps > between.stats.steps > loose.stats.steps


def test_it_is_called_lossy_everywhere(model):
    name = "big-little fallback 0.1 rollback 4"
    out = model.generate(SOURCES, max_new_tokens=5, big_little=(0.1, 4))
    assert out.stats.lossy == name == out.stats.as_dict()["lossy"]
    with model.stream(SOURCES, max_new_tokens=5, big_little=(0.1, 4)) as stream:
        assert [result.stats.lossy for result in stream] == [name] * 3
    # the next call is lossless again
    assert model.generate(SOURCES, max_new_tokens=5).stats.lossy == ""


def test_a_row_does_not_depend_on_its_batch(model):
    together = model.generate(SOURCES, max_new_tokens=20, draft_tokens=4, big_little=(0.02, 3)).token_ids
    assert [model.generate([source], max_new_tokens=20, draft_tokens=4, big_little=(0.02, 3)).token_ids[0]
            for source in SOURCES] == together


@pytest.mark.parametrize(("options", "message"), [
    (dict(big_little=(1.5, 2)), "big_little is 1.5,2"), (dict(big_little=(0.5, -1)), "big_little is 0.5,-1"),
    (dict(big_little=(0.5, float("nan"))), "big_little is"), (dict(big_little=(0.5, 2), do_sample=True), "greedy only"),
    (dict(big_little=(0.5, 2), draft_tokens="auto"), "give draft_tokens a number")])
def test_what_it_refuses(model, options, message):
    with pytest.raises(UserError, match=message):
        model.generate(SOURCES, **options)


def test_it_needs_a_small_model_and_no_request_samples_beside_it(model):
    with pytest.raises(UserError, match="needs a neural drafter"):
        model.with_drafter("lookup").generate(SOURCES, big_little=(0.5, 2))
    results = list(model.stream([Request([5, 1], do_sample=True), [9, 1]], big_little=(0.5, 2), max_new_tokens=4))
    assert "greedy only" in str(results[0].error) and results[1].error is None
