"""What the trainings of a target's drafters share: engine, teacher, tokenizer and encoder outputs."""

from __future__ import annotations

from pathlib import Path

from foredraft.engine.models.checkpoint import weights_hash
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import T5Weights, load_weights
from foredraft.engine.models.tokenizer import load_tokenizer
from foredraft.errors import UserError
from foredraft.train.data.drafter_data import Articles
from foredraft.train.data.encoder_outputs import EncodedSources, encode_sources
from foredraft.train.drafter.teacher import Teacher


class TrainingContext:
    """A target for the training of its drafters. Every part is made at its first use.

    Parameters
    ----------
    folder
        The target's folder.
    cache
        Folder of encoder outputs, teacher logits and held-out outputs, shared by all runs.
    device
        Of the teacher and of the training.
    keep_encodings
        Whether to cache encoder outputs.

    Raises
    ------
    UserError
        The target has no tokenizer.
    """

    def __init__(self, folder: str | Path, cache: str | Path, device: str = "cpu", keep_encodings: bool = True):
        self.folder, self.cache, self.device, self.keep_encodings = Path(folder), Path(cache), device, keep_encodings
        self.hash = weights_hash(folder)
        self.tokenizer = load_tokenizer(self.folder)
        if self.tokenizer is None:
            raise UserError(f"{folder}: contains no tokenizer.json, which is needed to read summaries; put it beside "
                            "config.json")
        self._weights = self._engine = self._teacher = None
        self._encoded: dict[int, EncodedSources] = {}

    @property
    def source_limit(self) -> int:
        """Longest source in tokens, from the checkpoint, else 512."""
        return self.weights.config.source_limit or 512

    @property
    def weights(self) -> T5Weights:
        """The weights for the engine."""
        self._weights = self._weights or load_weights(self.folder)
        return self._weights

    @property
    def engine(self) -> T5:
        """The target in the engine."""
        self._engine = self._engine or T5(self.weights)
        return self._engine

    @property
    def teacher(self) -> Teacher:
        """The target as a torch module."""
        self._teacher = self._teacher or Teacher(self.folder, self.device)
        return self._teacher

    def encoded(self, articles: Articles) -> EncodedSources | None:
        """The cached encoder outputs of the articles, computed at the first call; None without `keep_encodings`."""
        if not self.keep_encodings:
            return None
        if id(articles) not in self._encoded:
            self._encoded[id(articles)] = encode_sources(self.cache, self.engine, self.hash, articles.sources)
        return self._encoded[id(articles)]
