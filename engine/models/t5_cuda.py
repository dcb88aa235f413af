"""T5 on a device: encode by the library, decode R rows a round by our own kernels against static caches.

Implements the Target protocol of decode.py. A round allocates nothing and reads nothing back, so it can be captured as a
graph (graph.py). Under Triton's interpreter the same code runs on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.engine.models.relative_position import relative_bucket
from foredraft.engine.models.t5_cuda_encoder import T5EncoderCuda
from foredraft.engine.models.t5_cuda_weights import STORED, T5WeightsCuda, Layout, check_memory, free_bytes, layout_bytes
from foredraft.kernels.core.pdl_triton import OVERLAPPED
from foredraft.kernels.model.cross_attention_triton import FUSED_CROSS_ATTENTION, PAGE, page_bucket, work_size
from foredraft.kernels.model.embed_triton import CLOSE, EMBED
from foredraft.kernels.model.linear_triton import ADD, GATE, PROJECT, QKV
from foredraft.kernels.model.lm_head_triton import FUSED_CHOOSE, FUSED_LOGITS, WIDTH
from foredraft.kernels.model.self_attention_triton import FUSED_SELF_ATTENTION

# Launches of one pass: a layer's (qkv, self-attention, out; cross q, cross-attention, out; gate, out), and those outside
# the layers (embedding, closing norm, head). Each needs the whole of what the one before it wrote, but for self-attention,
# which needs one head's part: left to the last program of a head it would be one launch less for a single request, and in a
# batch make one program attend for sixteen requests in turn.
LAYER_LAUNCHES, END_LAUNCHES = 8, 3
SLOTS = 64


class T5Cuda:
    """A T5 target for up to as many rows as `reserve` made room for. `generation` counts the buffers' changes of place,
    `source_bucket` is how many pages of a source a pass is launched for: that of the longest one since `reserve`.

    `overlap`: launches overlap (kernels/core/pdl_triton.py), where the device can.
    """

    def __init__(self, weights: T5WeightsCuda, backend: str = "triton", overlap: bool = False):
        self.weights, self.config, self.device, self.backend = weights, weights.config, weights.device, backend
        self.start_token, self.end_token = self.config.start_token, self.config.end_token
        self.encoder = T5EncoderCuda(weights)
        self.launch = OVERLAPPED if overlap else {}
        self.kind = STORED[weights.stored]
        self.generation, self.buffers = 0, {}
        self.rows = self.slots = self.pages = self.reads = self.source_bucket = 0

    def reserve(self, rows: int, positions: int, draft_tokens: int, source: int) -> None:
        """Room for B rows of T positions, K drafts and S source positions, whose bucket passes are launched for from now on;
        forgets every admitted row if it must grow.

        UserError where the device has too little memory, before any is taken or given back.
        """
        # in steps, so that requests of about the same size share their buffers, and the graphs captured on them
        R, pages = draft_tokens + 1, page_bucket(source)
        slots = -(-(positions + R) // SLOTS) * SLOTS
        if rows <= self.rows and slots <= self.slots and pages <= self.pages and R <= self.reads:
            self.source_bucket = pages
            return
        asked, held = (rows, slots, pages, R), sum(buffer.nbytes for buffer in self.buffers.values())
        wanted = tuple(map(max, zip(asked, (self.rows, self.slots, self.pages, self.reads), strict=True)))
        # the most rows and the longest source of different requests may be more than there is
        if self.buffer_bytes(*wanted) > free_bytes(self.device) + held:
            wanted = asked
        check_memory(self.device, self.buffer_bytes(*wanted), f"caches for {wanted[0]} rows of {wanted[1]} positions and "
                     f"{wanted[2] * PAGE} source tokens", "lower batch_size, max_new_tokens or max_source", held)
        self._allocate(*wanted)
        self.source_bucket = pages

    def buffer_bytes(self, rows: int, slots: int, pages: int, reads: int) -> int:
        """Of the caches and the buffers of a round, the logits [B, R, V] float32 included."""
        return layout_bytes(self._shapes(rows, slots, pages, reads))

    def _shapes(self, rows: int, slots: int, pages: int, reads: int) -> Layout:
        c, kind, M = self.config, self.kind, rows * reads
        L, H, D, C = c.num_decoder_layers, c.num_heads, c.d_kv, c.d_model
        parts = -(-c.vocab_size // WIDTH)
        # flat where a smaller batch must be a contiguous view too
        return {
            "k": ((L, rows * H * slots * D,), kind), "v": ((L, rows * H * slots * D,), kind),
            "pages_k": ((L, rows * pages, H, PAGE, D), kind), "pages_v": ((L, rows * pages, H, PAGE, D), kind),
            "table": ((rows, pages), torch.int64), "sources": ((rows,), torch.int64), "bias": ((H, slots), torch.float32),
            "x": ((M * C,), torch.float32), "y": ((M * C,), kind), "squares": ((M * -(-C // 16),), torch.float32),
            "q": ((M * H * D,), kind), "seen": ((M * H * D,), kind), "active": ((M * c.d_ff,), kind),
            "visible": ((rows * reads * reads,), torch.int8), "hidden": ((M * C,), torch.float32),
            "work": ((max(work_size(rows, reads, H, pages, D), M * parts),), torch.float32),
            "ids": ((M * parts,), torch.int32), "arrived": ((max(rows * H, -(-M // 16)),), torch.int32),
            "chosen": ((M,), torch.int64), "all_logits": ((M * c.vocab_size,), torch.float32),
        }

    def _allocate(self, rows: int, slots: int, pages: int, reads: int) -> None:
        # the old ones go before the new ones come
        self.buffers, self.rows = {}, 0
        self.buffers = {name: torch.zeros(shape, dtype=kind, device=self.device)
                        for name, (shape, kind) in self._shapes(rows, slots, pages, reads).items()}
        self.rows, self.slots, self.pages, self.reads = rows, slots, pages, reads
        self.buffers["table"].copy_(torch.arange(rows * pages, device=self.device).view(rows, pages))
        self._fill_bias()
        self.generation += 1

    def _fill_bias(self) -> None:
        distance = torch.arange(self.slots, device=self.device)
        bucket = relative_bucket(-distance, self.config.buckets, self.config.max_distance, bidirectional=False)
        self.buffers["bias"].copy_(self.weights.dec_bias[bucket].T)

    def extend(self, slots: int) -> None:
        """Room for so many positions where there are fewer: what was decoded is forgotten, what was admitted stays."""
        slots = -(-slots // SLOTS) * SLOTS
        if slots <= self.slots:
            return
        grown = {name: shape for name, shape in self._shapes(self.rows, slots, self.pages, self.reads).items()
                 if name in ("k", "v", "bias")}
        check_memory(self.device, layout_bytes(grown), f"caches for {self.rows} rows of {slots} positions",
                     "lower batch_size or max_new_tokens", sum(self.buffers[name].nbytes for name in grown))
        for name in grown:
            self.buffers[name] = torch.empty(0)
        for name, (shape, kind) in grown.items():
            self.buffers[name] = torch.zeros(shape, dtype=kind, device=self.device)
        self.slots = slots
        self._fill_bias()
        self.generation += 1

    def encode(self, source: Tensor) -> Tensor:
        """Ids [S] to the encoder's output [S, C] float32 on the device; a source is never padded."""
        return self.encoder.encode(source.to(self.device))

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor]) -> list[Tensor]:
        """Encode each source by its own length and fill its row's cross keys and values."""
        longest, outputs = max(map(len, sources)), sum(map(len, sources)) * self.config.d_model * 4
        check_memory(self.device, self.encoder.scratch_bytes(longest) + outputs,
                     f"attention among {longest} source tokens and the outputs of {len(sources)} sources",
                     "lower max_source or batch_size")
        encoded = []
        for row, source in zip(rows, sources, strict=True):
            encoded.append(self.encode(source))
            self.attend_to(row, encoded[-1])
        return encoded

    def attend_to(self, row: int, encoded: Tensor) -> None:
        """Fill a row's cross keys and values from an encoder's output [S, C]."""
        c, b, S = self.config, self.buffers, len(encoded)
        used = -(-S // PAGE)
        stored, place = encoded.to(self.weights.dtype), b["table"][row, :used]
        for layer in range(c.num_decoder_layers):
            kv = F.pad(F.linear(stored, self.weights.cross_kv[layer]), (0, 0, 0, used * PAGE - S))
            k, v = kv.view(used, PAGE, 2, c.num_heads, c.d_kv).permute(2, 0, 3, 1, 4).to(self.kind)
            b["pages_k"][layer].index_copy_(0, place, k)
            b["pages_v"][layer].index_copy_(0, place, v)
        b["sources"][row].fill_(S)
        self.source_bucket = max(self.source_bucket, page_bucket(S))

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.buffers["sources"][row].fill_(0)

    def _view(self, name: str, *shape: int) -> Tensor:
        return self.buffers[name][: torch.Size(shape).numel()].view(shape)

    def decode(self, tokens: Tensor, positions: Tensor, parents: Tensor | None = None, last: bool = False) -> Tensor:
        """Hidden [B, R, C] after the final norm, a buffer that the next call overwrites; position -1 is not read.

        `last`: [B, 1, C], of the last of each row's R alone."""
        (B, R), c, w, run = tokens.shape, self.config, self.weights, self.backend
        H, D, C, M, eps = c.num_heads, c.d_kv, c.d_model, B * R, c.epsilon
        x, y, squares = self._view("x", M, C), self._view("y", M, C), self._view("squares", M, -(-C // 16))
        q, seen, active = self._view("q", M, H, D), self._view("seen", M, H * D), self._view("active", M, c.d_ff)
        visible, sources = self._view("visible", B, R, R), self.buffers["sources"][:B]
        table = self.buffers["table"][:B, : self.source_bucket]
        self._positions = positions
        EMBED[run](tokens, positions, parents, w.embedding, w.norms[0, 0], visible, x, y, squares, **self.launch)
        for i in range(c.num_decoder_layers):
            k, v = self._cache(i, B)
            following = w.norms[i + 1, 0] if i + 1 < c.num_decoder_layers else w.final_norm
            QKV[run](y, squares, w.qkv[i], eps, positions, q, k, v, **self.launch)
            FUSED_SELF_ATTENTION[run](q, k, v, positions, visible, self.buffers["bias"], seen, **self.launch)
            ADD[run](seen, w.self_out[i], w.norms[i, 1], x, y, squares, **self.launch)
            PROJECT[run](y, squares, w.cross_q[i], eps, q.view(M, H * D), **self.launch)
            FUSED_CROSS_ATTENTION[run](q, self.buffers["pages_k"][i], self.buffers["pages_v"][i], table, sources, seen,
                                       self.buffers["work"], self.buffers["arrived"], **self.launch)
            ADD[run](seen, w.cross_out[i], w.norms[i, 2], x, y, squares, **self.launch)
            GATE[run](y, squares, w.ff_in[i], eps, c.activation, c.gated, active, **self.launch)
            ADD[run](active, w.ff_out[i], following, x, y, squares, **self.launch)
        R = 1 if last else R
        hidden = self._view("hidden", B * R, C)
        CLOSE[run](x, squares, w.final_norm, eps, c.head_scale, hidden, y[: B * R], **self.launch)
        return hidden.view(B, R, C)

    def scaled(self, rows: int) -> Tensor:
        """[rows, C]: what a head of its own reads of the latest decode, in the type of the weights."""
        return self._view("y", rows, self.config.d_model)

    def _cache(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """k, v [B, H, T, D] of a layer."""
        shape = (rows, self.config.num_heads, self.slots, self.config.d_kv)
        return tuple(self.buffers[name][layer][: torch.Size(shape).numel()].view(shape) for name in ("k", "v"))

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, R, V] float32 for the latest decode, a buffer; unread rows hold no meaning."""
        (B, R, C), V = hidden.shape, self.config.vocab_size
        out = self._view("all_logits", B * R, V)
        FUSED_LOGITS[self.backend](self._view("y", B * R, C), self.weights.head, out, **self.launch)
        return out.view(B, R, V)

    def choose(self, hidden: Tensor) -> Tensor:
        """[B, R] int64: the argmax for the latest decode, a buffer; unread rows hold no meaning."""
        B, R, C = hidden.shape
        chosen = self._view("chosen", B * R)
        FUSED_CHOOSE[self.backend](self._view("y", B * R, C), self.weights.head, chosen, self.buffers["work"],
                                   self.buffers["ids"], self.buffers["arrived"], **self.launch)
        return chosen.view(B, R)

    def keep(self, path: Tensor) -> None:
        """Move the cache rows of an accepted tree path [B, R] together: slot base + path[:, i] to base + i."""
        B, R = path.shape
        base = self._positions[:, :1].clamp(min=0)
        steps = torch.arange(R, device=path.device)
        for layer in range(self.config.num_decoder_layers):
            for cache in self._cache(layer, B):
                shape = (B, cache.shape[1], R, cache.shape[3])
                moved = cache.gather(2, (base + path)[:, None, :, None].expand(shape))
                cache.scatter_(2, (base + steps)[:, None, :, None].expand(shape), moved)
