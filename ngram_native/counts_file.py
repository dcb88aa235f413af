"""Counting a stream in bounded memory, and counts on disk: `.counts` files, merged page by page.

Ids wait until there are enough for a list of windows (count.py); lists of like size are merged, and when they outgrow the
memory they go to the disk as sorted runs, which are merged from there at the end. A `.counts` file is the same list, so
that counting goes on later (`update`), and on other machines (`merge_files`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from foredraft.errors import UserError
from foredraft.ngram_native import files
from foredraft.ngram_native.count import Counts, count, merge, merge_into, merged_size, word_count

KIND = files.Kind(b"FDCOUNT\n", 1, "n-gram counts file", "make one with `foredraft ngram count`")
# Bytes a waiting id costs while it is counted: itself, its window twice, a count.
BYTES_PER_ID = 8 + 8 + 8


def save_counts(counts: Counts, path: str | Path) -> None:
    """Write a `.counts` file."""
    files.write(path, KIND, _fields(counts), {"words": counts.words, "counts": counts.counts})


def open_counts(path: str | Path) -> Counts:
    """Map a `.counts` file; pages are read on first use."""
    _, header, arrays = files.read(path, KIND)
    return Counts(header["order"], header["vocab_size"], arrays["words"], arrays["counts"], header["tokenizer"])


def merge_files(paths: Sequence[str | Path], out: str | Path) -> Counts:
    """Merge `.counts` files into one, without holding any in memory: exactly the counts of all their texts together."""
    if not paths:
        raise UserError("no counts to merge; name at least one .counts file")
    parts = [(str(path), open_counts(path)) for path in paths]
    first_path, first = parts[0]
    for path, part in parts[1:]:
        for what in ("order", "vocab_size", "tokenizer"):
            if getattr(part, what) != getattr(first, what):
                raise UserError(f"{path}: its {what} is not that of {first_path} ({getattr(part, what)} and "
                                f"{getattr(first, what)}); count both alike")
    with tempfile.TemporaryDirectory(dir=Path(out).resolve().parent, prefix=".merge-") as folder:
        waiting = [part for _, part in parts]
        while len(waiting) > 2:
            left, right = waiting.pop(0), waiting.pop(0)
            waiting.append(_merge_to(left, right, Path(folder) / f"{len(list(Path(folder).iterdir()))}.counts"))
        if len(waiting) == 1:
            waiting.append(Counts.empty(first.order, first.vocab_size, first.tokenizer))
        return _merge_to(*waiting, Path(out))


def _merge_to(left: Counts, right: Counts, path: Path) -> Counts:
    size = merged_size(left, right)
    shapes = {"words": (np.uint64, (len(left.words), size)), "counts": (np.int64, (size,))}
    with files.create(path, KIND, _fields(left), shapes) as stored:
        merge_into(left, right, stored["words"], stored["counts"])
    return open_counts(path)


def _fields(counts: Counts) -> dict:
    return {"order": counts.order, "vocab_size": counts.vocab_size, "tokenizer": counts.tokenizer}


class Counter:
    """Counts batches of sequences as they come. `memory`: about the bytes that may be used, in ids, lists and merging."""

    def __init__(self, order: int, vocab_size: int, memory: int = 1 << 30, tokenizer: str | None = None,
                 folder: str | Path | None = None):
        self.empty = Counts.empty(order, vocab_size, tokenizer)
        self.memory, self.ids, self.texts = memory, 0, 0
        self.shard = max(memory // 4 // (BYTES_PER_ID + 8 * word_count(order, vocab_size)), 1)
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="counting-")
        self._waiting: list[np.ndarray] = []
        self._waiting_ids = 0
        self._lists: list[Counts] = []
        self._runs: list[Path] = []

    def add(self, sequences: Iterable[np.ndarray]) -> None:
        """Count sequences, each [n] integer ids."""
        for sequence in sequences:
            self._waiting.append(sequence)
            self._waiting_ids += len(sequence)
            self.texts += 1
            if self._waiting_ids >= self.shard:
                self._count()

    def update(self, counts: Counts) -> None:
        """Add what was counted before."""
        self._lists.append(counts)
        self._settle()

    def finish(self, out: str | Path | None = None) -> Counts:
        """All counts together; written to `out` if named, else in memory, or in a file of this object if they outgrew it."""
        self._count()
        if self._runs or out is not None:
            self._spill()
            counts = merge_files(self._runs, out or Path(self._folder.name) / "all.counts")
            self._folder.cleanup()
            return counts
        whole = self.empty
        while self._lists:
            whole = merge(self._lists.pop(), whole)
        self._folder.cleanup()
        return whole

    def _count(self) -> None:
        if self._waiting:
            starts = np.cumsum([0, *map(len, self._waiting)])
            new = count(np.concatenate(self._waiting), starts, self.empty.order, self.empty.vocab_size)
            new.tokenizer = self.empty.tokenizer
            self._lists.append(new)
            self.ids += self._waiting_ids
            self._waiting, self._waiting_ids = [], 0
        self._settle()

    def _settle(self) -> None:
        """Merge lists of like size, as a binary counter carries, and spill when they are too large to merge here."""
        lists = self._lists
        while len(lists) > 1 and lists[-2].nbytes < 2 * lists[-1].nbytes:
            lists.append(merge(lists.pop(), lists.pop()))
        if sum(one.nbytes for one in lists) > self.memory // 4:
            self._spill()

    def _spill(self) -> None:
        whole = self.empty
        while self._lists:
            whole = merge(self._lists.pop(), whole)
        self._runs.append(Path(self._folder.name) / f"run-{len(self._runs)}.counts")
        save_counts(whole, self._runs[-1])
