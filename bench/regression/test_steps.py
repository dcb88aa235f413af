"""The embedded target's parts: encoding, a plain decode step, a step that verifies drafts, and all steps of a request."""

from __future__ import annotations

import pytest
import torch

import foredraft
from foredraft.bench.harness.cases import sample_texts
from foredraft.bench.harness.steps import admit, step
from foredraft.engine.loop import decode
from foredraft.engine.state import DecodeState

TOKENS, K = 32, 5


@pytest.fixture(scope="module")
def plain():
    return foredraft.load(drafter=None)


@pytest.fixture(scope="module")
def source(plain):
    return plain.tokenizer.encode(sample_texts()[0][1]).ids[: plain.source_limit]


def test_encode(benchmark, plain, source):
    with torch.inference_mode():
        encoded = benchmark(plain.target.encode, torch.tensor(source))
    assert encoded.shape[-2] == len(source)


@pytest.mark.parametrize("R", [1, K + 1])
def test_step(benchmark, plain, source, R):
    admit(plain.target, source, R)
    with torch.inference_mode():
        benchmark(step(plain.target, R))


@pytest.mark.parametrize("name", [None, "lookup"])
def test_rounds(benchmark, plain, source, name):
    """All steps of one admitted request, its source's index included, the encoder left out."""
    target, drafter, vector = plain.target, plain.with_drafter(name).drafter, torch.tensor(source)
    target.reserve(1, TOKENS + 1, K + 1, len(source))

    def steps() -> DecodeState:
        state = DecodeState(
            limits=torch.tensor([TOKENS + 1]), draft_tokens=torch.tensor([K if name else 0]), temperature=torch.zeros(1),
            top_k=torch.zeros(1, dtype=torch.int64), top_p=torch.ones(1), seeds=torch.zeros(1, dtype=torch.int64),
            start_token=target.start_token, end_token=target.end_token, width=target.config.d_model)
        drafter.admit([0], [vector], encoded)
        decode(state, target, drafter)
        drafter.release([0])
        return state

    with torch.inference_mode():
        encoded = target.admit([0], [vector])
        state = benchmark(steps)
        target.release([0])
    assert bool(state.finished.all()) and int(state.lengths[0]) > TOKENS // 2
