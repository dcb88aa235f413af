"""T5 on plain tensors: encode once, keep the cross keys and values, decode R rows a round against position-indexed caches.

Implements the Target protocol of decode.py on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.engine.models.kv_cache import KVCache
from foredraft.engine.models.relative_position import relative_bucket
from foredraft.engine.models.t5_encoder import Encoder
from foredraft.engine.models.t5_weights import T5Weights
from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.model.decoder import DECODER
from foredraft.kernels.model.lm_head import CHOOSE, LOGITS


class T5:
    """A T5 target for up to as many rows as `reserve` made room for."""

    def __init__(self, weights: T5Weights, backend: str | None = None):
        self.weights, self.config, self.device = weights, weights.config, torch.device("cpu")
        self.backend = backend or ("numba" if HAS_NUMBA else "reference")
        c = self.config
        self.start_token, self.end_token = c.start_token, c.end_token
        self.cache = KVCache(c.num_decoder_layers, c.num_heads, c.d_kv)
        self._kept = np.ones((c.num_decoder_layers, 3), np.bool_)
        self.encoder = Encoder(weights, self.backend)
        self.bias = np.zeros((c.num_heads, 0), np.float32)
        self._chains: dict[tuple[int, int], np.ndarray] = {}
        self._hidden = torch.zeros(0)
        self._logits = torch.zeros(0)
        self._chosen = torch.zeros(0, dtype=torch.int64)
        self._positions = torch.zeros(0, dtype=torch.int64)

    def reserve(self, rows: int, positions: int, draft_tokens: int, source: int, pages: int | None = None) -> None:
        """Room for B rows of T positions, K drafts and S source positions; what is admitted stays. pages: cache.py."""
        self.cache.reserve(rows, positions + draft_tokens + 1, source, pages)
        self.prepare(rows, draft_tokens + 1)

    def prepare(self, rows: int, width: int) -> None:
        """Buffers for passes of up to `rows` sequences times `width` tokens over the cache as it is."""
        c = self.config
        if self.bias.shape[1] < self.cache.slots:
            distance = torch.arange(self.cache.slots)
            bucket = relative_bucket(-distance, c.buckets, c.max_distance, bidirectional=False)
            self.bias = np.ascontiguousarray(self.weights.decoder_bias[bucket].T.numpy())
        # flat, so that a smaller batch is a contiguous view too
        self._hidden = torch.zeros(rows * width * c.d_model)
        self._chosen = torch.zeros(rows * width, dtype=torch.int64)

    def encode(self, source: Tensor) -> Tensor:
        """Ids [S] to the encoder's output [S, C] float32; a source is never padded."""
        return self.encoder.encode(source)

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor]) -> list[Tensor]:
        """Encode each source by its own length and fill its row's cross keys and values."""
        encoded = []
        for row, source in zip(rows, sources, strict=True):
            encoded.append(self.encode(source))
            self.attend_to(row, encoded[-1])
        return encoded

    def attend_to(self, row: int, encoded: Tensor) -> None:
        """Fill a row's cross keys and values from an encoder's output [S, C]."""
        H, D = self.config.num_heads, self.config.d_kv
        self.cache.hold(row, len(encoded))
        stored = encoded.to(self.weights.dtype)
        for layer, matrix in enumerate(self.weights.cross_kv):
            k, v = F.linear(stored, matrix).float().view(len(encoded), 2, H, D).unbind(1)
            self.cache.write_source(layer, row, k, v)

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.cache.release(row)

    def decode(self, tokens: Tensor, positions: Tensor, parents: Tensor | None = None) -> Tensor:
        """Hidden [B, R, C] after the final norm, a buffer that the next call overwrites; position -1 is not read."""
        B, R = tokens.shape
        if (B, R) not in self._chains:
            self._chains[B, R] = np.tile(np.arange(-1, R - 1, dtype=np.int64), (B, 1))
        lineage = self._chains[B, R] if parents is None else parents.numpy()
        w, cache = self.weights, self.cache
        self._positions = positions
        hidden = self._hidden[: B * R * self.config.d_model].view(B, R, self.config.d_model)
        DECODER[self.backend](
            tokens.numpy(), positions.numpy(), lineage, w.embedding, w.norms, w.final_norm, w.qkv, w.self_out, w.cross_q,
            w.cross_out, w.ff_in, w.ff_out, self.bias, cache.k, cache.v, cache.pages_k, cache.pages_v, cache.table,
            cache.sources, self.config.activation, self.config.gated, self.config.epsilon, self._kept, hidden.numpy())
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, R, V] float32 for the hidden of the latest decode, a buffer; unread rows hold no meaning."""
        B, R, _ = hidden.shape
        if self._logits.numel() < B * R * self.config.vocab_size:
            self._logits = torch.zeros(B * R * self.config.vocab_size)
        out = self._logits[: B * R * self.config.vocab_size].view(B, R, self.config.vocab_size)
        LOGITS[self.backend](hidden.numpy(), self._positions.numpy(), self.weights.head, self.config.head_scale, out.numpy())
        return out

    def choose(self, hidden: Tensor) -> Tensor:
        """[B, R] int64: the argmax of the hidden of the latest decode, a buffer; unread rows hold no meaning."""
        B, R, _ = hidden.shape
        chosen = self._chosen[: B * R].view(B, R)
        CHOOSE[self.backend](hidden.numpy(), self._positions.numpy(), self.weights.head, self.config.vocab_size,
                             self.config.head_scale, chosen.numpy())
        return chosen

    def keep(self, path: Tensor) -> None:
        self.cache.keep(self._positions[:, 0], path)
