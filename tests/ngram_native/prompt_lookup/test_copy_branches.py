"""Trees of copies: the kernel compared with brute force, on texts of few distinct tokens."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.engine.drafters.tree_shape import Shape
from foredraft.ngram_native.prompt_lookup.copy_branches import branch_reference
from foredraft.ngram_native.prompt_lookup.source_index import LOOKUP, PromptLookupIndex

END = 1


def test_branches_of_an_example():
    """The trunk after 5 is 6 7 8; elsewhere 9 follows 5, and 4 follows 5 6."""
    source = [5, 6, 7, 8, 5, 9, 5, 6, 4, END]
    parents = list(Shape.parse("2x2x1").parents)
    tokens, parents_of = branch_reference(source, [5], [6, 7, 8], 9, 1, 4, END, parents)
    found = {}
    for i, (token, parent) in enumerate(zip(tokens, parents_of, strict=True)):
        found[i + 1] = (*found.get(parent, ()), token)
    assert set(found.values()) == {(6,), (6, 7), (6, 7, 8), (9,), (9, 5), (9, 5, 6), (6, 4)}
    assert tokens[:3] == [6, 7, 8] and parents_of[:3] == [0, 1, 2]
    # no branches without a trunk or without a free child, and never more than allowed
    assert branch_reference(source, [5], [], 9, 1, 4, END, parents) == ([], [])
    assert branch_reference(source, [5], [6, 7, 8], 9, 1, 4, END, [0, 1, 2]) == ([6, 7, 8], [0, 1, 2])
    assert len(branch_reference(source, [5], [6, 7, 8], 5, 1, 4, END, parents)[0]) == 5


@pytest.mark.parametrize("shape", ["3", "1x1x1", "2x2x2", "4x1x1x1"])
def test_compiled_equals_brute_force(shape):
    rng, parents = np.random.default_rng(3), np.array(Shape.parse(shape).parents)
    B, T, K = 6, 40, 9
    index, branched = PromptLookupIndex(1, 3), 0
    for _ in range(30):
        source = [np.append(rng.integers(2, 6, rng.integers(1, 30)), END) for _ in range(B)]
        for b in range(B):
            index.admit(b, source[b])
        tokens, lengths = rng.integers(2, 6, (B, T + 1)), np.ones(B, np.int64)
        tokens[:, 0] = 0
        for _ in range(4):
            lengths += rng.integers(1, 9, B)
            allowed = rng.integers(0, K + 1, B)
            drafted, counts = np.full((B, K), -1), np.zeros(B, np.int64)
            parents_of, proposers = np.full((B, K), -1), np.zeros((B, K), np.uint8)
            index.propose(tokens, lengths, np.minimum(allowed, 3), END, drafted, counts, proposers)
            trunks = [drafted[b, : counts[b]].tolist() for b in range(B)]
            index.branch(tokens, lengths, allowed, END, parents, drafted, counts, parents_of, proposers)
            for b in range(B):
                expected, above = branch_reference(source[b].tolist(), tokens[b, 1 : lengths[b]].tolist(), trunks[b],
                                              int(allowed[b]), 1, 3, END, parents.tolist())
                assert drafted[b, : counts[b]].tolist() == expected
                assert parents_of[b, : counts[b]].tolist() == above
                assert (proposers[b, : counts[b]] == LOOKUP).all() and not parents_of[b, counts[b] :].any()
                branched += len(set(above)) < len(above)
    assert (branched > 20) == (shape != "1x1x1")
