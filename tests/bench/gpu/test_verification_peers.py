"""The verification's bench, tiny and interpreted: every path runs, and all three methods answer the same question."""

import pytest
import torch

from foredraft.bench.gpu.sizes import Sizes
from foredraft.bench.gpu.verification_peers import Case, check_verification, measure_verification, race
from foredraft.kernels.core.backend_triton import HAS_TRITON, is_interpreted

pytestmark = pytest.mark.skipif(not is_interpreted(), reason="needs triton's interpreter")


@pytest.mark.full
def test_every_method_is_timed():
    sizes = Sizes(device="cpu", repeats=1)
    records = list(measure_verification(sizes, cases=[(1, 1), (3, 2)], V=100, megabytes=0))
    assert len(records) == 4 and all(record[name] > 0 for record in records
                                     for name in ("ours_us", "transformers_us", "vllm_us"))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", ["ours", "transformers", "vllm"])
def test_each_method_draws_the_target_s_distribution(method, dense):
    """The first token's frequencies over many sequences with the same logits."""
    V, B = 8, 4000
    case = Case("cpu", B, 1, V, dense, 1, C=1)
    case.logits[:] = case.logits[:, :1].clone()
    case.seeds = torch.arange(B)
    if dense:
        case.draft_logits[:] = case.draft_logits[:, :1].clone()
        case.draft_lse = torch.logsumexp(case.draft_logits, -1).double()
        case.drafts[0] = race(torch.softmax(case.draft_logits[0], -1))
    else:
        case.drafts[:] = 3
    torch.manual_seed(5)
    getattr(case, method)()
    counts = torch.bincount(case.tokens[:, 0], minlength=V).double()
    expected = torch.softmax(case.logits[0, 0, 0].double(), -1) * B
    common = expected > 5
    value = float(((counts - expected) ** 2 / expected)[common].sum())
    freedom = int(common.sum()) - 1
    assert value < freedom + 10 * (2 * freedom) ** 0.5


@pytest.mark.full
def test_a_broken_verification_fails_the_check(monkeypatch):
    assert HAS_TRITON and all(row["passed"] for row in check_verification("cpu", 50))
    monkeypatch.setattr(Case, "ours", Case.transformers)
    assert not all(row["passed"] for row in check_verification("cpu", 50))
