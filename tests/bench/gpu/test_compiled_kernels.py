"""Whole steps compiled for machines that are not present: every launch compiles and fits."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from foredraft.bench.gpu import compiled_kernels
from foredraft.bench.gpu.compiled_kernels import fits, step_of
from foredraft.bench.gpu.roofline import Step
from foredraft.engine.params import MAX_DRAFT_TOKENS
from foredraft.errors import UserError
from foredraft.kernels.core.backend_triton import HAS_TRITON, is_interpreted
from foredraft.kernels.core.triton_compile import Cost, costs, lower

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
PASS = {"_step_inputs_kernel", "_embed_kernel", "_qkv_kernel", "_self_attention_kernel", "_add_kernel", "_project_kernel",
        "_cross_attention_kernel", "_gate_kernel", "_final_norm_kernel"}
GREEDY, SAMPLED = PASS | {"_choose_kernel", "_greedy_kernel"}, PASS | {"_logits_kernel", "_accept_kernel"}
COPY = {"_drafter_inputs_kernel", "_mix_kernel", "_vocabulary_kernel", "_draft_lengths_kernel"}
# geometry, step, storage: together they cover the variants of a step's kernels
STEPS = {
    "greedy": ("flan-t5-xl", Step(8, 5, position=128), "bf16"),
    "sampled": ("flan-t5-xl", Step(1, 5, position=128, sampled=True, cuts=True, drafter="t5shallow"), "bf16"),
    "recurrent": ("flan-t5-base", Step(8, 3, position=128, sampled=True, drafter="lstm"), "bf16"),
    "convolution": ("flan-t5-large", Step(128, 3, position=128, drafter="cnn"), "bf16"),
    "table": ("t5-small", Step(128, 8, position=128, drafter="lookup+ngram"), "bf16"),
    "plain": ("flan-t5-small", Step(1, 0, position=128, sampled=True, drafter="none"), "fp32"),
    "trees": ("flan-t5-base", Step(8, 5, position=128, sampled=True, drafter="tree"), "bf16"),
    "wide": ("flan-t5-xl", Step(1, 5, position=128, sampled=True, cuts=True, drafter="ngram"), "fp32"),
    "longest": ("flan-t5-xl", Step(8, MAX_DRAFT_TOKENS, position=128, sampled=True, cuts=True, drafter="lookup"), "bf16"),
    "longest trees": ("flan-t5-base", Step(8, MAX_DRAFT_TOKENS, position=128, sampled=True, drafter="tree"), "bf16"),
}
# the kernels of each, and their number of variants by types, sizes of the model and alignments
KERNELS = {
    "greedy": (GREEDY | {"_prompt_lookup_kernel"}, 13),
    "sampled": (SAMPLED | {"_drafter_inputs_kernel", "_vocabulary_kernel", "_top_k_top_p_kernel", "_sample_kernel",
                           "_draft_lengths_kernel"}, 21),
    "recurrent": (SAMPLED | COPY | {"_cell_kernel", "_sample_kernel"}, 21),
    "convolution": (GREEDY | COPY | {"_convolution_kernel"}, 21),
    "table": (GREEDY | {"_prompt_lookup_kernel"}, 13),
    "plain": (SAMPLED, 12),
    "trees": (SAMPLED | {"_commit_kernel"}, 13),
    "wide": (SAMPLED | {"_ngram_lookup_kernel", "_top_k_top_p_kernel"}, 14),
    "longest": (SAMPLED | {"_prompt_lookup_kernel", "_top_k_top_p_kernel"}, 14),
    "longest trees": (SAMPLED | {"_commit_kernel"}, 13),
}


def recorded(name):
    return lambda: step_of(*STEPS[name])()


greedy, sampled, recurrent, convolution, table, plain, trees, wide, longest, longest_trees = map(recorded, STEPS)


# `make test-all` puts it there: the version of the GPU machine, beside the environment's own
OLDER = Path(sys.prefix) / "triton-3.6.0"
# every kernel: drafter, whether it samples, storage
ROUNDS = [(Step(8, 5, position=128, drafter=drafter, sampled=sampled, cuts=sampled), stored)
          for stored, sampled, drafters in (
              ("bf16", False, ("lookup", "lookup+ngram", "ngram", "cnn", "tree")),
              ("bf16", True, ("t5shallow", "lstm", "tree")),
              ("fp32", False, ("none", "lstm", "cnn")), ("fp32", True, ("t5shallow",))) for drafter in drafters]
# every size that passes of one model may differ in: batch, drafts, source; alone, multiples of sixteen and others
ROUNDS += [(Step(B, K, source, 128, drafter="none"), stored)
           for B, K, source in ((1, 0, 300), (1, 15, 1000), (4, 5, 300), (16, 31, 300)) for stored in ("bf16", "fp32")]
# the constants that a model fixes; its passes must give the same bits whatever the others are
FIXED = ("H", "D", "C", "F", "K", "N_ALL", "V", "ACTIVATION", "GATED", "SOURCE_SCORES")


def rounds():
    for each, stored in ROUNDS:
        step_of("flan-t5-base", each, stored)()


@pytest.mark.full
@pytest.mark.parametrize("triton", [None, OLDER], ids=["current", "3.6.0"])
def test_every_kernel_lowers_and_a_pass_of_any_size_sums_in_one_order(triton):
    if triton is not None and not triton.is_dir():
        pytest.skip(f"{triton} is missing: pip install --no-deps --target {triton} triton==3.6.0")
    found, orders = lower(f"{__file__}:rounds", "sm_90", triton), defaultdict(set)
    for each in found:
        types = [kind for kind in each.types if kind.startswith("*")]
        orders[each.kernel, *types, *(each.constants.get(name) for name in FIXED)].add(each.sums)
    assert {each.kernel for each in found} == set().union(*(kernels for kernels, _ in KERNELS.values()))
    several = {key: list(found) for key, found in orders.items()
               if len(found) > 1 and key[0] in PASS | {"_choose_kernel", "_logits_kernel"}}
    assert not several


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_every_launch_of_a_step_compiles_and_fits(name):
    found, (kernels, codes) = costs(f"{__file__}:{name.replace(' ', '_')}"), KERNELS[name]
    assert {cost.kernel for cost in found} == kernels and len(found) == 3 * codes, Counter(cost.kernel for cost in found)
    assert all(fits(cost) and cost.spills <= 64 for cost in found), [
        cost for cost in found if not fits(cost) or cost.spills > 64]


def test_a_kernel_too_large_does_not_fit():
    assert fits(Cost("k", "sm_80", 255, 163 * 1024, 0, 1, 4))
    assert not fits(Cost("k", "sm_80", 255, 164 * 1024, 0, 1, 4)) and not fits(Cost("k", "sm_90", 256, 0, 0, 1, 4))


@pytest.mark.full
def test_the_script_lists_the_cost_of_kernels():
    command = [sys.executable, "-m", "foredraft.bench.gpu.compiled_kernels", "--geometry", "flan-t5-small", "--machines",
               "sm_90", "--only", "final_norm", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {
        "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    (row,) = json.loads(last)["compiled"]
    assert row["kernel"] == "_final_norm_kernel" and row["registers"] > 0 and row["fits"] and "registers" in said[0]


def test_what_is_not_known_is_refused_in_a_line(script):
    cases = [(["--machines", "sm_10"], "not known"), (["--weights", "int8"], "one of fp32, bf16")]
    if is_interpreted():
        cases.append(([], "leave TRITON_INTERPRET unset"))
    for options, message in cases:
        code, _, err = script(compiled_kernels, *options)
        assert code == 2 and message in err
    with pytest.raises(UserError, match="one of none, lookup"):
        step_of("flan-t5-small", Step(drafter="head"))
    with pytest.raises(UserError, match="geometry 'gpt' is not known"):
        step_of("gpt", Step())
