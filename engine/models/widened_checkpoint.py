"""Writes the checkpoint of a widened T5 (widen.py), shard by shard."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from foredraft.atomic_write import atomic_path
from foredraft.engine.models.checkpoint import StoredTensors, read_config, weights_hash
from foredraft.engine.models.geometry import SIZES
from foredraft.engine.models.projection import FILE, read_settings
from foredraft.engine.models.shards import copy_companions, plan_shards, write_config, write_index, write_shard
from foredraft.engine.models.spec import ModelConfig
from foredraft.engine.models.t5_weights import DTYPES
from foredraft.engine.models.widen import WidenedTensors
from foredraft.errors import UserError
from foredraft.json_file import read_object
from foredraft.memory import trim_heap

# Bytes of one file at most; the tensors of one file are in memory together.
SHARD_BYTES = 400_000_000


def widen_checkpoint(path: Path, out: Path, geometry: str, dtype: str = "float32", seed: int = 0,
                     progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, str | int]:
    """Write a checkpoint that computes the same function as another one, in the sizes of a larger model.

    The vocabulary, the feed-forward kind and all else that is no size remain the original's. After an interruption the same
    call goes on behind the last complete file.

    Parameters
    ----------
    path : Path
        The original's directory, with config.json and safetensors.
    out : Path
        The new directory.
    geometry : str
        A key of `SIZES`.
    dtype : str
        The weights' type, a key of `DTYPES`. In bfloat16 the function is the same up to the rounding of the weights.
    seed : int
        Of the rotations, and of the weights without effect.
    progress : callable
        Called with the bytes written so far and the total.

    Returns
    -------
    dict
        "geometry", "dtype", and the numbers of "parameters", "files" and "bytes" written.

    Raises
    ------
    UserError
        The original cannot be read or has a larger size, the type or the geometry is unknown, `out` holds other files, or
        the disk has too little space.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported; use one of {', '.join(DTYPES)}")
    config, entries = read_config(path), read_object(path / "config.json")
    entries |= _sizes(geometry, config, path) | {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    with StoredTensors(path) as stored:
        stored.check_names(config)
        tensors = WidenedTensors(stored, config, ModelConfig.from_dict(entries, path), seed)
        shapes = {name: parts.shape for parts in tensors.parts.values() for layer in parts.names for name in layer}
        counts = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        size = {name: count * DTYPES[dtype].itemsize for name, count in counts.items()}
        shards = plan_shards(size, SHARD_BYTES)
        settings = {"target": path.resolve().name, "target_hash": weights_hash(path), "geometry": geometry, "dtype": dtype,
                    "seed": str(seed)}
        _check_empty(out, settings)
        projection = tensors.projection()
        missing = [file for file in shards if not (out / file).exists()]
        _check_space(out, sum(size[name] for file in missing for name in shards[file])
                     + sum(tensor.nbytes for tensor in projection.values()))
        try:
            if not (out / FILE).exists():
                _write_projection(out / FILE, projection, settings)
            done = 0
            for file, names in shards.items():
                if file in missing:
                    write_shard(out / file, names, lambda name: tensors.raw(name).to(DTYPES[dtype]))
                    # freed blocks of one file are of no use for the next, whose tensors have other sizes
                    trim_heap()
                done += sum(size[name] for name in names)
                progress(done, sum(size.values()))
            write_index(out, shards)
            copy_companions(path, out)
            write_config(out, entries, dtype)
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error}); free some space, and give the same call again") from None
    return {"geometry": geometry, "dtype": dtype, "parameters": sum(counts.values()), "files": len(shards),
            "bytes": sum((out / name).stat().st_size for name in shards)}


def _sizes(geometry: str, config: ModelConfig, path: Path) -> dict[str, int]:
    if geometry not in SIZES:
        raise UserError(f"geometry {geometry!r} is not known; one of {', '.join(SIZES)}")
    for name, size in SIZES[geometry].items():
        if size < (own := getattr(config, name)):
            raise UserError(f"geometry {geometry} has {name} {size}, the target {path} has {own}; give a geometry in which "
                            "no size is smaller")
    return SIZES[geometry]


def _check_empty(out: Path, settings: dict[str, str]) -> None:
    """UserError if `out` holds anything but a part of the checkpoint with these settings."""
    # a killed process leaves a hidden file, which the next write deletes
    if not out.exists() or all(file.name.startswith(".") for file in out.iterdir()):
        return
    if (out / "config.json").exists() or not (out / FILE).exists():
        raise UserError(f"{out}: is not empty; give a new folder")
    found = read_settings(out / FILE)
    for name, value in settings.items():
        if found.get(name) != value:
            raise UserError(f"{out}: holds a part of a checkpoint of {name} {found.get(name)}, not {value}; give a new "
                            "folder, or the settings that it was begun with")


def _check_space(out: Path, needed: int) -> None:
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if (free := shutil.disk_usage(parent).free) < needed:
        raise UserError(f"{out}: needs {needed / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB; free some space, or "
                        "give a folder on another disk")


def _write_projection(path: Path, tensors: dict[str, Tensor], settings: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt"} | settings)
