"""A replay counts what greedy decoding with the same drafter counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import foredraft
from foredraft.bench.harness.alpha import alpha_tv
from foredraft.bench.harness.cases import sample_texts
from foredraft.bench.harness.replay import first_drafts, replay, steps_of
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.state import Draft


@pytest.mark.parametrize("K", [1, 5])
def test_equals_decoding(K):
    model = foredraft.load(drafter=None)
    sources = [model.tokenizer.encode(text).ids[:60] for _, text in sample_texts()[:3]]
    outputs = model.generate(sources, draft_tokens=0, max_new_tokens=40).token_ids
    # one request at a time: the confidences that the index learns depend on the order of the steps
    out = foredraft.engine.generate.Model(model.target, model.tokenizer, LookupDrafter(), model.path, model.dtype).generate(
        sources, draft_tokens=K, max_new_tokens=40, batch_size=1)
    found = replay(LookupDrafter(), sources, outputs, K, batch_size=1)
    assert out.token_ids == outputs
    assert found["tokens_per_step"] == pytest.approx(out.stats.tokens_per_step)
    assert found["acceptance_rate"] == pytest.approx(out.stats.acceptance_rate)
    alpha = alpha_tv(model.with_drafter(LookupDrafter()), sources, outputs, 0.0, batch_size=1)
    right = first_drafts(LookupDrafter(), sources, outputs)
    assert np.concatenate(right).mean() == pytest.approx(alpha)


class Scripted:
    """Drafts the ids of a script at their positions in the output."""

    def __init__(self, script: list[int]):
        self.script = torch.tensor(script)

    def admit(self, slots, sources, encoded):
        pass

    def release(self, slots):
        pass

    def draft(self, state, budget=None):
        draft = Draft.empty(state.batch_size, state.max_draft)
        for b, length in enumerate(state.lengths.tolist()):
            ids = self.script[length - 1 :][: state.max_draft]
            draft.tokens[b, : len(ids)], draft.lengths[b] = ids, len(ids)
        return draft


def test_the_better_draft_of_each_step_by_hand():
    output = [[5, 6, 7, 8, 9, 1]]
    first, second = Scripted([5, 6, 0, 0, 0, 0]), Scripted([0, 0, 0, 8, 0, 1])
    # alone: 5 6 and 7; then one token a step
    assert replay(first, [[2]], output, 2)["tokens_per_step"] == pytest.approx(6 / 4)
    # together: 5 6 7, 8 9, 1
    assert replay(first, [[2]], output, 2, beside=second)["tokens_per_step"] == pytest.approx(6 / 3)
    assert [one.tolist() for one in first_drafts(second, [[2]], output)] == [[False, False, False, True, False, True]]


def test_steps_of_known_places():
    right = np.array([True, True, True, False, True, False, True])
    assert [steps_of(right, K) for K in (1, 2, 5)] == [4, 4, 3]
    assert steps_of(np.zeros(3, bool), 5) == 3
    assert steps_of(np.ones(6, bool), 5) == 1
