"""Neural drafters on a device, by Triton's interpreter: drafts and distributions of the CPU's, without waits."""

from __future__ import annotations

import pytest
import torch
from doubles import SIZES, FakeCapture, TableTarget, chi_square, make_state

import foredraft
from foredraft.engine.drafters.cuda import recurrent_cuda, t5_drafter_cuda
from foredraft.engine.drafters.cuda.draft_buffers import DraftBuffers, PerState
from foredraft.engine.drafters.cuda.draft_vocabulary_cuda import DraftVocabularyCuda
from foredraft.engine.drafters.cuda.recurrent_cuda import own_bytes
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.drafters.registry import model_class, open_drafter
from foredraft.engine.generate import Model
from foredraft.engine.loop import decode, step
from foredraft.engine.models import device_memory
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import STORED, load_cuda_weights
from foredraft.engine.models.t5_weights import load_weights
from foredraft.engine.runtime import static_batches
from foredraft.engine.runtime.cuda_graphs import CapturedSteps
from foredraft.errors import UserError
from foredraft.kernels.core.backend_triton import is_interpreted

if is_interpreted():
    from launches import Launches
pytestmark = pytest.mark.skipif(not is_interpreted(), reason="needs triton's interpreter")
SOURCES = [torch.tensor([5, 9, 33, 5, 9, 40, 1]), torch.tensor([7, 8] * 35 + [1])]


def saved(kind, restricted, folder, out):
    torch.manual_seed(1)
    model = model_class(kind).from_target(folder, **SIZES[kind]).eval()
    if restricted:
        model.restrict(torch.randperm(100, generator=torch.Generator().manual_seed(2))[:restricted])
    model.save(out)
    return out


def pair_of(kind, restricted, folder, out):
    """(target, its drafter) on the CPU and on a device, of the same files."""
    saved(kind, restricted, folder, out)
    targets = T5(load_weights(folder)), T5Cuda(load_cuda_weights(folder, "cpu"))
    return [(target, open_drafter(out, target.weights, folder, None)) for target in targets]


@pytest.fixture(params=["lstm", "t5shallow", "cnn"])
def pair(request, tiny_checkpoints, tmp_path):
    return pair_of(request.param, 40, tiny_checkpoints["v1.1"], tmp_path)


def admit(target, drafter, state):
    target.reserve(state.batch_size, state.capacity, state.max_draft, max(map(len, SOURCES)))
    drafter.admit(range(state.batch_size), SOURCES, target.admit(range(state.batch_size), SOURCES))


@pytest.mark.full
@torch.inference_mode()
def test_greedy_steps_are_the_cpus(pair):
    """Drafts right and wrong, sequences that draft less, a limit inside a draft, an end token that a draft may hold."""
    truth = None
    outputs = []
    for (target, drafter), backend in zip(pair, ("numba", "triton"), strict=True):
        if truth is None:
            plain = make_state(2, 6, 0, 32, end_token=-1)
            admit(target, NoDrafter(), plain)
            decode(plain, target, NoDrafter())
            truth = plain.tokens[0, 1:7].tolist()
        state = make_state(2, [6, 4], [2, 1], 32, end_token=truth[4], backend=backend)
        admit(target, drafter, state)
        decode(state, target, drafter)
        outputs.append((state.tokens[:, :7], state.lengths, state.proposer[:, :7], state.num_steps, state.drafted,
                        state.tested_at, state.accepted_at))
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)
    assert outputs[1][0][0, 1 : int(outputs[1][1][0])].tolist() == truth[: truth.index(truth[4]) + 1]
    assert int(outputs[0][-2].sum()) > 0


@pytest.mark.full
@torch.inference_mode()
def test_sampled_distributions_are_the_cpus(pair):
    """q of every draft token, given the same tokens before it; a sampled token has q > 0."""
    (target, host), (device_target, device) = pair
    distribution = dict(temperature=[0.0, 0.7], top_k=9)
    state = make_state(2, 12, 2, 32, end_token=-1, backend="triton", **distribution)
    twin = make_state(2, 12, 2, 32, end_token=-1, **distribution)
    admit(device_target, device, state)
    admit(target, host, twin)
    compared = 0
    for _ in range(2):
        ours, theirs = device.draft(state), host.draft(twin)
        assert ours.lengths.tolist() == theirs.lengths.tolist() and ours.dense.tolist() == theirs.dense.tolist()
        for sequence in range(2):
            for index in range(int(ours.lengths[sequence])):
                if not ours.dense[sequence]:
                    assert ours.tokens[sequence, index] == theirs.tokens[sequence, index]
                    continue
                q, p = ((d.logits[sequence, index].double() - d.lse[sequence, index]).exp() for d in (ours, theirs))
                torch.testing.assert_close(q, p, atol=2e-5, rtol=1e-3)
                assert q[ours.tokens[sequence, index]] > 0
                compared += 1
                if ours.tokens[sequence, index] != theirs.tokens[sequence, index]:
                    break
        step(state, device_target, device)
        for name in ("tokens", "lengths", "finished"):
            getattr(twin, name).copy_(getattr(state, name))
    assert compared > 1


@pytest.mark.first(1)
@torch.inference_mode()
def test_a_step_neither_waits_nor_allocates(pair):
    target, drafter = pair[1]
    state = make_state(2, 12, 2, 32, end_token=-1, temperature=[0.0, 1.0], backend="triton")
    admit(target, drafter, state)
    step(state, target, drafter)
    generation = drafter.generation
    with Launches() as seen:
        step(state, target, drafter)
    assert seen.operations == [] and seen.waits == [] and seen.bytes == 0 and drafter.generation == generation
    assert seen.kernels[0] == "_drafter_inputs_kernel" and seen.kernels.count("_draft_lengths_kernel") == 1


class HeadOnly:
    """Drafts by a draft vocabulary's head alone, from the same outputs for every sequence."""

    name = "head only"

    def __init__(self, head, tokens, y):
        self.vocabulary, self.y = DraftVocabularyCuda(head, tokens, copies=False), y
        self.buffers = PerState(lambda state: DraftBuffers(state, len(head), 3))

    def draft(self, state, budget=None):
        buffers = self.buffers.of(state)
        buffers.write_inputs(state)
        self.vocabulary.draft_into(buffers.draft, 0, self.y.expand(state.batch_size, -1).contiguous(), state)
        return buffers.write_lengths(state)


@pytest.mark.full
@torch.inference_mode()
def test_sampled_tokens_follow_the_target_whatever_the_vocabulary_leaves_out():
    """The first token's distribution, drafted from another one over half of the tokens."""
    B, V = 640, 16
    draw = torch.Generator().manual_seed(7)
    table, head = torch.randn(2, V, V, generator=draw), torch.randn(V, 16, generator=draw)
    drafter = HeadOnly(head, torch.tensor([9, 2, 5, 11]), 0.3 * torch.randn(1, 16, generator=draw))
    drafter.vocabulary.reserve(B, 8)
    for sequence in range(B):
        drafter.vocabulary.admit(sequence, torch.tensor([3, 5, 3, 14]))
    state = make_state(B, 2, 1, V, end_token=-1, temperature=1.0, backend="triton")
    step(state, TableTarget(table), drafter)
    counts = torch.bincount(state.tokens[:, 1], minlength=V)
    value, freedom = chi_square(counts, torch.softmax(table[0, 0].double(), -1))
    assert value < freedom + 10 * (2 * freedom) ** 0.5 and 0 < int(state.accepted_at.sum()) < B
    assert set(drafter.buffers.of(state).draft.tokens[:, 0].tolist()) == {9, 2, 5, 11, 3, 14}


@torch.inference_mode()
def test_a_t5_with_an_encoder_of_its_own(tiny_checkpoints, tmp_path):
    drafts = []
    pair = pair_of("t5small", 0, tiny_checkpoints["v1.0"], tmp_path)
    for (target, drafter), backend in zip(pair, ("numba", "triton"), strict=True):
        state = make_state(2, 9, 2, 32, end_token=-1, backend=backend)
        admit(target, drafter, state)
        drafts.append(drafter.draft(state))
    assert torch.equal(drafts[0].tokens, drafts[1].tokens) and drafts[1].lengths.tolist() == [2, 2]


@pytest.mark.full
def test_generate_with_captured_steps_gives_the_cpus_tokens(tiny_model_path, tmp_path, monkeypatch):
    """Model.generate with a stand-in for capture; the second request's buffers are larger, so that graphs are dropped."""
    monkeypatch.setattr(recurrent_cuda, "POSITIONS", 4)
    monkeypatch.setattr(recurrent_cuda, "SLOTS", 2)
    monkeypatch.setattr(static_batches, "POSITION_STEP", 2)
    folder = saved("lstm", 40, tiny_model_path, tmp_path)
    plain = foredraft.load(tiny_model_path, drafter=None)
    device = Model(T5Cuda(load_cuda_weights(tiny_model_path, "cpu")), plain.tokenizer, folder, tiny_model_path, "float32")
    device.graphs = CapturedSteps(FakeCapture())
    assert device.drafter.name == "lstm"
    for new_tokens in (3, 5):
        generation = device.drafter.generation
        wanted, found = (model.generate(["w5 w9 w33 w5"], max_new_tokens=new_tokens, draft_tokens=2)
                         for model in (plain, device))
        assert found.token_ids == wanted.token_ids and found.stats.drafted > 0
        assert device.drafter.generation > generation


def free(monkeypatch, size):
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: size)


def test_bytes_of_distributions_are_counted_and_refused_before_allocation(monkeypatch):
    state = make_state(2, 12, 3, 32, temperature=[0.0, 1.0], backend="triton")
    draft = DraftBuffers(state, 500, 3).draft
    taken = draft.logits.nbytes + draft.lse.nbytes
    free(monkeypatch, taken)
    DraftBuffers(state, 500, 3)
    free(monkeypatch, taken - 1)
    with pytest.raises(UserError, match="the distributions of 3 drafts for 2 sequences need .* or draft_tokens"):
        DraftBuffers(state, 500, 3)
    # greedy sequences have none
    DraftBuffers(make_state(2, 12, 3, 32, backend="triton"), 500, 3)


def test_bytes_of_a_vocabulary_are_counted_and_a_refusal_leaves_it_unchanged(monkeypatch):
    vocabulary = DraftVocabularyCuda(torch.randn(500, 16), torch.arange(40), copies=True)
    vocabulary.reserve(3, 70)
    held, generation = dict(vocabulary.buffers), vocabulary.generation
    taken = sum(buffer.nbytes for buffer in held.values())
    free(monkeypatch, 0)
    with pytest.raises(UserError, match="vocabularies and logits of 9 sequences with 128 source tokens need .* lower batch"):
        vocabulary.reserve(9, 70)
    assert vocabulary.buffers == held and vocabulary.generation == generation and vocabulary.num_sequences == 3
    # existing buffers are released first
    fresh = DraftVocabularyCuda(torch.randn(500, 16), torch.arange(40), copies=True)
    free(monkeypatch, taken)
    fresh.reserve(3, 70)
    free(monkeypatch, 0)
    fresh._grow(3, 128)


@pytest.mark.parametrize("kind", ["lstm", "cnn"])
@pytest.mark.parametrize("stored", STORED)
def test_a_recurrent_drafter_allocates_no_more_than_was_counted(kind, stored, tiny_checkpoints, tmp_path, monkeypatch):
    folder = tiny_checkpoints["v1.1"]
    target = load_cuda_weights(folder, "cpu", weights=stored)
    model = model_class(kind).load(saved(kind, 40, folder, tmp_path), folder, with_tables=False)
    counted, drafter = own_bytes(model, STORED[stored]), open_drafter(tmp_path, target, folder, None)
    own = [drafter.query, drafter.inner, drafter.outer, *(drafter.cells if kind == "lstm" else drafter.layers)]
    own = [tensor for group in own for tensor in group if isinstance(tensor, torch.Tensor)]
    own += [] if kind == "lstm" else [tensor for tensor in drafter.enter if tensor is not None]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in [*own, *drafter.copy_attention.parameters()]}
    assert 0.6 * counted < sum(held.values()) <= counted
    free(monkeypatch, counted - 1)
    monkeypatch.setattr(torch.nn.Module, "to", lambda *arguments: pytest.fail("memory was allocated"))
    with pytest.raises(UserError, match=f"the {kind} drafter's weights need .* or a smaller drafter"):
        open_drafter(tmp_path, target, folder, None)


@pytest.mark.parametrize("shared", [True, False])
def test_drafters_that_do_not_fit_are_not_loaded(shared, tiny_checkpoints, tmp_path, monkeypatch):
    folder = tiny_checkpoints["v1.1"]
    target, folders = load_cuda_weights(folder, "cpu"), {}
    for kind in ("t5shallow", "lstm"):
        torch.manual_seed(1)
        folders[kind] = tmp_path / kind
        model_class(kind).from_target(folder, **SIZES[kind], shared_embeddings=shared).save(folders[kind])
    free(monkeypatch, 100)
    monkeypatch.setattr(t5_drafter_cuda, "assemble", lambda *arguments: pytest.fail("memory was allocated"))
    with pytest.raises(UserError, match="t5shallow's weights need .* or a smaller drafter"):
        open_drafter(folders["t5shallow"], target, folder, None)
    with pytest.raises(UserError, match="weights need" if shared else "lstm's embedding and head need .* dtype='bfloat16'"):
        open_drafter(folders["lstm"], target, folder, None)
