"""The ids that the rows of a neural drafter may draft on a device, and its head over them (kernels/drafting/vocabulary_head_triton.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.engine.models.device_memory import Layout, check_memory, layout_bytes
from foredraft.engine.sampling.draft_sampling import sample_into
from foredraft.engine.state import DecodeState, Draft
from foredraft.kernels.drafting.vocabulary_head_triton import (
    CopyScores,
    DeviceVocabulary,
    vocabulary_choose_triton,
    vocabulary_logits_triton,
)
from foredraft.kernels.model.cross_attention_triton import PAGE, page_bucket
from foredraft.kernels.model.lm_head_triton import WIDTH


class DraftVocabularyCuda:
    """`ids` [F] for every row, and the ids of the row's own source; no ids: the whole head [V, C].

    `copies`: a pointer raises the logits of a source's ids. `generation` counts the buffers' changes of place.
    """

    def __init__(self, head: Tensor, ids: Tensor, copies: bool):
        self.head, self.vocab_size, self.device = head, len(head), head.device
        whole = len(ids) == 0
        self.has_own = copies or not whole
        self.common = torch.arange(self.vocab_size, device=self.device) if whole else ids.to(self.device, torch.int64)
        # where an id stands in the list, -1: nowhere
        self._place = torch.full((self.vocab_size,), -1)
        self._place[self.common.cpu()] = torch.arange(len(self.common))
        self.generation, self.rows, self.source, self.bucket = 0, 0, 0, 0
        self.buffers: dict[str, Tensor] = {}
        self._grow(0, 0)

    def _shapes(self, rows: int, source: int) -> Layout:
        own, F = source if self.has_own else 0, len(self.common)
        parts = rows * (-(-F // WIDTH) + -(-own // WIDTH))
        return {
            "own": ((rows, own), torch.int64), "own_counts": ((rows,), torch.int64), "left_out": ((rows, F), torch.int8),
            "best": ((parts,), torch.float32), "ids": ((parts,), torch.int32), "arrived": ((-(-rows // 16),), torch.int32),
            "distributions": ((rows, self.vocab_size), torch.float32),
        }

    def _grow(self, rows: int, source: int) -> None:
        shapes, held = self._shapes(rows, source), sum(buffer.nbytes for buffer in self.buffers.values())
        check_memory(self.device, layout_bytes(shapes), f"the drafter's lists and distributions for {rows} rows of {source} source "
                     "tokens", "lower batch_size or max_source", held)
        # the old ones go before the new ones come
        self.buffers, self.rows = {}, 0
        self.buffers = {name: torch.zeros(shape, dtype=kind, device=self.device) for name, (shape, kind) in shapes.items()}
        self.buffers["distributions"].fill_(float("-inf"))
        self.rows, self.source = rows, source
        self.generation += 1

    def reserve(self, rows: int, source: int) -> None:
        """Room for B rows with sources of S ids, of which S make the bucket; growing forgets every row."""
        self.bucket = page_bucket(source) * PAGE
        if rows > self.rows or source > self.source:
            self._grow(max(rows, self.rows), max(self.bucket, self.source))

    def admit(self, row: int, source: Tensor) -> None:
        if not self.has_own:
            return
        own, b = torch.unique(source.cpu()), self.buffers
        left_out = torch.zeros(len(self.common), dtype=torch.int8)
        places = self._place[own]
        left_out[places[places >= 0]] = 1
        b["own"][row, : len(own)] = own.to(self.device)
        b["own_counts"][row].fill_(len(own))
        b["left_out"][row] = left_out.to(self.device)
        b["distributions"][row].fill_(float("-inf"))

    def draft_into(self, draft: Draft, place: int, y: Tensor, state: DecodeState, pointer: CopyScores | None = None) -> None:
        """Draft token `place` of every row from the drafter's outputs y [B, C], with its distribution where rows are sampled."""
        B, b = len(y), self.buffers
        rows = DeviceVocabulary(self.common, b["own"][:B, : self.bucket], b["own_counts"][:B], b["left_out"][:B])
        if state.greedy:
            vocabulary_choose_triton(y, self.head, rows, pointer, draft.tokens[:, place], b["best"], b["ids"], b["arrived"])
        else:
            vocabulary_logits_triton(y, self.head, rows, pointer, b["distributions"])
            sample_into(draft, place, b["distributions"][:B], state)
