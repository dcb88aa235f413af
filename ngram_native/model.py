"""`NgramModel`: the interface of FastLLM's n-gram model, on the counts and tables of this package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from foredraft.errors import UserError
from foredraft.ngram_native import query
from foredraft.ngram_native.count import count
from foredraft.ngram_native.counts import MAX_ORDER, Counts, merge
from foredraft.ngram_native.counts_file import KIND as COUNTS_KIND
from foredraft.ngram_native.counts_file import open_counts, save_counts
from foredraft.ngram_native.fastllm_text import read_fastllm, write_fastllm
from foredraft.ngram_native.files import has_magic
from foredraft.ngram_native.smooth import SMOOTHINGS, fit
from foredraft.ngram_native.table import Table


class NgramModel:
    """An n-gram language model over tokens.

    Parameters
    ----------
    n
        Order, 1 to 8.
    smoothing
        "kneser-ney" (Chen and Goodman 1999), "absolute" (Ney, Essen and Kneser 1994), "stupid-backoff" (Brants et al. 2007),
        "laplace", or a number above 0: Laplace smoothing with that parameter.
    resume
        A folder in FastLLM's text format, a `.counts` file, or a `.ngram` table. A table has no counts, so a model resumed
        from one cannot be fitted further.
    vocab_size
        V.

    Raises
    ------
    UserError
        An argument is out of range, or `resume` does not match it.

    Examples
    --------
    >>> model = NgramModel(2, smoothing="laplace", vocab_size=4).fit([[0, 2, 3, 1], [0, 2, 2, 1]])
    >>> round(model.probability([0], 2), 3)
    0.5
    """

    def __init__(self, n: int, smoothing: str | float = 1.0, resume: str | Path | None = None, *, vocab_size: int = 32128):
        self.added = 1.0 if isinstance(smoothing, str) else float(smoothing)
        self.smoothing = smoothing if isinstance(smoothing, str) else "laplace"
        if not 1 <= n <= MAX_ORDER:
            raise UserError(f"n is {n}; use 1 to {MAX_ORDER}")
        if self.smoothing not in SMOOTHINGS or not self.added > 0:
            raise UserError(f"smoothing is {smoothing!r}; use {', '.join(SMOOTHINGS)} or a number above 0")
        self.n, self.vocab_size = n, vocab_size
        self.counts: Counts | None = None
        self._table: Table | None = None
        if resume is not None:
            self._resume(Path(resume))

    def fit(self, data: Iterable) -> NgramModel:
        """Count sequences and add them to the earlier counts.

        Parameters
        ----------
        data
            Sequences of tokens with start and end token: lists, arrays, tensors, or mappings with `input_ids`.

        Returns
        -------
        NgramModel
            This model.

        Raises
        ------
        UserError
            A token is outside 0..V-1, or the model was resumed from a `.ngram` table.
        """
        if self.counts is None and self._table is not None:
            raise UserError("a .ngram table has no counts to add to; resume from a .counts file or a text folder")
        sequences = [np.asarray(one["input_ids"] if hasattr(one, "keys") else one).reshape(-1) for one in data]
        tokens = np.concatenate(sequences) if sequences else np.zeros(0, np.int64)
        if len(tokens) and not (0 <= tokens.min() and tokens.max() < self.vocab_size):
            raise UserError(f"the data has tokens {tokens.min()}..{tokens.max()}, the model 0..{self.vocab_size - 1}; "
                            "pass a larger vocab_size")
        new = count(tokens.astype(np.int64), np.cumsum([0, *map(len, sequences)]), self.n, self.vocab_size)
        self.counts = new if self.counts is None else merge(self.counts, new)
        self._table = None
        return self

    @property
    def table(self) -> Table:
        """The smoothed table, computed at its first use."""
        if self._table is None:
            if self.counts is None or not len(self.counts.counts):
                raise UserError("the model has no counts yet; call fit, or resume from a file")
            self._table = fit(self.counts, self.smoothing, added=self.added)
        return self._table

    def probabilities(self, context: Iterable[int]) -> np.ndarray:
        """p(. | context) [V] float64; the last n - 1 tokens of the context are used."""
        return query.distribution(self.table, np.asarray(context, np.int64).reshape(-1))

    def probability(self, context: Iterable[int], token: int) -> float:
        """p(token | context)."""
        return query.probability(self.table, np.asarray(context, np.int64).reshape(-1), int(token))

    def __call__(self, input_ids: Iterable[int]) -> np.ndarray:
        """log p(. | input_ids) [V] float32."""
        with np.errstate(divide="ignore"):
            return np.log(self.probabilities(input_ids)).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Write the model.

        Parameters
        ----------
        path
            `.ngram` for the table, `.counts` for the counts, any other name for a folder in FastLLM's text format.

        Raises
        ------
        UserError
            Counts are to be written, but the model was resumed from a `.ngram` table.
        """
        path = Path(path)
        if path.suffix == ".ngram":
            self.table.save(path)
        elif self.counts is None:
            raise UserError(f"{path}: a model resumed from a .ngram table has no counts; save it as .ngram")
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
            self.counts = stored = open_counts(path)
        else:
            self._table = stored = Table.open(path)
            self.smoothing = stored.smoothing
        if stored.order != self.n:
            raise UserError(f"{path}: is of order {stored.order}, not {self.n}")
        self.vocab_size = stored.vocab_size
