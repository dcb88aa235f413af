"""Writes a checkpoint as safetensors: from pytorch_model.bin, in another dtype, or with an adapter merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from foredraft.engine.models.adapter import AdaptedTensors, Adapter
from foredraft.engine.models.checkpoint import StoredTensors, Tensors, read_config
from foredraft.engine.models.pickled import PickledTensors
from foredraft.engine.models.shards import copy_companions, plan_shards, write_config, write_index, write_shard
from foredraft.engine.models.spec import tensor_parts
from foredraft.errors import UserError
from foredraft.json_file import read_object

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Bytes of one file at most; the tensors of one file are in memory together.
SHARD_BYTES = 2_000_000_000


def has_safetensors(path: Path) -> bool:
    """Whether a checkpoint directory holds its weights as safetensors."""
    return (path / "model.safetensors").exists() or (path / "model.safetensors.index.json").exists()


def convert_checkpoint(path: Path, out: Path, dtype: str | None = None, adapter: Path | None = None,
                       progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, str | int]:
    """Write a checkpoint directory's weights as safetensors, with its config and tokenizer files.

    Parameters
    ----------
    path : Path
        A directory with config.json and safetensors or pytorch_model.bin, single or in shards. No code in a pickle is run.
    out : Path
        The new directory; a checkpoint in it is replaced.
    dtype : str, optional
        The weights' type, a key of `DTYPES`; by default each weight keeps its own.
    adapter : Path, optional
        The directory of a LoRA adapter to merge.
    progress : callable
        Called with the bytes written so far and the total.

    Returns
    -------
    dict
        "dtype", and the numbers of "tensors", "files" and "bytes" written.

    Raises
    ------
    UserError
        The checkpoint or the adapter cannot be read, a tensor is missing or does not belong to the model, or a weight
        overflows float16.
    """
    config = read_config(path)
    with StoredTensors(path) if has_safetensors(path) else PickledTensors(path) as stored:
        stored.check_names(config)
        tensors = stored if adapter is None else AdaptedTensors(stored, Adapter(adapter), config)
        table, _ = tensors.tables(config)
        stored.drop_tied(config)
        parts = tensor_parts(config, tensors.tables(config)[1], table)
        shapes = {name: part.shape for part in parts.values() for layer in part.names for name in layer}
        if missing := sorted(shapes.keys() - set(tensors.names)):
            raise UserError(f"{path}: tensor {missing[0]!r} is missing; is this a T5ForConditionalGeneration checkpoint?")
        kind = DTYPES[dtype] if dtype else tensors.raw(table).dtype
        size = {name: torch.Size(shape).numel() * kind.itemsize for name, shape in shapes.items()}
        shards = plan_shards(size, SHARD_BYTES)
        out.mkdir(parents=True, exist_ok=True)
        # config.json is written last, so that an interrupted conversion is not a checkpoint
        (out / "config.json").unlink(missing_ok=True)
        done = 0

        def converted(name: str) -> Tensor:
            nonlocal done
            done += size[name]
            progress(done, sum(size.values()))
            return _converted(tensors, name, shapes[name], DTYPES[dtype] if dtype else None)

        for file, names in shards.items():
            write_shard(out / file, names, converted)
        write_index(out, shards)
    for old in {*out.glob("model*.safetensors"), out / "model.safetensors.index.json"} - {out / name for name in shards}:
        if len(shards) == 1 or old.suffix == ".safetensors":
            old.unlink(missing_ok=True)
    copy_companions(path, out)
    write_config(out, read_object(path / "config.json"), dtype)
    return {"dtype": str(kind).removeprefix("torch."), "tensors": len(shapes), "files": len(shards),
            "bytes": sum((out / name).stat().st_size for name in shards)}


def _converted(tensors: Tensors, name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
    tensor = tensors.read(name, shape)
    # a copy: safetensors refuses tensors that share a storage, as those of a pickle may
    found = tensor.to(dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)
    if dtype == torch.float16 and not torch.equal(found.isfinite(), tensor.isfinite()):
        raise UserError(f"{tensors.path}: {name} holds values that are too large for float16; give dtype bfloat16 or "
                        "float32")
    return found
