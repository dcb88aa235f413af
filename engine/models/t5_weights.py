"""The tensors of a T5 on the CPU, read from a checkpoint one tensor at a time and packed for the compiled decoder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.models.adapter import open_checkpoint
from foredraft.engine.models.checkpoint import Tensors, fill, read_config
from foredraft.engine.models.spec import ModelConfig, TensorParts, num_parameters, tensor_parts
from foredraft.errors import UserError
from foredraft.kernels.core.backend import has_cpu_feature
from foredraft.kernels.core.gemm_tile import GROUP
from foredraft.kernels.model.packing import pack, quantize_int4, quantize_int8
from foredraft.memory import trim_heap

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Types of the encoder, and of the embedding with each.
ENCODERS = DTYPES | {"int8": torch.float32}
# How the decoder's matrices and the head may be stored; products accumulate in float32, of integers exactly.
STORAGES = ("fp32", "bf16", "int8", "int4")
QUANTISED = ("int8", "int4")


@dataclass
class T5Weights:
    """Weights of a T5 on the CPU.

    Attributes
    ----------
    config : ModelConfig
    dtype : torch.dtype
        Of the embedding, and of the encoder's matrices and `cross_kv` unless they are packed.
    stored : str
        Storage of the decoder's matrices and the head, one of `STORAGES`.
    tied : bool
        Whether the head is the embedding.
    embedding : np.ndarray [V, C]
        float32, or bfloat16 bits as uint16.
    head : np.ndarray [V/16, C, 16]
        Packed (kernels/model/linear.py).
    norms [L, 3, C], final_norm [C] : np.ndarray float32
    qkv, self_out, cross_q, cross_out, ff_in, ff_out : np.ndarray
        Packed; shapes in kernels/model/decoder.py.
    cross_kv : Tensor [L, 2HD, C]
    decoder_bias, encoder_bias : Tensor [1, buckets, H] float32
        One that all layers share; if each layer has its own (UMT5), [L, buckets, H] and [Le, buckets, H].
    encoder_norms [Le, 2, C], encoder_norm [C] : Tensor float32
    encoder_qkv [Le, 3HD, C], encoder_out [Le, C, HD], encoder_ff_in [Le, F or 2F, C], encoder_ff_out [Le, C, F] : Tensor
        The encoder's are None in a decoder without an encoder. A matrix that shares a transformers model's memory is a list
        of one tensor a layer. In int8 they and `cross_kv` are arrays packed for kernels/model/linear.py.
    """

    config: ModelConfig
    dtype: torch.dtype
    stored: str
    tied: bool
    embedding: np.ndarray
    head: np.ndarray
    norms: np.ndarray
    final_norm: np.ndarray
    qkv: np.ndarray
    self_out: np.ndarray
    cross_q: np.ndarray
    cross_out: np.ndarray
    ff_in: np.ndarray
    ff_out: np.ndarray
    cross_kv: Tensor | np.ndarray
    decoder_bias: Tensor
    encoder_norms: Tensor | None = None
    encoder_qkv: Tensor | np.ndarray | None = None
    encoder_out: Tensor | list[Tensor] | np.ndarray | None = None
    encoder_ff_in: Tensor | list[Tensor] | np.ndarray | None = None
    encoder_ff_out: Tensor | list[Tensor] | np.ndarray | None = None
    encoder_norm: Tensor | None = None
    encoder_bias: Tensor | None = None

    def parameters(self) -> int:
        """Distinct weights, without the padding of packed blocks."""
        return num_parameters(self.config, self.tied)


def as_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory; bfloat16 as bits in uint16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def packed(matrix: Tensor, stored: str) -> np.ndarray:
    """Pack a matrix [N, K] for kernels/model/linear.py, in one of `STORAGES`.

    int4 needs a K that is a multiple of 32, and int8 an even one; another matrix takes int8, or float32.
    """
    if stored == "int4" and matrix.shape[1] % GROUP == 0:
        return quantize_int4(matrix.float().numpy())
    if stored in QUANTISED and matrix.shape[1] % 2 == 0:
        return quantize_int8(matrix.float().numpy())
    return pack(as_numpy(matrix.to(torch.bfloat16 if stored == "bf16" else torch.float32)))


def check_types(dtype: str, weights: str | None, dtypes: Collection[str] = tuple(ENCODERS),
                storages: Collection[str] = STORAGES, where: str = "") -> None:
    """UserError unless both are supported."""
    if dtype not in dtypes:
        raise UserError(f"dtype {dtype!r} is not supported{where}; use one of {', '.join(dtypes)} (T5 overflows in fp16)")
    if weights not in (None, *storages):
        raise UserError(f"weights {weights!r} is not supported{where}; use one of {', '.join(storages)}")


def fastest_dtype(weights: str | None) -> str:
    """The encoder's type for "auto": bfloat16 where the processor multiplies it, else int8 beside quantised weights."""
    if has_cpu_feature("avx512bf16") or has_cpu_feature("amx-bf16"):
        return "bfloat16"
    return "int8" if weights in QUANTISED else "float32"


def default_storage(embedding: Tensor, dtype: torch.dtype) -> str:
    """As the checkpoint holds its weights: bfloat16 halves the bytes that a step reads, and loses nothing there."""
    return "bf16" if torch.bfloat16 in (dtype, embedding.dtype) else "fp32"


def load_weights(path: Path, dtype: str = "float32", weights: str | None = None, adapter: Path | None = None) -> T5Weights:
    """Read a checkpoint directory for the CPU. Arithmetic accumulates in float32 whatever the storage.

    Parameters
    ----------
    path : Path
        With config.json and safetensors.
    dtype : str
        Of the encoder and the embedding, a key of `ENCODERS`.
    weights : str, optional
        Storage of the decoder's matrices and the head, one of `STORAGES`; int8 has a scale for each output, int4 for each 32
        weights of an output. By default bf16 for a checkpoint in bfloat16, else fp32.
    adapter : Path, optional
        The directory of a LoRA adapter to merge.

    Returns
    -------
    T5Weights

    Raises
    ------
    UserError
        A file is missing or unreadable, config.json is of another family, a tensor is missing, has another shape or does not
        belong to the model, or the adapter cannot be merged.
    """
    check_types(dtype, weights)
    config = read_config(path)
    with open_checkpoint(path, config, adapter) as tensors:
        loaded = _from_checkpoint(tensors, config, dtype, weights)
    # packing leaves freed copies, a tenth of the model at XL's size
    trim_heap()
    return loaded


def copy_weights(model, dtype: str = "float32", weights: str | None = None, shared: bool = False) -> T5Weights:
    """Copy the current weights of a transformers T5ForConditionalGeneration.

    Parameters
    ----------
    model : transformers.T5ForConditionalGeneration
        Or another transformers class of a family in `FAMILIES`.
    dtype, weights : str
        As for load_weights.
    shared : bool
        Use the model's own tensors, without a copy, for the embedding and for those encoder matrices that both store alike:
        the output projections of attention and feed-forward, and `wi` of a feed-forward without gate. Only tensors of type
        `dtype` on the CPU are shared.
    """
    check_types(dtype, weights)
    tensors, config = model_tensors(model)
    tensors = Tensors({name: tensors.raw(name).cpu() for name in tensors.names})
    return _from_checkpoint(tensors, config, dtype, weights, shared)


def model_tensors(model) -> tuple[Tensors, ModelConfig]:
    """The config of a transformers model, and its tensors without the tied copies."""
    tensors = Tensors({name: tensor.detach() for name, tensor in model.state_dict().items()})
    config = ModelConfig.from_dict(model.config.to_dict(), tensors.path)
    tensors.check_names(config)
    tensors.drop_tied(config)
    return tensors, config


def decoder_weights(tensors: Tensors, config: ModelConfig, stored: str, dtype: torch.dtype, embedding: np.ndarray,
                    head: np.ndarray) -> T5Weights:
    """Assemble a decoder without an encoder (num_layers 0), on the embedding and the packed head of another model."""
    return _assemble(tensors, config, dtype, stored, False, embedding, head)


def _from_checkpoint(tensors: Tensors, config: ModelConfig, encoder: str, stored: str | None,
                     shared: bool = False) -> T5Weights:
    dtype = ENCODERS[encoder]
    name, tied = tensors.tables(config)
    parts = tensor_parts(config, tied, name)
    stored = stored or default_storage(tensors.raw(name), dtype)
    found = _shared(tensors, parts["embedding"], dtype) if shared else None
    embedding = found[0] if found else _joined(tensors, parts["embedding"], dtype)
    head = packed(embedding if tied else _joined(tensors, parts["head"], dtype), stored)
    return _assemble(tensors, config, dtype, stored, tied, as_numpy(embedding), head, shared, encoder == "int8")


def _assemble(tensors: Tensors, config: ModelConfig, dtype: torch.dtype, stored: str, tied: bool, embedding: np.ndarray,
              head: np.ndarray, shared: bool = False, packs_encoder: bool = False) -> T5Weights:
    found: dict[str, Tensor | list[Tensor] | np.ndarray] = {"embedding": embedding, "head": head}
    for name, parts in tensor_parts(config, tied).items():
        if name in found:
            continue
        if name in ("qkv", "self_out", "cross_q", "cross_out", "ff_in", "ff_out"):
            found[name] = _packed_layers(tensors, parts, dtype, stored)
        elif packs_encoder and name in ("encoder_qkv", "encoder_out", "encoder_ff_in", "encoder_ff_out", "cross_kv"):
            found[name] = _packed_layers(tensors, parts, dtype, "int8")
        elif shared and name in ("encoder_out", "encoder_ff_in", "encoder_ff_out"):
            found[name] = _shared(tensors, parts, dtype) or _joined(tensors, parts, dtype)
        else:
            is_vector = len(parts.shape) == 1 or name.endswith("_bias")
            found[name] = _joined(tensors, parts, torch.float32 if is_vector else dtype)
    for name in ("norms", "final_norm"):
        found[name] = found[name].numpy()
    return T5Weights(config, dtype, stored, tied, **found)


def _joined(tensors: Tensors, parts: TensorParts, dtype: torch.dtype) -> Tensor:
    # config.json may state other sizes: nothing is allocated for tensors that the checkpoint lacks
    known = set(tensors.names)
    for name in (name for names in parts.names for name in names if name not in known):
        tensors.raw(name)
    tensors.read(parts.names[0][0], parts.shape)
    out = torch.empty(parts.full_shape, dtype=dtype)
    fill(out, parts, tensors.read)
    return out


def _shared(tensors: Tensors, parts: TensorParts, dtype: torch.dtype) -> list[Tensor] | None:
    """The tensors themselves, one a layer, without a copy; None if they must be joined or converted."""
    if len(parts.names[0]) > 1:
        return None
    found = [tensors.read(name, parts.shape) for (name,) in parts.names]
    return found if all(tensor.dtype == dtype and tensor.is_contiguous() for tensor in found) else None


def _packed_layers(tensors: Tensors, parts: TensorParts, dtype: torch.dtype, stored: str) -> np.ndarray:
    out = None
    for layer, names in enumerate(parts.names):
        matrix = packed(_joined(tensors, TensorParts((names,), parts.shape), dtype)[0], stored)
        if out is None:
            out = np.empty((len(parts.names), *matrix.shape), matrix.dtype)
        out[layer] = matrix
    return out
