"""The tensors of a T5 on a device, read one at a time, and how many bytes they take there.

Matrices are [outputs, inputs] as in a checkpoint, one tensor for all layers of a kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foredraft.engine.models.checkpoint import StoredTensors
from foredraft.engine.models.t5_weights import DTYPES, ModelConfig
from foredraft.errors import UserError

STORED = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class T5WeightsCuda:
    """`dtype`: of embedding, encoder and cross_kv; `stored`, a key of STORED: of the decoder's matrices and the head.

    embedding, head [V, C] (one tensor where tied and of one type); enc_qkv [Le, 3HD, C], enc_out [Le, C, HD],
    enc_ff_in [Le, F or 2F, C] (gate, then linear part), enc_ff_out [Le, C, F], enc_norms [Le, 2, C] and enc_norm [C]
    float32, enc_bias, dec_bias [buckets, H] float32; cross_kv [L, 2HD, C]; norms [L, 3, C], final_norm [C] float32;
    qkv, self_out, cross_q, cross_out, ff_in, ff_out: the decoder's, [L, ...].
    """

    config: ModelConfig
    dtype: torch.dtype
    stored: str
    device: torch.device
    tensors: dict[str, Tensor]

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["tensors"][name]
        except KeyError:
            raise AttributeError(name) from None

    def parameters(self) -> int:
        """Distinct stored weights."""
        return sum({tensor.data_ptr(): tensor.numel() for tensor in self.tensors.values()}.values())


Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


def _layout(c: ModelConfig, dtype: torch.dtype, stored: torch.dtype, tied: bool, own_tables: bool = True) -> Layout:
    """Name -> shape and type of every tensor of T5WeightsCuda, without embedding and head where they are another model's."""
    C, F, V, inner, L, Le = c.d_model, c.d_ff, c.vocab_size, c.num_heads * c.d_kv, c.num_decoder_layers, c.num_layers
    ff = 2 * F if c.gated else F
    float32 = torch.float32
    tensors = {
        "embedding": ((V, C), dtype), "enc_qkv": ((Le, 3 * inner, C), dtype), "enc_out": ((Le, C, inner), dtype),
        "enc_ff_in": ((Le, ff, C), dtype), "enc_ff_out": ((Le, C, F), dtype), "enc_norms": ((Le, 2, C), float32),
        "enc_norm": ((C,), float32), "enc_bias": ((c.buckets, c.num_heads), float32),
        "dec_bias": ((c.buckets, c.num_heads), float32), "cross_kv": ((L, 2 * inner, C), dtype),
        "norms": ((L, 3, C), float32), "final_norm": ((C,), float32), "qkv": ((L, 3 * inner, C), stored),
        "self_out": ((L, C, inner), stored), "cross_q": ((L, inner, C), stored), "cross_out": ((L, C, inner), stored),
        "ff_in": ((L, ff, C), stored), "ff_out": ((L, C, F), stored),
    }
    if not own_tables:
        del tensors["embedding"]
    elif not (tied and dtype == stored):
        tensors["head"] = ((V, C), stored)
    return tensors


def weight_bytes(c: ModelConfig, dtype: torch.dtype, stored: str, tied: bool, own_tables: bool = True) -> int:
    """What `assemble` will allocate, with embedding and head unless they are another model's."""
    return layout_bytes(_layout(c, dtype, STORED[stored], tied, own_tables))


def layout_bytes(layout: Layout) -> int:
    return sum(torch.Size(shape).numel() * kind.itemsize for shape, kind in layout.values())


def assemble(c: ModelConfig, dtype: torch.dtype, stored: str, tied: bool, device: torch.device | str,
             read: Callable[[str, tuple[int, ...]], Tensor], tables: dict[str, Tensor] | None = None) -> T5WeightsCuda:
    """Allocate every tensor on the device and fill it from `read(name in the checkpoint, shape)`, one at a time.

    `tables`: embedding and head of another model, to be shared. A decoder alone has num_layers 0."""
    device = torch.device(device)
    tensors = {name: torch.empty(shape, dtype=kind, device=device)
               for name, (shape, kind) in _layout(c, dtype, STORED[stored], tied, tables is None).items()} | (tables or {})
    tied_head = "head" not in tensors
    w = T5WeightsCuda(c, dtype, stored, device, tensors | ({"head": tensors["embedding"]} if tied_head else {}))
    C, inner = c.d_model, c.num_heads * c.d_kv
    ff = ("wi_0", "wi_1") if c.gated else ("wi",)

    def fill(out: Tensor, *names: str) -> None:
        for part, name in zip(out.chunk(len(names)), names, strict=True):
            part.copy_(read(f"{name}.weight", tuple(part.shape)))

    if tables is None:
        fill(w.embedding, "shared")
        if not tied_head:
            fill(w.head, "shared" if tied else "lm_head")
    sides = [("encoder", "enc_norms", "enc_norm", "enc_bias"), ("decoder", "norms", "final_norm", "dec_bias")]
    for side, norms, last, bias in sides if c.num_layers else sides[1:]:
        fill(tensors[last], f"{side}.final_layer_norm")
        fill(tensors[bias], f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias")
        for i in range(len(tensors[norms])):
            for j in range(tensors[norms].shape[1]):
                tensors[norms][i, j].copy_(read(f"{side}.block.{i}.layer.{j}.layer_norm.weight", (C,)))
    for prefix, side, last in (("enc_", "encoder", 1), ("", "decoder", 2)):
        for i in range(len(tensors[f"{prefix}qkv"])):
            p = f"{side}.block.{i}.layer"
            fill(tensors[f"{prefix}qkv"][i], *(f"{p}.0.SelfAttention.{name}" for name in "qkv"))
            fill(tensors["enc_out" if prefix else "self_out"][i], f"{p}.0.SelfAttention.o")
            fill(tensors[f"{prefix}ff_in"][i], *(f"{p}.{last}.DenseReluDense.{name}" for name in ff))
            fill(tensors[f"{prefix}ff_out"][i], f"{p}.{last}.DenseReluDense.wo")
    for i in range(c.num_decoder_layers):
        p = f"decoder.block.{i}.layer.1.EncDecAttention"
        fill(w.cross_q[i], f"{p}.q")
        fill(w.cross_out[i], f"{p}.o")
        fill(w.cross_kv[i], f"{p}.k", f"{p}.v")
    assert inner == w.cross_q.shape[1]
    return w


def load_cuda_weights(path: Path, device: torch.device | str, dtype: str = "float32",
                      weights: str | None = None) -> T5WeightsCuda:
    """Read a checkpoint directory onto the device. `weights`: storage of the decoder's matrices, fp32 or bf16; None keeps
    what the checkpoint holds (bf16 for one in bfloat16, else fp32)."""
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported; one of {', '.join(DTYPES)} (T5 overflows in fp16)")
    if weights not in (None, *STORED):
        raise UserError(f"weights {weights!r} is not supported on a GPU; one of {', '.join(STORED)}")
    if not (path / "config.json").exists():
        raise UserError(f"{path}: config.json is missing; give a T5 checkpoint directory")
    c = ModelConfig.from_json(path / "config.json")
    with StoredTensors(path) as tensors:
        shared = "shared.weight" if "shared.weight" in tensors.where else "encoder.embed_tokens.weight"
        tied = "lm_head.weight" not in tensors.where
        stored = weights or ("bf16" if torch.bfloat16 in (DTYPES[dtype], tensors.raw(shared).dtype) else "fp32")
        check_memory(device, weight_bytes(c, DTYPES[dtype], stored, tied), f"{path.name}'s weights",
                     "give dtype='bfloat16' and weights='bf16', or a smaller model")

        def read(name: str, shape: tuple[int, ...]) -> Tensor:
            tensor = tensors.raw(shared if name == "shared.weight" else name)
            if tuple(tensor.shape) != shape:
                raise UserError(f"{tensors.path}: {name} is {tuple(tensor.shape)}, config.json says {shape}")
            return tensor

        return assemble(c, DTYPES[dtype], stored, tied, device, read)


def random_cuda_weights(config: dict, device: torch.device | str, dtype: str = "bfloat16", seed: int = 0) -> T5WeightsCuda:
    """Weights of these sizes (the entries of a config.json) drawn on the device: speed is real, words are not."""
    c = ModelConfig.from_dict(config, "a geometry")
    generator = torch.Generator(device).manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, device=device)
        # so that activations keep their size through the layers; T5 has no 1/sqrt(D) in its attention
        scale = 0.02 if name.endswith((".q.weight", "bias.weight")) else shape[-1] ** -0.5
        return torch.randn(shape, device=device, generator=generator).mul_(scale)

    stored = "bf16" if dtype == "bfloat16" else "fp32"
    return assemble(c, DTYPES[dtype], stored, bool(config.get("tie_word_embeddings", True)), device, draw)


def free_bytes(device: torch.device | str) -> float:
    """What can still be taken there; a CPU's memory is not counted."""
    if torch.device(device).type != "cuda":
        return math.inf
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check_memory(device: torch.device | str, needed: int, what: str, mend: str, held: int = 0) -> None:
    """UserError, before anything is allocated, where the device has less free memory than `needed` bytes; `held` of them
    will be given back first."""
    free = free_bytes(device) + held
    if needed > free:
        raise UserError(f"device {str(device)!r}: {what} need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; {mend}")
