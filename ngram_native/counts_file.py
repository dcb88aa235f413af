"""`.counts` files, and counting a stream of text in bounded memory by an external merge sort.

Tokens are collected until there are enough to sort their windows (count.py). Sorted lists of similar size are merged. When
the lists exceed the memory they are written to the disk as sorted runs, which are merged at the end. A `.counts` file is
such a list, so counting can be continued later (`update`) or distributed over machines (`merge_files`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from foredraft.atomic_write import work_folder
from foredraft.errors import UserError
from foredraft.ngram_native import files
from foredraft.ngram_native.count import count
from foredraft.ngram_native.counts import Counts, merge, merge_into, merged_size, word_count

KIND = files.Kind(b"FDCOUNT\n", 1, "n-gram counts file", "make one with `foredraft ngram count`")
# Bytes that counting needs for a token, besides its window: the token, a copy of a word of its window, a count.
BYTES_PER_TOKEN = 8 + 8 + 8


def save_counts(counts: Counts, path: str | Path) -> None:
    """Write a `.counts` file, atomically."""
    files.write(path, KIND, _fields(counts), {"words": counts.words, "counts": counts.counts})


def open_counts(path: str | Path) -> Counts:
    """Map a `.counts` file into memory; pages are read on first use."""
    _, header, arrays = files.read(path, KIND)
    try:
        found = Counts(header["order"], header["vocab_size"], arrays["words"], arrays["counts"], header["tokenizer"])
        shape = (word_count(found.order, found.vocab_size), len(found.counts))
        if found.words.shape != shape or found.words.dtype != np.uint64 or found.counts.dtype != np.int64:
            raise ValueError("the shape or type of an array")
        return found
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not the arrays of an n-gram counts file ({error}); {files.DAMAGED}") from None


def merge_files(paths: Sequence[str | Path], out: str | Path) -> Counts:
    """Merge `.counts` files into one, from disk to disk.

    Parameters
    ----------
    paths
        Files of equal order, vocabulary size and tokenizer.
    out
        The file to write; it may be one of `paths`.

    Returns
    -------
    Counts
        The merged counts, mapped: those of all texts together.

    Raises
    ------
    UserError
        No file is given, or the files do not match.
    """
    if not paths:
        raise UserError("no counts to merge; name at least one .counts file")
    parts = [(str(path), open_counts(path)) for path in paths]
    first_path, first = parts[0]
    for path, part in parts[1:]:
        for what in ("order", "vocab_size", "tokenizer"):
            if getattr(part, what) != getattr(first, what):
                raise UserError(f"{path}: its {what} differs from that of {first_path} ({getattr(part, what)} and "
                                f"{getattr(first, what)}); count both with the same settings")
    with work_folder(f"{out}.merge") as folder:
        queue = [part for _, part in parts]
        while len(queue) > 2:
            left, right = queue.pop(0), queue.pop(0)
            queue.append(_merge_to(left, right, folder / f"{len(list(folder.iterdir()))}.counts"))
        if len(queue) == 1:
            queue.append(Counts.empty(first.order, first.vocab_size, first.tokenizer))
        return _merge_to(*queue, Path(out))


def _merge_to(left: Counts, right: Counts, path: Path) -> Counts:
    size = merged_size(left, right)
    shapes = {"words": (np.uint64, (len(left.words), size)), "counts": (np.int64, (size,))}
    with files.create(path, KIND, _fields(left), shapes) as stored:
        merge_into(left, right, stored["words"], stored["counts"])
    return open_counts(path)


def _fields(counts: Counts) -> dict:
    return {"order": counts.order, "vocab_size": counts.vocab_size, "tokenizer": counts.tokenizer}


class StreamCounter:
    """Counts the n-grams of a stream of sequences.

    Parameters
    ----------
    order, vocab_size, tokenizer
        See Counts.
    memory
        Approximate limit in bytes for tokens, lists and merging.
    folder
        Where sorted runs that exceed the memory are kept; the system's temporary folder by default.

    Attributes
    ----------
    tokens, texts
        Numbers of tokens and sequences counted so far.
    """

    def __init__(self, order: int, vocab_size: int, memory: int = 1 << 30, tokenizer: str | None = None,
                 folder: str | Path | None = None):
        self.empty = Counts.empty(order, vocab_size, tokenizer)
        self.memory, self.tokens, self.texts = memory, 0, 0
        self.block = max(memory // 4 // (BYTES_PER_TOKEN + 8 * word_count(order, vocab_size)), 1)
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="counting-")
        self._pending: list[np.ndarray] = []
        self._pending_tokens = 0
        self._lists: list[Counts] = []
        self._runs: list[Path] = []

    def add(self, sequences: Iterable[np.ndarray]) -> None:
        """Count sequences, each [n] integers."""
        for sequence in sequences:
            self._pending.append(sequence)
            self._pending_tokens += len(sequence)
            self.texts += 1
            if self._pending_tokens >= self.block:
                self._count()

    def update(self, counts: Counts) -> None:
        """Add earlier counts."""
        self._lists.append(counts)
        self._merge_similar()

    def finish(self, out: str | Path | None = None) -> Counts:
        """All counts, written to `out` if given. Otherwise they are in memory, or mapped if they exceeded it."""
        self._count()
        if self._runs or out is not None:
            self._spill()
            counts = merge_files(self._runs, out or Path(self._folder.name) / "all.counts")
            self._folder.cleanup()
            return counts
        self._folder.cleanup()
        return self._merge_all()

    def _count(self) -> None:
        if self._pending:
            starts = np.cumsum([0, *map(len, self._pending)])
            new = count(np.concatenate(self._pending), starts, self.empty.order, self.empty.vocab_size)
            new.tokenizer = self.empty.tokenizer
            self._lists.append(new)
            self.tokens += self._pending_tokens
            self._pending, self._pending_tokens = [], 0
        self._merge_similar()

    def _merge_similar(self) -> None:
        """Merge lists of similar size, as a log-structured merge tree does, and spill when they exceed the memory."""
        lists = self._lists
        while len(lists) > 1 and lists[-2].nbytes < 2 * lists[-1].nbytes:
            lists.append(merge(lists.pop(), lists.pop()))
        if sum(one.nbytes for one in lists) > self.memory // 4:
            self._spill()

    def _merge_all(self) -> Counts:
        merged = self.empty
        while self._lists:
            merged = merge(self._lists.pop(), merged)
        return merged

    def _spill(self) -> None:
        self._runs.append(Path(self._folder.name) / f"run-{len(self._runs)}.counts")
        save_counts(self._merge_all(), self._runs[-1])
