"""Our T5 equals transformers' on random configurations of both kinds, at every offset, for 1 and K + 1 query positions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.kernels.model.packing import widen

SOURCES = [torch.tensor(ids) for ids in ([5, 9, 33, 1], list(range(3, 90)) + [1], [1])]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("R", [1, 6])
def test_logits_equal_transformers_at_every_offset(tiny_checkpoint, backend, R):
    from transformers import T5ForConditionalGeneration

    theirs = T5ForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    ours = T5(load_weights(tiny_checkpoint), backend)
    T = 26
    tokens = torch.randint(3, 100, (3, T), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    with torch.inference_mode():
        ours.reserve(3, T, R - 1, 88)
        encoded = ours.admit(range(3), SOURCES)
        expected = [theirs(input_ids=s[None], decoder_input_ids=tokens[i : i + 1]) for i, s in enumerate(SOURCES)]
        for mine, other in zip(encoded, expected, strict=True):
            assert torch.allclose(mine, other.encoder_last_hidden_state[0], atol=1e-4)
        for start in range(0, T, R):
            stop = min(start + R, T)
            positions = torch.arange(start, stop).expand(3, -1).contiguous()
            hidden = ours.decode(tokens[:, start:stop].contiguous(), positions)
            logits = ours.logits(hidden)
            for sequence in range(3):
                assert torch.allclose(logits[sequence], expected[sequence].logits[0, start:stop], atol=1e-4)
            assert torch.equal(ours.choose(hidden), logits.argmax(-1))


def test_one_query_position_and_many_give_the_same_bits(tiny_checkpoint):
    ours = T5(load_weights(tiny_checkpoint))
    tokens = torch.randint(3, 100, (3, 20), generator=torch.Generator().manual_seed(1))
    results = []
    with torch.inference_mode():
        ours.reserve(3, 20, 7, 88)
        ours.admit(range(3), SOURCES)
        for R in (1, 2, 5, 8):
            logits = []
            for start in range(0, 20, R):
                positions = torch.arange(start, min(start + R, 20)).expand(3, -1).contiguous()
                logits.append(ours.logits(ours.decode(tokens[:, start : start + R].contiguous(), positions)).clone())
            results.append(torch.cat(logits, 1))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_bfloat16_weights_are_the_rounded_float32_ones(tiny_checkpoint):
    ours, full = T5(load_weights(tiny_checkpoint, "bfloat16")), T5(load_weights(tiny_checkpoint))
    tokens, positions = torch.tensor([[0, 5, 7]]), torch.tensor([[0, 1, 2]])
    outputs = []
    with torch.inference_mode():
        for model in (ours, full):
            model.reserve(1, 3, 2, 88)
            model.admit([0], SOURCES[1:2])
            outputs.append(model.logits(model.decode(tokens, positions)).clone())
    assert not torch.equal(*outputs)
    error = (outputs[0] - outputs[1]).norm() / outputs[1].norm()
    assert error < 0.03


def logits_of(model, R):
    tokens = torch.randint(3, 100, (3, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        model.reserve(3, 12, 5, 88)
        model.admit(range(3), SOURCES)
        return torch.cat([
            model.logits(model.decode(tokens[:, start : start + R].contiguous(),
                                      torch.arange(start, start + R).expand(3, -1).contiguous())).clone()
            for start in range(0, 12, R)], 1)


@pytest.mark.full
@pytest.mark.parametrize(("stored", "apart"), [("int8", 0.03), ("int4", 0.3)])
def test_quantised_weights_are_their_float32_values_for_any_number_of_query_positions(tiny_checkpoint, stored, apart):
    ours = T5(load_weights(tiny_checkpoint, weights=stored))
    w = ours.weights
    single = logits_of(ours, 1)
    assert torch.equal(logits_of(ours, 6), single)
    reference = T5(w, "reference")
    # where sums in another order meet the middle between two levels of an activation, the other one is taken
    assert (logits_of(reference, 6) - single).norm() / single.norm() < 1e-3

    def float32(packed):
        return widen(packed).astype(np.float32)

    names = ("qkv", "self_out", "cross_q", "cross_out", "ff_in", "ff_out")
    stacks = {name: np.stack([float32(layer) for layer in getattr(w, name)]) for name in names}
    same = T5(replace(w, stored="fp32", head=float32(w.head), **stacks))
    # activations have 16 bits at most, the source's keys and values 8 significant ones
    assert (logits_of(same, 1) - single).norm() / single.norm() < 0.004
    full = logits_of(T5(load_weights(tiny_checkpoint)), 1)
    assert 0 < (single - full).norm() / full.norm() < apart


def test_an_encoder_in_int8_is_near_float32(tiny_checkpoint):
    exact, rounded = (T5(load_weights(tiny_checkpoint, dtype)) for dtype in ("float32", "int8"))
    with torch.inference_mode():
        for source in SOURCES:
            wanted, found = exact.encode(source), rounded.encode(source)
            assert 0 < (found - wanted).norm() / wanted.norm() < 0.03
            # where sums in another order meet the middle between two levels, the other one is taken
            assert (found - T5(rounded.weights, "reference").encode(source)).norm() / found.norm() < 1e-4
    assert 0 < (logits_of(rounded, 1) - logits_of(exact, 1)).norm() / logits_of(exact, 1).norm() < 0.03
    sizes = [sum(getattr(model.weights, name).nbytes for name in ("encoder_qkv", "encoder_ff_in", "encoder_out", "cross_kv"))
             for model in (exact, rounded)]
    assert sizes[1] < 0.3 * sizes[0]


def test_a_bfloat16_checkpoint_gives_the_same_bits_in_either_storage(tiny_checkpoint, tmp_path):
    from transformers import T5ForConditionalGeneration

    T5ForConditionalGeneration.from_pretrained(tiny_checkpoint).bfloat16().save_pretrained(tmp_path)
    narrow, wide = load_weights(tmp_path), load_weights(tmp_path, weights="fp32")
    assert (narrow.stored, wide.stored) == ("bf16", "fp32")
    assert torch.equal(logits_of(T5(narrow), 3), logits_of(T5(wide), 3))


@pytest.mark.parametrize("change", [
    dict(feed_forward_proj="gated-silu"), dict(feed_forward_proj="gelu"), dict(num_layers=1, num_decoder_layers=4),
    dict(d_kv=5, num_heads=7), dict(d_model=33, d_ff=17, vocab_size=50)])
def test_odd_configurations_equal_transformers(tmp_path, change):
    from transformers import T5Config, T5ForConditionalGeneration

    base = dict(vocab_size=64, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=2, decoder_start_token_id=0)
    torch.manual_seed(3)
    theirs = T5ForConditionalGeneration(T5Config(**base | change)).eval()
    theirs.save_pretrained(tmp_path)
    ours = T5(load_weights(tmp_path))
    source, tokens = torch.tensor([4, 8, 15, 16, 23, 42, 1]), torch.tensor([[0, 9, 3, 27]])
    with torch.inference_mode():
        ours.reserve(1, 4, 3, 7)
        ours.admit([0], [source])
        logits = ours.logits(ours.decode(tokens, torch.arange(4)[None].contiguous()))
        assert torch.allclose(logits, theirs(input_ids=source[None], decoder_input_ids=tokens).logits, atol=1e-4)
        assert ours.weights.parameters() == sum(p.numel() for p in theirs.parameters())
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "t5"
