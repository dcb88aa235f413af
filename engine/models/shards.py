"""Writes the files of a checkpoint: its tensors in shards, which are in memory one at a time, and those beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from foredraft.atomic_write import atomic_path, write_atomic
from foredraft.engine.models.tokenizer import TOKENIZER_FILES


def plan_shards(size: dict[str, int], limit: int) -> dict[str, list[str]]:
    """Group tensors by name, so that a layer's are together.

    Parameters
    ----------
    size : dict
        Bytes of each tensor.
    limit : int
        Bytes of a file, unless a single tensor is larger.

    Returns
    -------
    dict
        The names of each file's tensors.
    """
    groups: list[list[str]] = [[]]
    for name in sorted(size):
        if groups[-1] and sum(size[other] for other in groups[-1]) + size[name] > limit:
            groups.append([])
        groups[-1].append(name)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def write_shard(path: Path, names: list[str], tensor: Callable[[str], Tensor]) -> None:
    """Write the file of these tensors atomically."""
    from safetensors.torch import save_file

    found = {name: tensor(name) for name in names}
    with atomic_path(path) as partial:
        save_file(found, partial, metadata={"format": "pt"})


def write_index(out: Path, shards: dict[str, list[str]]) -> None:
    """Write the index of several shards; a single file has none."""
    if len(shards) == 1:
        return
    where = {name: file for file, names in shards.items() for name in names}
    total = sum((out / file).stat().st_size for file in shards)
    write_atomic(out / "model.safetensors.index.json",
                 json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n")


def copy_companions(path: Path, out: Path) -> None:
    """Copy generation_config.json and the tokenizer's files of one checkpoint directory to another, each atomically."""
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (path / name).exists():
            with atomic_path(out / name) as partial:
                shutil.copyfile(path / name, partial)


def write_config(out: Path, entries: dict, dtype: str | None) -> None:
    """Write config.json, with the weights' type where one is given. Written last: without it, a folder is no checkpoint."""
    if dtype:
        entries = {name: value for name, value in entries.items() if name != "torch_dtype"} | {"dtype": dtype}
    write_atomic(out / "config.json", json.dumps(entries, indent=2) + "\n")
