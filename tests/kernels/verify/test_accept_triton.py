"""Verification in Triton: samples equal the reference's, steps equal numba's, and the resources of the compiled kernels."""

from functools import partial

import numpy as np
import pytest
import torch
from doubles import ScriptedDrafter, TableDrafter, TableTarget, make_state
from verification_cases import case, verifications

from foredraft.engine.loop import decode
from foredraft.engine.params import MAX_DRAFT_TOKENS
from foredraft.kernels.core import split_softmax_triton as draw
from foredraft.kernels.core.backend_triton import can_launch, is_interpreted
from foredraft.kernels.core.split_softmax_triton import make_scratch
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.sampling.top_k_top_p_triton import top_k_top_p_triton
from foredraft.kernels.step.commit_triton import commit_triton
from foredraft.kernels.step.end_tokens import MAX_END_TOKENS
from foredraft.kernels.verify import accept_triton as verification
from foredraft.kernels.verify.accept import accept_greedy_reference, accept_reference
from foredraft.kernels.verify.accept_triton import CommitTensors, accept_greedy_triton, accept_sampled_triton
from foredraft.kernels.verify.block import block_reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not can_launch(), reason="needs triton, with its interpreter or a GPU")]
DEVICE = "cpu" if is_interpreted() else "cuda"
SIZES = [(1, 1, 2), (5, 3, 16), (9, 4, 100), (3, 7, 8193), (2, 2, 32100), (2, 1, 32128), (6, 0, 50)]


def make_state_tensors(B, K, C=4, T=12, dtype=torch.float32, device=DEVICE) -> CommitTensors:
    """The tensors of an empty state."""
    def zeros(*shape, dtype=torch.int64):
        return torch.zeros(*shape, dtype=dtype, device=device)

    return CommitTensors(zeros(B, K, dtype=torch.uint8), zeros(B, K + 1, C, dtype=dtype), zeros(B) + T,
                         zeros(B, MAX_END_TOKENS) + 1, zeros(B, T + 1), zeros(B, T + 1, dtype=torch.uint8), zeros(B),
                         zeros(B, dtype=torch.bool),
                         zeros(B, C, dtype=torch.float32), zeros(B), zeros(B), zeros(B), zeros(B, K), zeros(B, K), zeros(B),
                         zeros(B), zeros(B))


def on_device(arguments, B, K, *, tree=False, finished=None, dtype=torch.float32, block=False):
    """verifications() of accept_sampled_triton; all values that it must not read, and its scratch, are NaN."""
    logits, tokens, lengths, parents, dense, draft_logits, lse, temperature, top_k, top_p, seeds, starts = (
        torch.from_numpy(np.ascontiguousarray(item)).to(DEVICE) for item in arguments)
    logits, rows = logits.to(dtype), make_state_tensors(B, K)._replace(lengths=starts)
    if finished is not None:
        rows = rows._replace(finished=torch.from_numpy(finished).to(DEVICE))
    logits[torch.arange(K + 1, device=DEVICE) > lengths[:, None]] = torch.nan
    logits[rows.finished] = torch.nan
    scratch = make_scratch(B, K + 1, logits.shape[2], DEVICE)
    for tensor in scratch[:3]:
        tensor.fill_(torch.nan if tensor.dtype.is_floating_point else -(2**31))
    out = [torch.full(shape, -7, device=DEVICE) for shape in ((B, K + 1), (B,), (B, K + 1))]
    drafts = (draft_logits, lse) if len(draft_logits) else (None, None)
    cuts = (None, None)
    if bool(((top_k > 0) | (top_p < 1)).any()):
        cuts = torch.full((B, K + 1), torch.nan, device=DEVICE), torch.full((B, K + 1), -9, dtype=torch.int32, device=DEVICE)
        top_k_top_p_triton(logits, lengths, rows.finished, temperature, top_k, top_p, *cuts)
    for _ in range(2):  # tickets are zeros again
        accept_sampled_triton(logits, tokens, lengths, parents if tree else None, dense, *drafts, temperature, *cuts, seeds,
                              rows, *out, scratch, False, block)
    tokens, counts, path = (tensor.cpu() for tensor in out)
    return [(tokens[b, : counts[b]].tolist(), path[b, : counts[b]].tolist()) for b in range(B)]


def plain_distributions(arguments):
    """Without top-k and top-p."""
    arguments[8][:], arguments[9][:] = 0, 1.0
    return arguments


@pytest.fixture(params=["several sequences", "one sequence"])
def tiles(request, monkeypatch):
    """A GPU takes one sequence a program; the interpreter takes several."""
    if request.param == "one sequence":
        monkeypatch.setattr(verification, "sequences_per_program", lambda B, weight: 1)


@pytest.fixture
def many_splits(monkeypatch):
    """Splits and sums so small that a vocabulary of 16 has several."""
    for module, name, size in ((draw, "SUB", 2), (draw, "SPLIT", 4), (verification, "CHUNK", 4)):
        monkeypatch.setattr(module, name, size)


@pytest.mark.first(4)
@pytest.mark.parametrize("B, K, V", SIZES)
def test_equals_the_reference(B, K, V, tiles):
    arguments = plain_distributions(case(B, K, V))
    assert on_device(arguments, B, K) == verifications(accept_reference, arguments, B, K)


@pytest.mark.first(4)
@pytest.mark.parametrize("B, K, V", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_top_k_and_top_p(B, K, V, dtype):
    """Of the target; the drafter's are part of the distribution that a draft returns."""
    arguments = case(B, K, V)
    arguments[0] = torch.from_numpy(arguments[0]).to(dtype).float().numpy()
    assert on_device(arguments, B, K, dtype=dtype) == verifications(accept_reference, arguments, B, K)


BLOCKS = [(40, 3, 16), (30, 5, 100), (12, 7, 33), (3, 2, 8193), (2, 2, 32128), (1, 1, 2), (6, 0, 50)]


@pytest.mark.first(4)
@pytest.mark.parametrize("B, K, V", BLOCKS)
@pytest.mark.parametrize("cut", [False, True])
def test_blocks_equal_the_reference(B, K, V, cut, tiles):
    """With point-mass and greedy sequences in the batch; draft values that must not be read are NaN."""
    arguments = case(B, K, V) if cut else plain_distributions(case(B, K, V))
    for argument in (5, 6):
        arguments[argument][np.arange(K) >= arguments[2][:, None]] = np.nan
        arguments[argument][~arguments[4]] = np.nan
    with np.errstate(invalid="ignore"):
        expected = verifications(block_reference, arguments, B, K)
    assert on_device(arguments, B, K, block=True) == expected


def test_blocks_of_all_lengths_are_accepted(many_splits):
    """Every length occurs, and the result differs from token-by-token verification."""
    arguments = plain_distributions(case(80, 6, 16, seed=8))
    arguments[2][:], arguments[7][:], arguments[4][:] = 6, 1.0, True
    expected = verifications(block_reference, arguments, 80, 6)
    assert on_device(arguments, 80, 6, block=True) == expected
    assert {len(tokens) for tokens, _ in expected} == set(range(1, 8))
    assert expected != verifications(accept_reference, arguments, 80, 6)


@pytest.mark.first(1)
@pytest.mark.parametrize("K", [20, MAX_DRAFT_TOKENS])
@pytest.mark.parametrize("block", [False, True])
def test_long_drafts_equal_the_reference(K, block):
    """More query positions than are sampled together, in all kinds of sequences; most drafts are accepted far."""
    B, V, R = 8, 50, K + 1
    arguments = plain_distributions(case(B, K, V, seed=K))
    logits, tokens, lengths, _, dense, distributions, lse, temperature, *cuts, seeds, starts = arguments
    lengths[:] = K - np.arange(B) % 3
    temperature[:] = [1, 0.7, 0, 1, 0.7, 1, 0, 1]
    dense[:] = [1, 1, 0, 0, 0, 1, 0, 1]
    # drafts are what the target samples at each position, except for one token
    alone = [np.zeros((B * R, 0), int), np.zeros(B * R, int), np.zeros((B * R, 0), int), np.zeros(B * R, bool),
             np.zeros((B * R, 0, V), np.float32), np.zeros((B * R, 0))]
    each = [np.repeat(column, R) for column in (temperature, *cuts, seeds, starts)]
    each[-1] = (starts[:, None] + np.arange(R)).ravel()
    drawn = verifications(accept_reference, [logits.reshape(B * R, 1, V), *alone, *each], B * R, 0)
    tokens[:] = np.array([ids for ids, _ in drawn]).reshape(B, R)[:, :K]
    falls = np.arange(B), (8 * np.arange(B) + 4) % K
    tokens[falls] = (tokens[falls] + 1) % V
    # draft distributions equal the target's, except where the wrong token is nearly certain
    distributions[:] = logits[:, :K] / np.where(temperature > 0, temperature, 1)[:, None, None]
    distributions[*falls, tokens[falls]] += 20
    lse[:] = np.log(np.exp(distributions.astype(np.float64)).sum(-1))
    expected = verifications(block_reference if block else accept_reference, arguments, B, K)
    assert on_device(arguments, B, K, block=block) == expected
    assert {len(ids) > 16 for ids, _ in expected} == {True, False}


@pytest.mark.parametrize("V", [15, 16, 100])
def test_many_splits(V, many_splits):
    arguments = plain_distributions(case(30, 2, V, seed=1))
    assert on_device(arguments, 30, 2) == verifications(accept_reference, arguments, 30, 2)


def test_bfloat16_logits():
    arguments = plain_distributions(case(20, 3, 1000, seed=2))
    arguments[0] = torch.from_numpy(arguments[0]).bfloat16().float().numpy()
    assert on_device(arguments, 20, 3, dtype=torch.bfloat16) == verifications(accept_reference, arguments, 20, 3)


def test_point_masses_need_no_draft_distribution():
    arguments = plain_distributions(case(30, 3, 20, seed=3))
    arguments[4] = np.zeros(30, bool)
    expected = verifications(accept_reference, arguments, 30, 3)
    arguments[5], arguments[6] = np.empty((0, 0, 0), np.float32), np.empty((0, 0))
    assert on_device(arguments, 30, 3) == expected


def test_masked_logits_are_never_sampled(many_splits):
    """-inf in whole splits; a draft distribution equal to the target's, whose residual is zero."""
    arguments = plain_distributions(case(60, 2, 16, seed=4))
    arguments[0][:, :, 4:12] = -np.inf
    arguments[1] %= 4
    arguments[0][:, :, 15] = -np.inf
    arguments[5] = arguments[0][:, :2] / np.where(arguments[7] > 0, arguments[7], 1)[:, None, None]
    with np.errstate(divide="ignore"):
        arguments[6] = np.log(np.exp(arguments[5].astype(np.float64)).sum(-1))
    found = on_device(arguments, 60, 2)
    assert found == verifications(accept_reference, arguments, 60, 2)
    assert not {token for tokens, _ in found for token in tokens} & {*range(4, 12), 15}


def test_finished_sequences_are_not_read():
    arguments, finished = plain_distributions(case(9, 2, 50, seed=5)), np.arange(9) % 3 == 0
    found, expected = on_device(arguments, 9, 2, finished=finished), verifications(accept_reference, arguments, 9, 2)
    assert [found[b] for b in range(9) if not finished[b]] == [expected[b] for b in range(9) if not finished[b]]


TREE = np.array([0, 0, 1, 2, 4])


@pytest.mark.first(1)
@pytest.mark.parametrize("tree", [TREE, np.arange(40) // 2])
def test_trees(tree, tiles):
    """Sampled and greedy sequences; a small vocabulary, so that branches are taken."""
    B, K = 60 if verification.sequences_per_program(60, 1) > 1 else 8, len(tree)
    arguments = plain_distributions(case(B, K, 3, seed=6))
    arguments[2][:] = K
    arguments[3], arguments[4] = np.tile(tree, (B, 1)), np.zeros(B, bool)
    arguments[5], arguments[6] = np.empty((0, 0, 0), np.float32), np.empty((0, 0))
    expected = verifications(accept_reference, arguments, B, K)
    assert on_device(arguments, B, K, tree=True) == expected
    assert any(len(path) > 2 and path[1] == 2 for _, path in expected)
    assert K < 16 or B < 60 or any(path[-1] > 16 for _, path in expected)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("B, K", [(1, 0), (1, 1), (50, 5), (9, 40)])
def test_greedy_equals_the_reference(B, K, tree, tiles):
    random = np.random.default_rng(7)
    parents = (TREE[:K] if K <= 5 else np.arange(K) // 2) if tree else np.arange(K)
    arguments = [random.integers(0, 3, (B, K + 1)), random.integers(0, 3, (B, K)), random.integers(0, K + 1, B),
                 np.tile(parents, (B, 1))]
    chosen, tokens, lengths, parents = (torch.from_numpy(item).to(DEVICE) for item in arguments)
    out = [torch.full(shape, -7, device=DEVICE) for shape in ((B, K + 1), (B,), (B, K + 1))]
    accept_greedy_triton(chosen, tokens, lengths, parents if tree else None, make_state_tensors(B, K), *out, False)
    tokens, counts, path = (tensor.cpu() for tensor in out)
    found = [(tokens[b, : counts[b]].tolist(), path[b, : counts[b]].tolist()) for b in range(B)]
    assert found == verifications(accept_greedy_reference, arguments, B, K)


WRITTEN = ("tokens", "proposer", "lengths", "finished", "hidden", "num_steps", "covered", "drafted", "tested_at",
           "accepted_at")


@pytest.mark.first(2)
@pytest.mark.skipif(DEVICE == "cuda", reason="numba's half lies on the CPU")
@pytest.mark.parametrize("temperature", [0.0, 1.0, [0.0, 0.7, 1.0, 1.3, 1.0, 0.0]])
@pytest.mark.parametrize("dense", [False, True, "block"])
def test_steps_equal_numbas_in_all_tensors_of_the_state(temperature, dense):
    """End tokens, limits, finished sequences, counters: verify and commit in one launch, step by step to the end."""
    V, B = 20, 6
    table = torch.randn(30, V, V, generator=torch.Generator().manual_seed(9))
    disturbed = table + torch.randn(30, V, V, generator=torch.Generator().manual_seed(10))

    def run(backend):
        states = []
        state = make_state(B, [12, 3, 9, 10, 12, 1], [3, 4, 4, 2, 4, 0], V, temperature=temperature, end_token=7,
                           backend=backend)
        state.block = dense == "block"
        drafter = TableDrafter(disturbed) if dense else ScriptedDrafter(
            truth, lambda row, at: (row + at) % 4 == 1, lambda row, round_: (row + round_) % 6, V)
        decode(state, TableTarget(table, 7), drafter,
               lambda state: states.append({name: getattr(state, name).clone() for name in WRITTEN}))
        return states

    truth = torch.randint(0, V, (B, 25), generator=torch.Generator().manual_seed(11)).tolist()
    numba, triton = run("numba"), run("triton")
    assert len(triton) > 2
    for ours, theirs in zip(triton, numba, strict=True):
        for name in WRITTEN:
            # column T of tokens and proposer is a spill slot
            a, b = (item[name][:, :-1] if name in ("tokens", "proposer") else item[name] for item in (ours, theirs))
            assert torch.equal(a, b), name


def verifications_at_real_sizes(kind="float32", dense=False, cut=False, block=False, tree=False, K=5):
    """Sampled verification: float32 logits, as in a step, or bfloat16, as in bench/gpu/verification_peers.py."""
    B, V, device = 8, 32128, "cpu"
    rows = make_state_tensors(B, K, C=2048, T=128, device=device)
    ids, counts, temperature = torch.zeros(B, K + 1, dtype=torch.int64), torch.zeros(B, dtype=torch.int64), torch.empty(B)
    distributions = (torch.empty(B, K, V), torch.empty(B, K, dtype=torch.float64)) if dense else (None, None)
    cuts = (torch.empty(B, K + 1), torch.empty(B, K + 1, dtype=torch.int32)) if cut else (None, None)
    logits, parents = torch.empty(B, K + 1, V, dtype=getattr(torch, kind)), ids if tree else None
    accept_sampled_triton(logits, ids, counts, parents, counts > 0, *distributions, temperature, *cuts, counts, rows, ids,
                          counts, ids, make_scratch(B, K + 1, V, device), not tree, block)
    accept_greedy_triton(ids, ids, counts, parents, rows, ids, counts, ids, not tree)
    if tree:
        commit_triton(ids, counts, ids, counts, ids, *rows)


point_masses, bfloat16, trees = (
    partial(verifications_at_real_sizes, **kinds) for kinds in (dict(cut=True), dict(kind="bfloat16"), dict(tree=True)))
dense_drafts, block_drafts = (partial(verifications_at_real_sizes, dense=True, cut=True, block=block) for block in (False,
                                                                                                                    True))
longest_drafts, longest_blocks = (
    partial(verifications_at_real_sizes, dense=True, cut=True, block=block, K=MAX_DRAFT_TOKENS) for block in (False, True))
longest_trees = partial(verifications_at_real_sizes, tree=True, K=MAX_DRAFT_TOKENS)
# registers of a thread: two programs of eight warps share a multiprocessor's 65,536 registers; with block verification or
# long drafts, one program has it alone
COMPILED = {"point_masses": 128, "bfloat16": 128, "trees": 128, "dense_drafts": 128, "block_drafts": 192,
            "longest_drafts": 255, "longest_blocks": 255, "longest_trees": 255}


@pytest.mark.full
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_for_three_machines(name):
    found, most = costs(f"{__file__}:{name}"), COMPILED[name]
    names = ["_accept_kernel", "_greedy_kernel"] + ["_commit_kernel"] * ("trees" in name)
    assert [cost.kernel for cost in found[::3]] == names
    assert all(cost.registers <= most and cost.spills <= 32 and cost.shared < 16_384 for cost in found), found
