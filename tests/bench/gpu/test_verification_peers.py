"""The verification's bench, tiny and interpreted: every path runs, and all three methods answer the same question."""

import json
import os
import subprocess
import sys

import pytest
import torch

from foredraft.bench.gpu.verification_peers import Case, check_verification, race
from foredraft.kernels.core.backend import HAS_TRITON, is_interpreted

pytestmark = pytest.mark.skipif(not is_interpreted(), reason="needs triton's interpreter")


@pytest.mark.full
def test_a_dry_run_prints_a_table_and_json():
    done = subprocess.run([sys.executable, "-m", "foredraft.bench.gpu.verification_peers", "--dry-run"], capture_output=True,
                          text=True,
                          env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["passed"] for row in rows[:2]] == [True, True]
    assert len(rows) == 6 and all(row[name] > 0 for row in rows[2:] for name in ("ours_us", "transformers_us", "vllm_us"))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", ["ours", "transformers", "vllm"])
def test_each_method_draws_the_target_s_distribution(method, dense):
    """The first token's frequencies over many rows with the same logits."""
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


def test_a_broken_verification_fails_the_check(monkeypatch):
    assert HAS_TRITON and all(row["passed"] for row in check_verification("cpu", 50))
    monkeypatch.setattr(Case, "ours", Case.transformers)
    assert not all(row["passed"] for row in check_verification("cpu", 50))
