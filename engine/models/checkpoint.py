"""The files of a Hugging Face checkpoint, and its tensors by name.

Weights are safetensors, in one file or in shards. They are memory-mapped and read one tensor at a time.
Pickled weights are refused; `foredraft convert` reads them (pickled.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor

from foredraft.engine.models.spec import FAMILIES, ModelConfig, TensorParts
from foredraft.engine.models.unknown_names import check_tensor_names
from foredraft.errors import UserError

# Types that weights may be stored in.
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def indexed_files(index: Path) -> list[Path]:
    """List the shards that an index file names. UserError: it is unreadable, or a shard is missing."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: not a readable index of shards ({error}); copy or download it again") from None
    for name in names:
        if not (index.parent / name).exists():
            raise UserError(f"{index.parent}: shard {name} is missing; copy or download it again")
    return [index.parent / name for name in names]


def safetensors_files(path: Path) -> list[Path]:
    """List a checkpoint's weight files. UserError: one is missing, or the weights are pickled."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.exists():
        return indexed_files(index)
    if single.exists():
        return [single]
    if list(path.glob("*.bin")) or list(path.glob("*.pt")):
        raise UserError(f"{path}: holds only pickled weights, which are never loaded; run: foredraft convert {path} --out "
                        "FOLDER, and give FOLDER")
    raise UserError(f"{path}: model.safetensors is missing; give a T5 checkpoint directory")


def read_config(path: Path) -> ModelConfig:
    """Read the config.json of a checkpoint directory. UserError as ModelConfig.from_json, or there is none."""
    if not (path / "config.json").exists():
        raise UserError(f"{path}: config.json is missing; give a T5 checkpoint directory")
    return ModelConfig.from_json(path / "config.json")


def weights_hash(path: str | Path) -> str:
    """Hash a checkpoint directory: 16 hex digits of sha256 over its tensors' sorted names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    with StoredTensors(path) as tensors:
        for name in sorted(tensors.names):
            tensor = tensors.raw(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()[:16]


class Tensors:
    """Tensors of a model by name; error messages call the model `path`."""

    def __init__(self, tensors: dict[str, Tensor], path: str | Path = "the model in memory"):
        self._found, self.path = tensors, path

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_exc) -> None:
        self._found = {}

    @property
    def names(self) -> Collection[str]:
        return self._found.keys()

    def _fetch(self, name: str) -> Tensor:
        return self._found[name]

    def raw(self, name: str) -> Tensor:
        """The tensor itself, not a copy: do not write to it. UserError: there is none."""
        if name not in self._found:
            raise UserError(f"{self.path}: tensor {name!r} is missing; is this a T5ForConditionalGeneration checkpoint?")
        return self._fetch(name)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As `raw`. UserError: the tensor has another shape."""
        tensor = self.raw(name)
        if tuple(tensor.shape) != shape:
            raise UserError(f"{self.path}: {name} is {tuple(tensor.shape)}, config.json says {shape}")
        if tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{self.path}: {name} is stored in {kind}: quantised weights are not read; give the checkpoint "
                            "in float32, float16 or bfloat16")
        return tensor

    def tables(self, config: ModelConfig) -> tuple[str, bool]:
        """The embedding's name here, and whether the head is tied to it. UserError: no embedding, or copies that differ."""
        family = FAMILIES[config.model_type]
        name, *copies = [name for name in family.embeddings if name in self.names] or [family.embeddings[0]]
        for copy in copies:
            if not torch.equal(self.raw(copy), self.raw(name)):
                raise UserError(f"{self.path}: {copy} differs from {name}; a {config.model_type} has one embedding")
        return name, family.head not in self.names

    def drop_tied(self, config: ModelConfig) -> None:
        """Forget the other names of the embedding's values, the head among them."""
        family = FAMILIES[config.model_type]
        kept, *others = [name for name in (*family.embeddings, family.head) if name in self.names]
        for name in others:
            if torch.equal(self.raw(name), self.raw(kept)):
                del self._found[name]

    def check_names(self, config: ModelConfig) -> None:
        """UserError naming a tensor that a model of this config would not read."""
        check_tensor_names(config, self.names, self.path)


class StoredTensors(Tensors):
    """Tensors of a checkpoint directory, or of some safetensors files in it, each read when it is fetched."""

    def __init__(self, path: str | Path, files: Iterable[Path] | None = None):
        from safetensors import SafetensorError, safe_open

        super().__init__({}, Path(path))
        for file in safetensors_files(self.path) if files is None else files:
            try:
                handle = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: not a readable safetensors file ({error}); copy or download it again") from None
            self._found.update(dict.fromkeys(handle.keys(), handle))

    def _fetch(self, name: str) -> Tensor:
        return self._found[name].get_tensor(name)


def fill(out: Tensor, parts: TensorParts, read) -> None:
    """Copy the parts of a tensor into it, one at a time.

    Parameters
    ----------
    out : Tensor of parts.full_shape, any dtype and device
    parts : TensorParts
    read : callable
        (name, shape) to the checkpoint's tensor, as Tensors.read.
    """
    for layer, names in zip(out if parts.per_layer else [out], parts.names, strict=True):
        for piece, name in zip(layer.chunk(len(names)), names, strict=True):
            piece.copy_(read(name, parts.shape))
