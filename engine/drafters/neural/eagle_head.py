"""The EAGLE-style head: drafts from the target's own hidden states (Li et al. 2024, for decoder-only models).

The target's hidden state h_{t-1} ("feature" in EAGLE's words), which gave the last committed token y_t, and the latest
tokens predict h_t: one layer with copy attention to the target's encoder output (copy_module.py). The target's head, or a
part of it, turns h_t into a distribution; further drafts go on from predicted states. There is no attention to earlier
states: the engine keeps the last one alone, and T5's decoder has put its past into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.engine.drafters.neural.copy_drafter import CopyDrafter, as_array
from foredraft.engine.drafters.neural.copy_module import CopyAttention, CopyConfig, CopyModel, add_copies
from foredraft.engine.drafters.neural.draft_vocabulary import distributions_of
from foredraft.engine.drafters.neural.drafter_module import Tables, rms_norm, shifted
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.kernels.drafting.eagle_drafting import draft_numba
from foredraft.kernels.model.linear import linear
from foredraft.kernels.model.packing import pack


@dataclass(frozen=True, kw_only=True)
class EagleConfig(CopyConfig):
    """unroll: how many drafts ahead it is trained on its own predictions; 1 is on the target's states alone."""

    d_ff: int = 512
    unroll: int = 3


class EagleModel(CopyModel):
    """`features` [B, T, C] are the target's hidden states at every position of input_ids; each is read one position
    later."""

    model_type: ClassVar[str] = "foredraft-head"
    config_class = EagleConfig
    reads_features: ClassVar[bool] = True

    def __init__(self, config: EagleConfig, tables: tuple[Tensor, Tensor] | None = None):
        super().__init__(config, tables)
        self.pointer = CopyAttention(config, config.d_model)

    def unrolled(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor, features: Tensor,
                 depth: int) -> list[tuple[Tensor, Tensor]]:
        """Predict `depth` times, as the drafts 0, 1, ... of a step do: first from the target's states, then from the states
        of the prediction before.

        Returns
        -------
        list of `depth` pairs
            States [B, T, C], and what copying adds to the logits of the source's tokens [B, T, S].
        """
        embedded = rms_norm(self.embedding[input_ids])
        keys, values = self.pointer.source(encoder_output, rms_norm(self.embedding[source_ids]))
        out, states = [], features
        for _ in range(depth):
            states, weights, gain = self.pointer(rms_norm(shifted(states, 1)), embedded, keys, values, source_mask)
            out.append((states, gain * weights))
        return out

    def forward(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor | None = None,
                scored: Tensor | None = None, features: Tensor | None = None):
        """Logits of first drafts, as drafter_module.py says.

        In training (logits, distance [N]): each position's distribution after 1 to `unroll` predictions, drawn at random,
        for the vocabulary is most of the work; and the smooth L1 distance of the predicted states to `features`, averaged
        over widths and predictions.
        """
        if source_ids is None or features is None:
            raise ValueError("source_ids and features are needed: copy attention reads the source, the head the states")
        if self.projection is not None:
            features = features @ self.projection.hidden
        mask = torch.ones_like(input_ids, dtype=torch.bool) if scored is None else scored
        depth = self.config.unroll if self.training else 1
        found = [(states[mask], copied[mask]) for states, copied in self.unrolled(
            input_ids, encoder_output, source_mask, source_ids, features, depth)]
        states, copied = (torch.stack(parts) for parts in zip(*found, strict=True))  # [depth, N, C], [depth, N, S]
        index = torch.arange(states.shape[1], device=states.device)
        which = torch.randint(depth, (len(index),)).to(states.device) if depth > 1 else torch.zeros_like(index)
        logits = add_copies(self, states[which, index], copied[which, index], source_ids[mask.nonzero()[:, 0]])
        if not self.training:
            return logits.view(*input_ids.shape, -1) if scored is None else logits
        wanted = features[mask].expand_as(states)
        return logits, F.smooth_l1_loss(states, wanted, reduction="none").mean((0, 2))


class EagleDrafter(CopyDrafter):
    """Drafts of an EagleModel, from the target's last hidden state and then its own; nothing is cached from step to step.

    Attributes
    ----------
    features : Tensor [B, K, C] float32
        The predicted hidden states of the latest drafts.
    """

    name = "head"
    model_class = EagleModel

    def __init__(self, model: EagleModel, tables: Tables, stored: str = "fp32"):
        super().__init__(model, tables, stored)
        self.features = torch.zeros(0, 0, self.config.d_model)
        self._hidden = None if model.projection is None else pack(as_array(model.projection.hidden.T))
        self._warm_up()

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        """Draft for all sequences in one compiled call."""
        draft = self.vocabulary.empty_draft(state, PROPOSERS.index(self.name))
        shape = (state.batch_size, state.max_draft, self.config.d_model)
        if self.features.shape != shape:
            self.features = torch.zeros(shape)
        host, hidden = state.host, state.host.hidden
        if self._hidden is not None:
            hidden = linear(hidden, self._hidden, self.config.d_model)
        draft_numba(
            host.tokens, host.lengths, state.allowed(budget).numpy(), hidden, self.tables.embedding, self.copy_weights,
            self.source, self.vocabulary.heads, self.config.head_scale, host.temperature, host.top_k, host.top_p, host.seeds,
            state.end_token, self.confidence.stop_rule(state, budget), self.features.numpy(), draft.tokens.numpy(),
            draft.lengths.numpy(), *distributions_of(draft))
        return draft
