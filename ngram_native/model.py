"""`NgramModel`, the original project's class, on counts and tables of our own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from foredraft.errors import UserError
from foredraft.ngram_native import query
from foredraft.ngram_native.count import MAX_ORDER, Counts, count, merge
from foredraft.ngram_native.counts_file import KIND as COUNTS_KIND
from foredraft.ngram_native.counts_file import open_counts, save_counts
from foredraft.ngram_native.fastllm_text import read_fastllm, write_fastllm
from foredraft.ngram_native.files import has_magic
from foredraft.ngram_native.smooth import SMOOTHINGS, fit
from foredraft.ngram_native.table import Table


class NgramModel:
    """An n-gram model of order n: fit it on ids, ask it for probabilities, save it.

    smoothing: "kneser-ney", "absolute", "stupid-backoff", "laplace", or a number: Laplace with that parameter, as the
    original's `laplace_smoothing`. resume: a folder in the original's text format, a `.counts` file or a `.ngram` table
    (which answers, but cannot be fitted further, for it holds no counts). vocab_size: V.
    """

    def __init__(self, n: int, smoothing: str | float = 1.0, resume: str | Path | None = None, *, vocab_size: int = 32128):
        self.added = 1.0 if isinstance(smoothing, str) else float(smoothing)
        self.smoothing = smoothing if isinstance(smoothing, str) else "laplace"
        if not 1 <= n <= MAX_ORDER:
            raise UserError(f"n is {n}; use 1 to {MAX_ORDER}")
        if self.smoothing not in SMOOTHINGS or not self.added > 0:
            raise UserError(f"smoothing {smoothing!r}: use {', '.join(SMOOTHINGS)} or a number above 0")
        self.n, self.vocab_size = n, vocab_size
        self.counts: Counts | None = None
        self._table: Table | None = None
        if resume is not None:
            self._resume(Path(resume))

    def fit(self, data: Iterable) -> NgramModel:
        """Count sequences of ids, added to what was counted before: lists, arrays, tensors, or the original's dicts of
        `input_ids`, each with its start and end tokens."""
        if self.counts is None and self._table is not None:
            raise UserError("a .ngram table holds no counts to add to; resume from a .counts file or a text folder")
        sequences = [np.asarray(one["input_ids"] if hasattr(one, "keys") else one).reshape(-1) for one in data]
        tokens = np.concatenate(sequences) if sequences else np.zeros(0, np.int64)
        if len(tokens) and not (0 <= tokens.min() and tokens.max() < self.vocab_size):
            raise UserError(f"ids {tokens.min()}..{tokens.max()}: the model has 0..{self.vocab_size - 1}; give vocab_size")
        new = count(tokens.astype(np.int64), np.cumsum([0, *map(len, sequences)]), self.n, self.vocab_size)
        self.counts = new if self.counts is None else merge(self.counts, new)
        self._table = None
        return self

    @property
    def table(self) -> Table:
        """The smoothed table; made when it is first asked for."""
        if self._table is None:
            if self.counts is None or not len(self.counts.counts):
                raise UserError("the model holds no counts yet; fit it, or resume from a file")
            self._table = fit(self.counts, self.smoothing, added=self.added)
        return self._table

    def probabilities(self, context: Iterable[int]) -> np.ndarray:
        """p(. | context) as [V] float64; the last n - 1 ids of the context count."""
        return query.distribution(self.table, np.asarray(context, np.int64).reshape(-1))

    def probability(self, context: Iterable[int], word: int) -> float:
        """p(word | context)."""
        return query.probability(self.table, np.asarray(context, np.int64).reshape(-1), int(word))

    def __call__(self, input_ids: Iterable[int]) -> np.ndarray:
        """log p(. | input_ids) as [V] float32, as the original's forward."""
        with np.errstate(divide="ignore"):
            return np.log(self.probabilities(input_ids)).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """`.ngram`: the table; `.counts`: the counts; any other path: a folder in the original's text format."""
        path = Path(path)
        if path.suffix == ".ngram":
            self.table.save(path)
        elif self.counts is None:
            raise UserError(f"{path}: a model resumed from a .ngram table holds no counts; save it as .ngram")
        elif path.suffix == ".counts":
            save_counts(self.counts, path)
        else:
            write_fastllm(self.counts, path, self.added)

    def _resume(self, path: Path) -> None:
        if path.is_dir():
            self.counts = read_fastllm(path, self.n, self.vocab_size, self.added)
            return
        if not path.is_file():
            raise UserError(f"{path}: no such folder, .counts file or .ngram table")
        if has_magic(path, COUNTS_KIND):
            self.counts = held = open_counts(path)
        else:
            self._table = held = Table.open(path)
            self.smoothing = held.smoothing
        if held.order != self.n:
            raise UserError(f"{path}: is of order {held.order}, not {self.n}")
        self.vocab_size = held.vocab_size
