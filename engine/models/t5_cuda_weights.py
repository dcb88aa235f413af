"""The tensors of a T5 on a device, read from a checkpoint one tensor at a time, and their bytes.

Matrices are [outputs, inputs] as in a checkpoint, one tensor for all layers of a kind. Names are those of
t5_weights.T5Weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foredraft.engine.models.adapter import open_checkpoint
from foredraft.engine.models.checkpoint import Tensors, fill, read_config
from foredraft.engine.models.device_memory import Layout, check_memory, layout_bytes
from foredraft.engine.models.spec import ModelConfig, num_parameters, tensor_parts
from foredraft.engine.models.t5_weights import DTYPES, check_types, default_storage, model_tensors
from foredraft.errors import UserError

# How the decoder's matrices and the head may be stored on a device.
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class T5WeightsCuda:
    """Weights of a T5 on a device, each tensor an attribute.

    Attributes
    ----------
    config : ModelConfig
    dtype : torch.dtype
        Of the embedding, the encoder's matrices and `cross_kv`.
    stored : str
        Storage of the decoder's matrices and the head, a key of `STORED`.
    tied : bool
        Whether the head is the embedding.
    device : torch.device
    tensors : dict[str, Tensor]
        embedding, head [V, C] (one tensor where they are tied and of one type);
        encoder_qkv [Le, 3HD, C], encoder_out [Le, C, HD], encoder_ff_in [Le, F or 2F, C] (gate, then linear part),
        encoder_ff_out [Le, C, F]; encoder_norms [Le, 2, C], encoder_norm [C] and encoder_bias, decoder_bias [1, buckets, H]
        float32; cross_kv [L, 2HD, C]; norms [L, 3, C], final_norm [C] float32;
        qkv, self_out, cross_q, cross_out, ff_in, ff_out [L, ...]. A decoder without an encoder has no encoder_*.
    """

    config: ModelConfig
    dtype: torch.dtype
    stored: str
    tied: bool
    device: torch.device
    tensors: dict[str, Tensor]

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["tensors"][name]
        except KeyError:
            raise AttributeError(name) from None

    def parameters(self) -> int:
        """Distinct weights."""
        return num_parameters(self.config, self.tied)


def _layout(config: ModelConfig, dtype: torch.dtype, stored: torch.dtype, tied: bool, own_tables: bool = True) -> Layout:
    """Every tensor to allocate; without embedding and head where they are another model's."""
    layout: Layout = {}
    for name, parts in tensor_parts(config, tied).items():
        if len(parts.shape) == 1 or name.endswith("_bias"):
            kind = torch.float32
        elif name in ("embedding", "cross_kv") or name.startswith("encoder_"):
            kind = dtype
        else:
            kind = stored
        layout[name] = parts.full_shape, kind
    if not own_tables:
        del layout["embedding"], layout["head"]
    elif tied and dtype == stored:
        del layout["head"]
    return layout


def weight_bytes(config: ModelConfig, dtype: torch.dtype, stored: str, tied: bool, own_tables: bool = True) -> int:
    """Bytes that `assemble` allocates, with embedding and head unless they are another model's."""
    return layout_bytes(_layout(config, dtype, STORED[stored], tied, own_tables))


def assemble(config: ModelConfig, dtype: torch.dtype, stored: str, tied: bool, device: torch.device | str,
             read: Callable[[str, tuple[int, ...]], Tensor], tables: dict[str, Tensor] | None = None,
             embedding: str | None = None) -> T5WeightsCuda:
    """Allocate every tensor on the device, then fill them one checkpoint tensor at a time.

    Parameters
    ----------
    config : ModelConfig
        num_layers 0: a decoder without an encoder.
    dtype, stored, tied
        As T5WeightsCuda.
    device : torch.device or str
    read : callable
        (name in the checkpoint, shape) to a tensor of that shape.
    tables : dict[str, Tensor], optional
        "embedding" and "head" of another model, which are shared.
    embedding : str, optional
        The embedding's name in the checkpoint.

    Returns
    -------
    T5WeightsCuda
    """
    device = torch.device(device)
    tensors = {name: torch.empty(shape, dtype=kind, device=device)
               for name, (shape, kind) in _layout(config, dtype, STORED[stored], tied, tables is None).items()}
    parts = tensor_parts(config, tied, embedding)
    for name, tensor in tensors.items():
        fill(tensor, parts[name], read)
    tensors |= tables or {}
    tensors.setdefault("head", tensors["embedding"])
    return T5WeightsCuda(config, dtype, stored, tied, device, tensors)


def load_cuda_weights(path: Path, device: torch.device | str, dtype: str = "float32", weights: str | None = None,
                      adapter: Path | None = None) -> T5WeightsCuda:
    """Read a checkpoint directory onto a device.

    Parameters
    ----------
    path : Path
        With config.json and safetensors.
    device : torch.device or str
    dtype : str
        Of the embedding and the encoder, "float32" or "bfloat16".
    weights : str, optional
        Storage of the decoder's matrices and the head, a key of `STORED`. By default bf16 for a checkpoint in bfloat16, else
        fp32.
    adapter : Path, optional
        The directory of a LoRA adapter to merge.

    Returns
    -------
    T5WeightsCuda

    Raises
    ------
    UserError
        As t5_weights.load_weights, or the device has too little free memory.
    """
    check_types(dtype, weights, tuple(DTYPES), tuple(STORED), " on a GPU")
    config = read_config(path)
    with open_checkpoint(path, config, adapter) as tensors:
        return _read(tensors, config, device, DTYPES[dtype], weights)


def copy_cuda_weights(model, device: torch.device | str, dtype: str = "float32",
                      weights: str | None = None) -> T5WeightsCuda:
    """Copy the current weights of a transformers model to a device; as t5_weights.copy_weights."""
    check_types(dtype, weights, tuple(DTYPES), tuple(STORED), " on a GPU")
    tensors, config = model_tensors(model)
    return _read(tensors, config, device, DTYPES[dtype], weights)


def _read(tensors: Tensors, config: ModelConfig, device: torch.device | str, dtype: torch.dtype,
          weights: str | None) -> T5WeightsCuda:
    if len(tensor_parts(config, True)["decoder_bias"].names) > 1:
        raise UserError(f"{tensors.path}: a {config.model_type} has a relative bias in each layer, which the CUDA kernels "
                        "do not support; use device 'cpu'")
    name, tied = tensors.tables(config)
    stored = weights or default_storage(tensors.raw(name), dtype)
    check_memory(device, weight_bytes(config, dtype, stored, tied), f"{Path(tensors.path).name}'s weights",
                 "give dtype='bfloat16' and weights='bf16', or a smaller model")
    return assemble(config, dtype, stored, tied, device, tensors.read, embedding=name)


def random_cuda_weights(entries: dict, device: torch.device | str, dtype: str = "bfloat16", seed: int = 0) -> T5WeightsCuda:
    """Draw weights on the device, of the sizes in a config.json's `entries`: their speed is real, their text is noise."""
    config = ModelConfig.from_dict(entries, "a geometry")
    generator = torch.Generator(device).manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, device=device)
        # activations keep their size through the layers; T5 has no 1/sqrt(D) in its attention
        scale = 0.02 if name.endswith((".q.weight", "bias.weight")) else shape[-1] ** -0.5
        return torch.randn(shape, device=device, generator=generator).mul_(scale)

    stored = "bf16" if dtype == "bfloat16" else "fp32"
    return assemble(config, DTYPES[dtype], stored, bool(entries.get("tie_word_embeddings", True)), device, draw)
