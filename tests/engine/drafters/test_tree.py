"""Drafters of trees on a T5: greedy equality for any shape, ends and limits inside a tree, caches, distributions, names."""

from __future__ import annotations

import doubles
import numpy as np
import pytest
import torch
from doubles import SIZES, ScriptedDrafter, make_state

import foredraft
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import model_class, open_drafter
from foredraft.engine.drafters.tree import TreeDrafter
from foredraft.engine.drafters.tree_shape import Shape
from foredraft.engine.loop import step
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.state import Draft, Verification
from foredraft.errors import UserError

NEW = 16
SOURCES = [torch.tensor(ids) for ids in ([5, 9, 33, 1], [7, 8, 7, 9] * 9 + [1], [50, 51, 52, 53, 54, 1], [3, 1])]
SHAPES = ["1", "3", "1x1x1x1", "2x2x1", "1x3x2", "4x1x1x1"]
KINDS = ("lookup", "lstm", "cnn")


@pytest.fixture(scope="module")
def target(tiny_checkpoints):
    target = T5(load_weights(tiny_checkpoints["v1.1"]))
    target.folder = tiny_checkpoints["v1.1"]
    return target


@pytest.fixture(scope="module")
def trained(target, tmp_path_factory):
    """(torch module, Drafter) of each kind; the CNN drafts 60 tokens and those of the source."""
    found = {"lookup": (None, LookupDrafter(cost=0.0))}
    for kind in KINDS[1:]:
        torch.manual_seed(1)
        model = model_class(kind).from_target(target.folder, **SIZES[kind]).eval()
        if kind == "cnn":
            model.restrict(torch.randperm(100, generator=torch.Generator().manual_seed(2))[:60])
        folder = tmp_path_factory.mktemp(kind)
        model.save(folder)
        found[kind] = model, open_drafter(folder, target.weights, target.folder, None)
    return found


def admit(target, drafter, state, sources=SOURCES):
    return doubles.admit(target, drafter, state, sources)


def run(target, drafter, state, sources=SOURCES):
    return doubles.decoded(target, drafter, state, sources)


class Bushy(ScriptedDrafter):
    """The truth hidden in a tree, the right child the last of its siblings, and wrong tokens elsewhere."""

    def __init__(self, truth, shape: Shape, vocabulary=100):
        super().__init__(truth, vocabulary=vocabulary)
        self.shape = shape

    def draft(self, state, budget=None):
        draft = Draft.empty(state.batch_size, state.max_draft)
        draft.parents = torch.zeros_like(draft.tokens)
        parents = self.shape.parents
        last = {parent: node + 1 for node, parent in enumerate(parents)}
        for row, room in enumerate(state.allowed(budget).tolist()):
            nodes = parents[: min(room, state.max_draft)]
            right = {0: int(state.lengths[row]) - 1}
            for node, parent in enumerate(nodes):
                at = right.get(parent)
                token = self.truth[row][at] if at is not None and at < len(self.truth[row]) else 7
                if last[parent] == node + 1 and at is not None:
                    right[node + 1] = at + 1
                else:
                    token = (token + 1 + node) % self.vocabulary
                draft.tokens[row, node], draft.parents[row, node] = token, parent
            draft.lengths[row] = len(nodes)
        draft.proposer.fill_(1)
        return draft


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_the_right_branch_is_taken_and_its_cache_entries_are_what_plain_decoding_writes(target, shape):
    limits = [NEW, 3, NEW, 7]
    truth = make_state(4, limits, 0, 32, end_token=-1)
    ids = run(target, NoDrafter(), truth)
    longer = run(target, NoDrafter(), make_state(4, NEW, 0, 32, end_token=-1))
    k, v = target.cache.k[:, :4, :, :NEW].copy(), target.cache.v[:, :4, :, :NEW].copy()
    shape = Shape.parse(shape)
    drafter = Bushy(longer, shape)
    state = make_state(4, limits, len(shape.parents), 32, end_token=-1)
    admit(target, drafter, state)
    target.cache.k[:], target.cache.v[:] = np.nan, np.nan
    while not state.finished.all():
        step(state, target, drafter)
        for row, length in enumerate(state.lengths.tolist()):
            np.testing.assert_array_equal(target.cache.k[:, row, :, : length - 1], k[:, row, :, : length - 1])
            np.testing.assert_array_equal(target.cache.v[:, row, :, : length - 1], v[:, row, :, : length - 1])
    assert [state.tokens[row, 1 : int(state.lengths[row])].tolist() for row in range(4)] == ids
    assert int(state.accepted_at.sum()) > 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_plain_for_any_shape(target, trained, kind, shape):
    """Ragged: sequences of other limits and other numbers of nodes; an end of text inside a tree."""
    shape = Shape.parse(shape)
    drafter, N = TreeDrafter(trained[kind][1], shape), len(shape.parents)
    free = run(target, NoDrafter(), make_state(4, NEW, 0, 32, end_token=-1))
    for end in (-1, free[0][5], free[2][3]):
        truth = run(target, NoDrafter(), make_state(4, [NEW, 3, NEW, NEW], 0, 32, end_token=end))
        state = make_state(4, [NEW, 3, NEW, NEW], [N, N, max(N - 1, 0), 1], 32, end_token=end)
        assert run(target, drafter, state) == truth
        assert kind == "lookup" or int(state.tested_at.sum()) > 0


def wander(state, draft, random) -> Verification:
    """A verification that walks down at random, side branches too, and ends in a token of its own."""
    tokens, path = (torch.zeros(state.batch_size, state.max_draft + 1, dtype=torch.int64) for _ in range(2))
    counts = torch.ones(state.batch_size, dtype=torch.int64)
    for row in range(state.batch_size):
        at = 0
        while random.random() < 0.8:
            children = [i for i in range(int(draft.lengths[row])) if draft.parents[row, i] == at]
            if not children:
                break
            chosen = int(random.choice(children))
            tokens[row, counts[row] - 1], path[row, counts[row]] = draft.tokens[row, chosen], chosen + 1
            at = chosen + 1
            counts[row] += 1
        tokens[row, counts[row] - 1] = int(random.integers(3, 100))
    return Verification(tokens, counts, path)


@torch.inference_mode()
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_q_is_the_modules_distribution_of_every_node(target, trained, kind, replaced):
    """After its own ancestors, without its earlier siblings; step after step, as branches are accepted and given up."""
    model, drafter = trained[kind]
    drafter = TreeDrafter(drafter, Shape.parse("3x2x1"), replaced)
    state = make_state(3, 60, 15, 32, end_token=-1, temperature=0.9, top_k=12)
    encoded = [x.clone() for x in admit(target, drafter, state, SOURCES[:3])]
    random, compared, branched = np.random.default_rng(0), 0, 0
    for turn in range(8):
        if turn == 4:
            # a step of others, which this drafter has to catch up with
            state.commit(Draft.empty(3, 15), wander(state, Draft.empty(3, 15), random), torch.zeros(3, 16, 32))
        draft = drafter.draft(state)
        for row in range(3):
            committed = state.tokens[row, : int(state.lengths[row])].tolist()
            ancestors, before = {0: []}, {}
            for i in range(int(draft.lengths[row])):
                parent, token = int(draft.parents[row, i]), int(draft.tokens[row, i])
                ancestors[i + 1] = [*ancestors[parent], token]
                mask, source = torch.ones(1, len(SOURCES[row]), dtype=torch.bool), SOURCES[row]
                logits = model(torch.tensor([committed + ancestors[parent]]), encoded[row][None], mask, source[None])[0, -1]
                if len(model.draft_ids):
                    outside = torch.ones(len(logits), dtype=torch.bool)
                    outside[model.draft_ids] = outside[source] = False
                    logits = logits.masked_fill(outside, float("-inf"))
                logits = (logits.double() / 0.9).masked_fill(logits < logits.topk(12).values[-1], float("-inf"))
                siblings = before.setdefault(parent, [])
                if not replaced:
                    logits[siblings] = float("-inf")
                    assert token not in siblings
                siblings.append(token)
                q = (draft.logits[row, i].double() - draft.lse[row, i]).exp()
                torch.testing.assert_close(q, torch.softmax(logits, -1), atol=3e-5, rtol=3e-4)
                assert q[token] > 0
                compared += 1
        verification = wander(state, draft, random)
        branched += int((verification.path[:, 1] > 1).sum())
        state.commit(draft, verification, torch.zeros(3, 16, 32))
    assert compared == 8 * 3 * 15 and branched > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_does_not_depend_on_its_batch(target, trained, kind):
    drafter = TreeDrafter(trained[kind][1], Shape.parse("2x2x1"))
    options = dict(temperature=torch.tensor([0.0, 1.0, 0.8, 1.2]), seeds=[3, 4, 5, 6], end_token=-1)
    together = run(target, drafter, make_state(4, NEW, 6, 32, **options))
    for row in range(4):
        temperature, seed = options["temperature"][row], options["seeds"][row]
        alone = make_state(1, NEW, 6, 32, temperature=temperature, seeds=[seed], end_token=-1)
        assert run(target, drafter, alone, [SOURCES[row]]) == [together[row]]


def test_seeded_trees_of_copies_equal_plain_sampling(target, trained):
    options = dict(temperature=1.0, seeds=[3, 4, 5, 6], end_token=-1)
    truth = run(target, NoDrafter(), make_state(4, NEW, 0, 32, **options))
    state = make_state(4, NEW, 6, 32, **options)
    assert run(target, TreeDrafter(trained["lookup"][1], Shape.parse("3x1x1")), state) == truth
    assert int(state.drafted.sum()) > 0


@torch.inference_mode()
@pytest.mark.parametrize("replaced", [False, True])
def test_sampled_tokens_follow_the_target(target, trained, replaced):
    """The second token's distribution, its first summed out, against what forward passes of the target say."""
    # at this target's own temperature one token has nearly all the mass
    rows, times, source, temperature = 100, 25, SOURCES[2], 3.0
    drafter = TreeDrafter(trained["lstm"][1], Shape.parse("3x2"), replaced)
    state = make_state(rows, 12, 9, 32, temperature=temperature, end_token=-1)
    admit(target, drafter, state, [source] * rows)
    counts = torch.zeros(100, dtype=torch.int64)
    for time in range(times):
        seeds = range(time * rows, (time + 1) * rows)
        state = make_state(rows, 12, 9, 32, end_token=-1, seeds=seeds, temperature=temperature)
        while (state.lengths < 3).any():
            step(state, target, drafter)
        counts += torch.bincount(state.tokens[:, 2], minlength=100)

    value, freedom = doubles.second_id_chi_square(target, counts, temperature=temperature)
    assert value < freedom + 10 * (2 * freedom) ** 0.5


def test_by_name(tiny_model_path, tmp_path):
    plain = foredraft.load(tiny_model_path, drafter=None)
    model_class("lstm").from_target(tiny_model_path, **SIZES["lstm"]).save(tmp_path / "lstm")
    inputs = [[5, 6, 5, 7, 5, 1], [9, 8, 1], [30, 31, 32, 33, 34, 1]]
    truth = plain.generate(inputs, max_new_tokens=12).token_ids
    Shape.parse("2x1").save(tmp_path / "shape.json")
    for spec in ("tree:3x1x1:lookup", f"tree:2x2:{tmp_path / 'lstm'}", f"tree:{tmp_path / 'shape.json'}:lookup",
                 "tree:3x1x1:lookup+history"):
        model = plain.with_drafter(spec)
        assert model.drafter.name.startswith("tree:")
        # requests share sequences one after the other
        assert model.generate(inputs, max_new_tokens=12, draft_tokens=6, batch_size=2).token_ids == truth
    sampled = plain.with_drafter(f"tree:2x2+iid:{tmp_path / 'lstm'}")
    assert sampled.drafter.tree.replaced and not sampled.drafter.capabilities.point_masses
    options = dict(max_new_tokens=12, draft_tokens=6, do_sample=True, seed=[3, 4, 5])
    together = sampled.generate(inputs, batch_size=3, **options).token_ids
    assert sampled.generate(inputs, batch_size=2, **options).token_ids == together
    for options in (dict(draft_tokens="auto"), dict(verification="block")):
        with pytest.raises(UserError, match="drafts trees"):
            sampled.generate(inputs, **options)
    for spec, message in (("tree:2x1", "name a shape and a drafter"), ("tree:2y:lookup", "is no shape"),
                          ("tree:2:none", "drafts no trees"), ("cascade:lookup,tree:2:lookup", "cannot be combined")):
        with pytest.raises(UserError, match=message) as caught:
            plain.with_drafter(spec)
        assert "\n" not in str(caught.value)
