"""The n-gram text format of FastLLM, the project that foredraft reimplements: a folder with a file K.ckpt for each order K.

A file has a line `(a, b)<TAB>next<TAB>count` for each n-gram, a line `<sep>`, and a line `(a, b)<TAB>total` for each
context, where total is n(a b) + A V with Laplace's parameter A. 1.ckpt has no n-grams, only lines `token<TAB>n(token) + A
V`. Counts are floats.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np

from foredraft.atomic_write import open_atomic
from foredraft.errors import UserError
from foredraft.ngram_native.counts import Counts, from_windows

SEPARATOR = "<sep>"


def write_fastllm(counts: Counts, folder: str | Path, added: float) -> None:
    """Write one file for each order, each atomically; `added` is Laplace's A."""
    folder, trie = Path(folder), counts.trie()
    contexts: list[tuple[int, ...]] = [()]
    base = added * counts.vocab_size
    for level in range(counts.order):
        grams = [(*contexts[p], w) for p, w in zip(trie.parents[level].tolist(), trie.ids[level].tolist(), strict=True)]
        seen = trie.counts[level].tolist()
        with open_atomic(folder / f"{level + 1}.ckpt", "w", encoding="ascii") as file:
            if level:
                file.writelines(f"{g[:-1]}\t{g[-1]}\t{float(n)}\n" for g, n in zip(grams, seen, strict=True))
                totals = np.bincount(trie.parents[level], trie.counts[level], minlength=len(contexts))
                lines = [(context, n) for context, n in zip(contexts, totals.tolist(), strict=True) if n]
            else:
                lines = [(g[0], n) for g, n in zip(grams, seen, strict=True) if n]
            file.write(f"{SEPARATOR}\n")
            file.writelines(f"{context}\t{base + n}\n" for context, n in lines)
        contexts = grams


def read_fastllm(folder: str | Path, order: int, vocab_size: int, added: float) -> Counts:
    """Read the counts of orders 1..`order`.

    Parameters
    ----------
    folder
        Folder of K.ckpt files.
    order, vocab_size
        N and V.
    added
        Laplace's A with which the files were written.

    Returns
    -------
    Counts

    Raises
    ------
    UserError
        A missing file, an invalid line or an inconsistent count, named.
    """
    grams: dict[tuple[int, ...], float] = {}
    for size in range(1, order + 1):
        path = Path(folder) / f"{size}.ckpt"
        if not path.is_file():
            raise UserError(f"{path}: no such file; the format has one for every order from 1 to {order}")
        _read_file(path, size, vocab_size, added, grams)
    continued = Counter()
    for gram, n in grams.items():
        if len(gram) > 1:
            continued[gram[:-1]] += n
    # an n-gram of less than N tokens is a window of its own where a sequence ends with it
    windows_of = {gram: n - (continued[gram] if len(gram) < order else 0) for gram, n in grams.items()}
    for gram, n in windows_of.items():
        if n < 0:
            raise UserError(f"{folder}: {gram} occurs less often than its continuations; its files do not belong together")
    ending = [(gram, n) for gram, n in windows_of.items() if n]
    windows = np.zeros((len(ending), order), np.int64)
    for i, (gram, _) in enumerate(ending):
        windows[i, : len(gram)] = np.array(gram) + 1
    return from_windows(windows, np.array([n for _, n in ending], np.int64), vocab_size)


def _read_file(path: Path, size: int, vocab_size: int, added: float, grams: dict) -> None:
    in_totals = False
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip("\n").split("\t")
            if fields == [SEPARATOR]:
                in_totals = True
                continue
            if in_totals and size > 1:
                break  # totals are the sums of the n-grams' counts
            try:
                context = [int(part) for part in fields[0].strip("()").split(",") if part.strip()]
                gram = tuple(context if size == 1 else [*context, int(fields[1])])
                count = float(fields[-1]) - (added * vocab_size if size == 1 else 0)
                if not math.isfinite(count):
                    raise ValueError
                if len(gram) != size or len(fields) != (2 if size == 1 else 3) or not all(0 <= i < vocab_size for i in gram):
                    raise ValueError
            except (ValueError, IndexError):
                raise UserError(f"{path}, line {number}: not a {size}-gram with a count, of tokens below {vocab_size}"
                                ) from None
            if count < 0 or abs(count - round(count)) > 1e-3:
                raise UserError(f"{path}, line {number}: {count} is not a count; the file was probably not written with "
                                f"the smoothing parameter {added:g}")
            if round(count):
                grams[gram] = round(count)
    if not in_totals:
        raise UserError(f"{path}: truncated, it has no {SEPARATOR} line")
