"""Checkpoints of a real model's sizes with random weights: the cost of a step does not depend on the values."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from foredraft.engine.models.geometry import SIZES
from foredraft.engine.models.spec import ModelConfig, tensor_parts
from foredraft.errors import UserError

_COMMON = dict(model_type="t5", is_encoder_decoder=True, vocab_size=32128, decoder_start_token_id=0, eos_token_id=1,
               pad_token_id=0)
_V1_0 = _COMMON | dict(feed_forward_proj="relu", tie_word_embeddings=True)
_FLAN = _COMMON | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)

# the entries of config.json
GEOMETRIES = {name: (_V1_0 if name == "t5-small" else _FLAN) | sizes for name, sizes in SIZES.items()}
SHARD_BYTES = 10**9


def tensor_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a T5ForConditionalGeneration of these sizes."""
    parts = tensor_parts(ModelConfig.from_dict(config, "a geometry"), config["tie_word_embeddings"])
    return {name: part.shape for part in parts.values() for layer in part.names for name in layer}


def write_checkpoint(name: str, folder: str | Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write a checkpoint of GEOMETRIES[name] in shards of about 1 GB, one shard in memory at a time.

    UserError: no such geometry.
    """
    from safetensors.torch import save_file

    if name not in GEOMETRIES:
        raise UserError(f"geometry {name!r} is not known; one of {', '.join(GEOMETRIES)}")
    folder, config = Path(folder), GEOMETRIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    # one block of noise, shifted by another amount for each tensor: drawing billions of numbers would take minutes
    noise = torch.randn((1 << 20) + 17, generator=torch.Generator().manual_seed(seed))
    where, part, size = {}, {}, 0

    def flush() -> None:
        nonlocal part, size
        file = f"model-{len(set(where.values())) + 1:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(part, file))
        part, size = {}, 0

    for number, (tensor, shape) in enumerate(tensor_shapes(config).items()):
        count = torch.Size(shape).numel()
        values = noise.roll(number * 7919).repeat(-(-count // len(noise)))[:count].view(shape)
        # so that activations keep their size through the layers; T5 has no 1/sqrt(D) in its attention
        scale = 0.02 if tensor.endswith((".q.weight", "bias.weight")) else shape[-1] ** -0.5
        part[tensor] = (torch.ones(shape) if len(shape) == 1 else values * scale).to(dtype)
        size += count * part[tensor].element_size()
        if size > SHARD_BYTES:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where, "metadata": {}}))
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["T5ForConditionalGeneration"]}))
    return folder
