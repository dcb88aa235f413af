"""The distributions of the loop: greedy equality, seeded equality, ends, limits, batches, caches."""

import pytest
import torch
from doubles import ScriptedDrafter, TableDrafter, TableTarget, chi_square, joint_chi_square, make_state

from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.loop import decode, step
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights

NEW = 24
SOURCES = [torch.tensor(ids) for ids in ([5, 9, 33, 1], [7] * 70 + [1], [50, 51, 52, 53, 54, 1], [3, 1])]


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def t5(request, tiny_checkpoints):
    return T5(load_weights(tiny_checkpoints[request.param]))


def run(target, drafter, state, sources=SOURCES, K=None):
    with torch.inference_mode():
        target.reserve(state.batch_size, state.capacity, state.max_draft, max(len(s) for s in sources))
        drafter.admit(range(state.batch_size), sources, target.admit(range(state.batch_size), sources))
        decode(state, target, drafter)
    return [state.tokens[row, 1 : int(state.lengths[row])].tolist() for row in range(state.batch_size)]


def plain(target, sources=SOURCES, **options):
    state = make_state(len(sources), options.pop("new", NEW), 0, target.config.d_model, **options)
    return run(target, NoDrafter(), state, sources)


@pytest.mark.parametrize("K", [0, 1, 4, 7])
@pytest.mark.parametrize("every", [1, 2, 3, 10**9])
def test_greedy_equals_plain_whatever_is_drafted(t5, K, every):
    truth = plain(t5, end_token=-1)
    drafter = ScriptedDrafter(truth, wrong=lambda row, position: (position + row) % every == 0,
                              lengths=lambda row, round_: (row + round_) % 9)
    state = make_state(len(SOURCES), NEW, K, t5.config.d_model, end_token=-1)
    assert run(t5, drafter, state) == truth
    assert int(state.num_steps.max()) > 1
    if K and every > 1:
        assert int(state.accepted_at.sum()) > 0
    if K and every < 10**9:
        assert int((state.tested_at - state.accepted_at).sum()) > 0


def test_plain_greedy_equals_transformers(tiny_checkpoint):
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    ours = plain(T5(load_weights(tiny_checkpoint)))
    for source, ids in zip(SOURCES, ours, strict=True):
        # forward passes, not generate: transformers 5.23 sizes the decoder's cache by the encoder's layers
        theirs = torch.zeros(1, 1, dtype=torch.int64)
        with torch.inference_mode():
            while theirs.shape[1] <= NEW and theirs[0, -1] != 1:
                logits = model(input_ids=source[None], decoder_input_ids=theirs, use_cache=False).logits
                theirs = torch.cat((theirs, logits[:, -1:].argmax(-1)), 1)
        assert ids == theirs[0, 1:].tolist()


@pytest.mark.parametrize("distribution", [
    dict(temperature=1.0), dict(temperature=0.7, top_k=7), dict(temperature=1.3, top_p=0.8)])
@pytest.mark.parametrize("K", [1, 4, 7])
def test_seeded_sampling_with_point_masses_equals_plain_sampling(t5, distribution, K):
    truth = plain(t5, end_token=-1, **distribution)
    drafter = ScriptedDrafter(truth, wrong=lambda row, position: (position + row) % 3 == 0)
    state = make_state(len(SOURCES), NEW, K, t5.config.d_model, end_token=-1, **distribution)
    assert run(t5, drafter, state) == truth
    assert int(state.accepted_at.sum()) > 0
    assert len({tuple(ids) for ids in truth}) == len(truth)


def test_a_sequence_does_not_depend_on_its_batch(t5):
    options = dict(temperature=torch.tensor([0.0, 1.0, 0.8, 1.2]), seeds=[3, 4, 5, 6], end_token=-1)
    together = plain(t5, **options)
    for row, source in enumerate(SOURCES):
        alone = dict(temperature=options["temperature"][row], seeds=[options["seeds"][row]], end_token=-1)
        assert plain(t5, [source], **alone) == [together[row]]
    order = [2, 0, 3, 1]
    shuffled = plain(t5, [SOURCES[i] for i in order], temperature=options["temperature"][order],
                     seeds=[options["seeds"][i] for i in order], end_token=-1)
    assert shuffled == [together[i] for i in order]


@pytest.mark.parametrize("at", range(1, 9))
def test_the_end_token_at_every_position_of_a_draft(t5, at):
    free = plain(t5, end_token=-1)
    end = free[0][at - 1]
    truth = plain(t5, end_token=end)
    assert truth[0] == free[0][: free[0].index(end) + 1]
    state = make_state(len(SOURCES), NEW, 7, t5.config.d_model, end_token=end)
    # the draft runs on past the end: what follows it must be neither emitted nor counted
    assert run(t5, ScriptedDrafter(free), state) == truth
    emitted = sum(len(ids) for ids in truth)
    assert int(state.accepted_at.sum()) <= emitted
    assert int(state.tested_at.sum()) <= emitted
    proposer = sum(int((state.proposer[row, 1 : int(state.lengths[row])] > 0).sum()) for row in range(state.batch_size))
    assert proposer == int(state.accepted_at.sum())


@pytest.mark.parametrize("new", range(1, 10))
def test_the_limit_at_every_position_of_a_draft(t5, new):
    truth = plain(t5, end_token=-1)
    limits = [new, NEW, 1, new + 1]
    state = make_state(len(SOURCES), limits, 7, t5.config.d_model, end_token=-1)
    assert run(t5, ScriptedDrafter(truth), state) == [ids[:n] for ids, n in zip(truth, limits, strict=True)]


def test_draft_equal_to_target_is_accepted_whole(t5):
    truth = plain(t5, end_token=-1)
    state = make_state(len(SOURCES), NEW, 5, t5.config.d_model, end_token=-1)
    run(t5, ScriptedDrafter(truth), state)
    assert state.tested_at.tolist() == state.accepted_at.tolist()
    assert state.num_steps.tolist() == [4] * len(SOURCES)


def test_sequences_have_their_own_draft_length(t5):
    truth = plain(t5, end_token=-1)
    state = make_state(len(SOURCES), NEW, [0, 1, 3, 7], t5.config.d_model, end_token=-1)
    assert run(t5, ScriptedDrafter(truth), state) == truth
    assert state.num_steps.tolist() == [24, 12, 6, 3]


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_the_cache_equals_a_recomputed_one_after_every_step(tiny_checkpoint, backend):
    t5, fresh = T5(load_weights(tiny_checkpoint), backend), T5(load_weights(tiny_checkpoint), backend)
    truth = plain(t5, end_token=-1, new=10)
    drafter = ScriptedDrafter(truth, wrong=lambda row, position: position % 4 == 3)
    state = make_state(len(SOURCES), 10, 4, t5.config.d_model, end_token=-1)
    with torch.inference_mode():
        for target in (t5, fresh):
            target.reserve(len(SOURCES), 11, 10, 70)
            target.admit(range(len(SOURCES)), SOURCES)
        while not state.finished.all():
            step(state, t5, drafter)
            for row in range(state.batch_size):
                length = int(state.lengths[row]) - 1
                positions = torch.full((state.batch_size, 11), -1)
                positions[row, :length] = torch.arange(length)
                fresh.decode(state.tokens[:, :11].contiguous(), positions)
                for ours, new in ((t5.cache.k, fresh.cache.k), (t5.cache.v, fresh.cache.v)):
                    seen = torch.from_numpy(ours[:, row, :, :length])
                    assert torch.allclose(seen, torch.from_numpy(new[:, row, :, :length]), atol=1e-5)


def test_a_tree_of_point_masses_keeps_greedy_output(t5):
    """Two branches a step, the right one second: the cache entries of the accepted path must become contiguous."""
    truth = plain(t5, end_token=-1)

    class Branches(ScriptedDrafter):
        def draft(self, state, budget=None):
            draft = super().draft(state, budget)
            right = draft.tokens.clone()
            # query positions 1, 2: a wrong branch; 3..6: the right one
            draft.tokens[:, :2] = (right[:, :2] + 1) % 100
            draft.tokens[:, 2:] = right[:, : right.shape[1] - 2]
            draft.parents = torch.tensor([0, 1, 0, 3, 4, 5]).expand(state.batch_size, 6).contiguous()
            draft.lengths = torch.where(draft.lengths == 6, 6, 0)
            return draft

    state = make_state(len(SOURCES), NEW, 6, t5.config.d_model, end_token=-1)
    assert run(t5, Branches(truth), state) == truth
    assert int(state.num_steps.max()) < NEW / 2


@pytest.mark.parametrize("drafter", ["adversarial", "close"])
def test_sampled_tokens_follow_the_target(drafter):
    """Narrow: V = 16, 200,000 trials, the production random stream, the joint distribution of the first two tokens."""
    value, freedom = joint_chi_square(drafter, trials=200_000)
    assert value < freedom + 10 * (2 * freedom) ** 0.5


def test_wide_vocabulary_follows_the_target():
    """Wide chi-square (V = 4096, one draft): the first token, binned where fewer than five are expected."""
    V, trials, rows = 4096, 30_000, 2_000
    generator = torch.Generator().manual_seed(8)
    row = 2 * torch.randn(V, generator=generator)
    table = row.expand(2, V, V)
    q = row.flip(0).expand(2, V, V)
    counts = torch.zeros(V, dtype=torch.int64)
    for start in range(0, trials, rows):
        state = make_state(rows, 2, 1, V, temperature=1.0, seeds=range(start, start + rows), end_token=-1)
        decode(state, TableTarget(table), TableDrafter(q))
        counts += torch.bincount(state.tokens[:, 1], minlength=V)
    distribution = torch.softmax(row.double(), -1)
    common = distribution * trials >= 5
    pooled = torch.cat((counts[common], counts[~common].sum()[None]))
    value, freedom = chi_square(pooled, torch.cat((distribution[common], distribution[~common].sum()[None])))
    assert value < freedom + 10 * (2 * freedom) ** 0.5


def test_two_unseeded_like_sequences_differ_and_equal_seeds_agree():
    table = torch.zeros(4, 50, 50)
    state = make_state(3, 12, 0, 50, temperature=1.0, seeds=[1, 2, 1], end_token=-1)
    decode(state, TableTarget(table), NoDrafter())
    assert state.tokens[0].tolist() == state.tokens[2].tolist() != state.tokens[1].tolist()
