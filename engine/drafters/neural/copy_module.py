"""What the LSTM, the CNN and the head on features share: attention over the encoder output that can copy, and the output.

Keys stand for the ids BEFORE a source place, queries for the latest ids read, so that head 0 can find where the output
stands in its source and what follows there (an induction head, Olsson et al. 2022); its weights also raise the logits of
the ids they lie on (after the pointer networks of Vinyals et al. 2015, but added to the logits, so that the rest of
the distribution stays the head's).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foredraft.engine.drafters.neural.drafter_module import earlier, rms_norm

# Ids that a query sees and a key stands for, the latest first, and the scale of their match at the start: the latest id
# decides, the ones before it break ties.
MATCHED = (0.6, 0.4, 0.3)
# What copying adds to a logit at the start, by softplus.
RAISE = 6.0


class Pointer(nn.Module):
    """state [B, T, U] and the ids read to outputs [B, T, C] for the head, and weights and gain for copying."""

    def __init__(self, width: int, state: int, heads: int, d_kv: int, d_ff: int):
        super().__init__()
        self.width, self.heads, self.d_kv = width, heads, d_kv
        inner, mixed = heads * d_kv, state + heads * d_kv + width
        self.query = nn.Linear(state + len(MATCHED) * width, inner)
        self.key = nn.Linear(width + len(MATCHED) * width, inner)
        self.value = nn.Linear(width, inner)
        self.inner = nn.Linear(mixed, d_ff)
        self.outer = nn.Linear(d_ff, width, bias=False)
        self.gain = nn.Linear(mixed, 1)

    def source(self, encoder_output: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, H D] of encoder_output [B, S, C] and the normed embeddings of its ids [B, S, C]."""
        encoded = rms_norm(encoder_output)
        before = [earlier(embedded, steps + 1) for steps in range(len(MATCHED))]
        return self.key(torch.cat((encoded, *before), -1)), self.value(encoded)

    def forward(self, state: Tensor, embedded: Tensor, keys: Tensor, values: Tensor,
                source_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """outputs [B, T, C], weights of head 0 [B, T, S], gain [B, T, 1] >= 0; embedded [B, T, C]: of the ids read."""
        B, T, _ = state.shape
        seen = [embedded, *(earlier(embedded, steps) for steps in range(1, len(MATCHED)))]
        query = self.query(torch.cat((state, *seen), -1)).view(B, T, self.heads, self.d_kv)
        keys, values = (x.view(B, -1, self.heads, self.d_kv) for x in (keys, values))
        scores = torch.einsum("bthd,bshd->bhts", query, keys)
        scores = scores.masked_fill(~source_mask.bool()[:, None, None], float("-inf"))
        weights = torch.softmax(scores, -1)
        context = torch.einsum("bhts,bshd->bthd", weights, values).reshape(B, T, -1)
        mixed = torch.cat((state, context, embedded), -1)
        return self.outer(F.relu(self.inner(mixed))), weights[:, 0], F.softplus(self.gain(mixed))

    @torch.no_grad()
    def initialise(self, embedding: Tensor) -> None:
        """Write the induction head into head 0: match whitened random projections of the latest ids."""
        table = rms_norm(embedding.float())
        mean = table.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(table.T))
        whiten = vectors * values.clamp(min=1e-4).rsqrt()  # [C, C], columns scaled
        size, start = self.d_kv // len(MATCHED), self.query.in_features - len(MATCHED) * self.width
        for layer in (self.query, self.key):
            layer.weight[: self.d_kv] = 0
            layer.bias.zero_()
        rows = torch.randn(self.width, size, generator=torch.Generator().manual_seed(0))
        projection = (whiten @ torch.linalg.qr(rows).Q).T  # [size, C]
        for place, scale in enumerate(MATCHED):
            into = slice(place * size, (place + 1) * size)
            for layer, first in ((self.query, start), (self.key, self.width)):
                column = first + place * self.width
                layer.weight[into, column : column + self.width] = scale * projection
                layer.bias[into] = -scale * (projection @ mean)
        self.gain.weight.zero_()
        self.gain.bias.fill_(RAISE)


def copy_logits(model, input_ids: Tensor, encoder_output: Tensor, source_mask: Tensor, source_ids: Tensor | None,
                   scored: Tensor | None) -> Tensor:
    """The forward pass (DraftModel.forward) of a model with `state` and `pointer`."""
    if source_ids is None:
        raise ValueError("source_ids are needed: a pointer copies them")
    embedded = rms_norm(model.embedding[input_ids])
    keys, values = model.pointer.source(encoder_output, rms_norm(model.embedding[source_ids]))
    outputs, weights, gain = model.pointer(model.state(embedded), embedded, keys, values, source_mask)
    whole = scored is None
    if whole:
        scored = torch.ones_like(input_ids, dtype=torch.bool)
    batch = scored.nonzero()[:, 0]
    logits = add_copies(model, outputs[scored], gain[scored] * weights[scored], source_ids[batch])
    return logits.view(*input_ids.shape, -1) if whole else logits


def add_copies(model, outputs: Tensor, copied: Tensor, source_ids: Tensor) -> Tensor:
    """Logits [N, V] of outputs [N, C], raised at source_ids [N, S] by copied [N, S]."""
    logits = (outputs * model.config.head_scale) @ model.head.T
    return logits.scatter_add_(1, source_ids, copied.to(logits.dtype))
