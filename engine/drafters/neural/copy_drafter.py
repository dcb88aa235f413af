"""The base of the drafters with copy attention: LSTM, CNN and EAGLE-style head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.draft_length.confidence import Confidence
from foredraft.engine.drafters.neural.copy_module import CopyModel
from foredraft.engine.drafters.neural.draft_vocabulary import DraftVocabulary
from foredraft.engine.drafters.neural.drafter_module import Tables, rms_norm, storage_of
from foredraft.engine.models.kv_cache import KVCache
from foredraft.engine.models.t5_weights import T5Weights, packed
from foredraft.engine.protocols import Capabilities, Drafter
from foredraft.engine.state import DecodeState
from foredraft.kernels.drafting.copy_attention import CopyWeights, SourceCache


class CopyDrafter(Drafter):
    """Drafts of a CopyModel: point masses for greedy sequences, distributions for others.

    A subclass names its `model_class`, writes `draft`, and calls `_warm_up` at the end of its constructor.

    Parameters
    ----------
    model : CopyModel
    tables : Tables
        Embedding and head.
    stored : str
        Storage of the model's own matrices, one of t5_weights.STORAGES.
    """

    capabilities = Capabilities(stops_early=True, big_little=True)
    model_class: ClassVar[type[CopyModel]]

    def __init__(self, model: CopyModel, tables: Tables, stored: str = "fp32"):
        self.model, self.tables = model.eval(), tables
        self.config, copy = model.config, model.pointer
        self.confidence = Confidence()
        self.vocabulary = DraftVocabulary(tables.head, self.config.vocab_size, model.draft_ids.numpy(), copies=True)
        self.cache = KVCache(1, copy.heads, copy.d_kv)
        query, inner, outer = (packed(layer.weight.detach(), stored) for layer in (copy.query, copy.inner, copy.outer))
        self.copy_weights = CopyWeights(query, as_array(copy.query.bias), inner, as_array(copy.inner.bias), outer,
                                        as_array(copy.gain.weight)[0], as_array(copy.gain.bias))

    @classmethod
    def open(cls, folder: Path, target: T5Weights, target_folder: Path, tokenizer: Any) -> CopyDrafter:
        """Read a saved drafter for the target that it was made for."""
        model = cls.model_class.load(folder, target_folder, with_tables=False)
        return cls(model, Tables.of(model, target), storage_of(folder, target))

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Cache the copy attention's keys and values of new sources."""
        num_sequences, longest = max(sequences) + 1, max(len(source) for source in sources)
        self.cache.reserve(num_sequences, 0, longest)
        self.vocabulary.reserve(num_sequences, longest)
        self.confidence.admit(sequences)
        H, D = self.cache.heads, self.cache.head_size
        with torch.inference_mode():
            for sequence, source, output in zip(sequences, sources, encoded, strict=True):
                k, v = self.model.pointer.source(output[None], rms_norm(self.tables.embed(source))[None])
                self.cache.allocate(sequence, len(source))
                self.cache.write_source(0, sequence, k.view(-1, H, D), v.view(-1, H, D))
                self.vocabulary.admit(sequence, source)

    def release(self, sequences: Sequence[int]) -> None:
        for sequence in sequences:
            self.cache.release(sequence)

    @property
    def source(self) -> SourceCache:
        """For kernels/drafting/copy_attention.py."""
        return SourceCache(self.cache.pages_k[0], self.cache.pages_v[0], self.cache.table, self.cache.sources)

    def _warm_up(self) -> None:
        """Compile the kernels, or load them, before the first request."""
        one = torch.ones(1, dtype=torch.int64)
        state = DecodeState(limits=one + 1, draft_tokens=one, temperature=torch.zeros(1), top_k=one * 0,
                            top_p=torch.ones(1), seeds=one, start_token=0, end_token=1, width=self.model.target_width)
        self.admit([0], [one], [torch.zeros(1, self.model.target_width)])
        self.draft(state)
        self.release([0])


def as_array(tensor: Tensor) -> np.ndarray:
    """A contiguous float32 array."""
    return np.ascontiguousarray(tensor.detach().float().numpy())
