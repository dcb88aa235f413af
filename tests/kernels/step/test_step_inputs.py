"""Step inputs and allowed draft lengths: each backend against a plain restatement."""

import numpy as np
import pytest
import torch

from foredraft.kernels.core.backend_triton import can_launch
from foredraft.kernels.step import step_inputs
from foredraft.kernels.step.step_inputs_triton import allowed_triton, step_inputs_triton

BACKENDS = ["reference", "numba", pytest.param("triton", marks=pytest.mark.skipif(
    not can_launch(), reason="needs a GPU, or TRITON_INTERPRET=1"))]
B, K, T = 5, 4, 9
STEP_INPUTS = {**step_inputs.STEP_INPUTS, "triton": step_inputs_triton}
ALLOWED = {**step_inputs.ALLOWED, "triton": allowed_triton}


def call(kernel, backend, *arguments):
    """Run a kernel on arrays; triton's on tensors of a device that it supports."""
    if backend != "triton":
        kernel[backend](*arguments)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = [None if item is None else torch.from_numpy(item).to(device) for item in arguments]
    kernel[backend](*tensors)
    for item, tensor in zip(arguments, tensors, strict=True):
        if item is not None:
            item[...] = tensor.cpu().numpy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tree", [False, True])
def test_input_tokens_and_their_positions(backend, tree):
    draw = np.random.default_rng(3)
    tokens, drafts = draw.integers(0, 50, (B, T + 1)), draw.integers(0, 50, (B, K))
    lengths, drafted = draw.integers(1, T, B), np.array([0, 4, 2, 3, 4])
    finished = np.array([False, False, False, True, False])
    parents = np.array([[0, 0, 1, 3], [0, 1, 2, 3], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 2]]) if tree else None
    read, positions = np.full((B, K + 1), -7), np.full((B, K + 1), -7)
    above = np.full((B, K + 1), -7) if tree else None
    call(STEP_INPUTS, backend, tokens, lengths, finished, drafts, drafted, parents, read, positions, above)
    for b in range(B):
        last, depth = int(lengths[b]) - 1, [0]
        assert read[b].tolist() == [tokens[b, last], *drafts[b]]
        for r in range(1, K + 1):
            depth.append(depth[parents[b, r - 1]] + 1 if tree else r)
        read_here = [not finished[b] and r <= drafted[b] for r in range(K + 1)]
        assert positions[b].tolist() == [last + depth[r] if read_here[r] else -1 for r in range(K + 1)]
        if tree:
            assert above[b].tolist() == [-1, *parents[b]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_allowed_draft_lengths(backend):
    lengths, limits = np.array([1, 5, 8, 9, 3]), np.array([9, 9, 9, 9, 9])
    widths, allowed = np.array([4, 6, 4, 4, 0]), np.full(B, -7)
    call(ALLOWED, backend, lengths, limits, np.array([False, False, False, False, False]), widths, allowed)
    assert allowed.tolist() == [4, 3, 0, 0, 0]
    call(ALLOWED, backend, lengths, limits, np.array([True, False, True, False, True]), widths, allowed)
    assert allowed.tolist() == [0, 3, 0, 0, 0]
