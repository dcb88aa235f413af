"""T5 on the CPU: encode a source once, cache its cross keys and values, decode R query positions a step.

Implements the Target protocol (engine/protocols.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.models.kv_cache import KVCache
from foredraft.engine.models.relative_position import relative_bucket
from foredraft.engine.models.t5_encoder import T5Encoder
from foredraft.engine.models.t5_weights import QUANTISED, T5Weights
from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.model.decoder import DECODER
from foredraft.kernels.model.lm_head import CHOOSE, LOGITS


class T5:
    """A T5 on the CPU, for as many sequences as `reserve` made room for.

    Parameters
    ----------
    weights : T5Weights
    backend : str, optional
        Of the kernels, "numba" or "reference"; by default "numba" where numba is installed.

    Attributes
    ----------
    start_token, end_token : int
        `end_token` is the first of the model's; -1 is none.
    cache : KVCache
    """

    def __init__(self, weights: T5Weights, backend: str | None = None):
        self.weights, self.config, self.device = weights, weights.config, torch.device("cpu")
        self.backend = backend or ("numba" if HAS_NUMBA else "reference")
        c = self.config
        self.start_token, self.end_token = c.start_token, c.end_token
        # quantised weights are so few bytes that a source's keys and values are a large part of what a step reads
        page_type = np.uint16 if weights.stored in QUANTISED else np.float32
        self.cache = KVCache(c.num_decoder_layers, c.num_heads, c.d_kv, page_type)
        self._all_sublayers = np.ones((c.num_decoder_layers, 3), np.bool_)
        self.encoder = T5Encoder(weights, self.backend)
        self.bias = np.zeros((1, c.num_heads, 0), np.float32)
        self._chains: dict[tuple[int, int], np.ndarray] = {}
        self._hidden = torch.zeros(0)
        self._logits = torch.zeros(0)
        self._chosen = torch.zeros(0, dtype=torch.int64)
        self._positions = torch.zeros(0, dtype=torch.int64)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return () if self.end_token < 0 else (self.end_token, *self.config.end_tokens[1:])

    def reserve(self, num_sequences: int, positions: int, draft_tokens: int, source: int, pages: int | None = None) -> None:
        """Make room; admitted sequences stay.

        Parameters
        ----------
        num_sequences, positions, draft_tokens, source : int
            B, T, K and S.
        pages : int, optional
            As KVCache.reserve.
        """
        self.cache.reserve(num_sequences, positions + draft_tokens + 1, source, pages)
        self.prepare(num_sequences, draft_tokens + 1)

    def prepare(self, num_sequences: int, query_positions: int) -> None:
        """Allocate the buffers of passes over B sequences of R query positions, for the cache as it is."""
        c = self.config
        if self.bias.shape[2] < self.cache.slots:
            distance = torch.arange(self.cache.slots)
            bucket = relative_bucket(-distance, c.buckets, c.max_distance, bidirectional=False)
            self.bias = self.weights.decoder_bias[:, bucket].mT.contiguous().numpy()
        # flat, so that a smaller batch is a contiguous view too
        self._hidden = torch.zeros(num_sequences * query_positions * c.d_model)
        self._chosen = torch.zeros(num_sequences * query_positions, dtype=torch.int64)

    def encode(self, source: Tensor) -> Tensor:
        """Encode the tokens of a source [S] int64 to [S, C] float32."""
        return self.encoder.encode(source)

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor]) -> list[Tensor]:
        """Encode sources and cache their cross keys and values.

        Parameters
        ----------
        sequences : n indices of the batch
        sources : n tensors [S_i] int64
            Each is encoded by its own length, so that its output does not depend on the others.

        Returns
        -------
        list of n tensors [S_i, C] float32
            The encoder's outputs.
        """
        encoded = []
        for sequence, source in zip(sequences, sources, strict=True):
            encoded.append(self.encode(source))
            self.attend_to(sequence, encoded[-1])
        return encoded

    def attend_to(self, sequence: int, encoded: Tensor) -> None:
        """Cache a sequence's cross keys and values of an encoder's output [S, C]."""
        H, D = self.config.num_heads, self.config.d_kv
        self.cache.allocate(sequence, len(encoded))
        both = torch.empty(len(encoded), 2 * H * D, dtype=self.weights.dtype)
        for layer, matrix in enumerate(self.weights.cross_kv):
            k, v = self.encoder.product(encoded, matrix, both).float().view(len(encoded), 2, H, D).unbind(1)
            self.cache.write_source(layer, sequence, k, v)

    def release(self, sequences: Sequence[int]) -> None:
        """Free the pages of these sequences."""
        for sequence in sequences:
            self.cache.release(sequence)

    def decode(self, tokens: Tensor, positions: Tensor, parents: Tensor | None = None) -> Tensor:
        """Run one pass of the decoder.

        Parameters
        ----------
        tokens, positions : Tensor [B, R] int64
            Position -1 is not read.
        parents : Tensor [B, R] int64, optional
            The query position that each one follows; by default the one before it.

        Returns
        -------
        Tensor [B, R, C] float32
            Hidden states after the final norm, in a buffer that the next call overwrites.
        """
        B, R = tokens.shape
        if (B, R) not in self._chains:
            self._chains[B, R] = np.tile(np.arange(-1, R - 1, dtype=np.int64), (B, 1))
        above = self._chains[B, R] if parents is None else parents.numpy()
        w, cache = self.weights, self.cache
        self._positions = positions
        hidden = self._hidden[: B * R * self.config.d_model].view(B, R, self.config.d_model)
        DECODER[self.backend](
            tokens.numpy(), positions.numpy(), above, w.embedding, w.norms, w.final_norm, w.qkv, w.self_out, w.cross_q,
            w.cross_out, w.ff_in, w.ff_out, self.bias, cache.k, cache.v, cache.pages_k, cache.pages_v, cache.table,
            cache.sources, self.config.activation, self.config.gated, self.config.epsilon, self._all_sublayers,
            hidden.numpy())
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, R, V] float32 of the latest decode's hidden states, in a buffer; undefined where nothing was read."""
        B, R, _ = hidden.shape
        if self._logits.numel() < B * R * self.config.vocab_size:
            self._logits = torch.zeros(B * R * self.config.vocab_size)
        out = self._logits[: B * R * self.config.vocab_size].view(B, R, self.config.vocab_size)
        LOGITS[self.backend](hidden.numpy(), self._positions.numpy(), self.weights.head, self.config.head_scale, out.numpy())
        return out

    def choose(self, hidden: Tensor) -> Tensor:
        """Argmax [B, R] int64 of the latest decode's logits, in a buffer; undefined where nothing was read."""
        B, R, _ = hidden.shape
        chosen = self._chosen[: B * R].view(B, R)
        CHOOSE[self.backend](hidden.numpy(), self._positions.numpy(), self.weights.head, self.config.vocab_size,
                             self.config.head_scale, chosen.numpy())
        return chosen

    def keep(self, path: Tensor) -> None:
        """Make the cache slots of accepted tree paths [B, R] contiguous."""
        self.cache.keep(self._positions[:, 0], path)
