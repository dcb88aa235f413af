"""The files of a Hugging Face checkpoint, and its tensors by name.

Safetensors, single or sharded, memory-mapped and read one tensor at a time. Pickled weights are refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from foredraft.errors import UserError


def find_checkpoint(name: str | Path) -> Path:
    """A directory as it is; anything of the form owner/name from the hub (json and safetensors only)."""
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
    except Exception as error:  # the hub client raises many kinds; each ends in the same advice
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: no such directory, and the hub did not give it ({reason[:160]}); "
                        "give a T5 checkpoint directory") from None


def safetensors_files(path: Path) -> list[Path]:
    """The checkpoint's weight files, or a UserError that says which is missing."""
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


def weights_hash(path: str | Path) -> str:
    """sha256 (16 hex digits) over the sorted tensor names, dtypes, shapes and bytes of a checkpoint directory."""
    digest = hashlib.sha256()
    with StoredTensors(path) as tensors:
        for name in sorted(tensors.where):
            tensor = tensors.raw(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()[:16]


class Tensors:
    """Tensors of a model in memory by name; ``path`` is what messages call it."""

    def __init__(self, where: dict[str, Tensor], path: str | Path = "the model in memory"):
        self.where, self.path = where, path

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_exc) -> None:
        self.where = {}

    def _fetch(self, name: str) -> Tensor:
        return self.where[name]

    def raw(self, name: str) -> Tensor:
        """The tensor itself: it may lie in a mapped file or belong to the model."""
        if name not in self.where:
            raise UserError(f"{self.path}: tensor {name!r} is missing; is this a T5ForConditionalGeneration checkpoint?")
        return self._fetch(name)

    def matrix(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of our own."""
        return self.raw(name).to(dtype, copy=True)


class StoredTensors(Tensors):
    """Tensors of a checkpoint directory, read when asked for."""

    def __init__(self, path: str | Path):
        from safetensors import SafetensorError, safe_open

        super().__init__({}, Path(path))
        for file in safetensors_files(self.path):
            try:
                handle = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: not a readable safetensors file ({error}); copy or download it again") from None
            self.where.update(dict.fromkeys(handle.keys(), handle))

    def _fetch(self, name: str) -> Tensor:
        return self.where[name].get_tensor(name)
