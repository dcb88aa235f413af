"""The distributions of sampled steps on the Triton verification, and broken variants of it that they must catch."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles import ScriptedDrafter, TableTarget, chi_square, joint_chi_square, make_state

from foredraft.engine import verify_cuda
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.loop import decode
from foredraft.engine.protocols import Drafter
from foredraft.engine.sampling.draft_sampling import dense_draft, sample_into
from foredraft.kernels.core import split_softmax_triton
from foredraft.kernels.core.backend_triton import can_launch, is_interpreted
from foredraft.kernels.sampling.top_k_top_p import warp_reference
from foredraft.kernels.verify import accept_triton, decide_triton, residual_triton

pytestmark = pytest.mark.skipif(not can_launch(), reason="needs triton, with its interpreter or a GPU")
ON_GPU = not is_interpreted()
DEVICE = "cuda" if ON_GPU else "cpu"

SAMPLED = {
    "the residual is the target's distribution": (" - tl.exp(y - lse[:, None])", ""),
    "the acceptance test ignores q": ("coin * tl.exp(qx - lse) <= p", "coin <= p"),
    "draft and acceptance test share their noise": ("jr * 0 + _ACCEPT, start", "jr * 0 + 1, start"),
    "p is the previous position's": ("logits + jrow * V + draft", "logits + tl.maximum(jrow - 1, 0) * V + draft"),
    "the noise ignores the step": ("_ACCEPT, start, jr)", "_ACCEPT, jr * 0, jr)"),
    "splits keep their own scale": ("(part * tl.exp((level - best[:, None]) * rate[:, None]))", "part"),
    "weights before the chosen tokens are ignored": ("reached > (threshold - before)", "reached > (threshold)"),
}
BLOCKS = {
    "the residual is a single token's": ("(part / tl.where(active", "(1.0 / tl.where(active"),
    "a block is accepted by its last test alone": ("(u * (mass + 1.0 - part) <= mass)", "(u <= part)"),
    "the residual is sampled at a single token's scale": ("(tl.sum(tl.where(here, prefix, 0.0), axis=1) / total_at)",
                                                    "(1.0 / total_at)"),
}
GREEDY = {
    "every draft is accepted": ("mask=tested, other=0) == token)", "mask=tested, other=0) == token) | tested"),
    "the token is the next position's": ("(K + 1) + n, mask=inside[:, None] & (n <= proposed",
                                            "(K + 1) + tl.minimum(n + 1, K), mask=inside[:, None] & (n <= proposed"),
}


@pytest.fixture
def many_splits(monkeypatch):
    """Splits and sums that a vocabulary of 16 already fills."""
    sizes = (split_softmax_triton, "SUB", 4), (split_softmax_triton, "SPLIT", 8), (accept_triton, "CHUNK", 8)
    for module, name, size in sizes:
        monkeypatch.setattr(module, name, size)


def mutate(old: str, new: str, folder, monkeypatch):
    """accept_triton.py and the files it is built on, with `old` replaced by `new`; small splits as in many_splits."""
    texts = {module.__name__.rpartition(".")[2]: Path(module.__file__).read_text()
             for module in (split_softmax_triton, residual_triton, decide_triton, accept_triton)}
    assert any(old in text for text in texts.values()), f"the mutant's line is gone: {old}"
    for name, text in texts.items():
        # a file, for Triton reads a kernel's source from one
        file = folder / f"mutant_{name}.py"
        file.write_text(text.replace(old, new).replace("SUB, SPLIT = 256, 4096", "SUB, SPLIT = 4, 8").replace(
            "CHUNK, POSITIONS = 1024, 16", "CHUNK, POSITIONS = 8, 16").replace(
            "foredraft.kernels.core.split_softmax_triton", "mutant_split_softmax_triton").replace(
            "foredraft.kernels.verify.residual_triton", "mutant_residual_triton").replace(
            "foredraft.kernels.verify.decide_triton", "mutant_decide_triton"))
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, file.stem, module)
        spec.loader.exec_module(module)
    return module


def is_lossless(drafter: str, trials: int, block: bool = False) -> bool:
    """On a GPU of ten times as many trials."""
    trials *= 1 + 9 * ON_GPU
    value, freedom = joint_chi_square(drafter, trials, rows=trials, backend="triton", block=block, device=DEVICE)
    return value < freedom + 10 * (2 * freedom) ** 0.5


@pytest.mark.first(2)
@pytest.mark.gpu
@pytest.mark.parametrize("drafter", ["adversarial", "close"])
@pytest.mark.parametrize("block", [False, True])
def test_sampled_tokens_follow_the_target(drafter, block, many_splits):
    assert is_lossless(drafter, trials=20_000, block=block)


class Distributions(Drafter):
    """A target, or a drafter, whose distribution depends on nothing; logits [V] of its own device."""

    name, start_token, end_token = "distributions", 0, -1

    def __init__(self, logits: torch.Tensor):
        self.row = logits
        self.kept = None

    def decode(self, tokens, positions, parents=None):
        return self.row.expand(*tokens.shape, -1).contiguous()

    def logits(self, hidden):
        return hidden

    def draft(self, state, budget=None):
        if self.kept is None:
            self.kept = dense_draft(state, len(self.row))
        for place in range(state.max_draft):
            sample_into(self.kept, place, self.row.expand(state.batch_size, -1).contiguous(), state)
        self.kept.lengths.copy_(state.allowed(budget))
        return self.kept


@pytest.mark.first(1)
@pytest.mark.gpu
@pytest.mark.parametrize("distribution", [dict(), dict(top_k=40, top_p=0.95)])
def test_wide_vocabulary_follows_the_target(distribution):
    """The second token, after drafts from the reversed distribution, binned where fewer than five are expected."""
    V, trials, rows = (32128, 400_000, 1000) if ON_GPU else (500, 2_000, 2000)
    if distribution and not ON_GPU:
        V, trials, rows = 100, 800, 800
    logits = 2 * torch.randn(V, generator=torch.Generator().manual_seed(8))
    counts = torch.zeros(V, dtype=torch.int64, device=DEVICE)
    target, q = logits.to(DEVICE), logits.flip(0).to(DEVICE) * 0.5
    for start in range(0, trials, rows):
        state = make_state(rows, 2, 1, V, temperature=1.0, seeds=range(start, start + rows), end_token=-1, backend="triton",
                           device=DEVICE, **distribution)
        decode(state, Distributions(target), Distributions(q))
        counts += torch.bincount(state.tokens[:, 2], minlength=V)
    weights = np.empty(V, np.float32)
    top_k, top_p = distribution.get("top_k", 0), float(np.float32(distribution.get("top_p", 1.0)))
    warp_reference(logits.numpy(), 1.0, top_k, top_p, weights)
    counts, p = counts.cpu(), torch.from_numpy(weights).double() / float(weights.sum(dtype=np.float64))
    assert not counts[p == 0].any()
    common = p * trials >= 5
    if common.all() or not (p[~common].sum() * trials > 5):
        counts, p = counts[common], p[common] / p[common].sum()
    else:
        counts, p = (torch.cat((x[common], x[~common].sum()[None])) for x in (counts, p))
    value, freedom = chi_square(counts, p)
    assert freedom > 10 and value < freedom + 10 * (2 * freedom) ** 0.5


@pytest.mark.first(2)
@pytest.mark.gpu
@pytest.mark.parametrize("name", SAMPLED)
def test_a_broken_sampled_verification_fails_the_chi_square(name, monkeypatch, tmp_path, many_splits):
    broken = mutate(*SAMPLED[name], tmp_path, monkeypatch)
    monkeypatch.setattr(verify_cuda, "accept_sampled_triton", broken.accept_sampled_triton)
    assert not all(is_lossless(drafter, trials=12_000) for drafter in ("adversarial", "close"))


@pytest.mark.first(1)
@pytest.mark.gpu
@pytest.mark.parametrize("name", BLOCKS)
def test_a_broken_block_fails_the_chi_square(name, monkeypatch, tmp_path, many_splits):
    broken = mutate(*BLOCKS[name], tmp_path, monkeypatch)
    monkeypatch.setattr(verify_cuda, "accept_sampled_triton", broken.accept_sampled_triton)
    assert not all(is_lossless(drafter, trials=20_000, block=True) for drafter in ("adversarial", "close"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", GREEDY)
def test_a_broken_greedy_verification_changes_the_output(name, monkeypatch, tmp_path):
    table = torch.randn(30, 20, 20, generator=torch.Generator().manual_seed(1))
    plain = make_state(2, 20, 0, 20, end_token=-1)
    decode(plain, TableTarget(table), NoDrafter())
    truth = plain.tokens[:, 1:21].tolist()

    def speculative():
        state = make_state(2, 20, 3, 20, end_token=-1, backend="triton", device=DEVICE)
        decode(state, TableTarget(table.to(DEVICE)), ScriptedDrafter(truth, lambda row, at: at % 3 == 1, vocabulary=20))
        return state.tokens[:, 1:21].tolist()

    assert speculative() == truth
    broken = mutate(*GREEDY[name], tmp_path, monkeypatch)
    monkeypatch.setattr(verify_cuda, "accept_greedy_triton", broken.accept_greedy_triton)
    assert speculative() != truth
