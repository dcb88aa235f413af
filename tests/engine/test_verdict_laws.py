"""The laws of sampled rounds on the Triton verdict, and broken variants of it that they must catch."""

import importlib.util

import pytest
import torch
from doubles import ScriptedDrafter, TableTarget, joint_chi_square, make_state

from foredraft.engine import judge
from foredraft.engine.decode import decode
from foredraft.engine.draft_none import NoDrafter
from foredraft.kernels import verdict
from foredraft.kernels.backend import HAS_TRITON

pytestmark = pytest.mark.skipif(not HAS_TRITON or torch.cuda.is_available(), reason="needs triton's interpreter")

SAMPLED = {
    "the residual is the target's law": (" - tl.exp(y - lse[:, None])", ""),
    "q is left out of the test": ("coin * tl.exp(qx - lse) <= p", "coin <= p"),
    "draft and coin share their noise": ("jr * 0 + _ACCEPT, start", "jr * 0 + 1, start"),
    "p comes from the row before": ("logits + jrow * V + draft", "logits + tl.maximum(jrow - 1, 0) * V + draft"),
    "the noise forgets the round": ("_ACCEPT, start, jr)", "_ACCEPT, jr * 0, jr)"),
    "splits keep their own scale": ("(part * tl.exp((level - best[:, None]) * rate[:, None]))", "part"),
    "weights before the drawn ids are forgotten": ("reached > (threshold - before)", "reached > (threshold)"),
}
GREEDY = {
    "any draft stands": ("mask=tested, other=0) == token)", "mask=tested, other=0) == token) | tested"),
    "the answer comes from the row after": ("(K + 1) + n, mask=inside[:, None] & (n <= proposed",
                                            "(K + 1) + tl.minimum(n + 1, K), mask=inside[:, None] & (n <= proposed"),
}


@pytest.fixture
def many_splits(monkeypatch):
    """Splits and sums that a vocabulary of 16 already fills."""
    for name, size in (("SUB", 4), ("SPLIT", 8), ("CHUNK", 8)):
        monkeypatch.setattr(verdict, name, size)


def mutate(old: str, new: str, folder):
    """verdict.py with `old` replaced by `new`; a file, for Triton reads a kernel's source from one."""
    text = open(verdict.__file__).read()
    assert old in text, f"the mutant's line is gone: {old}"
    file = folder / "mutant.py"
    file.write_text(text.replace(old, new).replace("= 256, 4096, 1024", "= 4, 8, 8"))
    spec = importlib.util.spec_from_file_location("mutant", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_lawful(drafter: str, trials: int) -> bool:
    value, freedom = joint_chi_square(drafter, trials, rows=trials, backend="triton")
    return value < freedom + 10 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("drafter", ["adversarial", "close"])
def test_sampled_tokens_follow_the_target(drafter, many_splits):
    assert is_lawful(drafter, trials=60_000)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_broken_sampled_verdict_fails_the_chi_square(name, monkeypatch, tmp_path, many_splits):
    monkeypatch.setattr(judge, "verdict_triton", mutate(*SAMPLED[name], tmp_path).verdict_triton)
    assert not all(is_lawful(drafter, trials=12_000) for drafter in ("adversarial", "close"))


@pytest.mark.parametrize("name", GREEDY)
def test_a_broken_greedy_verdict_changes_the_output(name, monkeypatch, tmp_path):
    table = torch.randn(30, 20, 20, generator=torch.Generator().manual_seed(1))
    plain = make_state(2, 20, 0, 20, end_token=-1)
    decode(plain, TableTarget(table), NoDrafter())
    truth = plain.tokens[:, 1:21].tolist()

    def speculative():
        state = make_state(2, 20, 3, 20, end_token=-1, backend="triton")
        decode(state, TableTarget(table), ScriptedDrafter(truth, lambda row, at: at % 3 == 1, vocabulary=20))
        return state.tokens[:, 1:21].tolist()

    assert speculative() == truth
    monkeypatch.setattr(judge, "verdict_greedy_triton", mutate(*GREEDY[name], tmp_path).verdict_greedy_triton)
    assert speculative() != truth
