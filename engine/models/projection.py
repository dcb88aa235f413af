"""The way back from a widened checkpoint (widen.py) to its original, for drafters that were trained on the original.

`projection.safetensors`, beside the weights; transformers does not read it.

    encoder_output [C', C]    from the encoder's output to the original's
    hidden         [C', C]    from the decoder's hidden states to the original's
    embedding, head [V, C]    the original's tables, as they were stored; no head where it is tied to the embedding
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foredraft.engine.models.checkpoint import StoredTensors
from foredraft.errors import UserError

FILE = "projection.safetensors"


@dataclass(frozen=True)
class Projection:
    """What a drafter of the original reads of a widened target.

    Attributes
    ----------
    target_hash : str
        weights_hash of the original.
    encoder_output, hidden : Tensor [C', C] float32
        Right factors.
    """

    path: Path
    target_hash: str
    encoder_output: Tensor
    hidden: Tensor

    @property
    def width(self) -> int:
        """C', of the widened target."""
        return len(self.hidden)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Embedding and head [V, C] of the original, one tensor where they are tied."""
        with StoredTensors(self.path.parent, [self.path]) as tensors:
            embedding = tensors.raw("embedding")
            return embedding, tensors.raw("head") if "head" in tensors.names else embedding

    def float_tables(self) -> tuple[Tensor, Tensor]:
        """As `tables`, float32."""
        embedding, head = self.tables()
        copy = embedding.to(torch.float32, copy=True)
        return copy, copy if head is embedding else head.to(torch.float32, copy=True)


def read_settings(path: Path) -> dict[str, str]:
    """How the checkpoint beside this file was widened, as `widen_checkpoint` wrote it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); widen the target again") from None


def read_projection(folder: str | Path) -> Projection | None:
    """The projection of a checkpoint directory; None if it was not widened. UserError: the file is damaged."""
    path = Path(folder) / FILE
    if not path.exists():
        return None
    settings = read_settings(path)
    with StoredTensors(path.parent, [path]) as tensors:
        matrices = [tensors.raw(name).to(torch.float32, copy=True) for name in ("encoder_output", "hidden")]
    return Projection(path, settings.get("target_hash", ""), *matrices)
