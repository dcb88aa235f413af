"""The T5 encoder on the CPU: torch's matrix products, or our own with int8 weights, and our own kernels between them.

Raffel et al. 2020; v1.1 and FLAN: Shazeer 2020 (gated).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.models.relative_position import relative_bucket
from foredraft.engine.models.t5_weights import T5Weights
from foredraft.kernels.model.activation import ACTIVATE
from foredraft.kernels.model.encoder_attention import ENCODER_ATTENTION
from foredraft.kernels.model.linear import LINEAR
from foredraft.kernels.model.norm import NORM


class T5Encoder:
    """Encodes a source by its own length, never padded, so that its output does not depend on other sources."""

    def __init__(self, weights: T5Weights, backend: str):
        self.weights, self.config, self.backend = weights, weights.config, backend
        self._embedding = torch.from_numpy(weights.embedding.view(np.int16)).view(torch.bfloat16) \
            if weights.dtype == torch.bfloat16 else torch.from_numpy(weights.embedding)

    def encode(self, source: Tensor) -> Tensor:
        """Encode the tokens of a source [S] int64 to [S, C] float32."""
        w, c, S, dtype = self.weights, self.config, len(source), self.weights.dtype
        H, D = c.num_heads, c.d_kv
        x = self._embedding[source].float()  # [S, C]
        bias = self._bias(S)
        # allocated once for all layers: fresh memory costs a page fault every 4 kB
        qkv, added = torch.empty(S, 3 * H * D, dtype=dtype), torch.empty(S, c.d_model, dtype=dtype)
        normed, attended = torch.empty(S, c.d_model), torch.empty(S, H * D)
        inner = torch.empty(S, 2 * c.d_ff if c.gated else c.d_ff, dtype=dtype)
        active = torch.empty(S, c.d_ff)
        norm = NORM[self.backend]
        for i in range(c.num_layers):
            norm(x.numpy(), w.encoder_norms[i, 0].numpy(), c.epsilon, normed.numpy())
            self.product(normed, w.encoder_qkv[i], qkv)
            ENCODER_ATTENTION[self.backend](qkv.float().numpy(), bias[i % len(bias)], attended.numpy())
            x += self.product(attended, w.encoder_out[i], added)
            norm(x.numpy(), w.encoder_norms[i, 1].numpy(), c.epsilon, normed.numpy())
            self.product(normed, w.encoder_ff_in[i], inner)
            ACTIVATE[self.backend](inner.float().numpy(), active.numpy(), c.activation, c.gated)
            x += self.product(active, w.encoder_ff_out[i], added)
        norm(x.numpy(), w.encoder_norm.numpy(), c.epsilon, normed.numpy())
        return normed

    def product(self, x: Tensor, weight: Tensor | np.ndarray, out: Tensor) -> Tensor:
        """Write x [S, K] float32 times a weight [N, K], or a packed one, to out [S, N], and return it."""
        if isinstance(weight, Tensor):
            return torch.mm(x.to(weight.dtype), weight.T, out=out)
        LINEAR[self.backend](x.numpy(), weight, out.shape[1], out.numpy())
        return out

    def _bias(self, S: int) -> np.ndarray:
        """[1 or Le, H, 2S - 1], indexed by key - query + S - 1."""
        c = self.config
        bucket = relative_bucket(torch.arange(-(S - 1), S), c.buckets, c.max_distance, bidirectional=True)
        return self.weights.encoder_bias[:, bucket].mT.contiguous().numpy()
