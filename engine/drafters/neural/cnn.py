"""The CNN drafter: causal convolutions over the output so far, with copy attention to the target's encoder output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from foredraft.engine.drafters.neural.copy_module import CopyAttention, CopyConfig, CopyModel
from foredraft.engine.drafters.neural.drafter_module import rms_norm
from foredraft.engine.drafters.neural.recurrent import RecurrentDrafter, pack_cell
from foredraft.kernels.drafting.recurrent_drafting import CNN, Cell


@dataclass(frozen=True, kw_only=True)
class CNNConfig(CopyConfig):
    """hidden_size (U): of every layer. kernel: positions that a layer reads; dilations: their distance, for each layer."""

    hidden_size: int = 128
    kernel: int = 3
    dilations: tuple[int, ...] = (1, 2, 4)


class CNNModel(CopyModel):
    """Normed embeddings, gated dilated convolutions with residuals (Dauphin et al. 2017), copy attention, the head.

    Before the start token the convolutions read zeros.
    """

    model_type: ClassVar[str] = "foredraft-cnn"
    config_class = CNNConfig

    def __init__(self, config: CNNConfig, tables: tuple[Tensor, Tensor] | None = None):
        super().__init__(config, tables)
        U = config.hidden_size
        self.enter = nn.Linear(config.d_model, U)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(U, 2 * U, config.kernel, dilation=dilation) for dilation in config.dilations)
        self.pointer = CopyAttention(config, U)

    def states(self, embedded: Tensor) -> Tensor:
        x = self.enter(embedded)
        for convolution, dilation in zip(self.convolutions, self.config.dilations, strict=True):
            padded = F.pad(rms_norm(x).transpose(1, 2), ((self.config.kernel - 1) * dilation, 0))
            x = x + F.glu(convolution(padded).transpose(1, 2), -1)
        return rms_norm(x)

    def cell_arrays(self, stored: str) -> Cell:
        """The packed layers, for kernels/drafting/recurrent_drafting.py: a convolution is a matrix over its positions, the
        earliest first."""
        weights = [convolution.weight.transpose(1, 2).flatten(1) for convolution in self.convolutions]
        return pack_cell(CNN, self.enter.weight, self.enter.bias, weights, [c.bias for c in self.convolutions],
                         self.config.dilations, len(weights) + 1, self.config.hidden_size, stored)


class CNNDrafter(RecurrentDrafter):
    """Drafts of a CNNModel."""

    name = "cnn"
    model_class = CNNModel
