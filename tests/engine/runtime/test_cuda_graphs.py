"""Steps as CUDA graphs: the loop around them with a fake capture, and with a real one where there is a GPU."""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from doubles import FakeCapture, ScriptedDrafter, TableTarget, make_state

import foredraft
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.generate import Model
from foredraft.engine.loop import decode
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import load_cuda_weights
from foredraft.engine.runtime.cuda_graphs import MAX_SHAPES, CapturedSteps, CudaCapture
from foredraft.engine.runtime.requests import Request
from foredraft.kernels.core.backend_triton import HAS_TRITON

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TABLE = torch.randn(20, 16, 16, generator=torch.Generator().manual_seed(3))


class Target(TableTarget):
    generation, source_bucket = 0, 1


def run(rounds, new_tokens=8, seen=None, **options):
    state = make_state(2, new_tokens, 0, 16, end_token=-1)
    return rounds.decode(state, Target(TABLE), NoDrafter(), None if seen is None else seen, **options)


def test_replays_give_the_loop_s_tokens_and_one_capture_serves_all_requests():
    capture = FakeCapture()
    rounds = CapturedSteps(capture)
    wanted = make_state(2, 8, 0, 16, end_token=-1)
    decode(wanted, Target(TABLE), NoDrafter())
    for _ in range(3):
        state = run(rounds)
        assert torch.equal(state.tokens, wanted.tokens) and torch.equal(state.num_steps, wanted.num_steps)
    assert capture.captured == 1
    # the flag is seen a step late: each request queues one step more than it needs; the first one's first is eager
    assert capture.replayed == 3 * (8 + 1) - 1


def test_the_host_sees_every_token_once_and_the_last_one_too():
    views = []
    state = run(CapturedSteps(FakeCapture()),
                seen=lambda view: views.append((int(view.lengths[0]), view.tokens[0].tolist())))
    lengths = [length for length, _ in views]
    assert lengths == sorted(lengths) and lengths[-1] == 9
    assert views[-1][1] == state.tokens[0].tolist()


def test_in_step_the_host_may_cut_a_row():
    def look(state):
        if int(state.lengths[0]) == 4 and not state.finished[0]:
            state.truncate(0, 4)

    state = run(CapturedSteps(FakeCapture()), seen=look, in_step=True)
    assert state.lengths.tolist() == [4, 9]


def test_shapes_are_bounded_and_forgotten_when_the_target_s_buffers_move():
    capture, target = FakeCapture(), Target(TABLE)
    rounds = CapturedSteps(capture)
    for new_tokens in range(2, MAX_SHAPES + 5):
        rounds.decode(make_state(1, new_tokens, 0, 16, end_token=-1), target, NoDrafter())
    assert len(rounds.shapes) == MAX_SHAPES
    target.generation = 1
    rounds.decode(make_state(1, 3, 0, 16, end_token=-1), target, NoDrafter())
    assert len(rounds.shapes) == 1


def test_graphs_share_a_pool_while_one_of_them_lives(monkeypatch):
    """A pool of memory that no graph uses any more cannot be captured into."""
    pools = []

    def graph(_graph, pool, capture_error_mode):
        pools.append(pool)
        return contextlib.nullcontext()

    for name, stand_in in (("CUDAGraph", type("CUDAGraph", (), {})), ("graph", graph), ("synchronize", lambda: None),
                           ("graph_pool_handle", object)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    capture, ran = CudaCapture(), []
    first, second = (capture(lambda: ran.append(1)) for _ in range(2))
    del first
    third = capture(lambda: ran.append(1))
    del second, third
    capture(lambda: ran.append(1))
    assert pools[0] is pools[1] is pools[2] and pools[3] is not pools[0] and len(ran) == 4


def test_memory_stays_flat_over_200_requests_of_mixed_shapes():
    """Lengths, batches, drafts and sources that come again and again: what they hold is held once, for all buckets."""
    capture, target, states, alive = FakeCapture(), Target(TABLE), [], []
    rounds = CapturedSteps(capture)
    for request in range(200):
        target.source_bucket = (1, 8)[request // 12 % 2]
        state = make_state(1 + request % 3, 2 + request % 4, 0, 16, end_token=-1)
        rounds.decode(state, target, NoDrafter())
        states.append(weakref.ref(state))
        del state
        alive.append(sum(known() is not None for known in states))
    assert alive[11:] == [12] * 189 and capture.captured == 2 * 12


def test_each_bucket_of_sources_is_run_once_eagerly_then_captured_at_its_own_size():
    """What a graph was captured at is what it replays: a short source's after a long one's, and the long one's again."""
    target, ran = Target(TABLE), []
    decode_, capture = target.decode, FakeCapture()
    target.decode = lambda *arguments: ran.append(target.source_bucket) or decode_(*arguments)
    rounds, wanted = CapturedSteps(capture), None
    for bucket in (8, 1, 8, 1, 2):
        target.source_bucket = bucket
        ran.clear()
        state = rounds.decode(make_state(2, 5, 0, 16, end_token=-1), target, NoDrafter())
        wanted = state.tokens.clone() if wanted is None else wanted
        assert set(ran) == {bucket} and torch.equal(state.tokens, wanted)
    (shape,) = rounds.shapes.values()
    assert sorted(shape.graphs) == [1, 2, 8] and None not in shape.graphs.values() and capture.captured == 3


def test_drafts_and_a_batch_of_another_size_get_graphs_of_their_own():
    capture = FakeCapture()
    rounds, target = CapturedSteps(capture), Target(TABLE)
    plain = make_state(2, 8, 0, 16, end_token=-1)
    decode(plain, target, NoDrafter())
    truth = [row[1:].tolist() for row in plain.tokens]
    state = rounds.decode(make_state(2, 8, 2, 16, end_token=-1), target, ScriptedDrafter(truth, vocabulary=16))
    assert torch.equal(state.tokens[:, :9], plain.tokens[:, :9]) and int(state.accepted_at.sum()) > 0


@pytest.mark.full
@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_generate_on_a_device_streams_stops_and_batches_as_on_the_cpu(tiny_model_path):
    """`generate` with the fake capture; the CUDA model runs under Triton's interpreter."""
    cpu = foredraft.load(tiny_model_path)
    device = Model(T5Cuda(load_cuda_weights(tiny_model_path, "cpu")), cpu.tokenizer, "lookup", tiny_model_path, "float32")
    device.graphs = CapturedSteps(FakeCapture())
    texts = ["w5 w9 w33 w5 w9", "w7 w8"]
    wanted, found = (model.generate(texts, max_new_tokens=6, draft_tokens=2) for model in (cpu, device))
    assert found.token_ids == wanted.token_ids and found.stats.accepted_at == wanted.stats.accepted_at
    word = wanted.texts[0].split()[2]
    wanted, found = (model.generate(texts[:1], max_new_tokens=6, draft_tokens=2, stop_strings=word)
                     for model in (cpu, device))
    assert found.token_ids == wanted.token_ids
    # limits that are near share a captured step
    shapes = len(device.graphs.shapes)
    wanted, found = (model.generate(texts[:1], max_new_tokens=9, draft_tokens=2) for model in (cpu, device))
    assert found.token_ids == wanted.token_ids and len(device.graphs.shapes) == shapes
    pieces = []
    streamer = SimpleNamespace(put=lambda ids: pieces.append(ids.tolist()), end=lambda: pieces.append([]))
    out = device.generate(texts[:1], max_new_tokens=6, draft_tokens=2, streamer=streamer)
    assert pieces[0] == [0] and pieces[-1] == [] and sum(pieces[1:], []) == out.token_ids[0]
    # requests with parameters of their own, more of them than sequences, one of which fails
    requests = [Request("w5 w9 w5 w9", id="a", draft_tokens=1), Request("w7", id="b", do_sample=True, seed=3, top_k=9),
                Request("", id="c"), Request("w8 w7", id="d", max_new_tokens=2)]
    wanted, found = (list(model.stream(requests, max_new_tokens=4, draft_tokens=2, batch_size=2, in_order=True))
                     for model in (cpu, device))
    assert [(r.id, r.token_ids, r.finish_reason) for r in found] == [(r.id, r.token_ids, r.finish_reason) for r in wanted]


def tensor_bytes():
    """Of all tensors that are alive, memory that several share counted once."""
    gc.collect()
    alive = (one.untyped_storage() for one in gc.get_objects() if isinstance(one, torch.Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values())


@pytest.mark.full
@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_what_target_drafter_and_graphs_hold_stays_flat(tiny_model_path):
    """The parts of the real step, under Triton's interpreter: a second and third time nothing more is held."""
    model = Model(T5Cuda(load_cuda_weights(tiny_model_path, "cpu")), foredraft.load(tiny_model_path).tokenizer, "lookup",
                  tiny_model_path, "float32")
    model.graphs, held = CapturedSteps(FakeCapture()), []
    for _ in range(3):
        # the largest first: buffers that grow would have the graphs captured again
        for rows, length in ((2, 70), (1, 3)):
            for options in ({}, dict(do_sample=True, seed=1)):
                model.generate([[5] * length + [1]] * rows, max_new_tokens=2, draft_tokens=2, batch_size=rows, **options)
                held.append(tensor_bytes())
    assert held[4:8] == held[8:], held


@pytest.mark.gpu
@needs_gpu
def test_memory_stays_flat_over_200_requests():
    """The first hundred requests have met every length; from then on nothing more is taken."""
    model = foredraft.load(device="cuda", drafter="lookup", dtype="bfloat16")
    sizes = []
    for request in range(200):
        model.generate([[5 + request % 90] * (20 + request % 100) + [1]], max_new_tokens=8)
        sizes.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert len(set(sizes[100:])) == 1, sorted(set(sizes[100:]))


@pytest.mark.gpu
@needs_gpu
def test_graphs_give_the_tokens_of_the_cpu():
    source = [[5, 9, 33, 5, 9, 40, 7, 1]]
    outputs = [foredraft.load(device=device, drafter=None, weights="fp32").generate(source, max_new_tokens=24).token_ids
               for device in ("cpu", "cuda")]
    assert outputs[0] == outputs[1]
