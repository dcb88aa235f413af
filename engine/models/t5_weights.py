"""A Hugging Face T5 checkpoint (directory or hub id) as the tensors of t5.py.

Read one tensor at a time: what is held twice is never more than one tensor. T5 v1.0 (relu, head tied to the embedding)
and v1.1 / FLAN (gated, head of its own).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.models.checkpoint import StoredTensors, Tensors
from foredraft.errors import UserError
from foredraft.kernels.model.activation import ACTIVATIONS
from foredraft.kernels.model.linear import pack, quantize
from foredraft.memory import give_back_freed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# How the decoder's matrices and the head may be stored; all are widened to float32 on their way into the arithmetic.
STORED = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a T5, named as in config.json where our own letters do not serve."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    buckets: int
    max_distance: int
    epsilon: float
    activation: int
    gated: bool
    head_scale: float
    start_token: int
    end_token: int
    pad_token: int
    source_limit: int | None

    @classmethod
    def from_json(cls, path: Path) -> ModelConfig:
        try:
            c = json.loads(path.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{path}: not readable as JSON ({error}); is this a T5 checkpoint directory?") from None
        return cls.from_dict(c, path)

    @classmethod
    def from_dict(cls, c: dict, path: str | Path) -> ModelConfig:
        """The entries of a config.json; ``path`` is what messages call it."""
        kind = c.get("model_type")
        if kind not in ("t5", "mt5"):
            what = "an encoder-decoder of another family" if c.get("is_encoder_decoder") else "no encoder-decoder"
            raise UserError(f"{path}: model_type {kind!r} is {what}; give a T5, T5 v1.1 or FLAN-T5 checkpoint")
        missing = [key for key in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads") if key not in c]
        if missing:
            raise UserError(f"{path}: key {missing[0]!r} is missing; save the model again with transformers")
        first, _, last = c.get("feed_forward_proj", "relu").partition("-")
        gated = first == "gated"
        name = last if gated else first
        name = "gelu_new" if gated and name == "gelu" else name
        if name not in ACTIVATIONS:
            raise UserError(f"{path}: feed_forward_proj {c['feed_forward_proj']!r} is not supported; one of "
                            f"{', '.join(ACTIVATIONS)}, with or without 'gated-'")
        # transformers 5 writes scale_decoder_outputs; before it, scaling went with tied embeddings
        scaled = c.get("scale_decoder_outputs", c.get("tie_word_embeddings", True) is not False)
        end = c.get("eos_token_id", 1)
        return cls(
            vocab_size=c["vocab_size"], d_model=c["d_model"], d_kv=c["d_kv"], d_ff=c["d_ff"], num_layers=c["num_layers"],
            num_decoder_layers=c.get("num_decoder_layers") or c["num_layers"], num_heads=c["num_heads"],
            buckets=c.get("relative_attention_num_buckets", 32), max_distance=c.get("relative_attention_max_distance", 128),
            epsilon=c.get("layer_norm_epsilon", 1e-6), activation=ACTIVATIONS.index(name), gated=gated,
            head_scale=c["d_model"] ** -0.5 if scaled else 1.0, start_token=c.get("decoder_start_token_id", 0) or 0,
            end_token=end[0] if isinstance(end, list) else end, pad_token=c.get("pad_token_id", 0) or 0,
            source_limit=c.get("n_positions"),
        )


@dataclass
class EncoderLayer:
    """Plain torch matrices [outputs, inputs] in the stored dtype; norms [C] float32."""

    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    ff_norm: Tensor
    ff_in: Tensor
    ff_out: Tensor


@dataclass
class T5Weights:
    """Encoder for torch, decoder packed for kernels/model/decoder.py (shapes there); cross_kv [L] of [2HD, C] for torch.

    `dtype`: of the embedding, the encoder and cross_kv; `stored`, one of STORED: of the decoder's matrices and the head.
    """

    config: ModelConfig
    dtype: torch.dtype
    stored: str
    embedding: np.ndarray
    encoder: list[EncoderLayer]
    encoder_norm: Tensor
    encoder_bias: Tensor  # [buckets, H]
    cross_kv: list[Tensor]
    norms: np.ndarray
    final_norm: np.ndarray
    qkv: np.ndarray
    self_out: np.ndarray
    cross_q: np.ndarray
    cross_out: np.ndarray
    ff_in: np.ndarray
    ff_out: np.ndarray
    decoder_bias: Tensor  # [buckets, H]
    head: np.ndarray

    def parameters(self) -> int:
        """Distinct stored weights, without the padding of packed blocks."""
        c = self.config
        inner = c.num_heads * c.d_kv
        ff = c.d_ff * c.d_model * (3 if c.gated else 2)
        per_encoder = 4 * inner * c.d_model + ff + 2 * c.d_model
        per_decoder = 8 * inner * c.d_model + ff + 3 * c.d_model
        heads = 1 if c.head_scale != 1.0 else 2
        return (heads * c.vocab_size * c.d_model + c.num_layers * per_encoder + c.num_decoder_layers * per_decoder
                + 2 * c.d_model + 2 * c.buckets * c.num_heads)


def _as_numpy(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def packed(matrix: Tensor, stored: str) -> np.ndarray:
    """A matrix [N, K] as kernels/model/linear.py reads it, in one of STORED."""
    if stored == "int8":
        return quantize(matrix.float().numpy())
    return pack(_as_numpy(matrix.to(torch.bfloat16 if stored == "bf16" else torch.float32)))


def load_weights(path: Path, dtype: str = "float32", weights: str | None = None) -> T5Weights:
    """Read a checkpoint directory; arithmetic accumulates in float32 whatever the storage.

    `weights`, one of STORED: the decoder's storage. None keeps what the checkpoint holds: bf16 for one in bfloat16, which
    loses nothing and halves the bytes of a step, else fp32. int8 quantises each output symmetrically.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported; one of {', '.join(DTYPES)} (T5 overflows in fp16)")
    if weights not in (None, *STORED):
        raise UserError(f"weights {weights!r} is not supported; one of {', '.join(STORED)}")
    if not (path / "config.json").exists():
        raise UserError(f"{path}: config.json is missing; give a T5 checkpoint directory")
    c = ModelConfig.from_json(path / "config.json")
    with StoredTensors(path) as tensors:
        loaded = _assemble(tensors, c, DTYPES[dtype], weights)
    # after XL's matrices were repacked, a tenth of the model
    give_back_freed()
    return loaded


def copy_weights(model, dtype: str = "float32") -> T5Weights:
    """The weights of a transformers T5ForConditionalGeneration as they are now."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    c = ModelConfig.from_dict(model.config.to_dict(), "the model in memory")
    return _assemble(Tensors(tensors), c, DTYPES[dtype])


def decoder_weights(tensors: Tensors, config: ModelConfig, stored: str, dtype: torch.dtype, embedding: np.ndarray,
                    head: np.ndarray) -> T5Weights:
    """A decoder without an encoder (num_layers 0), on the embedding and the packed head of another model."""
    return _assemble(tensors, config, dtype, stored, (embedding, head))


def _assemble(tensors: Tensors, c: ModelConfig, kind: torch.dtype, stored: str | None = None,
              tables: tuple[np.ndarray, np.ndarray] | None = None) -> T5Weights:
    inner, L = c.num_heads * c.d_kv, c.num_decoder_layers
    ff_parts = ("wi_0", "wi_1") if c.gated else ("wi",)

    def read(name: str, rows: int, columns: int, dtype: torch.dtype = kind) -> Tensor:
        tensor = tensors.matrix(name, dtype)
        if tuple(tensor.shape) != (rows, columns):
            raise UserError(f"{tensors.path}: {name} is {tuple(tensor.shape)}, config.json says ({rows}, {columns})")
        return tensor

    def norm(name: str) -> Tensor:
        return tensors.matrix(name, torch.float32)

    def joined(prefix: str, names: tuple[str, ...], rows: int, columns: int) -> Tensor:
        out = torch.empty(len(names) * rows, columns, dtype=kind)
        for i, name in enumerate(names):
            out[i * rows : (i + 1) * rows] = read(f"{prefix}.{name}.weight", rows, columns)
        return out

    def stack(parts) -> np.ndarray:
        first = packed(parts("decoder.block.0.layer"), stored)
        out = np.empty((L, *first.shape), first.dtype)
        out[0] = first
        for layer in range(1, L):
            out[layer] = packed(parts(f"decoder.block.{layer}.layer"), stored)
        return out

    if tables is None:
        shared = "shared.weight" if "shared.weight" in tensors.where else "encoder.embed_tokens.weight"
        if stored is None:
            stored = "bf16" if torch.bfloat16 in (kind, tensors.raw(shared).dtype) else "fp32"
        matrix = read(shared, c.vocab_size, c.d_model)
        tied = "lm_head.weight" not in tensors.where
        head = packed(matrix if tied else read("lm_head.weight", c.vocab_size, c.d_model), stored)
        tables = (_as_numpy(matrix), head)

    encoder = []
    for layer in range(c.num_layers):
        p = f"encoder.block.{layer}.layer"
        encoder.append(EncoderLayer(
            attention_norm=norm(f"{p}.0.layer_norm.weight"),
            qkv=joined(f"{p}.0.SelfAttention", ("q", "k", "v"), inner, c.d_model),
            out=read(f"{p}.0.SelfAttention.o.weight", c.d_model, inner),
            ff_norm=norm(f"{p}.1.layer_norm.weight"),
            ff_in=joined(f"{p}.1.DenseReluDense", ff_parts, c.d_ff, c.d_model),
            ff_out=read(f"{p}.1.DenseReluDense.wo.weight", c.d_model, c.d_ff),
        ))
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return T5Weights(
        config=c, dtype=kind, stored=stored, embedding=tables[0], encoder=encoder,
        encoder_norm=norm("encoder.final_layer_norm.weight") if encoder else torch.zeros(0),
        encoder_bias=read(f"encoder.{bias}", c.buckets, c.num_heads, torch.float32) if encoder else torch.zeros(0),
        cross_kv=[joined(f"decoder.block.{i}.layer.1.EncDecAttention", ("k", "v"), inner, c.d_model) for i in range(L)],
        norms=np.stack([[norm(f"decoder.block.{i}.layer.{j}.layer_norm.weight").numpy() for j in range(3)]
                        for i in range(L)]),
        final_norm=norm("decoder.final_layer_norm.weight").numpy(),
        qkv=stack(lambda p: joined(f"{p}.0.SelfAttention", ("q", "k", "v"), inner, c.d_model)),
        self_out=stack(lambda p: read(f"{p}.0.SelfAttention.o.weight", c.d_model, inner)),
        cross_q=stack(lambda p: read(f"{p}.1.EncDecAttention.q.weight", inner, c.d_model)),
        cross_out=stack(lambda p: read(f"{p}.1.EncDecAttention.o.weight", c.d_model, inner)),
        ff_in=stack(lambda p: joined(f"{p}.2.DenseReluDense", ff_parts, c.d_ff, c.d_model)),
        ff_out=stack(lambda p: read(f"{p}.2.DenseReluDense.wo.weight", c.d_model, c.d_ff)),
        decoder_bias=read(f"decoder.{bias}", c.buckets, c.num_heads, torch.float32),
        head=tables[1],
    )


def load_tokenizer(path: Path):
    """The checkpoint's tokenizer as a tokenizers.Tokenizer, or None when it has none."""
    from tokenizers import Tokenizer

    if (path / "tokenizer.json").exists():
        try:
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path / 'tokenizer.json'}: not a readable tokenizer ({error}); copy it again") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    if (path / "spiece.model").exists():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, use_fast=True).backend_tokenizer
    return None
