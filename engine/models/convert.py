"""Writes a checkpoint as safetensors: from pytorch_model.bin, in another dtype, or with an adapter merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from foredraft.atomic_write import atomic_path, write_atomic
from foredraft.engine.models.adapter import AdaptedTensors, Adapter
from foredraft.engine.models.checkpoint import StoredTensors, Tensors, read_config
from foredraft.engine.models.pickled import PickledTensors
from foredraft.engine.models.spec import tensor_parts
from foredraft.engine.models.tokenizer import TOKENIZER_FILES
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
        shards = _shards(size)
        out.mkdir(parents=True, exist_ok=True)
        # config.json is written last, so that an interrupted conversion is not a checkpoint
        (out / "config.json").unlink(missing_ok=True)
        _write(tensors, shapes, shards, out, DTYPES[dtype] if dtype else None,
               lambda names: progress(sum(size[name] for name in names), sum(size.values())))
    for old in {*out.glob("model*.safetensors"), out / "model.safetensors.index.json"} - {out / name for name in shards}:
        if len(shards) == 1 or old.suffix == ".safetensors":
            old.unlink(missing_ok=True)
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (path / name).exists():
            with atomic_path(out / name) as partial:
                shutil.copyfile(path / name, partial)
    entries = read_object(path / "config.json")
    if dtype:
        entries = {name: value for name, value in entries.items() if name != "torch_dtype"} | {"dtype": dtype}
    write_atomic(out / "config.json", json.dumps(entries, indent=2) + "\n")
    return {"dtype": str(kind).removeprefix("torch."), "tensors": len(shapes), "files": len(shards),
            "bytes": sum((out / name).stat().st_size for name in shards)}


def _shards(size: dict[str, int]) -> dict[str, list[str]]:
    """{file name: names of its tensors}."""
    groups: list[list[str]] = [[]]
    for name in sorted(size):
        if groups[-1] and sum(size[other] for other in groups[-1]) + size[name] > SHARD_BYTES:
            groups.append([])
        groups[-1].append(name)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _write(tensors: Tensors, shapes: dict[str, tuple[int, ...]], shards: dict[str, list[str]], out: Path,
           dtype: torch.dtype | None, progress: Callable[[list[str]], None]) -> None:
    from safetensors.torch import save_file

    done: list[str] = []
    for file, names in shards.items():
        found: dict[str, Tensor] = {}
        for name in names:
            found[name] = _converted(tensors, name, shapes[name], dtype)
            done.append(name)
            progress(done)
        with atomic_path(out / file) as partial:
            save_file(found, partial, metadata={"format": "pt"})
    if len(shards) > 1:
        where = {name: file for file, names in shards.items() for name in names}
        total = sum((out / file).stat().st_size for file in shards)
        write_atomic(out / "model.safetensors.index.json",
                     json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n")


def _converted(tensors: Tensors, name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
    tensor = tensors.read(name, shape)
    # a copy: safetensors refuses tensors that share a storage, as those of a pickle may
    found = tensor.to(dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)
    if dtype == torch.float16 and not torch.equal(found.isfinite(), tensor.isfinite()):
        raise UserError(f"{tensors.path}: {name} holds values that are too large for float16; give dtype bfloat16 or "
                        "float32")
    return found
