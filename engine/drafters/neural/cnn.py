"""The CNN drafter: causal convolutions over the output so far, with pointer attention to the target's encoder output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from foredraft.engine.drafters.neural.copy_module import Pointer, copy_logits
from foredraft.engine.drafters.neural.drafter_module import DraftConfig, DraftModel, rms_norm
from foredraft.engine.drafters.neural.recurrent import RecurrentDrafter, pack_cell
from foredraft.kernels.drafting.recurrent_drafting import CNN, Cell


@dataclass(frozen=True, kw_only=True)
class CNNConfig(DraftConfig):
    """dilations: one layer each; a layer sees `kernel` places, that far apart."""

    hidden_size: int = 128
    kernel: int = 3
    dilations: tuple[int, ...] = (1, 2, 4)
    num_heads: int = 2
    d_kv: int = 96
    d_ff: int = 256


class CNNModel(DraftModel):
    """Ids to normed embeddings, gated dilated convolutions with residuals (Dauphin et al. 2017), pointer.py, the target's
    head. A place sees itself and earlier ones alone; before the start token lie zeros."""

    model_type: ClassVar[str] = "foredraft-cnn"
    config_class = CNNConfig

    def __init__(self, config: CNNConfig, tables: tuple[Tensor, Tensor] | None = None):
        super().__init__(config, tables)
        U = config.hidden_size
        self.enter = nn.Linear(config.d_model, U)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(U, 2 * U, config.kernel, dilation=dilation) for dilation in config.dilations)
        self.pointer = Pointer(config.d_model, U, config.num_heads, config.d_kv, config.d_ff)

    def initialise(self) -> None:
        self.pointer.initialise(self.embedding)

    def state(self, embedded: Tensor) -> Tensor:
        """[B, T, hidden_size] of normed embeddings [B, T, C], causal."""
        x = self.enter(embedded)
        for convolution, dilation in zip(self.convolutions, self.config.dilations, strict=True):
            padded = F.pad(rms_norm(x).transpose(1, 2), ((self.config.kernel - 1) * dilation, 0))
            x = x + F.glu(convolution(padded).transpose(1, 2), -1)
        return rms_norm(x)

    def cell_arrays(self, stored: str) -> Cell:
        """For kernels/drafting/recurrent_drafting.py: a convolution as a matrix over its places, the earliest first."""
        weights = [convolution.weight.transpose(1, 2).flatten(1) for convolution in self.convolutions]
        return pack_cell(CNN, self.enter.weight, self.enter.bias, weights, [c.bias for c in self.convolutions],
                       self.config.dilations, len(weights) + 1, self.config.hidden_size, stored)

    def forward(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor | None = None,
                scored: Tensor | None = None) -> Tensor:
        """Logits as engine/drafters/neural/drafter_module.py says; source_ids are needed."""
        return copy_logits(self, input_ids, encoder_output, source_mask, source_ids, scored)


class CNNDrafter(RecurrentDrafter):
    """Drafts of a CNNModel; a drafted id costs one step of it and its head."""

    name = "cnn"
    model_class = CNNModel
