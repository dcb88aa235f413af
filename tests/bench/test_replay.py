"""A replay counts what greedy decoding with the same drafter counts."""

from __future__ import annotations

import pytest

import foredraft
from foredraft.bench.alpha import alpha_tv
from foredraft.bench.cases import sample_texts
from foredraft.bench.replay import replay
from foredraft.engine.draft_lookup import LookupDrafter


@pytest.mark.parametrize("K", [1, 5])
def test_equals_decoding(K):
    model = foredraft.load(drafter=None)
    sources = [model.tokenizer.encode(text).ids[:60] for _, text in sample_texts()[:3]]
    outputs = model.generate(sources, draft_tokens=0, max_new_tokens=40).token_ids
    # one row at a time: the confidences that the index counts depend on the order of the rounds
    out = foredraft.engine.generate.Model(model.target, model.tokenizer, LookupDrafter(), model.path, model.dtype).generate(
        sources, draft_tokens=K, max_new_tokens=40, batch_size=1)
    found = replay(LookupDrafter(), sources, outputs, K, batch_size=1)
    assert out.token_ids == outputs
    assert found["tokens_per_round"] == pytest.approx(out.stats.tokens_per_step)
    assert found["acceptance_rate"] == pytest.approx(out.stats.acceptance_rate)
    alpha = alpha_tv(model.with_drafter(LookupDrafter()), sources, outputs, 0.0, batch_size=1)
    assert found["alpha"] == pytest.approx(alpha)
