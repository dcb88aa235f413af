"""The head on the target's own decoder features (after EAGLE, Li et al. 2024, for decoder-only models).

The target's state h_t-1, which produced the last committed id y_t, and the latest ids make a prediction of h_t: one layer
with pointer attention to the target's encoder output (pointer.py). The target's head, or a shortlist of it, turns that into
a distribution, raised where the pointer lies; further drafts go on from predicted states. There is no attention to earlier states:
the engine keeps the last one alone, and what T5's decoder knows of its past is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.engine.drafters.neural.copy_drafter import CopyDrafter
from foredraft.engine.drafters.neural.copy_module import Pointer, add_copies
from foredraft.engine.drafters.neural.draft_vocabulary import distributions_of
from foredraft.engine.drafters.neural.drafter_module import DraftConfig, DraftModel, Tables, earlier, rms_norm
from foredraft.engine.state import PROPOSERS, DecodeState, Draft, DraftBudget
from foredraft.kernels.drafting.eagle_drafting import draft_numba


@dataclass(frozen=True, kw_only=True)
class EagleConfig(DraftConfig):
    """unroll: how many drafts ahead it is trained on its own predictions; 1 is on the target's states alone."""

    num_heads: int = 2
    d_kv: int = 96
    d_ff: int = 512
    unroll: int = 3


class EagleModel(DraftModel):
    """features [B, T, C], the target's states at every place of input_ids, are read one place before."""

    model_type: ClassVar[str] = "foredraft-head"
    config_class = EagleConfig
    reads_features: ClassVar[bool] = True

    def __init__(self, config: EagleConfig, tables: tuple[Tensor, Tensor] | None = None):
        super().__init__(config, tables)
        self.pointer = Pointer(config.d_model, config.d_model, config.num_heads, config.d_kv, config.d_ff)

    def initialise(self) -> None:
        self.pointer.initialise(self.embedding)

    def passes(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor, features: Tensor,
               depth: int) -> list[tuple[Tensor, Tensor]]:
        """`depth` pairs of states [B, T, C] and copies [B, T, S]: predicted from the target's states, then from the
        states that the pair before predicted, as the drafts 0, 1, ... of a round are."""
        embedded = rms_norm(self.embedding[input_ids])
        keys, values = self.pointer.source(encoder_output, rms_norm(self.embedding[source_ids]))
        out, states = [], features
        for _ in range(depth):
            states, weights, gain = self.pointer(rms_norm(earlier(states, 1)), embedded, keys, values, source_mask)
            out.append((states, gain * weights))
        return out

    def forward(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor | None = None,
                scored: Tensor | None = None, features: Tensor | None = None):
        """Logits as engine/drafters/neural/drafter_module.py says, of first drafts. In training (logits, apart [N]): each place's distribution after 1 to
        `unroll` predictions, by chance, for the vocabulary is most of the work; apart: the smooth L1 distance of predicted
        states to `features`, averaged over widths and predictions."""
        if source_ids is None or features is None:
            raise ValueError("source_ids and features are needed: a pointer copies, a head goes on from the target's states")
        whole = scored is None
        if whole:
            scored = torch.ones_like(input_ids, dtype=torch.bool)
        depth = self.config.unroll if self.training else 1
        found = [(states[scored], copied[scored]) for states, copied in self.passes(
            input_ids, encoder_output, source_mask, source_ids, features, depth)]
        states, copied = (torch.stack(parts) for parts in zip(*found, strict=True))
        places = torch.arange(states.shape[1], device=states.device)
        which = torch.randint(depth, (len(places),)).to(states.device) if depth > 1 else torch.zeros_like(places)
        logits = add_copies(self, states[which, places], copied[which, places], source_ids[scored.nonzero()[:, 0]])
        if not self.training:
            return logits.view(*input_ids.shape, -1) if whole else logits
        wanted = features[scored].expand_as(states)
        return logits, F.smooth_l1_loss(states, wanted, reduction="none").mean((0, 2))


class EagleDrafter(CopyDrafter):
    """Drafts of a EagleModel, from the state that the target left and then its own; it keeps nothing between rounds.

    features [B, K, C] float32: the states that the latest drafts were drawn from.
    """

    name = "head"
    model_class = EagleModel

    def __init__(self, model: DraftModel, tables: Tables, stored: str = "fp32"):
        super().__init__(model, tables, stored)
        self.features = torch.zeros(0, 0, self.config.d_model)
        self._warm_up()

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        """One compiled call for the whole batch, on the state's own memory."""
        draft = self.lists.empty_draft(state, PROPOSERS.index(self.name))
        shape = (state.batch_size, state.max_draft, self.config.d_model)
        if self.features.shape != shape:
            self.features = torch.zeros(shape)
        host = state.host
        draft_numba(
            host.tokens, host.lengths, state.allowed(budget).numpy(), host.hidden, self.tables.embedding, self.pointer,
            self.source, self.lists.rows, self.config.head_scale, host.temperature, host.top_k, host.top_p, host.seeds,
            state.end_token, self.confidence.stops(state, budget), self.features.numpy(), draft.tokens.numpy(),
            draft.lengths.numpy(), *distributions_of(draft))
        return draft
