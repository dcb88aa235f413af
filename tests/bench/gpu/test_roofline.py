"""The roofline model of a step: its launches are those of a real step, its bytes those of weights and caches."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from doubles import make_state

from foredraft.bench.gpu import roofline as model
from foredraft.bench.gpu.roofline import MACHINES, Machine, Step, config_of, machine_of, parts, predict, table
from foredraft.bench.harness.geometry import GEOMETRIES
from foredraft.engine.drafters.cuda.lookup_cuda import LookupDrafterCuda, NgramDrafterCuda
from foredraft.engine.drafters.cuda.recurrent_cuda import CNNDrafterCuda, LSTMDrafterCuda
from foredraft.engine.drafters.cuda.t5_drafter_cuda import T5DrafterCuda
from foredraft.engine.drafters.neural.cnn import CNNConfig, CNNModel
from foredraft.engine.drafters.neural.lstm import LSTMConfig, LSTMModel
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.loop import step
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import random_cuda_weights
from foredraft.engine.runtime.cuda_graphs import HostView
from foredraft.kernels.core.backend_triton import HAS_TRITON
from foredraft.kernels.model import linear_triton, lm_head_triton
from foredraft.ngram_native.count import count
from foredraft.ngram_native.smooth import fit

TINY = dict(model_type="t5", vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False)


# the part of each kernel of a pass; `_add_kernel` ends the part before it
PARTS = {
    "_step_inputs_kernel": "inputs", "_embed_kernel": "embedding and closing norm",
    "_final_norm_kernel": "embedding and closing norm",
    "_qkv_kernel": "self-attention's matrices", "_self_attention_kernel": "self-attention",
    "_project_kernel": "cross-attention's matrices", "_cross_attention_kernel": "cross-attention",
    "_gate_kernel": "feed-forward", "_logits_kernel": "head", "_choose_kernel": "head",
    "_top_k_top_p_kernel": "top-k and top-p",
    "_accept_kernel": "verification and commit", "_greedy_kernel": "verification and commit",
}
CLOSED = {"_self_attention_kernel": "self-attention's matrices", "_cross_attention_kernel": "cross-attention's matrices",
          "_gate_kernel": "feed-forward"}
# parts of a drafter; a `_mix_kernel` before a convolution embeds a token
DRAFTED = {
    "_drafter_inputs_kernel": "buffers", "_draft_lengths_kernel": "buffers", "_vocabulary_kernel": "head",
    "_top_k_top_p_kernel": "sampling",
    "_sample_kernel": "sampling", "_cell_kernel": "cell", "_convolution_kernel": "cell", "_mix_kernel": "copy attention",
    "_embed_kernel": "embedding and closing norm", "_final_norm_kernel": "embedding and closing norm"}


def counted(kernels):
    """Launches by part; all before the step's inputs are the drafter's."""
    first = kernels.index("_step_inputs_kernel")
    found = Counter()
    for name, after in pairwise(kernels[: first + 1]):
        if name in ("_prompt_lookup_kernel", "_ngram_lookup_kernel"):
            found["draft"] += 1
        elif (name, after) == ("_mix_kernel", "_convolution_kernel"):
            found["draft: cell"] += 1
        elif name == "_cross_attention_kernel" and "_mix_kernel" in kernels:
            found["draft: copy attention"] += 1
        else:
            # the rest are a T5's layers
            found[f"draft: {DRAFTED.get(name, 'layers')}"] += 1
    for before, name in pairwise(kernels[first - 1 :] if first else [None, *kernels]):
        found[CLOSED[before] if name == "_add_kernel" else PARTS[name]] += 1
    return found


def small_table():
    draw = np.random.default_rng(3)
    sequences = [[0, *np.minimum(draw.geometric(0.2, 12) + 1, 29), 1] for _ in range(20)]
    return fit(count(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]), 3, 30))


RECURRENT = {"lstm": (LSTMDrafterCuda, LSTMModel, LSTMConfig), "cnn": (CNNDrafterCuda, CNNModel, CNNConfig)}
ENTRIES = dict(vocab_size=40, d_model=16, head_scale=1.0, start_token=0, end_token=1, pad_token=0, target="", target_hash="")


def drafter_of(name, target):
    if name == "t5shallow":
        return T5DrafterCuda(random_cuda_weights(TINY, "cpu"), torch.arange(8))
    if name in RECURRENT:
        device, network, config = RECURRENT[name]
        return device(network(config(**ENTRIES, hidden_size=8, d_kv=8, d_ff=8)), target.weights.embedding,
                      target.weights.head, "bf16")
    if name == "ngram":
        return NgramDrafterCuda(small_table(), "cpu")
    if name.startswith("lookup"):
        return LookupDrafterCuda("cpu", table=small_table() if "ngram" in name else None)
    return NoDrafter()


@pytest.mark.first(1)
@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
@pytest.mark.parametrize(("name", "K", "distribution"), [
    ("none", 0, {}), ("lookup", 3, {}), ("lookup", 3, dict(temperature=1.0)), ("lookup", 3, dict(temperature=1.0, top_k=5)),
    ("ngram", 3, {}), ("ngram", 3, dict(temperature=1.0, top_k=5)), ("lookup+ngram", 3, {}),
    ("lookup+ngram", 3, dict(temperature=1.0, top_p=0.5)),
    ("none", 0, dict(temperature=1.0, top_p=0.5)), ("t5shallow", 2, {}), ("t5shallow", 2, dict(temperature=1.0)),
    ("lstm", 2, dict(temperature=1.0, top_k=5)), ("cnn", 2, {})])
def test_launches_are_those_of_a_real_step(name, K, distribution):
    from launches import Launches

    target = T5Cuda(random_cuda_weights(TINY, "cpu"))
    drafter = drafter_of(name, target)
    state = make_state(2, 12, K, 16, end_token=-1, backend="triton", **distribution)
    sources = [torch.arange(3, 20), torch.arange(3, 9)]
    with torch.inference_mode():
        target.reserve(2, 13, K, 17)
        drafter.admit(range(2), sources, target.admit(range(2), sources))
        view = HostView(state)
        step(state, target, drafter)
        with Launches() as seen:
            step(state, target, drafter)
            view.copy_from(state)
    r = Step(2, K, 17, sampled=bool(distribution), cuts=len(distribution) > 1, drafter=name)
    modelled = Counter({part.name: part.launches for part in parts(target.config, r)})
    found = counted(seen.kernels) + Counter({"host's view": len(seen.operations)})
    assert found == modelled - Counter(), seen.kernels


def test_bytes_are_those_of_weights_and_caches():
    target = T5Cuda(random_cuda_weights(TINY, "cpu"))
    w, c = target.weights, target.config
    found = {part.name: part.bytes for part in parts(c, Step(1, 0, 64, 8))}
    assert found["self-attention's matrices"] == w.qkv.nbytes + w.self_out.nbytes
    assert found["cross-attention's matrices"] == w.cross_q.nbytes + w.cross_out.nbytes
    assert found["feed-forward"] == w.ff_in.nbytes + w.ff_out.nbytes and found["head"] == w.head.nbytes
    target.reserve(1, 8, 0, 64)
    assert found["cross-attention"] == target.buffers["pages_k"].nbytes + target.buffers["pages_v"].nbytes


@pytest.mark.parametrize("name", RECURRENT)
def test_bytes_of_a_drafter_are_those_of_its_weights_and_pages(name):
    """At default sizes; the model leaves biases out."""
    target = T5Cuda(random_cuda_weights(TINY, "cpu"))
    device, network, config = RECURRENT[name]
    drafter = device(network(config(**ENTRIES)), target.weights.embedding, target.weights.head, "bf16")
    drafter.reserve(1, 64)

    def matrices(*groups):
        return sum(one.nbytes for group in groups for one in group
                   if isinstance(one, torch.Tensor) and one.dtype == torch.bfloat16)

    found = {part.name: part.bytes for part in parts(target.config, Step(1, 2, 64, drafter=name))}
    cell = matrices(*drafter.cells) if name == "lstm" else matrices(drafter.enter, *drafter.layers)
    pages = drafter.buffers["pages_k"].nbytes + drafter.buffers["pages_v"].nbytes
    assert found["draft: cell"] == 3 * cell
    assert found["draft: copy attention"] == 2 * (matrices(drafter.query, drafter.inner, drafter.outer) + pages)


def test_floors_of_the_published_sizes():
    """MB a step of decoder weights and head in bf16, computed by hand."""
    for geometry, megabytes in (("flan-t5-small", 77), ("flan-t5-base", 248), ("flan-t5-large", 783), ("flan-t5-xl", 2850)):
        found = parts(config_of(geometry), Step(source=1, position=0, drafter="none"))
        weights = sum(part.bytes for part in found if "matrices" in part.name or part.name in ("feed-forward", "head"))
        assert weights / 1e6 == pytest.approx(megabytes, rel=0.01)


@pytest.mark.parametrize(("B", "K"), [(1, 5), (16, 0), (17, 0), (8, 5), (1, 63), (32, 5)])
def test_tiles_of_rows_read_weights_and_programs_read_their_rows(B, K):
    """As counted from the grids of the launches."""
    c, M = config_of("flan-t5-xl"), B * (K + 1)
    L, C, F, V, inner = c.num_decoder_layers, c.d_model, c.d_ff, c.vocab_size, c.num_heads * c.d_kv
    options = linear_triton.tiling_of(torch.empty(1, dtype=torch.bfloat16), M)

    def again(outputs, columns, **others):
        down, across = linear_triton.grid_of(M, outputs, options | others)
        return 2 * ((down - 1) * outputs * columns + across * M * columns)

    found = {part.name: part.again for part in parts(c, Step(B, K, drafter="none"))}
    assert found["self-attention's matrices"] == L * (again(3 * inner, C) + again(C, inner))
    assert found["cross-attention's matrices"] == L * (again(inner, C) + again(C, inner))
    assert found["feed-forward"] == L * (again(2 * F, C, N=32) + again(C, F))
    assert found["head"] == again(V, C, N=lm_head_triton.WIDTH)
    assert found["self-attention"] == (K // 16) * L * B * (64 + K + 1) * 2 * inner * 2


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_a_gated_product_computes_32_outputs_at_a_time(monkeypatch):
    seen = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, N, **__: seen.append((grid, N))

    monkeypatch.setattr(linear_triton, "_gate_kernel", Kernel())
    for M in (6, 48):
        linear_triton.gate_triton(torch.empty(M, 64), torch.empty(M, 4), torch.empty(256, 64, dtype=torch.bfloat16), 0.0, 1,
                                  True, torch.empty(M, 128))
    assert seen == [((1, 8), 32)] * 2


def test_time_is_bytes_over_bandwidth_plus_launches():
    c, r = config_of("flan-t5-base"), Step(draft_tokens=0, drafter="none")
    free = predict(c, r, Machine(1000, 1e9, 0.0))
    assert free["us"] == pytest.approx(free["bytes"] / 1e6)
    costly = predict(c, r, Machine(1000, 1e9, 2.0))
    assert costly["us"] - free["us"] == pytest.approx(2.0 * free["launches"])


@pytest.mark.parametrize(("device", "rate"), [
    ("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-40GB", 312),
    ("NVIDIA L4", 121), ("NVIDIA L40S", None), ("NVIDIA GH200 480GB", None), ("cpu", None)])
def test_a_measured_device_has_its_own_rate_or_none(device, rate):
    assert machine_of(device, 100.0) == Machine(100.0, rate)
    c, r = config_of("flan-t5-xl"), Step(128, 5, sampled=True)
    without = predict(c, r, Machine(100.0, None, 0.0))
    assert without["us"] == pytest.approx(sum(max(part["bytes"], (part["bytes"] + part["again"]) / 1.2)
                                              for part in without["parts"]) / 100e3)


def test_speculation_gains_by_tokens_per_step():
    (row,) = table("flan-t5-xl", MACHINES["h200"], [Step(draft_tokens=5)], 3.0)
    assert 1 < row["v"] < 1.1
    assert row["tokens_per_second"] == pytest.approx(3 * row["plain_tokens_per_second"] / row["v"])


def test_the_script_ends_in_json_and_refuses_in_a_line(script):
    code, out, err = script(model, "--geometry", "flan-t5-small", "--batch-sizes", "1,4", "--json")
    assert code == 0 and "MODELLED" in out, err
    assert [row["step"]["batch_size"] for row in json.loads(out.splitlines()[-1])["modelled"]] == [1, 4]
    for options, message in ((["--geometry", "gpt"], "not known"), (["--machine", "abacus"], "not known"),
                             (["--batch-sizes", "x"], "give numbers of at least 1"), (["--bandwidth", "0"], "above 0"),
                             (["--cache", "0"], "above 0"),
                             (["--drafter", "head"], "is not modelled")):
        code, _, err = script(model, *options)
        assert code == 2 and message in err and len(err.splitlines()) == 1
    assert set(model.LAYERS) < set(model.DRAFTERS) and "flan-t5-xl" in GEOMETRIES
