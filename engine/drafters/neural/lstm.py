"""The LSTM drafter: a causal LSTM over the output so far, with pointer attention to the target's encoder output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from foredraft.engine.drafters.neural.copy_module import Pointer, copy_logits
from foredraft.engine.drafters.neural.drafter_module import DraftConfig, DraftModel
from foredraft.engine.drafters.neural.recurrent import RecurrentDrafter, pack_cell
from foredraft.kernels.drafting.recurrent_drafting import LSTM, Cell


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(DraftConfig):
    hidden_size: int = 128
    num_layers: int = 1
    num_heads: int = 2
    d_kv: int = 96
    d_ff: int = 256


class LSTMModel(DraftModel):
    """Ids to normed embeddings, an LSTM over them (Hochreiter and Schmidhuber 1997), pointer.py, the target's head."""

    model_type: ClassVar[str] = "foredraft-lstm"
    config_class = LSTMConfig

    def __init__(self, config: LSTMConfig, tables: tuple[Tensor, Tensor] | None = None):
        super().__init__(config, tables)
        self.cell = nn.LSTM(config.d_model, config.hidden_size, config.num_layers, batch_first=True)
        self.pointer = Pointer(config.d_model, config.hidden_size, config.num_heads, config.d_kv, config.d_ff)

    def initialise(self) -> None:
        self.pointer.initialise(self.embedding)

    def state(self, embedded: Tensor) -> Tensor:
        """[B, T, hidden_size] of normed embeddings [B, T, C], causal."""
        return self.cell(embedded)[0]

    def cell_arrays(self, stored: str) -> Cell:
        """For kernels/drafting/recurrent_drafting.py."""
        def layer(number: int) -> tuple[Tensor, Tensor]:
            x, h, x_bias, h_bias = self.cell.all_weights[number]
            return torch.cat((x, h), 1), x_bias + h_bias

        first, *rest = (layer(number) for number in range(self.config.num_layers))
        return pack_cell(LSTM, *first, [weight for weight, _ in rest], [bias for _, bias in rest], (),
                       self.config.num_layers, self.config.hidden_size, stored)

    def forward(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor | None = None,
                scored: Tensor | None = None) -> Tensor:
        """Logits as engine/drafters/neural/drafter_module.py says; source_ids are needed."""
        return copy_logits(self, input_ids, encoder_output, source_mask, source_ids, scored)


class LSTMDrafter(RecurrentDrafter):
    """Drafts of an LSTMModel; a drafted id costs one step of it and its head."""

    name = "lstm"
    model_class = LSTMModel
