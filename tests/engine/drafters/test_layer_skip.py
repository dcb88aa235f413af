"""The target's own drafts: lossless whatever is skipped, on caches that stay the target's, stopped by their confidence."""

from __future__ import annotations

import json

import doubles
import numpy as np
import pytest
import torch
from doubles import chi_square, make_state

import foredraft
from foredraft.engine.drafters.layer_skip import SelfDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import model_class
from foredraft.engine.drafters.skip_mask import SkipSet, format_skip, parse_skip
from foredraft.engine.loop import decode, step
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.protocols import Drafter
from foredraft.engine.verify import verify
from foredraft.errors import UserError

NEW = 16
# flat enough for many pairs of tokens, few enough to see each pair often
WARP = dict(temperature=3.0, top_k=6)
SOURCES = [torch.tensor(ids) for ids in ([5, 9, 33, 1], [7, 8] * 35 + [1], [50, 51, 52, 53, 54, 1], [3, 1])]
SKIPS = ["", "0s,2", "1", "0sc,1f", "0,1,2"]


@pytest.fixture(scope="module")
def target(tiny_checkpoints):
    target = T5(load_weights(tiny_checkpoints["v1.1"]))
    target.folder = tiny_checkpoints["v1.1"]
    return target


def make(target, skip: str, **options) -> SelfDrafter:
    return SelfDrafter(target, parse_skip(skip, 3), **options)


def admit(target, drafter, state, sources=SOURCES):
    return doubles.admit(target, drafter, state, sources)


def run(target, drafter, state, sources=SOURCES):
    return doubles.decoded(target, drafter, state, sources)


def test_the_text_of_a_skip_set():
    kept = parse_skip("2, 0fs,1cf", 3)
    assert kept.tolist() == [[False, True, False], [True, False, False], [False] * 3]
    assert format_skip(kept) == "0sf,1cf,2" and parse_skip(format_skip(kept), 3).tolist() == kept.tolist()
    assert parse_skip("", 2).all() and format_skip(np.ones((2, 3), bool)) == ""
    for wrong, message in (("1x", "'1x' is not a layer's number"), ("3", "layers 0 to 2"), ("s", "write 3,5sc,7f")):
        with pytest.raises(UserError, match=message) as caught:
            parse_skip(wrong, 3)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("skip", SKIPS)
def test_greedy_equals_plain(target, skip):
    limits = [NEW, 3, NEW, NEW]
    truth = run(target, NoDrafter(), make_state(4, limits, 0, 32, end_token=-1))
    for K, ids in ((0, None), (1, None), (4, np.arange(40))):
        state = make_state(4, limits, K, 32, end_token=-1)
        assert run(target, make(target, skip, tokens=ids), state) == truth
        assert K == 0 or int(state.tested_at.sum()) > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_whole_decoder_is_accepted_whole(target, temperature):
    state = make_state(4, NEW, 4, 32, temperature=temperature, end_token=-1)
    run(target, make(target, "", goal=0), state)
    assert state.accepted_at.tolist() == state.tested_at.tolist()
    assert state.num_steps.tolist() == [4] * 4


@torch.inference_mode()
def test_committed_keys_stay_the_full_models(target):
    """Whatever a draft wrote, what lies below the next position is what plain decoding would have written there."""
    truth = make_state(4, NEW, 0, 32, end_token=-1)
    run(target, NoDrafter(), truth)
    k, v = target.cache.k[:, :4, :, :NEW].copy(), target.cache.v[:, :4, :, :NEW].copy()
    state = make_state(4, NEW, 4, 32, end_token=-1)
    drafter = make(target, "1,2c", goal=0)
    admit(target, drafter, state)
    target.cache.k[:], target.cache.v[:] = np.nan, np.nan
    while not state.finished.all():
        step(state, target, drafter)
        for row, length in enumerate(state.lengths.tolist()):
            np.testing.assert_array_equal(target.cache.k[:, row, :, : length - 1], k[:, row, :, : length - 1])
            np.testing.assert_array_equal(target.cache.v[:, row, :, : length - 1], v[:, row, :, : length - 1])
    assert 0 < int(state.accepted_at.sum()) < int(state.tested_at.sum())


@torch.inference_mode()
@pytest.mark.parametrize("goal", [0.0, 0.9])
def test_compiled_drafts_equal_the_references(target, goal):
    """Tokens, lengths, distributions, thresholds, step after step; greedy and sampled sequences together."""
    options = dict(temperature=torch.tensor([0.0, 1.0, 0.8, 0.0]), top_k=[0, 0, 30, 0], seeds=[3, 4, 5, 6], end_token=-1)
    state = make_state(4, NEW, 3, 32, **options)
    ours, plain = (make(target, "1,2s", goal=goal, threshold=0.05, tokens=np.arange(30)) for _ in range(2))
    plain.backend = "reference"
    admit(target, ours, state)
    plain.admit(range(4), SOURCES, [None] * 4)
    rounds = 0
    while not state.finished.all() and rounds < 5:
        rounds += 1
        theirs, draft = plain.draft(state), ours.draft(state)
        assert draft.tokens.tolist() == theirs.tokens.tolist() and draft.lengths.tolist() == theirs.lengths.tolist()
        for row in (1, 2):
            for i in range(int(draft.lengths[row])):
                q, p = ((d.logits[row, i].double() - d.lse[row, i]).exp() for d in (draft, theirs))
                torch.testing.assert_close(q, p, atol=2e-5, rtol=2e-4)
                assert q[draft.tokens[row, i]] > 0 and abs(float(q.sum()) - 1) < 1e-5
        np.testing.assert_allclose(ours.exit.thresholds, plain.exit.thresholds, atol=1e-12)
        hidden = target.decode(*state.inputs(draft))
        state.commit(draft, verify(state, draft, hidden, target), hidden)
    moved = ours.exit.thresholds != 0.05
    assert moved.tolist() == ([False] * 5 if goal == 0 else [True, False, True, True, False])


def test_drafts_stop_where_the_confidence_is_low_and_the_threshold_follows_the_acceptance(target):
    never, always = make(target, "1", goal=0), make(target, "1", goal=1, threshold=1)
    states = [make_state(4, NEW, 4, 32, end_token=-1) for _ in range(2)]
    assert run(target, never, states[0]) == run(target, always, states[1])
    assert int(states[0].drafted.sum()) > int(states[1].drafted.sum()) == int(states[1].covered.sum())
    # of a drafter that is always right it falls, of one that is always wrong it rises
    right = make(target, "", threshold=0.5)
    run(target, right, make_state(4, NEW, 2, 32, end_token=-1))
    assert right.threshold < 0.5
    wrong = make(target, "0,1,2", threshold=0.0, tokens=np.array([2]))
    run(target, wrong, make_state(4, NEW, 2, 32, end_token=-1))
    assert wrong.threshold > 0


def test_a_seeded_request_is_repeated_whatever_came_before_and_beside_it(target):
    options = dict(temperature=torch.tensor([0.0, 1.0, 0.8, 1.2]), seeds=[3, 4, 5, 6], end_token=-1)
    drafter = make(target, "1,2f", threshold=0.02)
    together = run(target, drafter, make_state(4, NEW, 3, 32, **options))
    assert run(target, drafter, make_state(4, NEW, 3, 32, **options)) == together
    for row in range(4):
        temperature, seed = options["temperature"][row], options["seeds"][row]
        alone = make_state(1, NEW, 3, 32, temperature=temperature, seeds=[seed], end_token=-1)
        assert run(target, drafter, alone, [SOURCES[row]]) == [together[row]]


def distribution_of_three(target):
    """{(x1, x2, x3): p}, cut as WARP says, from forward passes of the target."""
    known = {(): 1.0}
    for length in range(1, 4):
        prefixes = list(known)
        tokens = torch.tensor([(0, *prefix) for prefix in prefixes])
        logits = target.logits(target.decode(tokens, torch.arange(length).expand_as(tokens)))[:, -1].double()
        logits = (logits / WARP["temperature"]).topk(WARP["top_k"])
        distributions = zip(prefixes, logits.indices.tolist(), torch.softmax(logits.values, -1).tolist(), strict=True)
        known = {(*prefix, token): known[prefix] * p for prefix, ids, distribution in distributions
                 for token, p in zip(ids, distribution, strict=True)}
    return known


class Dropping(Drafter):
    """A mutant: drops a last draft that its own distribution thought unlikely."""

    def __init__(self, drafter):
        self.drafter = drafter

    def draft(self, state, budget=None):
        draft = self.drafter.draft(state)
        for row, length in enumerate(draft.lengths.tolist()):
            if length and draft.logits[row, length - 1, draft.tokens[row, length - 1]] < -0.2:
                draft.lengths[row] -= 1
        return draft


@pytest.mark.full
@torch.inference_mode()
@pytest.mark.parametrize("mutant", [False, True])
def test_sampled_tokens_follow_the_target_when_drafts_stop_early(target, mutant):
    """The joint distribution of three tokens: whether the third is drafted depends on the second's distribution."""
    rows, times = 100, 40
    drafter, source = make(target, "1,2c", threshold=0.35, tokens=np.arange(60)), SOURCES[2]
    state = make_state(rows, 3, 3, 32, end_token=-1, **WARP)
    admit(target, drafter, state, [source] * rows)
    joint = distribution_of_three(target)
    counts, lengths = dict.fromkeys(joint, 0), torch.zeros(4, dtype=torch.int64)
    for time in range(times):
        state = make_state(rows, 4, 3, 32, end_token=-1, seeds=range(time * rows, (time + 1) * rows), **WARP)
        lengths += torch.bincount(drafter.draft(state).lengths, minlength=4)
        decode(state, target, Dropping(drafter) if mutant else drafter)
        for ids in state.tokens[:, 1:4].tolist():
            counts[tuple(ids)] += 1
    assert lengths[2] > 200 and lengths[3] > 200
    common = [ids for ids, p in joint.items() if p * rows * times >= 5]
    assert len(common) > 50
    pooled, expected = ([of[ids] for ids in common] for of in (counts, joint))
    pooled, expected = [*pooled, rows * times - sum(pooled)], [*expected, 1 - sum(expected)]
    value, freedom = chi_square(torch.tensor(pooled), torch.tensor(expected, dtype=torch.float64))
    assert (value < freedom + 10 * (2 * freedom) ** 0.5) != mutant


@pytest.mark.parametrize("kind", ["self", "head"])
def test_requests_that_share_a_sequence_one_after_the_other(tiny_model_path, tmp_path, kind):
    """A request's tokens depend neither on the sequence's former request nor on the batch."""
    if kind == "head":
        model_class("head").from_target(tiny_model_path, d_kv=12, d_ff=20).save(tmp_path)
    model = foredraft.load(tiny_model_path, drafter="self:1,2s" if kind == "self" else tmp_path)
    inputs = [[5, 6, 7, 1], [9, 8, 1], [30, 31, 32, 33, 34, 1], [4, 1], [60, 61, 62, 1]]
    greedy = dict(max_new_tokens=9, draft_tokens=3)
    plain = model.with_drafter(None).generate(inputs, **greedy)
    assert model.generate(inputs, batch_size=2, **greedy).token_ids == plain.token_ids
    sampled = greedy | dict(do_sample=True, seed=[3, 4, 5, 6, 7])
    together = model.generate(inputs, batch_size=5, **sampled).token_ids
    assert model.generate(inputs, batch_size=2, **sampled).token_ids == together
    assert [model.generate([ids], **sampled | dict(seed=[seed])).token_ids[0]
            for ids, seed in zip(inputs, sampled["seed"], strict=True)] == together


def test_by_name_and_by_file(tiny_model_path, tiny_checkpoints, tmp_path):
    plain = foredraft.load(tiny_model_path, drafter=None)
    truth = plain.generate([[5, 6, 7, 1]], max_new_tokens=8)
    file = tmp_path / "skip.json"
    SkipSet("1,2s", weights_hash(tiny_model_path), goal=0.8, threshold=0.3, draft_ids=(1, 5, 6)).save(file)
    for spec in ("self:1,2s", f"self:{file}"):
        model = plain.with_drafter(spec)
        out = model.generate([[5, 6, 7, 1]], max_new_tokens=8)
        assert out.token_ids == truth.token_ids and out.stats.drafted > 0
        assert model.drafter.skip == "1,2s" and model.drafter.target is plain.target
    assert model.drafter.exit.goal == 0.8 and model.drafter.vocabulary.tokens.tolist() == [1, 5, 6]
    other = foredraft.load(tiny_checkpoints["v1.0"], drafter=None)
    with pytest.raises(UserError, match="was tuned for the target"):
        other.with_drafter(f"self:{file}")
    with pytest.raises(UserError, match="no such skip file"):
        plain.with_drafter(f"self:{tmp_path / 'none.json'}")
    file.write_text(json.dumps({"skip": "1"}))
    with pytest.raises(UserError, match="not a skip file"):
        plain.with_drafter(f"self:{file}")
    with pytest.raises(UserError, match="is not known"):
        plain.with_drafter("self")
