"""The device's T5, by Triton's interpreter on CPU tensors: hidden states, choices and tokens of the CPU's."""

import pytest
import torch
from doubles import Copier, ScriptedDrafter, make_state

from foredraft.engine.drafters.cuda.lookup_cuda import LookupDrafterCuda
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.tree import TreeDrafter
from foredraft.engine.loop import decode, step
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_cuda import LAYER_LAUNCHES, T5Cuda
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.models.t5_weights import load_weights
from foredraft.kernels.core.backend_triton import HAS_TRITON

if HAS_TRITON:
    from launches import Launches
pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
SOURCES = [torch.tensor([5, 9, 33, 5, 9, 40, 1]), torch.tensor([7] * 70 + [1])]


def targets(path):
    return T5(load_weights(path)), T5Cuda(load_cuda_weights(path, "cpu"))


def admitted(target, B=2, positions=20, drafts=4, sources=SOURCES):
    target.reserve(B, positions, drafts, max(map(len, sources)))
    return target.admit(range(B), sources)


@pytest.mark.first(1)
def test_encoder_and_pass_equal_the_cpus(tiny_checkpoint):
    tokens = torch.tensor([[0, 7, 9, 11], [0, 5, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 3], [0, 1, -1, -1]])
    trees = torch.tensor([[-1, 0, 0, 2], [-1, 0, 1, 2]])
    with torch.inference_mode():
        results = []
        for target in targets(tiny_checkpoint):
            encoded = admitted(target)
            found = [target.decode(tokens, positions).clone()]
            found.append(target.decode(tokens + 3, torch.where(positions >= 0, positions + 1, -1), None).clone())
            depth = torch.tensor([[2, 3, 3, 4], [2, 3, -1, -1]])
            found.append(target.decode(tokens + 1, depth, trees).clone())
            results.append((encoded, found, target.logits(found[-1]).clone(), target.choose(found[-1]).clone()))
    (encoded, hidden, logits, chosen), (device_encoded, device_hidden, device_logits, device_chosen) = results
    read = positions >= 0
    for a, b in zip(encoded, device_encoded, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    for a, b in zip(hidden, device_hidden, strict=True):
        torch.testing.assert_close(b[read], a[read], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(device_logits[read], logits[read], rtol=1e-4, atol=1e-4)
    assert torch.equal(device_chosen[read], chosen[read])


@pytest.mark.first(1)
@pytest.mark.parametrize("distribution", [dict(), dict(temperature=1.0), dict(temperature=[0.7, 0.0], top_k=9, top_p=0.9)])
def test_steps_on_a_device_give_the_cpus_tokens(tiny_checkpoints, distribution):
    """Draft, inputs, pass, verification and commit by Triton's interpreter against all of them by numba."""
    outputs = []
    with torch.inference_mode():
        for target, drafter, backend in zip(targets(tiny_checkpoints["v1.1"]), (Copier(), LookupDrafterCuda("cpu")),
                                            ("numba", "triton"), strict=True):
            drafter.admit(range(2), SOURCES, admitted(target))
            state = make_state(2, 8, [4, 2], target.config.d_model, end_token=-1, backend=backend, **distribution)
            decode(state, target, drafter)
            outputs.append((state.tokens[:, :9], state.lengths, state.proposer[:, :9], state.num_steps, state.drafted,
                            state.tested_at, state.accepted_at))
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)
    assert int(outputs[0][-1].sum()) > 0


@pytest.mark.full
@pytest.mark.parametrize("temperature", [0.0, [0.7, 0.0]])
def test_steps_with_trees_give_the_cpus_tokens(tiny_checkpoints, temperature):
    """A custom drafter may propose trees of point masses: their inputs, pass, verification, commit and compacted caches."""
    outputs = []
    with torch.inference_mode():
        for target, backend in zip(targets(tiny_checkpoints["v1.1"]), ("numba", "triton"), strict=True):
            drafter = TreeDrafter(LookupDrafter(), *TreeDrafter.parse_shape("2x1"))
            drafter.admit(range(2), SOURCES, admitted(target))
            state = make_state(2, 5 if temperature else 9, [4, 3], target.config.d_model, end_token=-1, backend=backend,
                               temperature=temperature)
            decode(state, target, drafter)
            outputs.append((state.tokens[:, : state.capacity], state.lengths, state.num_steps, state.drafted,
                            state.tested_at, state.accepted_at))
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)
    assert int(outputs[0][3].sum()) > 0 and (temperature or int(outputs[0][-1].sum()) > 0)


def test_launches_sees_waits_and_allocations():
    with Launches() as seen:
        torch.ones(2)[0].item()
        torch.where(torch.ones(3) > 0)
    assert len(seen.waits) == 2 and seen.bytes > 0


@pytest.mark.first(1)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("K", [0, 3])
def test_a_step_on_a_device_neither_waits_nor_allocates(tiny_checkpoints, K, temperature):
    target = T5Cuda(load_cuda_weights(tiny_checkpoints["v1.1"], "cpu", "bfloat16"))
    drafter = LookupDrafterCuda("cpu") if K else NoDrafter()
    state = make_state(2, 12, K, target.config.d_model, temperature=temperature, end_token=-1, backend="triton")
    with torch.inference_mode():
        drafter.admit(range(2), SOURCES, admitted(target))
        step(state, target, drafter)
        with Launches() as seen:
            step(state, target, drafter)
    assert seen.operations == [] and seen.waits == [] and seen.bytes == 0
    assert len(seen.kernels) > LAYER_LAUNCHES * target.config.num_decoder_layers


@pytest.mark.full
@torch.inference_mode()
def test_a_short_source_is_launched_for_its_own_pages_and_has_the_bits_of_any_bucket(tiny_checkpoints):
    """Alone, after buffers have grown for a longer source, and in a batch with a long source."""
    target, H = T5Cuda(load_cuda_weights(tiny_checkpoints["v1.1"], "cpu", "bfloat16")), 3
    tokens, positions, found = torch.tensor([[5, 9]]), torch.tensor([[0, 1]]), []

    def run(*sources):
        admitted(target, len(sources), sources=sources)
        with Launches() as seen:
            found.append(target.decode(tokens.repeat(len(sources), 1), positions.repeat(len(sources), 1))[:1].clone())
        return {grid for name, grid in zip(seen.kernels, seen.grids, strict=True) if name == "_cross_attention_kernel"}

    short, long = SOURCES[0], torch.tensor([6] * 130 + [1])
    assert run(short) == {(1, H, 1)} and run(short, long) == {(4, H, 2)} and target.pages_per_sequence == 4
    assert run(short) == {(1, H, 1)} and target.pages_per_sequence == 4
    assert torch.equal(found[1], found[0]) and torch.equal(found[2], found[0])


@pytest.mark.full
def test_speculative_greedy_equals_plain_greedy_bit_for_bit_in_bfloat16(tiny_checkpoints):
    """For any K and batch: tokens, and the hidden state of the last one."""
    target = T5Cuda(load_cuda_weights(tiny_checkpoints["v1.1"], "cpu", "bfloat16"))

    def run(sources, drafter, K):
        admitted(target, len(sources), 12, 4, sources)
        state = make_state(len(sources), 6, K, target.config.d_model, end_token=-1)
        decode(state, target, drafter)
        return state

    with torch.inference_mode():
        plain = run(SOURCES, NoDrafter(), 0)
        truth = [sequence[1:].tolist() for sequence in plain.tokens[:, :7]]
        for K, wrong in ((4, lambda sequence, position: position % 3 == sequence), (1, lambda sequence, position: False)):
            state = run(SOURCES, ScriptedDrafter(truth, wrong), K)
            assert torch.equal(state.tokens[:, :7], plain.tokens[:, :7])
            assert torch.equal(state.hidden, plain.hidden) and int(state.accepted_at.sum()) > 0
        alone = run(SOURCES[1:], NoDrafter(), 0)
        assert torch.equal(alone.tokens[0, :7], plain.tokens[1, :7]) and torch.equal(alone.hidden[0], plain.hidden[1])
