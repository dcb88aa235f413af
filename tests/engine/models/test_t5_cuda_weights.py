"""A checkpoint on a device: bytes are counted before they are allocated, and what cannot run is refused in one line."""

import pytest
import torch

import foredraft
from foredraft.engine.models import device_memory
from foredraft.engine.models import t5_cuda_weights as cuda_weights
from foredraft.engine.models.device_memory import check_memory
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import copy_cuda_weights, load_cuda_weights, random_cuda_weights, weight_bytes
from foredraft.engine.models.t5_weights import load_weights
from foredraft.errors import UserError

CONFIG = dict(model_type="t5", vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=3,
              feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def storage_bytes(weights) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in weights.tensors.values()}.values())


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "fp32"), ("bfloat16", "bf16"), ("float32", "bf16")])
def test_bytes_are_counted_before_they_are_allocated(tiny_checkpoint, dtype, stored):
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


def test_counted_bytes_are_those_of_the_buffers():
    target = T5Cuda(random_cuda_weights(CONFIG, "cpu"))
    target.reserve(3, 20, 4, 130)
    assert sum(b.nbytes for b in target.buffers.values()) == target.buffer_bytes(
        target.num_sequences, target.slots, target.pages_per_sequence, 5)
    assert target.pages_per_sequence == 4
    generation = target.generation
    target.reserve(2, 40, 4, 200)
    assert target.generation == generation
    target.reserve(2, 40, 4, 300)
    assert target.generation > generation and target.pages_per_sequence == 8


def test_too_little_memory_says_how_much_and_what_to_lower(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 10**8, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    with pytest.raises(UserError, match=r"caches need 0.70 GB, 0.50 GB are free; lower batch_size"):
        check_memory("cuda", 7 * 10**8, "caches", "lower batch_size")
    check_memory("cuda", 4 * 10**8, "caches", "lower batch_size")
    check_memory("cpu", 10**15, "caches", "lower batch_size")


def little(monkeypatch, free: int) -> None:
    """A device of so many free bytes."""
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: free)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_a_model_in_memory_are_those_of_its_checkpoint(tiny_checkpoint, dtype):
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(tiny_checkpoint)
    copied, loaded = copy_cuda_weights(model, "cpu", dtype), load_cuda_weights(tiny_checkpoint, "cpu", dtype)
    assert copied.tensors.keys() == loaded.tensors.keys() and copied.tied == loaded.tied
    assert all(torch.equal(copied.tensors[name], tensor) for name, tensor in loaded.tensors.items())
    assert copied.embedding.data_ptr() != model.shared.weight.data_ptr()


def test_weights_that_do_not_fit_are_not_loaded(monkeypatch, tiny_checkpoint):
    little(monkeypatch, 10**4)
    monkeypatch.setattr(cuda_weights, "assemble", lambda *arguments: pytest.fail("memory was allocated"))
    with pytest.raises(UserError, match=r"weights need 0.00 GB, 0.00 GB are free; give dtype='bfloat16'"):
        load_cuda_weights(tiny_checkpoint, "cpu")


def test_a_request_too_large_leaves_the_target_as_it_was(monkeypatch):
    target = T5Cuda(random_cuda_weights(CONFIG, "cpu"))
    target.reserve(2, 20, 2, 60)
    held, generation = dict(target.buffers), target.generation
    little(monkeypatch, 10**5)
    with pytest.raises(UserError, match="caches for 99 sequences of 64 positions and 64 source .* lower batch_size"):
        target.reserve(99, 20, 2, 60)
    with pytest.raises(UserError, match="caches for 2 sequences of 9984 positions need .* or max_new_tokens"):
        target.reserve_slots(9970)
    assert target.buffers == held and target.generation == generation and target.num_sequences == 2 and target.slots == 64
    with pytest.raises(UserError, match="attention among 4000 source tokens and the outputs of 1 sources need"):
        target.admit([0], [torch.zeros(4000, dtype=torch.int64)])


def test_many_sequences_and_a_later_long_source_need_not_fit_together(monkeypatch):
    target = T5Cuda(random_cuda_weights(CONFIG, "cpu"))
    target.reserve(8, 20, 0, 60)
    long = target.buffer_bytes(1, 64, 32, 1)
    assert long < target.buffer_bytes(8, 64, 32, 1) - target.buffer_bytes(8, 64, 1, 1)
    little(monkeypatch, long)
    target.reserve(1, 20, 0, 2000)
    assert (target.num_sequences, target.pages_per_sequence) == (1, 32)


@pytest.mark.parametrize(("options", "message"), [
    (dict(dtype="float16"), "T5 overflows in fp16"), (dict(dtype="int8"), "'int8' is not supported on a GPU; use one of"),
    (dict(weights="int8"), "not supported on a GPU")])
def test_types_that_a_device_does_not_support(tiny_checkpoint, options, message):
    with pytest.raises(UserError, match=message):
        load_cuda_weights(tiny_checkpoint, "cpu", **options)


def pretend(monkeypatch, capability=(9, 0), present=True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(("device", "machine", "message"), [
    ("cuda", dict(present=False), "no CUDA device is present"),
    ("cuda", dict(capability=(7, 5)), "compute capability 7.5"),
    ("cuda:3", dict(), "the number of devices is 1"),
    ("cuda:x", dict(), "not known"),
    ("tpu", dict(), "not known"),
])
def test_devices_that_cannot_run(monkeypatch, device, machine, message):
    pretend(monkeypatch, **machine)
    with pytest.raises(UserError, match=message):
        foredraft.load(device=device)
