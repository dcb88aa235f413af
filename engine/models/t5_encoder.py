"""The T5 encoder on plain tensors: large matrix products of the library, everything between them fused or in place.

Raffel et al. 2020; v1.1 / FLAN: Shazeer 2020 (gated).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.models.relative_position import relative_bucket
from foredraft.engine.models.t5_weights import T5Weights
from foredraft.kernels.model.activation import ACTIVATE
from foredraft.kernels.model.encoder_attention import ENCODER_ATTENTION
from foredraft.kernels.model.norm import NORM


class Encoder:
    """Reads a source by its own length, never padded, so that its output depends on nothing else."""

    def __init__(self, weights: T5Weights, backend: str):
        self.weights, self.config, self.backend = weights, weights.config, backend
        self._embedding = torch.from_numpy(weights.embedding.view(np.int16)).view(torch.bfloat16) \
            if weights.dtype == torch.bfloat16 else torch.from_numpy(weights.embedding)

    def encode(self, source: Tensor) -> Tensor:
        """Ids [S] to the output [S, C] float32."""
        c, S, dtype = self.config, len(source), self.weights.dtype
        H, D = c.num_heads, c.d_kv
        x = self._embedding[source].float()
        bias = self._bias(S)
        # made once for all layers: fresh memory costs a page fault every 4 kB
        mixed, added = torch.empty(S, 3 * H * D, dtype=dtype), torch.empty(S, c.d_model, dtype=dtype)
        normed, seen = torch.empty(S, c.d_model), torch.empty(S, H * D)
        inner = torch.empty(S, 2 * c.d_ff if c.gated else c.d_ff, dtype=dtype)
        active = torch.empty(S, c.d_ff)
        norm = NORM[self.backend]
        for layer in self.weights.encoder:
            norm(x.numpy(), layer.attention_norm.numpy(), c.epsilon, normed.numpy())
            torch.mm(normed.to(dtype), layer.qkv.T, out=mixed)
            ENCODER_ATTENTION[self.backend](mixed.float().numpy(), bias, seen.numpy())
            x += torch.mm(seen.to(dtype), layer.out.T, out=added)
            norm(x.numpy(), layer.ff_norm.numpy(), c.epsilon, normed.numpy())
            torch.mm(normed.to(dtype), layer.ff_in.T, out=inner)
            ACTIVATE[self.backend](inner.float().numpy(), active.numpy(), c.activation, c.gated)
            x += torch.mm(active.to(dtype), layer.ff_out.T, out=added)
        norm(x.numpy(), self.weights.encoder_norm.numpy(), c.epsilon, normed.numpy())
        return normed

    def _bias(self, S: int) -> np.ndarray:
        """[H, 2S - 1] by key - query + S - 1."""
        c = self.config
        bucket = relative_bucket(torch.arange(-(S - 1), S), c.buckets, c.max_distance, bidirectional=True)
        return np.ascontiguousarray(self.weights.encoder_bias[bucket].T.numpy())
