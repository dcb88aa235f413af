"""The embedded family on one sample text: whole summaries, and one draft. Timed by `make bench`."""

from __future__ import annotations

import pytest
import torch

import foredraft
from foredraft.bench.harness.cases import sample_texts
from foredraft.engine.state import DecodeState

TOKENS = 32


@pytest.fixture(scope="module")
def plain():
    return foredraft.load(drafter=None)


@pytest.mark.parametrize("drafter", [None, "lookup", "ngram", "lstm"])
def test_summary(benchmark, plain, drafter):
    text = sample_texts()[0][1]
    out = benchmark(plain.with_drafter(drafter).generate, text, max_new_tokens=TOKENS)
    assert out.token_ids == plain.generate(text, max_new_tokens=TOKENS).token_ids


@pytest.mark.parametrize("name", ["lookup", "ngram", "lstm"])
def test_draft(benchmark, plain, name):
    """Proposals for eight sequences, half a summary each already written."""
    sources = [torch.tensor(plain.tokenizer.encode(text).ids) for _, text in sample_texts()[:8]]
    B = len(sources)
    state = DecodeState(
        limits=torch.full((B,), TOKENS + 1), draft_tokens=torch.full((B,), 5), temperature=torch.zeros(B),
        top_k=torch.zeros(B, dtype=torch.int64), top_p=torch.ones(B), seeds=torch.arange(B), start_token=0, end_token=1,
        width=1)
    for b, source in enumerate(sources):
        state.tokens[b, 1 : TOKENS // 2] = source[1 : TOKENS // 2]
    state.lengths.fill_(TOKENS // 2)
    drafter = plain.with_drafter(name).drafter
    with torch.inference_mode():
        drafter.admit(range(B), sources, [plain.target.encode(source) for source in sources])
        draft = benchmark(drafter.draft, state)
    assert draft.tokens.shape == (B, 5) and int(draft.lengths.max()) > 0
