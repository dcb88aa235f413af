"""What the Drafters with a pointer (LSTM, CNN, the head on features) share: packed weights, and sources by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.draft_length.confidence import Confidence
from foredraft.engine.drafters.neural.draft_vocabulary import DraftVocabulary
from foredraft.engine.drafters.neural.drafter_module import DraftModel, Tables, rms_norm, storage_of
from foredraft.engine.models.kv_cache import KVCache
from foredraft.engine.models.t5_weights import T5Weights, packed
from foredraft.engine.protocols import Capabilities, Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.kernels.drafting.copy_attention import CopyWeights, SourceCache


class CopyDrafter(Drafter):
    """Drafts of a DraftModel with a `pointer`: greedy rows as point masses, others with their distributions."""

    capabilities = Capabilities(stops_early=True, big_little=True)
    name: ClassVar[str]
    model_class: ClassVar[type[DraftModel]]

    def __init__(self, model: DraftModel, tables: Tables, stored: str = "fp32"):
        """`stored`, one of t5_weights.STORED: its own matrices."""
        self.model, self.tables = model.eval(), tables
        self.config, pointer = model.config, model.pointer
        self.confidence = Confidence()
        self.lists = DraftVocabulary(tables.head, self.config.vocab_size, model.draft_ids.numpy(), copies=True)
        self.keys = KVCache(1, pointer.heads, pointer.d_kv)
        query, inner, outer = (packed(layer.weight.detach(), stored)
                               for layer in (pointer.query, pointer.inner, pointer.outer))
        self.pointer = CopyWeights(query, array(pointer.query.bias), inner, array(pointer.inner.bias), outer,
                               array(pointer.gain.weight)[0], array(pointer.gain.bias))

    @classmethod
    def open(cls, folder: Path, target: T5Weights, target_folder: Path, tokenizer: Any) -> CopyDrafter:
        """A saved drafter, for the target it was made for."""
        model = cls.model_class.load(folder, target_folder, with_tables=False)
        return cls(model, Tables.of(model, target), storage_of(folder, target))

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Keys and values of the sources, n of [S_i] int64 with the target's encoder output [S_i, C], for the rows."""
        most, longest = max(rows) + 1, max(len(source) for source in sources)
        self.keys.reserve(most, 0, longest)
        self.lists.reserve(most, longest)
        self.confidence.admit(rows)
        H, D = self.keys.heads, self.keys.head_size
        with torch.inference_mode():
            for row, source, output in zip(rows, sources, encoded, strict=True):
                k, v = self.model.pointer.source(output[None], rms_norm(self.tables.embed(source))[None])
                self.keys.allocate(row, len(source))
                self.keys.write_source(0, row, k.view(-1, H, D), v.view(-1, H, D))
                self.lists.admit(row, source)

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.keys.release(row)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        raise NotImplementedError

    @property
    def source(self) -> SourceCache:
        """For kernels/drafting/copy_attention.py."""
        return SourceCache(self.keys.pages_k[0], self.keys.pages_v[0], self.keys.table, self.keys.sources)

    def _warm_up(self) -> None:
        """Compile, or read the compiled code, before the first request."""
        one = torch.ones(1, dtype=torch.int64)
        state = DecodeState(limits=one + 1, draft_tokens=one, temperature=torch.zeros(1), top_k=one * 0,
                            top_p=torch.ones(1), seeds=one, start_token=0, end_token=1, width=self.config.d_model)
        self.admit([0], [one], [torch.zeros(1, self.config.d_model)])
        self.draft(state)
        self.release([0])


def array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().numpy())
