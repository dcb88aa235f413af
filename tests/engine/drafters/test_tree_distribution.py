"""Sampled trees follow the target's distribution, in both forms, and broken variants do not."""

from __future__ import annotations

import types

import pytest
import torch
from doubles import TableTarget, TreeTableDrafter, chi_square, make_state

from foredraft.engine import verify as verification
from foredraft.engine.drafters.tree_shape import Shape
from foredraft.engine.loop import decode
from foredraft.kernels.drafting import tree_children as branch
from foredraft.kernels.verify import accept

V = 5


def tables(drafter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [positions, V, V] of the target and of the drafter."""
    generator = torch.Generator().manual_seed(7)
    table = 1.5 * torch.randn(4, V, V, generator=generator)
    return table, -table if drafter == "adversarial" else table + torch.randn(4, V, V, generator=generator)


def generations(drafter: str, shape: str, replaced: bool, new: int, trials: int, children=branch.children_loop,
                top_k: int = 0) -> tuple[float, int, float]:
    """chi-square of the first `new` tokens' joint distribution, its degrees of freedom, and tokens per step; the outputs are
    long enough for the whole tree."""
    table, q = tables(drafter)
    tree = Shape.parse(shape).tree(replaced)
    K = len(tree.parents)
    state = make_state(trials, new + K, K, V, temperature=1.0, top_k=top_k, end_token=-1)
    decode(state, TableTarget(table), TreeTableDrafter(q, tree, children))
    cells = torch.zeros(trials, dtype=torch.int64)
    joint = torch.ones(1, dtype=torch.float64)
    for place in range(new):
        cells = cells * V + state.tokens[:, place + 1]
        logits = table[place].double()
        if top_k:
            logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
        distribution = torch.softmax(logits, -1)
        joint = distribution[0] if place == 0 else (joint.view(-1, V)[:, :, None] * distribution[None]).reshape(-1)
    counts = torch.bincount(cells, minlength=V**new)
    assert not counts[joint == 0].any()
    # cells of fewer than five expected go together
    common = joint * trials >= 5
    counts, joint = (torch.cat((x[common], x[~common].sum()[None])) for x in (counts, joint))
    kept = joint * trials >= 1
    return *chi_square(counts[kept], joint[kept] / joint[kept].sum()), (new + K) * trials / float(state.num_steps.sum())


def is_lossless(*arguments, **options) -> bool:
    value, freedom, _ = generations(*arguments, **options)
    return value < freedom + 10 * (2 * freedom) ** 0.5


@pytest.mark.first(2)
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("drafter", ["adversarial", "close"])
def test_the_first_token_after_one_node(drafter, replaced):
    assert is_lossless(drafter, "3", replaced, 1, 60_000)
    # more children than the distribution has tokens
    assert is_lossless(drafter, "3", replaced, 1, 20_000, top_k=2)


@pytest.mark.full
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("drafter", ["adversarial", "close"])
def test_the_joint_distribution_of_two_tokens_and_of_whole_generations(drafter, replaced):
    assert is_lossless(drafter, "2x2", replaced, 2, 60_000)
    assert is_lossless(drafter, "2x1x2", replaced, 3, 60_000)


def test_siblings_raise_the_tokens_per_step():
    """Tokens per step: more with two children than with one, more without replacement than with it."""
    chain, independent, without = (generations("close", shape, replaced, 4, 4_000)[2] for shape, replaced in (
        ("1x1", False), ("3x2", True), ("3x2", False)))
    assert without > independent > chain > 1


def mutant(module: types.ModuleType, old: str, new: str) -> types.ModuleType:
    """A kernel's file with `old` replaced by `new` in its compiled half, compiled afresh."""
    text = open(module.__file__).read()
    start = text.index("@njit()")
    assert old in text[start:], f"the mutant's line is gone: {old}"
    made = types.ModuleType("mutant")
    text = text[:start] + text[start:].replace(old, new)
    text = text.replace("@njit(parallel=True)", "@njit()").replace("@njit(", "@njit(cache=False, ")
    exec(compile(text, "mutant", "exec"), made.__dict__)
    return made


VERIFICATIONS = {
    "the residual is not updated": ("p, residual, total = residual, p, mass", "pass"),
    "the residual is not normalised": ("p, residual, total = residual, p, mass", "p, residual = residual, p"),
    "the residual is the first sibling's": ("draft_logits[i], np.float32(draft_lse[i])",
                                            "draft_logits[r], np.float32(draft_lse[r])"),
    "siblings share a coin": ("uniform(seed, ACCEPT, start, i)", "uniform(seed, ACCEPT, start, r)"),
}
DRAFTS = {
    "the distribution is not renormalised": ("total = sum_loop(weights)", "total = total + 0.0"),
    "siblings are drawn again": ("weights[at] = np.float32(0.0)", "pass"),
    "siblings share their noise": ("uniform(seed, DRAFT, start, i)", "uniform(seed, DRAFT, start, first)"),
}
CASES = [(drafter, shape, replaced, 2, 20_000) for drafter in ("adversarial", "close")
         for shape, replaced in (("3", False), ("3", True), ("2x2", False))]


@pytest.mark.first(1)
@pytest.mark.parametrize("name", VERIFICATIONS)
def test_a_broken_verification_fails_the_chi_square(name, monkeypatch):
    monkeypatch.setattr(verification, "ACCEPT_SAMPLED", mutant(accept, *VERIFICATIONS[name]).ACCEPT_SAMPLED)
    assert not all(is_lossless(*case) for case in CASES)


@pytest.mark.full
@pytest.mark.parametrize("name", DRAFTS)
def test_a_broken_draft_fails_the_chi_square(name):
    children = mutant(branch, *DRAFTS[name]).children_loop
    assert not all(is_lossless(*case, children=children) for case in CASES)
