"""T5 on a device: encode by torch, decode R query positions a step by our own kernels against static caches.

Implements the Target protocol (engine/protocols.py). A step neither allocates nor reads back to the host, so it can be
captured as a graph (engine/runtime/cuda_graphs.py). Under Triton's interpreter the same code runs on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.engine.models import device_memory
from foredraft.engine.models.device_memory import Layout, check_memory, layout_bytes
from foredraft.engine.models.relative_position import relative_bucket
from foredraft.engine.models.t5_cuda_encoder import T5EncoderCuda
from foredraft.engine.models.t5_cuda_weights import STORED, T5WeightsCuda
from foredraft.kernels.core.pdl_triton import PDL_LAUNCH
from foredraft.kernels.model.cross_attention_triton import FUSED_CROSS_ATTENTION, PAGE, page_bucket, work_size
from foredraft.kernels.model.embed_triton import EMBED, FINAL_NORM
from foredraft.kernels.model.linear_triton import ADD, GATE, PROJECT, QKV
from foredraft.kernels.model.lm_head_triton import FUSED_CHOOSE, FUSED_LOGITS, WIDTH
from foredraft.kernels.model.self_attention_triton import FUSED_SELF_ATTENTION

# Launches of one pass: in a layer (qkv, self-attention, out; cross q, cross-attention, out; gate, out), and outside the
# layers (embedding, final norm, head). Self-attention is not fused with its output projection: that saves a launch for one
# sequence, and makes one program attend for sixteen sequences in a batch.
LAYER_LAUNCHES, END_LAUNCHES = 8, 3
# Slots are allocated in multiples of this, so that requests of similar sizes share buffers and the graphs captured on them.
SLOTS = 64


class T5Cuda:
    """A T5 on a device, for as many sequences as `reserve` made room for.

    Parameters
    ----------
    weights : T5WeightsCuda
    backend : str
        Of the kernels, "triton" or "reference".
    pdl : bool
        Launch kernels with programmatic dependent launch (kernels/core/pdl_triton.py), where the device has it.

    Attributes
    ----------
    start_token, end_token : int
        `end_token` is the first of the model's; -1 is none.
    device : torch.device
    generation : int
        How often the buffers moved; a graph captured before the last move is stale.
    source_bucket : int
        Pages of a source that a pass is launched for, those of the longest source since `reserve`.
    """

    def __init__(self, weights: T5WeightsCuda, backend: str = "triton", pdl: bool = False):
        self.weights, self.config, self.device, self.backend = weights, weights.config, weights.device, backend
        self.start_token, self.end_token = self.config.start_token, self.config.end_token
        self.encoder = T5EncoderCuda(weights)
        self.launch = PDL_LAUNCH if pdl else {}
        self.kind = STORED[weights.stored]
        self.generation, self.buffers = 0, {}
        self.num_sequences = self.slots = self.pages_per_sequence = self.query_positions = self.source_bucket = 0

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return () if self.end_token < 0 else (self.end_token, *self.config.end_tokens[1:])

    def reserve(self, num_sequences: int, positions: int, draft_tokens: int, source: int) -> None:
        """Make room; growing forgets every admitted sequence.

        Parameters
        ----------
        num_sequences, positions, draft_tokens, source : int
            B, T, K and S. From now on passes are launched for S's bucket of pages.

        Raises
        ------
        UserError
            The device has too little free memory. No buffer has changed.
        """
        R, pages = draft_tokens + 1, page_bucket(source)
        slots = -(-(positions + R) // SLOTS) * SLOTS
        asked = num_sequences, slots, pages, R
        existing = self.num_sequences, self.slots, self.pages_per_sequence, self.query_positions
        if all(a <= b for a, b in zip(asked, existing, strict=True)):
            self.source_bucket = pages
            return
        released = sum(buffer.nbytes for buffer in self.buffers.values())
        wanted = tuple(map(max, zip(asked, existing, strict=True)))
        # the most sequences of one request and the longest source of another may not fit together
        if self.buffer_bytes(*wanted) > device_memory.free_bytes(self.device) + released:
            wanted = asked
        check_memory(self.device, self.buffer_bytes(*wanted),
                     f"caches for {wanted[0]} sequences of {wanted[1]} positions and {wanted[2] * PAGE} source tokens",
                     "lower batch_size, max_new_tokens or max_source", released)
        self._allocate(*wanted)
        self.source_bucket = pages

    def check_memory(self, needed: int, what: str, advice: str) -> None:
        """UserError where fewer bytes are free on the device (device_memory.py)."""
        check_memory(self.device, needed, what, advice)

    def buffer_bytes(self, num_sequences: int, slots: int, pages_per_sequence: int, query_positions: int) -> int:
        """Bytes of the caches and of the buffers of a step, the logits [B, R, V] float32 included."""
        return layout_bytes(self._layout(num_sequences, slots, pages_per_sequence, query_positions))

    def _layout(self, B: int, slots: int, pages: int, R: int) -> Layout:
        c, kind, M = self.config, self.kind, B * R
        L, H, D, C = c.num_decoder_layers, c.num_heads, c.d_kv, c.d_model
        parts = -(-c.vocab_size // WIDTH)
        # flat where a smaller batch must be a contiguous view too
        return {
            "k": ((L, B * H * slots * D,), kind), "v": ((L, B * H * slots * D,), kind),
            "pages_k": ((L, B * pages, H, PAGE, D), kind), "pages_v": ((L, B * pages, H, PAGE, D), kind),
            "table": ((B, pages), torch.int64), "sources": ((B,), torch.int64), "bias": ((H, slots), torch.float32),
            "x": ((M * C,), torch.float32), "y": ((M * C,), kind), "squares": ((M * -(-C // 16),), torch.float32),
            "q": ((M * H * D,), kind), "attended": ((M * H * D,), kind), "active": ((M * c.d_ff,), kind),
            "visible": ((B * R * R,), torch.int8), "hidden": ((M * C,), torch.float32),
            "work": ((max(work_size(B, R, H, pages, D), M * parts),), torch.float32),
            "work_tokens": ((M * parts,), torch.int32), "arrived": ((max(B * H, -(-M // 16)),), torch.int32),
            "chosen": ((M,), torch.int64), "all_logits": ((M * c.vocab_size,), torch.float32),
        }

    def _allocate(self, B: int, slots: int, pages: int, R: int) -> None:
        # the old buffers are released before the new ones are allocated
        self.buffers, self.num_sequences = {}, 0
        self.buffers = {name: torch.zeros(shape, dtype=kind, device=self.device)
                        for name, (shape, kind) in self._layout(B, slots, pages, R).items()}
        self.num_sequences, self.slots, self.pages_per_sequence, self.query_positions = B, slots, pages, R
        self.buffers["table"].copy_(torch.arange(B * pages, device=self.device).view(B, pages))
        self._fill_bias()
        self.generation += 1

    def _fill_bias(self) -> None:
        distance = torch.arange(self.slots, device=self.device)
        bucket = relative_bucket(-distance, self.config.buckets, self.config.max_distance, bidirectional=False)
        self.buffers["bias"].copy_(self.weights.decoder_bias[0, bucket].T)

    def reserve_slots(self, slots: int) -> None:
        """Make room for so many decoder positions; growing forgets what was decoded, and admitted sources stay."""
        slots = -(-slots // SLOTS) * SLOTS
        if slots <= self.slots:
            return
        B = self.num_sequences
        layout = self._layout(B, slots, self.pages_per_sequence, self.query_positions)
        grown = {name: layout[name] for name in ("k", "v", "bias")}
        check_memory(self.device, layout_bytes(grown), f"caches for {B} sequences of {slots} positions",
                     "lower batch_size or max_new_tokens", sum(self.buffers[name].nbytes for name in grown))
        for name in grown:
            self.buffers[name] = torch.empty(0)
        for name, (shape, kind) in grown.items():
            self.buffers[name] = torch.zeros(shape, dtype=kind, device=self.device)
        self.slots = slots
        self._fill_bias()
        self.generation += 1

    def encode(self, source: Tensor) -> Tensor:
        """Encode the tokens of a source [S] int64 to [S, C] float32 on the device."""
        return self.encoder.encode(source.to(self.device))

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
            The encoder's outputs, on the device.
        """
        longest, outputs = max(map(len, sources)), sum(map(len, sources)) * self.config.d_model * 4
        check_memory(self.device, self.encoder.scratch_bytes(longest) + outputs,
                     f"attention among {longest} source tokens and the outputs of {len(sources)} sources",
                     "lower max_source or batch_size")
        encoded = []
        for sequence, source in zip(sequences, sources, strict=True):
            encoded.append(self.encode(source))
            self.attend_to(sequence, encoded[-1])
        return encoded

    def attend_to(self, sequence: int, encoded: Tensor) -> None:
        """Cache a sequence's cross keys and values of an encoder's output [S, C]."""
        c, b, S = self.config, self.buffers, len(encoded)
        used = -(-S // PAGE)
        stored, pages = encoded.to(self.weights.dtype), b["table"][sequence, :used]
        for layer in range(c.num_decoder_layers):
            kv = F.pad(F.linear(stored, self.weights.cross_kv[layer]), (0, 0, 0, used * PAGE - S))
            k, v = kv.view(used, PAGE, 2, c.num_heads, c.d_kv).permute(2, 0, 3, 1, 4).to(self.kind)
            b["pages_k"][layer].index_copy_(0, pages, k)
            b["pages_v"][layer].index_copy_(0, pages, v)
        b["sources"][sequence].fill_(S)
        self.source_bucket = max(self.source_bucket, page_bucket(S))

    def release(self, sequences: Sequence[int]) -> None:
        """Forget the sources of these sequences."""
        for sequence in sequences:
            self.buffers["sources"][sequence].fill_(0)

    def _view(self, name: str, *shape: int) -> Tensor:
        return self.buffers[name][: torch.Size(shape).numel()].view(shape)

    def decode(self, tokens: Tensor, positions: Tensor, parents: Tensor | None = None, last: bool = False) -> Tensor:
        """Run one pass of the decoder.

        Parameters
        ----------
        tokens, positions : Tensor [B, R] int64
            Position -1 is not read.
        parents : Tensor [B, R] int64, optional
            The query position that each one follows; by default the one before it.
        last : bool
            Return the last query position of each sequence alone.

        Returns
        -------
        Tensor [B, R, C] or [B, 1, C] float32
            Hidden states after the final norm, in a buffer that the next call overwrites.
        """
        (B, R), c, w, run = tokens.shape, self.config, self.weights, self.backend
        H, D, C, M, eps = c.num_heads, c.d_kv, c.d_model, B * R, c.epsilon
        x, y, squares = self._view("x", M, C), self._view("y", M, C), self._view("squares", M, -(-C // 16))
        q, active = self._view("q", M, H, D), self._view("active", M, c.d_ff)
        attended = self._view("attended", M, H * D)
        visible, sources = self._view("visible", B, R, R), self.buffers["sources"][:B]
        table = self.buffers["table"][:B, : self.source_bucket]
        self._positions = positions
        EMBED[run](tokens, positions, parents, w.embedding, w.norms[0, 0], visible, x, y, squares, **self.launch)
        for i in range(c.num_decoder_layers):
            k, v = self._cache(i, B)
            following = w.norms[i + 1, 0] if i + 1 < c.num_decoder_layers else w.final_norm
            QKV[run](y, squares, w.qkv[i], eps, positions, q, k, v, **self.launch)
            FUSED_SELF_ATTENTION[run](q, k, v, positions, visible, self.buffers["bias"], attended, **self.launch)
            ADD[run](attended, w.self_out[i], w.norms[i, 1], x, y, squares, **self.launch)
            PROJECT[run](y, squares, w.cross_q[i], eps, q.view(M, H * D), **self.launch)
            FUSED_CROSS_ATTENTION[run](q, self.buffers["pages_k"][i], self.buffers["pages_v"][i], table, sources,
                                       attended, self.buffers["work"], self.buffers["arrived"], **self.launch)
            ADD[run](attended, w.cross_out[i], w.norms[i, 2], x, y, squares, **self.launch)
            GATE[run](y, squares, w.ff_in[i], eps, c.activation, c.gated, active, **self.launch)
            ADD[run](active, w.ff_out[i], following, x, y, squares, **self.launch)
        R = 1 if last else R
        hidden = self._view("hidden", B * R, C)
        FINAL_NORM[run](x, squares, w.final_norm, eps, c.head_scale, hidden, y[: B * R], **self.launch)
        return hidden.view(B, R, C)

    def head_input(self, num_sequences: int) -> Tensor:
        """[B, C] in the weights' type: the scaled hidden states of the latest decode with `last`, for another head."""
        return self._view("y", num_sequences, self.config.d_model)

    def _cache(self, layer: int, B: int) -> tuple[Tensor, Tensor]:
        """k, v [B, H, T, D] of a layer."""
        shape = (B, self.config.num_heads, self.slots, self.config.d_kv)
        return tuple(self.buffers[name][layer][: torch.Size(shape).numel()].view(shape) for name in ("k", "v"))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, R, V] float32 of the latest decode, in a buffer; undefined where nothing was read."""
        (B, R, C), V = hidden.shape, self.config.vocab_size
        out = self._view("all_logits", B * R, V)
        FUSED_LOGITS[self.backend](self._view("y", B * R, C), self.weights.head, out, **self.launch)
        return out.view(B, R, V)

    def choose(self, hidden: Tensor) -> Tensor:
        """Argmax [B, R] int64 of the latest decode's logits, in a buffer; undefined where nothing was read."""
        B, R, C = hidden.shape
        chosen = self._view("chosen", B * R)
        FUSED_CHOOSE[self.backend](self._view("y", B * R, C), self.weights.head, chosen, self.buffers["work"],
                                   self.buffers["work_tokens"], self.buffers["arrived"], **self.launch)
        return chosen.view(B, R)

    def keep(self, path: Tensor) -> None:
        """Make the cache slots of accepted tree paths [B, R] contiguous: slot base + path[:, i] moves to base + i."""
        B, R = path.shape
        base = self._positions[:, :1].clamp(min=0)
        steps = torch.arange(R, device=path.device)
        for layer in range(self.config.num_decoder_layers):
            for cache in self._cache(layer, B):
                shape = (B, cache.shape[1], R, cache.shape[3])
                moved = cache.gather(2, (base + path)[:, None, :, None].expand(shape))
                cache.scatter_(2, (base + steps)[:, None, :, None].expand(shape), moved)
