"""A checkpoint on a device: the right bytes counted before any is taken, and what cannot be run refused in a line."""

import pytest
import torch

import foredraft
from foredraft.engine import cuda_weights
from foredraft.engine.cuda_weights import check_memory, load_cuda_weights, random_cuda_weights, weight_bytes
from foredraft.engine.t5_cuda import T5Cuda
from foredraft.engine.t5_weights import load_weights
from foredraft.errors import UserError

CONFIG = dict(model_type="t5", vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=3,
              feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def storage_bytes(weights) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in weights.tensors.values()}.values())


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "fp32"), ("bfloat16", "bf16"), ("float32", "bf16")])
def test_bytes_are_counted_before_they_are_taken(tiny_checkpoint, dtype, stored):
    w = load_cuda_weights(tiny_checkpoint, "cpu", dtype, stored)
    tied = "v1.0" in str(tiny_checkpoint)
    assert storage_bytes(w) == weight_bytes(w.config, w.dtype, stored, tied)
    assert w.head.dtype == w.qkv.dtype == cuda_weights.STORED[stored] and w.embedding.dtype == getattr(torch, dtype)


def test_as_many_parameters_as_on_the_cpu(tiny_checkpoint):
    assert load_cuda_weights(tiny_checkpoint, "cpu").parameters() == load_weights(tiny_checkpoint).parameters()


def test_random_weights_keep_activations_finite():
    target = T5Cuda(random_cuda_weights(CONFIG, "cpu", "float32"), backend="reference")
    target.reserve(1, 8, 0, 20)
    with torch.inference_mode():
        (encoded,) = target.admit([0], [torch.arange(3, 20)])
        hidden = target.decode(torch.tensor([[0]]), torch.tensor([[0]]))
    assert encoded.isfinite().all() and hidden.isfinite().all() and hidden.abs().max() < 100


def test_buffers_take_what_was_counted():
    target = T5Cuda(random_cuda_weights(CONFIG, "cpu"))
    target.reserve(3, 20, 4, 130)
    assert sum(b.nbytes for b in target.buffers.values()) == target.buffer_bytes(target.rows, target.slots, target.pages, 5)
    assert target.pages == 4
    generation = target.generation
    target.reserve(2, 40, 4, 200)
    assert target.generation == generation
    target.reserve(2, 40, 4, 300)
    assert target.generation > generation and target.pages == 8


def test_too_little_memory_says_how_much_and_what_to_lower(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 10**8, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    with pytest.raises(UserError, match=r"caches need 0.70 GB, 0.50 GB are free; lower batch_size"):
        check_memory("cuda", 7 * 10**8, "caches", "lower batch_size")
    check_memory("cuda", 4 * 10**8, "caches", "lower batch_size")
    check_memory("cpu", 10**15, "caches", "lower batch_size")


@pytest.mark.parametrize(("options", "message"), [
    (dict(dtype="float16"), "T5 overflows in fp16"), (dict(weights="int8"), "not supported on a GPU")])
def test_types_that_a_device_does_not_take(tiny_checkpoint, options, message):
    with pytest.raises(UserError, match=message):
        load_cuda_weights(tiny_checkpoint, "cpu", **options)


def pretend(monkeypatch, capability=(9, 0), present=True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(("device", "machine", "message"), [
    ("cuda", dict(present=False), "no CUDA device is present"),
    ("cuda", dict(capability=(7, 5)), "compute capability 7.5"),
    ("cuda:3", dict(), "there are 1"),
    ("cuda:x", dict(), "not known"),
    ("tpu", dict(), "not known"),
])
def test_devices_that_cannot_run(monkeypatch, device, machine, message):
    pretend(monkeypatch, **machine)
    with pytest.raises(UserError, match=message):
        foredraft.load(device=device)
