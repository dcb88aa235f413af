"""Tensors of pytorch_model.bin, read with torch.load(weights_only=True), which runs no code of the pickle."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from foredraft.engine.models.checkpoint import Tensors, indexed_files
from foredraft.errors import UserError


class PickledTensors(Tensors):
    """Tensors of a directory's pytorch_model.bin, or of its shards. Zip archives (torch 1.6 and later) are memory-mapped."""

    def __init__(self, path: Path):
        super().__init__({}, path)
        single, index = path / "pytorch_model.bin", path / "pytorch_model.bin.index.json"
        if not single.exists() and not index.exists():
            raise UserError(f"{path}: has neither model.safetensors nor pytorch_model.bin; give a T5 checkpoint directory")
        for file in indexed_files(index) if index.exists() else [single]:
            self._found |= _read(file)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        # torch.load maps zip archives only; files of torch before 1.6 are none
        with open(file, "rb") as opened:
            is_archive = opened.read(2) == b"PK"
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # a file that is no checkpoint raises many types
        if isinstance(error, pickle.UnpicklingError) and "unsupported" in str(error).lower():
            raise UserError(f"{file}: holds code or objects besides tensors, which are never loaded; get the weights from a "
                            "source that you trust, as safetensors") from None
        lines = [line for line in str(error).splitlines() if line and not line.startswith("Weights only load failed")]
        reason = (lines or [type(error).__name__])[0][:120]
        raise UserError(f"{file}: not a readable checkpoint ({reason}); copy or download it again") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UserError(f"{file}: holds no table of tensors; is it a checkpoint of a model?")
    return found
