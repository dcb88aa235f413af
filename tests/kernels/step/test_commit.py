"""Commit: compiled against the reference on random steps, trees included."""

import numpy as np
import pytest
import torch

from foredraft.kernels.core.backend_triton import can_launch, is_interpreted
from foredraft.kernels.step import commit_triton as triton_file
from foredraft.kernels.step.commit import commit_numba, commit_reference
from foredraft.kernels.step.commit_triton import commit_triton
from foredraft.kernels.step.end_tokens import MAX_END_TOKENS

DEVICE = "cpu" if is_interpreted() else "cuda"


def end_tokens(rng, B):
    """None, one, or several for each sequence."""
    found = np.full((B, MAX_END_TOKENS), -1)
    for row in found:
        row[: rng.integers(0, 4)] = 1
        row[: rng.integers(0, 3)] = rng.integers(0, 6)
    return found


def case(B, K, T, C, seed):
    rng = np.random.default_rng(seed)
    R, lengths = K + 1, rng.integers(1, T, B)
    draft_lengths = rng.integers(0, K + 1, B)
    read = [rng.integers(0, 6, (B, R)), np.minimum(rng.integers(1, R + 1, B), draft_lengths + 1),
            np.sort(rng.integers(1, R, (B, R)), 1) if K else np.zeros((B, R), int), draft_lengths,
            np.sort(rng.integers(0, np.arange(1, K + 1), (B, K)), 1) if K else np.zeros((B, 0), int),
            rng.integers(1, 4, (B, K)).astype(np.uint8), rng.standard_normal((B, R, C)).astype(np.float32),
            np.minimum(lengths + rng.integers(1, 2 * R, B), T), end_tokens(rng, B)]
    read[2][:, 0] = 0
    written = [rng.integers(0, 9, (B, T + 1)), np.zeros((B, T + 1), np.uint8), lengths, rng.random(B) < 0.2,
               np.zeros((B, C), np.float32), *(np.zeros(B, int) for _ in range(3)),
               *(np.zeros((B, K), int) for _ in range(2)), *(np.zeros(B, int) for _ in range(3))]
    return read, written


@pytest.mark.parametrize("B, K, T, C", [(1, 1, 2, 1), (1, 0, 5, 3), (7, 4, 9, 5), (40, 7, 30, 16)])
def test_numba_equals_the_reference(B, K, T, C):
    for seed in range(20):
        read, ours = case(B, K, T, C, seed)
        theirs = [array.copy() for array in ours]
        commit_numba(*read, *ours)
        commit_reference(*read, *theirs)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_leaf_of_a_tree_is_no_rejection():
    """Query positions 1 and 2 follow the last token, position 3 follows position 2."""
    parents, R, C = np.array([[0, 0, 2]]), 4, 1
    for path, tested in (([0], 1), ([0, 1], 1), ([0, 2], 2), ([0, 2, 3], 2)):
        read = [np.full((1, R), 5), np.array([len(path)]), np.array([path + [0] * (R - len(path))]), np.array([3]), parents,
                np.ones((1, 3), np.uint8), np.zeros((1, R, C), np.float32), np.array([20]),
                np.array([[1] + [-1] * 7])]
        for commits in (commit_reference, commit_numba):
            written = [np.zeros((1, 21), int), np.zeros((1, 21), np.uint8), np.ones(1, int), np.zeros(1, bool),
                       np.zeros((1, C), np.float32), *(np.zeros(1, int) for _ in range(3)),
                       *(np.zeros((1, 3), int) for _ in range(2)), *(np.zeros(1, int) for _ in range(3))]
            commits(*read, *written)
            assert [int(count[0]) for count in written[-3:]] == [len(path), tested, len(path) - 1]


@pytest.mark.gpu
@pytest.mark.skipif(not can_launch(), reason="needs triton, with its interpreter or a GPU")
@pytest.mark.parametrize("tile", [None, 1])
@pytest.mark.parametrize("B, K, T, C", [(1, 1, 2, 1), (1, 0, 5, 3), (7, 4, 9, 5), (40, 7, 30, 1030)])
def test_triton_equals_the_reference(B, K, T, C, tile, monkeypatch):
    if tile is not None:
        monkeypatch.setattr(triton_file, "sequences_per_program", lambda B, weight: tile)
    for seed in range(4):
        read, theirs = case(B, K, T, C, seed)
        on_device = [torch.from_numpy(item).to(DEVICE) if isinstance(item, np.ndarray) else item for item in read]
        ours = [torch.from_numpy(array.copy()).to(DEVICE) for array in theirs]
        commit_triton(*on_device, *ours)
        commit_reference(*read, *theirs)
        assert all(np.array_equal(a.cpu().numpy(), b) for a, b in zip(ours, theirs, strict=True))
