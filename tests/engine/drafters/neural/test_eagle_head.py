"""The EAGLE-style head: its drafts equal its full pass, whichever drafter took the steps between."""

from __future__ import annotations

import doubles
import pytest
import torch
from doubles import chi_square, make_state

from foredraft.engine.drafters.neural.eagle_head import EagleModel
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import kind_of, model_class, open_drafter
from foredraft.engine.loop import decode, step
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.verify import verify
from foredraft.errors import UserError
from foredraft.kernels.drafting.eagle_drafting import DRAFT_EAGLE

NEW = 16
# flat enough to see many pairs of tokens, few enough tokens to see each often
WARP = dict(temperature=3.0, top_k=6)
SOURCES = [torch.tensor(tokens) for tokens in ([5, 9, 33, 1], [7, 8] * 35 + [1], [50, 51, 52, 53, 54, 1], [3, 1])]
SIZES = dict(d_kv=12, d_ff=20)


@pytest.fixture(scope="module")
def target(tiny_checkpoints):
    target = T5(load_weights(tiny_checkpoints["v1.1"]))
    target.folder = tiny_checkpoints["v1.1"]
    return target


@pytest.fixture(params=[0, 40], ids=["full", "40"])
def trained(request, target, tmp_path):
    """(torch module, Drafter opened from its files), with a full and with a restricted draft vocabulary."""
    torch.manual_seed(1)
    model = EagleModel.from_target(target.folder, **SIZES).eval()
    if request.param:
        model.restrict(torch.randperm(100, generator=torch.Generator().manual_seed(2))[: request.param])
    model.save(tmp_path)
    return model, open_drafter(tmp_path, target.weights, target.folder, None)


def admit(target, drafter, state, sources=SOURCES):
    return doubles.admit(target, drafter, state, sources)


def run(target, drafter, state, sources=SOURCES):
    return doubles.decoded(target, drafter, state, sources)


@pytest.mark.parametrize("K", [0, 1, 4])
def test_greedy_equals_plain(target, trained, K):
    truth = run(target, NoDrafter(), make_state(4, [NEW, 3, NEW, NEW], 0, 32, end_token=-1))
    state = make_state(4, [NEW, 3, NEW, NEW], K, 32, end_token=-1)
    assert run(target, trained[1], state) == truth
    assert K == 0 or int(state.tested_at.sum()) > 0


def distribution_of(model, states, copied, source):
    """log q [V] from a predicted state [C] and its copies [S], over the draft vocabulary."""
    logits = (states * model.config.head_scale) @ model.head.T
    logits = logits.scatter_add(0, source, copied)
    if len(model.draft_ids):
        outside = torch.ones(len(logits), dtype=torch.bool)
        outside[model.draft_ids] = outside[source] = False
        logits = logits.masked_fill(outside, float("-inf"))
    return torch.log_softmax(logits.double(), -1)


@torch.inference_mode()
def test_q_is_the_distribution_of_the_full_pass_for_every_draft(target, trained):
    """Draft i is the (i + 1)-th prediction from the target's state: after rejections, accepted drafts and other steps."""
    model, drafter = trained
    state = make_state(4, NEW, 3, 32, end_token=-1, temperature=1.0)
    encoded = [x.clone() for x in admit(target, drafter, state)]
    whole = T5(target.weights)
    whole.reserve(1, NEW + 4, NEW + 3, 80)
    compared = steps = 0
    while not state.finished.all():
        steps += 1
        if steps % 4 == 3:
            for _ in range(2):
                step(state, target, NoDrafter())
            continue
        draft = drafter.draft(state)
        for sequence in (~state.finished).nonzero()[:, 0].tolist():
            length, count = int(state.lengths[sequence]), int(draft.lengths[sequence])
            tokens = torch.tensor([state.tokens[sequence, :length].tolist() + draft.tokens[sequence, :count].tolist()])
            whole.admit([0], [SOURCES[sequence]])
            # the target's states exist before the draft; the others must not be read
            features = whole.decode(tokens[:, :-1], torch.arange(tokens.shape[1] - 1)[None]).clone()
            features[:, length - 1 :] = torch.nan
            mask = torch.ones(1, len(SOURCES[sequence]))
            passes = model.unrolled(tokens[:, :-1], encoded[sequence][None], mask, SOURCES[sequence][None], features, count)
            for i, (states, copied) in enumerate(passes):
                at = length - 1 + i
                distribution = distribution_of(model, states[0, at], copied[0, at], SOURCES[sequence])
                q = (draft.logits[sequence, i].double() - draft.lse[sequence, i]).exp()
                torch.testing.assert_close(q, distribution.exp(), atol=2e-5, rtol=2e-4)
                torch.testing.assert_close(drafter.features[sequence, i], states[0, at], atol=2e-4, rtol=2e-4)
                assert q[draft.tokens[sequence, i]] > 0
                compared += 1
        hidden = target.decode(*state.inputs(draft))
        state.commit(draft, verify(state, draft, hidden, target), hidden)
    assert compared > 12


def sampled_distributions(draft):
    return [(draft.logits[sequence, i] - draft.lse[sequence, i]).exp()
            for sequence in (1, 2) for i in range(int(draft.lengths[sequence]))]


@torch.inference_mode()
def test_compiled_drafts_equal_the_reference(target, trained, monkeypatch):
    _, drafter = trained
    options = dict(temperature=torch.tensor([0.0, 1.0, 0.8, 0.0]), top_k=[0, 0, 30, 0], seeds=[3, 4, 5, 6], end_token=-1)
    state = make_state(4, [NEW, 3, NEW, NEW], 3, 32, **options)
    admit(target, drafter, state)
    for _ in range(3):
        draft, features = drafter.draft(state), drafter.features.clone()
        distributions = sampled_distributions(draft)
        with monkeypatch.context() as patched:
            patched.setattr("foredraft.engine.drafters.neural.eagle_head.draft_numba", DRAFT_EAGLE["reference"])
            theirs = drafter.draft(state)
        assert draft.tokens.tolist() == theirs.tokens.tolist() and draft.lengths.tolist() == theirs.lengths.tolist()
        torch.testing.assert_close(features, drafter.features, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(distributions, sampled_distributions(theirs), atol=2e-5, rtol=2e-4)
        hidden = target.decode(*state.inputs(draft))
        state.commit(draft, verify(state, draft, hidden, target), hidden)


def test_a_sequence_does_not_depend_on_its_batch(target, trained):
    options = dict(temperature=torch.tensor([0.0, 1.0, 0.8, 1.2]), seeds=[3, 4, 5, 6], end_token=-1)
    together = run(target, trained[1], make_state(4, NEW, 3, 32, **options))
    for sequence in range(4):
        temperature, seed = options["temperature"][sequence], options["seeds"][sequence]
        alone = make_state(1, NEW, 3, 32, temperature=temperature, seeds=[seed], end_token=-1)
        assert run(target, trained[1], alone, [SOURCES[sequence]]) == [together[sequence]]


def distribution_of_two(target, distribution):
    """p(x1, x2) [V * V], warped, from forward passes of the target."""
    def after(tokens, positions):
        logits = target.logits(target.decode(tokens, positions))[:, -1].double() / distribution["temperature"]
        least = logits.topk(distribution["top_k"]).values[:, -1:]
        return torch.softmax(logits.masked_fill(logits < least, float("-inf")), -1)

    first = after(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))[0]
    pairs = torch.stack((torch.zeros(100, dtype=torch.int64), torch.arange(100)), 1)
    return (first[:, None] * after(pairs, torch.tensor([[0, 1]] * 100))).reshape(-1)


@torch.inference_mode()
def test_sampled_tokens_follow_the_target(target, trained):
    """The joint distribution of the first two tokens is that of forward passes of the target."""
    B, times, source, drafter = 100, 25, SOURCES[2], trained[1]
    state = make_state(B, 2, 2, 32, end_token=-1, **WARP)
    admit(target, drafter, state, [source] * B)
    joint = distribution_of_two(target, WARP)
    counts = torch.zeros(100 * 100, dtype=torch.int64)
    for time in range(times):
        state = make_state(B, 3, 2, 32, end_token=-1, seeds=range(time * B, (time + 1) * B), **WARP)
        decode(state, target, drafter)
        counts += torch.bincount(state.tokens[:, 1] * 100 + state.tokens[:, 2], minlength=100 * 100)
    assert counts[joint == 0].sum() == 0
    common = joint * B * times >= 5
    pooled, expected = counts[common], joint[common]
    if (rest := (joint > 0) & ~common).any():
        pooled, expected = (torch.cat((x, x_all[rest].sum()[None])) for x, x_all in ((pooled, counts), (expected, joint)))
    assert len(pooled) > 15
    value, freedom = chi_square(pooled, expected / expected.sum())
    assert value < freedom + 10 * (2 * freedom) ** 0.5


def test_forward_scores_first_drafts_and_trains_on_later_ones(target):
    torch.manual_seed(0)
    model = EagleModel.from_target(target.folder, **SIZES)
    tokens, source = torch.randint(3, 100, (2, 6)), torch.randint(3, 100, (2, 12))
    encoded, mask, features = torch.randn(2, 12, 32), torch.ones(2, 12), torch.randn(2, 6, 32)
    scored = torch.zeros(2, 6, dtype=torch.bool)
    scored[0, 2] = scored[1, 5] = True
    model.eval()
    with torch.inference_mode():
        whole = model(tokens, encoded, mask, source, features=features)
        torch.testing.assert_close(model(tokens, encoded, mask, source, scored=scored, features=features), whole[scored])
        # a state is read at later positions alone
        changed = features.clone()
        changed[:, 3:] = 9.0
        later = model(tokens, encoded, mask, source, features=changed)
        torch.testing.assert_close(later[:, :4], whole[:, :4])
        assert not torch.allclose(later[:, 4], whole[:, 4])
        passes = model.unrolled(tokens, encoded, mask, source, features, 3)
    model.train()
    distributions = []
    for _ in range(40):
        logits, distance = model(tokens, encoded, mask, source, scored=scored, features=features)
        distributions.append(logits[1])
    by_depth = [(states[1, 5] * model.config.head_scale @ model.head.T).scatter_add(0, source[1], copied[1, 5])
                for states, copied in passes]
    found = {min(range(3), key=lambda d: float((distribution.detach() - by_depth[d]).abs().max()))
             for distribution in distributions}
    assert found == {0, 1, 2}
    distances = [torch.nn.functional.smooth_l1_loss(states[0, 2], features[0, 2]) for states, _ in passes]
    torch.testing.assert_close(distance[0].detach(), sum(distances) / 3)
    (logits.logsumexp(-1).sum() + distance.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_saved_loaded_and_refused(tiny_checkpoints, target, tmp_path):
    model = EagleModel.from_target(target.folder, **SIZES)
    model.save(tmp_path)
    assert kind_of(tmp_path) == "head" and model_class("head") is EagleModel
    drafter = open_drafter(tmp_path, target.weights, target.folder, None)
    truth = run(target, NoDrafter(), make_state(4, NEW, 0, 32, end_token=-1))
    assert run(target, drafter, make_state(4, NEW, 3, 32, end_token=-1)) == truth
    other = tiny_checkpoints["v1.0"]
    with pytest.raises(UserError, match="shares the embeddings"):
        open_drafter(tmp_path, load_weights(other), other, None)
