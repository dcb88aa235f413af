"""Block verification: backends agree, the output distribution holds, no fewer drafts are accepted than token by token."""

import types

import numpy as np
import pytest
import torch
from doubles import TableDrafter, TableTarget, chi_square, make_state
from verification_cases import case, verifications

from foredraft.engine import verify as verification
from foredraft.engine.loop import decode
from foredraft.kernels.verify import block
from foredraft.kernels.verify.accept import accept_numba
from foredraft.kernels.verify.block import block_numba, block_reference

MUTANTS = {
    "the noise ignores the step": ("uniform(seed, ACCEPT, start, accepted - 1)", "uniform(seed, ACCEPT, 0, accepted - 1)"),
    "the residual is a single token's": ("np.float32(prefix[accepted] / totals[accepted])",
                                         "np.float32(1.0 / totals[accepted])"),
    "a block is accepted by its last test alone": ("u * (mass + 1.0 - prefix[accepted]) <= mass", "u <= prefix[accepted]"),
}


@pytest.mark.parametrize("B, K, V", [(1, 1, 2), (40, 3, 16), (30, 5, 100), (3, 7, 8193), (2, 2, 32128)])
def test_numba_equals_the_reference(B, K, V):
    arguments = case(B, K, V)
    assert verifications(block_numba, arguments, B, K) == verifications(block_reference, arguments, B, K)


def test_numba_equals_the_reference_on_drafts_that_chance_accepts():
    """Drafts sampled from q, with draft lengths of 4 and less."""
    arguments, rng = case(400, 4, 6, seed=8), np.random.default_rng(9)
    arguments[4][:], arguments[7][:] = True, 1
    arguments[1] = (arguments[5] + rng.gumbel(size=arguments[5].shape)).argmax(-1)
    found = verifications(block_reference, arguments, 400, 4)
    assert found == verifications(block_numba, arguments, 400, 4)
    assert {len(tokens) for tokens, _ in found} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("function", [block_reference, block_numba])
def test_point_masses_and_greedy_sequences_are_verified_token_by_token(function):
    arguments = case(60, 4, 20, seed=2)
    arguments[4] = np.zeros(60, bool)
    assert verifications(function, arguments, 60, 4) == verifications(accept_numba, arguments, 60, 4)
    arguments = case(60, 4, 20, seed=3)
    arguments[7], arguments[4] = np.zeros(60, np.float32), np.ones(60, bool)
    assert verifications(function, arguments, 60, 4) == verifications(accept_numba, arguments, 60, 4)


def test_a_residual_without_mass_leaves_the_distribution():
    """A draft from q = 2p, as rounding could have it: no token is left after it is rejected."""
    arguments = case(40, 1, 16, seed=7)
    arguments[2][:], arguments[4][:], arguments[7][:], arguments[8][:], arguments[9][:] = 1, True, 1, 0, 1
    arguments[5] = arguments[0][:, :1].copy()
    arguments[6] = np.log(np.exp(arguments[5].astype(np.float64)).sum(-1) / 2)
    found = verifications(block_reference, arguments, 40, 1)
    assert found == verifications(block_numba, arguments, 40, 1)
    assert {len(tokens) for tokens, _ in found} == {1, 2}


def generate(drafter: str, trials: int, blocks: bool = True, V: int = 5, rows: int = 4000, K: int = 3):
    """Generate three tokens from distributions that depend on the position.

    Returns the chi-square of their joint distribution, its degrees of freedom, and accepted drafts and steps of every trial.
    """
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(5, V, V, generator=generator)
    q = -table if drafter == "adversarial" else table + torch.randn(5, V, V, generator=generator)
    counts, accepted = torch.zeros(V**3, dtype=torch.int64), []
    for start in range(0, trials, rows):
        state = make_state(rows, 4, K, V, temperature=1.0, seeds=range(start, start + rows), end_token=-1)
        state.block = blocks
        decode(state, TableTarget(table), TableDrafter(q))
        counts += torch.bincount((state.tokens[:, 1] * V + state.tokens[:, 2]) * V + state.tokens[:, 3], minlength=V**3)
        accepted.append(state.accepted_at.sum(1).double() / state.num_steps)
    first, *distributions = (torch.softmax(table[place].double(), -1) for place in range(3))
    joint = first[0][:, None, None] * distributions[0][:, :, None] * distributions[1][None]
    return *chi_square(counts, joint.reshape(-1)), torch.cat(accepted)


@pytest.mark.parametrize("drafter", ["adversarial", "close"])
def test_generations_follow_the_target_and_accept_no_less(drafter):
    value, freedom, accepted = generate(drafter, 60_000)
    assert value < freedom + 10 * (2 * freedom) ** 0.5
    _, _, others = generate(drafter, 60_000, blocks=False)
    error = float((accepted.var() + others.var()) / len(accepted)) ** 0.5
    assert accepted.mean() > others.mean() - 3 * error
    if drafter == "close":
        assert accepted.mean() > others.mean() + 3 * error


@pytest.mark.first(1)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_block_fails_the_chi_square(name, monkeypatch):
    old, new = MUTANTS[name]
    text = open(block.__file__).read()
    assert old in text, f"the mutant's line is gone: {old}"
    module = types.ModuleType("mutant")
    text = text.replace(old, new).replace("@njit(parallel=True)", "@njit()").replace("@njit(", "@njit(cache=False, ")
    exec(compile(text, "mutant", "exec"), module.__dict__)
    monkeypatch.setattr(verification, "BLOCK", module.BLOCK)
    found = [generate(drafter, 20_000) for drafter in ("adversarial", "close")]
    assert any(value > freedom + 10 * (2 * freedom) ** 0.5 for value, freedom, _ in found)
