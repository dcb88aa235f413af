"""Deliberately broken verifications: the distributions of test_loop.py must catch every one of them."""

import types

import pytest
import torch
from doubles import ScriptedDrafter, TableTarget, joint_chi_square, make_state

from foredraft.engine import verify as engine_verify
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.loop import decode
from foredraft.kernels.verify import accept

SAMPLED = {
    "the residual is the target's distribution": (
        "rest = p[i] * scale - exp32(draft_logits[i] - lse)", "rest = p[i] * scale"),
    "the acceptance test ignores q": ("start, i) * q <= p[token]", "start, i) <= p[token]"),
    "draft and acceptance test share their noise": ("uniform(seed, ACCEPT, start, i)", "uniform(seed, 1, start, i)"),
    "the distribution is the previous position's": ("warp_loop(logits[r],", "warp_loop(logits[max(r - 1, 0)],"),
    "the noise ignores the step": ("uniform(seed, ACCEPT, start, i)", "uniform(seed, ACCEPT, 0, i)"),
}
GREEDY = {
    "every draft is accepted": (" and draft_tokens[i] == token", ""),
    "the token is the next position's": ("= chosen[b, r]", "= chosen[b, min(r + 1, chosen.shape[1] - 1)]"),
}


def mutate(old: str, new: str) -> types.ModuleType:
    """accept.py with `old` replaced by `new` in its compiled half, compiled afresh."""
    text = open(accept.__file__).read()
    start = text.index("@njit()\ndef _child")
    assert old in text[start:], f"the mutant's line is gone: {old}"
    text = text[:start] + text[start:].replace(old, new)
    module = types.ModuleType("mutant")
    module.__dict__["__name__"] = "mutant"
    text = text.replace("@njit(parallel=True)", "@njit()").replace("@njit(", "@njit(cache=False, ")
    exec(compile(text, "mutant", "exec"), module.__dict__)
    return module


@pytest.mark.first(2)
@pytest.mark.parametrize("name", SAMPLED)
def test_a_broken_sampled_verification_fails_the_chi_square(name, monkeypatch):
    monkeypatch.setattr(engine_verify, "ACCEPT_SAMPLED", mutate(*SAMPLED[name]).ACCEPT_SAMPLED)
    values = [joint_chi_square(drafter, trials=60_000) for drafter in ("adversarial", "close")]
    assert any(value > freedom + 10 * (2 * freedom) ** 0.5 for value, freedom in values)


@pytest.mark.parametrize("name", GREEDY)
def test_a_broken_greedy_verification_changes_the_output(name, monkeypatch):
    table = torch.randn(30, 20, 20, generator=torch.Generator().manual_seed(1))
    plain = make_state(2, 20, 0, 20, end_token=-1)
    decode(plain, TableTarget(table), NoDrafter())
    truth = plain.tokens[:, 1:21].tolist()

    def speculative():
        state = make_state(2, 20, 3, 20, end_token=-1)
        decode(state, TableTarget(table), ScriptedDrafter(truth, lambda row, at: at % 3 == 1, vocabulary=20))
        return state.tokens[:, 1:21].tolist()

    assert speculative() == truth
    monkeypatch.setattr(engine_verify, "ACCEPT_GREEDY", mutate(*GREEDY[name]).ACCEPT_GREEDY)
    assert speculative() != truth
