"""Copy attention: the part that the LSTM, the CNN and the EAGLE-style head share.

It attends to the target's encoder output. A key stands for the tokens before a source position, a query for the latest
tokens read, so that head 0 can find where the output is in its source and what follows there (an induction head, Olsson et
al. 2022). The attention weights of head 0 also raise the logits of the source's tokens, after the pointer networks of
Vinyals et al. 2015; they are added to the logits, so that the rest of the distribution stays the language-model head's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foredraft.engine.drafters.neural.drafter_module import DraftConfig, DraftModel, rms_norm, shifted
from foredraft.engine.models.projection import Projection

# One scale for each token that a query and a key stand for, the latest token first: it decides a match, the others break
# ties.
MATCH_SCALES = (0.6, 0.4, 0.3)
# What copying adds to a logit before training, through softplus.
INITIAL_GAIN = 6.0


@dataclass(frozen=True, kw_only=True)
class CopyConfig(DraftConfig):
    """num_heads, d_kv: of the copy attention. d_ff: width of the layer between attention and output."""

    num_heads: int = 2
    d_kv: int = 96
    d_ff: int = 256


class CopyAttention(nn.Module):
    """From states [B, T, U] and the tokens read to outputs [B, T, C] for the head, and to weights and a gain for copying."""

    def __init__(self, config: CopyConfig, state_size: int):
        super().__init__()
        C, U = config.d_model, state_size
        self.width, self.heads, self.d_kv = C, config.num_heads, config.d_kv
        inner, mixed = config.num_heads * config.d_kv, U + config.num_heads * config.d_kv + C
        self.query = nn.Linear(U + len(MATCH_SCALES) * C, inner)
        self.key = nn.Linear(C + len(MATCH_SCALES) * C, inner)
        self.value = nn.Linear(C, inner)
        self.inner = nn.Linear(mixed, config.d_ff)
        self.outer = nn.Linear(config.d_ff, C, bias=False)
        self.gain = nn.Linear(mixed, 1)
        # [C', C], where the encoder output is a widened target's
        self.register_buffer("projection", None, persistent=False)

    def source(self, encoder_output: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a source.

        Parameters
        ----------
        encoder_output : Tensor [B, S, C]
            Or [B, S, C'] of a widened target.
        embedded : Tensor [B, S, C]
            Normed embeddings of the source's tokens.

        Returns
        -------
        tuple of two Tensors [B, S, H D]
        """
        encoded = rms_norm(encoder_output if self.projection is None else encoder_output @ self.projection)
        before = [shifted(embedded, steps + 1) for steps in range(len(MATCH_SCALES))]
        return self.key(torch.cat((encoded, *before), -1)), self.value(encoded)

    def forward(self, state: Tensor, embedded: Tensor, keys: Tensor, values: Tensor,
                source_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend to the source.

        Parameters
        ----------
        state : Tensor [B, T, U]
        embedded : Tensor [B, T, C]
            Normed embeddings of the tokens read.
        keys, values : Tensor [B, S, H D]
        source_mask : Tensor [B, S]

        Returns
        -------
        tuple of Tensors
            Outputs [B, T, C], attention weights of head 0 [B, T, S], gain [B, T, 1] >= 0.
        """
        B, T, _ = state.shape
        latest = [embedded, *(shifted(embedded, steps) for steps in range(1, len(MATCH_SCALES)))]
        query = self.query(torch.cat((state, *latest), -1)).view(B, T, self.heads, self.d_kv)
        keys, values = (x.view(B, -1, self.heads, self.d_kv) for x in (keys, values))
        scores = torch.einsum("bthd,bshd->bhts", query, keys)
        scores = scores.masked_fill(~source_mask.bool()[:, None, None], float("-inf"))
        weights = torch.softmax(scores, -1)
        context = torch.einsum("bhts,bshd->bthd", weights, values).reshape(B, T, -1)
        mixed = torch.cat((state, context, embedded), -1)
        return self.outer(F.relu(self.inner(mixed))), weights[:, 0], F.softplus(self.gain(mixed))

    @torch.no_grad()
    def initialise(self, embedding: Tensor) -> None:
        """Make head 0 an induction head: it matches whitened random projections of the latest tokens."""
        table = rms_norm(embedding.float())
        mean = table.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(table.T))
        whiten = vectors * values.clamp(min=1e-4).rsqrt()  # [C, C], columns scaled
        size, start = self.d_kv // len(MATCH_SCALES), self.query.in_features - len(MATCH_SCALES) * self.width
        for layer in (self.query, self.key):
            layer.weight[: self.d_kv] = 0
            layer.bias.zero_()
        directions = torch.randn(self.width, size, generator=torch.Generator().manual_seed(0))
        projection = (whiten @ torch.linalg.qr(directions).Q).T  # [size, C]
        for index, scale in enumerate(MATCH_SCALES):
            into = slice(index * size, (index + 1) * size)
            for layer, first in ((self.query, start), (self.key, self.width)):
                column = first + index * self.width
                layer.weight[into, column : column + self.width] = scale * projection
                layer.bias[into] = -scale * (projection @ mean)
        self.gain.weight.zero_()
        self.gain.bias.fill_(INITIAL_GAIN)


class CopyModel(DraftModel):
    """A DraftModel with copy attention over the states of a causal network.

    A subclass sets `pointer`, a CopyAttention (the name is part of the file format), and writes `states`.
    """

    pointer: CopyAttention

    def project(self, projection: Projection) -> None:
        super().project(projection)
        self.pointer.projection = projection.encoder_output

    def initialise(self) -> None:
        self.pointer.initialise(self.embedding)

    def states(self, embedded: Tensor) -> Tensor:
        """States [B, T, U] of normed embeddings [B, T, C]; position t reads positions up to t."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor | None = None,
                scored: Tensor | None = None) -> Tensor:
        """Logits as drafter_module.py says; source_ids are needed."""
        if source_ids is None:
            raise ValueError("source_ids are needed: copy attention raises their logits")
        embedded = rms_norm(self.embedding[input_ids])
        keys, values = self.pointer.source(encoder_output, rms_norm(self.embedding[source_ids]))
        outputs, weights, gain = self.pointer(self.states(embedded), embedded, keys, values, source_mask)
        mask = torch.ones_like(input_ids, dtype=torch.bool) if scored is None else scored
        logits = add_copies(self, outputs[mask], gain[mask] * weights[mask], source_ids[mask.nonzero()[:, 0]])
        return logits.view(*input_ids.shape, -1) if scored is None else logits


def add_copies(model: DraftModel, outputs: Tensor, copied: Tensor, source_ids: Tensor) -> Tensor:
    """Logits [N, V] of outputs [N, C], raised by `copied` [N, S] at source_ids [N, S]."""
    logits = (outputs * model.config.head_scale) @ model.head.T
    return logits.scatter_add_(1, source_ids, copied.to(logits.dtype))
