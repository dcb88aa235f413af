"""The files of a Hugging Face checkpoint, and its tensors by name.

Weights are safetensors, in one file or in shards. They are memory-mapped and read one tensor at a time.
Pickled weights are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from foredraft.engine.models.spec import FAMILIES, ModelConfig, TensorParts
from foredraft.engine.models.unread import check_tensor_names
from foredraft.errors import UserError

# Types that weights may be stored in.
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def find_checkpoint(name: str | Path) -> Path:
    """Find a checkpoint directory.

    Parameters
    ----------
    name : str or Path
        A directory, or OWNER/NAME on the Hugging Face hub (only json, safetensors and spiece.model files are downloaded).

    Returns
    -------
    Path
        The directory.

    Raises
    ------
    UserError
        There is no such directory, and the hub has no such repository or cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path}: is a file; give the checkpoint's directory")
    parts = str(name).split("/")
    if len(parts) > 2 or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{name}: no such directory; give a T5 checkpoint directory or a hub id (google/flan-t5-base)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "spiece.model"]))
    except Exception as error:  # the hub client raises many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: no such directory, and the hub did not give it ({reason[:160]}); "
                        "give a T5 checkpoint directory") from None


def safetensors_files(path: Path) -> list[Path]:
    """List a checkpoint's weight files. UserError: one is missing, or the weights are pickled."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        for name in names:
            if not (path / name).exists():
                raise UserError(f"{path}: shard {name} is missing; copy or download it again")
        return [path / name for name in names]
    single = path / "model.safetensors"
    if single.exists():
        return [single]
    if list(path.glob("*.bin")) or list(path.glob("*.pt")):
        raise UserError(f"{path}: holds only pickled weights, which are never loaded; load it once with transformers and "
                        "save it with save_pretrained(), which writes model.safetensors")
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

    def check_names(self, config: ModelConfig) -> None:
        """UserError naming a tensor that a model of this config would not read."""
        check_tensor_names(config, self.names, self.path)


class StoredTensors(Tensors):
    """Tensors of a checkpoint directory, each read from its file when it is fetched."""

    def __init__(self, path: str | Path):
        from safetensors import SafetensorError, safe_open

        super().__init__({}, Path(path))
        for file in safetensors_files(self.path):
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
