"""verify: which kernel it calls with which arguments, against the kernels' references."""

import numpy as np
import pytest
import torch
from doubles import make_state
from verification_cases import case, outputs, verifications

from foredraft.engine import verify_cuda
from foredraft.engine.state import Draft, Verification
from foredraft.engine.verify import verify
from foredraft.kernels.verify.accept import accept_greedy_reference, accept_reference
from foredraft.kernels.verify.big_little_rollback import rollback_reference
from foredraft.kernels.verify.block import block_reference

B, K, V = 40, 5, 12


class Logits:
    """A target whose hidden states are its logits."""

    def logits(self, hidden):
        return hidden

    def choose(self, hidden):
        return hidden.argmax(-1)


class GreedyLogits(Logits):
    """A target that is never asked for logits."""

    logits = None


class Tripled:
    """A pipeline that triples the logits and switches truncation off."""

    is_active = True

    def process(self, state, draft, logits):
        logits *= 3
        return state.host.temperature, np.zeros_like(state.host.top_k), np.ones_like(state.host.top_p)

    def record(self, tokens, counts, path):
        self.recorded = tokens, counts, path


class Inactive:
    """A pipeline without processors: it has nothing else."""

    is_active = False


def example(backend: str, greedy: bool = False, tree: bool = False, dense: bool = True):
    """A state and a draft of mixed sequences, and the same as arguments of accept_reference."""
    arguments = case(B, K, V, seed=6)
    if greedy:
        arguments[7][:], arguments[4][:] = 0, False
    if tree:
        arguments[3] = np.random.default_rng(7).integers(0, np.arange(1, K + 1), (B, K))
    if not dense:
        arguments[4][:], arguments[5], arguments[6] = False, np.empty((0, 0, 0), np.float32), np.empty((0, 0))
    logits, tokens, lengths, parents, is_dense, draft_logits, lse, temperature, top_k, top_p, seeds, starts = arguments
    state = make_state(B, 200, K, V, temperature=temperature, top_k=top_k, top_p=top_p, seeds=seeds, backend=backend)
    state.lengths += torch.from_numpy(starts) - 1
    distributions = (torch.from_numpy(draft_logits), torch.from_numpy(lse)) if dense and not greedy else (None, None)
    draft = Draft(torch.from_numpy(tokens), torch.from_numpy(lengths), torch.from_numpy(is_dense),
                  torch.zeros(B, K, dtype=torch.uint8), *distributions, torch.from_numpy(parents) if tree else None)
    return state, draft, arguments


def run(state, draft, logits, target=None) -> Verification:
    return verify(state, draft, torch.from_numpy(logits.copy()), target or Logits())


def check(found: Verification, expected: list, tree: bool = False) -> None:
    assert [found.tokens[b, :n].tolist() for b, n in enumerate(found.counts.tolist())] == [tokens for tokens, _ in expected]
    assert found.tokens.shape == (B, K + 1) and (found.path is not None) == tree and not found.committed
    if tree:
        assert found.path.shape == (B, K + 1)
        assert [found.path[b, :n].tolist() for b, n in enumerate(found.counts.tolist())] == [path for _, path in expected]
        assert all(not found.path[b, n:].any() for b, n in enumerate(found.counts.tolist()))


def test_a_state_on_cuda_is_verified_there(monkeypatch):
    state, draft, arguments = example("triton")
    monkeypatch.setattr(verify_cuda, "verify_on_cuda", lambda *given: given)
    hidden, target = torch.from_numpy(arguments[0]), Logits()
    assert verify(state, draft, hidden, target) == (state, draft, hidden, target)


@pytest.mark.parametrize("pipeline", [None, Inactive()])
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("tree", [False, True])
def test_a_greedy_batch_needs_no_logits(backend, tree, pipeline):
    state, draft, arguments = example(backend, greedy=True, tree=tree)
    state.pipeline, state.block = pipeline, True
    expected = verifications(accept_greedy_reference, [arguments[0].argmax(-1), *arguments[1:4]], B, K)
    check(run(state, draft, arguments[0], GreedyLogits()), expected, tree)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("tree", [False, True])
def test_sampled_drafts_are_verified_one_by_one(backend, tree, dense):
    state, draft, arguments = example(backend, tree=tree, dense=dense)
    check(run(state, draft, arguments[0]), verifications(accept_reference, arguments, B, K), tree)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_blocks_are_verified_as_blocks_and_trees_are_not(backend):
    (state, draft, arguments), (branched, tree, branches) = example(backend), example(backend, tree=True)
    state.block = branched.block = True
    blocks, tokens = (verifications(function, arguments, B, K) for function in (block_reference, accept_reference))
    assert blocks != tokens
    check(run(state, draft, arguments[0]), blocks)
    check(run(branched, tree, branches[0]), verifications(accept_reference, branches, B, K), tree=True)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_pipeline_changes_the_logits_and_sees_what_is_emitted(backend, greedy):
    state, draft, arguments = example(backend, greedy=greedy)
    state.pipeline, logits = Tripled(), arguments[0]
    arguments[0], arguments[8], arguments[9] = logits * 3, np.zeros_like(arguments[8]), np.ones_like(arguments[9])
    expected = verifications(accept_reference, arguments, B, K)
    found = run(state, draft, logits)
    check(found, expected)
    tokens, counts, path = state.pipeline.recorded
    assert (tokens == found.tokens.numpy()).all() and (counts == found.counts.numpy()).all()
    assert [path[b, :n].tolist() for b, n in enumerate(counts)] == [path for _, path in expected]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_rollback_takes_the_place_of_verification(backend, threshold):
    state, draft, arguments = example(backend, greedy=True)
    state.rollback = threshold
    tokens, counts, _ = outputs(B, K)
    rollback_reference(*arguments[:3], threshold, tokens, counts)
    check(run(state, draft, arguments[0]), [(tokens[b, : counts[b]].tolist(), None) for b in range(B)])
