"""The LSTM drafter: a causal LSTM over the output so far, with copy attention to the target's encoder output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from foredraft.engine.drafters.neural.copy_module import CopyAttention, CopyConfig, CopyModel
from foredraft.engine.drafters.neural.recurrent import RecurrentDrafter, pack_cell
from foredraft.kernels.drafting.recurrent_drafting import LSTM, Cell


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(CopyConfig):
    """hidden_size (U), num_layers: of the LSTM."""

    hidden_size: int = 128
    num_layers: int = 1


class LSTMModel(CopyModel):
    """Normed embeddings, an LSTM (Hochreiter and Schmidhuber 1997), copy attention, the head."""

    model_type: ClassVar[str] = "foredraft-lstm"
    config_class = LSTMConfig

    def __init__(self, config: LSTMConfig, tables: tuple[Tensor, Tensor] | None = None):
        super().__init__(config, tables)
        self.cell = nn.LSTM(config.d_model, config.hidden_size, config.num_layers, batch_first=True)
        self.pointer = CopyAttention(config, config.hidden_size)

    def states(self, embedded: Tensor) -> Tensor:
        return self.cell(embedded)[0]

    def cell_arrays(self, stored: str) -> Cell:
        """The packed LSTM, for kernels/drafting/recurrent_drafting.py."""
        def layer(number: int) -> tuple[Tensor, Tensor]:
            x, h, x_bias, h_bias = self.cell.all_weights[number]
            return torch.cat((x, h), 1), x_bias + h_bias

        first, *rest = (layer(number) for number in range(self.config.num_layers))
        return pack_cell(LSTM, *first, [weight for weight, _ in rest], [bias for _, bias in rest], (),
                         self.config.num_layers, self.config.hidden_size, stored)


class LSTMDrafter(RecurrentDrafter):
    """Drafts of an LSTMModel."""

    name = "lstm"
    model_class = LSTMModel
