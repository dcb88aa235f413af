"""Verification: numba equals the reference on batches that mix dense, point-mass and greedy sequences."""

import numpy as np
import pytest
import torch
from doubles import make_state
from verification_cases import case, verifications

from foredraft.engine.sampling.draft_sampling import dense_draft, sample_into
from foredraft.kernels.core.backend_triton import can_launch, is_interpreted
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.sampling.sample import sample_numba, sample_reference
from foredraft.kernels.verify.accept import accept_greedy_numba, accept_greedy_reference, accept_numba, accept_reference

DEVICE = "cpu" if is_interpreted() else "cuda"


@pytest.mark.parametrize("B, K, V", [(1, 1, 2), (5, 3, 16), (40, 4, 100), (3, 7, 8193), (2, 2, 32100), (2, 1, 32128)])
def test_numba_equals_the_reference(B, K, V):
    arguments = case(B, K, V)
    reference = verifications(accept_reference, arguments, B, K)
    assert verifications(accept_numba, arguments, B, K) == reference
    assert all(0 <= token < V for tokens, _ in reference for token in tokens)


@pytest.mark.parametrize("B, K, V", [(300, 5, 3), (300, 9, 16), (3, 7, 8193)])
def test_trees_equal_the_reference(B, K, V):
    """Dense, point-mass and greedy sequences; a small vocabulary, so that branches are taken."""
    arguments, rng = case(B, K, V, seed=4), np.random.default_rng(5)
    arguments[3] = rng.integers(0, np.arange(1, K + 1), (B, K))
    # siblings share the distribution of their parent
    arguments[5] = np.take_along_axis(arguments[0], arguments[3][:, :, None], 1)
    arguments[5] += rng.standard_normal(arguments[5].shape).astype(np.float32)
    arguments[6] = np.log(np.exp(arguments[5].astype(np.float64)).sum(-1))
    arguments[4] |= arguments[7] > 0.8
    reference = verifications(accept_reference, arguments, B, K)
    assert verifications(accept_numba, arguments, B, K) == reference
    if V < 100:
        assert any(len(path) > 1 and path[1] > 1 for b, (_, path) in enumerate(reference) if arguments[4][b])


def test_greedy_sequences_have_no_dense_drafts():
    arguments = case(40, 3, 16, seed=6)
    arguments[7][:], arguments[4][:] = 0, False
    expected = verifications(accept_reference, arguments, 40, 3)
    arguments[4][:] = True
    for function in (accept_reference, accept_numba):
        assert verifications(function, arguments, 40, 3) == expected


def test_a_residual_without_mass_leaves_the_distribution():
    """Siblings from q = 2p, as rounding could have it: no token is left after a rejected one."""
    arguments = case(40, 3, 16, seed=7)
    arguments[3][:], arguments[4][:], arguments[7][:], arguments[8][:], arguments[9][:] = 0, True, 1, 0, 1
    arguments[5] = np.repeat(arguments[0][:, :1], 3, axis=1)
    arguments[6] = np.log(np.exp(arguments[5].astype(np.float64)).sum(-1) / 2)
    found = verifications(accept_reference, arguments, 40, 3)
    assert found == verifications(accept_numba, arguments, 40, 3)
    # the first sibling alone can be accepted
    assert {path[1] if len(path) > 1 else 0 for _, path in found} == {0, 1}


def test_point_masses_need_no_draft_distribution():
    arguments = case(30, 3, 20, seed=2)
    arguments[4] = np.zeros(30, bool)
    full = verifications(accept_numba, arguments, 30, 3)
    arguments[5], arguments[6] = np.empty((0, 0, 0), np.float32), np.empty((0, 0))
    assert verifications(accept_numba, arguments, 30, 3) == full


def test_inputs_are_not_changed():
    arguments = case(20, 3, 20, seed=3)
    copies = [argument.copy() for argument in arguments]
    verifications(accept_numba, arguments, 20, 3)
    assert all((a == b).all() for a, b in zip(arguments, copies, strict=True))


def test_trees_follow_the_accepted_child():
    chosen = np.array([[4, 9, 5, 6, 7]])
    tokens = np.array([[3, 4, 5, 9]])
    parents = np.array([[0, 0, 2, 2]])
    for function in (accept_greedy_reference, accept_greedy_numba):
        arguments = [chosen, tokens, np.array([4]), parents]
        # position 0 gives 4: draft 1 (position 2); position 2 gives 5: draft 2 (position 3); position 3 gives 6: no draft
        assert verifications(function, arguments, 1, 4) == [([4, 5, 6], [0, 2, 3])]


@pytest.mark.parametrize("branches", [False, True])
def test_greedy_kernels_agree(branches):
    """Also on trees, some of whose siblings are equal."""
    rng = np.random.default_rng(5)
    arguments = [rng.integers(0, 3, (50, 6)), rng.integers(0, 3, (50, 5)), rng.integers(0, 6, 50),
                 rng.integers(0, np.arange(1, 6), (50, 5)) if branches else np.tile(np.arange(5), (50, 1))]
    assert verifications(accept_greedy_numba, arguments, 50, 5) == verifications(accept_greedy_reference, arguments, 50, 5)


@pytest.mark.parametrize("B, V", [(1, 2), (7, 16), (3, 8193), (2, 32128)])
def test_sampled_drafts_agree_and_return_their_distribution(B, V):
    rng = np.random.default_rng(V)
    arguments = [rng.standard_normal((B, V)).astype(np.float32) * 2, rng.choice([0.0, 0.8, 1.3], B).astype(np.float32),
                 rng.choice([0, 5], B), rng.choice([1.0, 0.7], B).astype(np.float32), rng.integers(0, 2**62, B),
                 rng.integers(1, 50, B), 2]
    results = []
    for function in (sample_reference, sample_numba):
        tokens, processed, lse = np.full(B, -1), np.full((B, V), np.nan, np.float32), np.full(B, np.nan)
        function(*arguments, tokens, processed, lse)
        results.append((tokens, processed, lse))
        for b in np.nonzero(arguments[1])[0]:
            distribution = np.exp(processed[b].astype(np.float64) - lse[b])
            assert abs(distribution.sum() - 1) < 1e-6 and distribution[tokens[b]] > 0
    assert (results[0][0] == results[1][0]).all()
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)
    np.testing.assert_allclose(results[0][2], results[1][2], atol=1e-6)


@pytest.mark.first(2)
@pytest.mark.gpu
@pytest.mark.skipif(not can_launch(), reason="needs triton, with its interpreter or a GPU")
@pytest.mark.parametrize("distribution", [dict(), dict(top_k=torch.tensor([0, 5, 2, 0, 0, 9, 1]), top_p=0.8)])
@pytest.mark.parametrize("V", [2, 16, 8193, 32128])
def test_triton_samples_equal_numbas(V, distribution):
    """Through sample_into of the engine: tokens, distributions, log-sum-exps at each offset, greedy sequences included."""
    drafts = []
    for backend in ("numba", "triton"):
        device = DEVICE if backend == "triton" else "cpu"
        options = {name: torch.as_tensor(value).to(device) for name, value in distribution.items()}
        temperature = torch.tensor([0.0, 0.8, 1.3, 1.0, 0.0, 1.0, 2.0], device=device)
        state = make_state(7, 20, 2, 4, temperature=temperature, backend=backend, device=device, **options)
        state.lengths += 3
        draft = dense_draft(state, V)
        if backend == "triton":
            for tensor in (draft.logits, draft.lse):
                tensor.fill_(torch.nan)
        generator = torch.Generator().manual_seed(V)
        for place in range(2):
            sample_into(draft, place, (2 * torch.randn(7, V, generator=generator)).to(device), state)
        drafts.append(draft)
    ours, theirs = drafts
    assert torch.equal(ours.tokens, theirs.tokens.cpu())
    np.testing.assert_allclose(ours.logits, theirs.logits.cpu(), atol=1e-5)
    np.testing.assert_allclose(ours.lse, theirs.lse.cpu(), atol=1e-5)


def at_real_sizes():
    state = make_state(8, 20, 2, 4, temperature=1.0, top_p=0.9, backend="triton")
    sample_into(dense_draft(state, 32128), 0, torch.empty(8, 32128, dtype=torch.bfloat16), state)
    state.has_top_k_top_p = False
    sample_into(dense_draft(state, 32128), 0, torch.empty(8, 32128), state)


@pytest.mark.full
@pytest.mark.gpu
@pytest.mark.skipif(not can_launch(), reason="needs triton, with its interpreter or a GPU")
def test_compiled_for_three_machines():
    found = costs(f"{__file__}:at_real_sizes")
    assert [cost.kernel for cost in found[::3]] == ["_top_k_top_p_kernel", "_sample_kernel", "_sample_kernel"]
    assert all(cost.registers <= 128 and cost.spills <= 32 and cost.shared < 32_768 for cost in found), found
