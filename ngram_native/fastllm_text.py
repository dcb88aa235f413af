"""The text format of FastLLM, the project that foredraft implements: a folder with one file K.ckpt for each order K.

A line `(a, b)<TAB>next<TAB>count` for each n-gram, a line `<sep>`, then `(a, b)<TAB>total` for each context, where total is
n(a b) + A V, A being Laplace's parameter. 1.ckpt has no n-grams, only `id<TAB>n(id) + A V`. Counts are floats.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from foredraft.errors import UserError
from foredraft.ngram_native.count import Counts, from_windows

SEPARATOR = "<sep>"


def write_fastllm(counts: Counts, folder: str | Path, added: float) -> None:
    """Write counts of every order; each file is flushed under a temporary name, then renamed."""
    folder, trie = Path(folder), counts.trie()
    folder.mkdir(parents=True, exist_ok=True)
    contexts: list[tuple[int, ...]] = [()]
    base = added * counts.vocab_size
    for level in range(counts.order):
        grams = [(*contexts[p], w) for p, w in zip(trie.parents[level].tolist(), trie.ids[level].tolist(), strict=True)]
        seen = trie.counts[level].tolist()
        partial = folder / f".{level + 1}.ckpt.{os.getpid()}"
        with open(partial, "w", encoding="ascii") as file:
            if level:
                file.writelines(f"{g[:-1]}\t{g[-1]}\t{float(n)}\n" for g, n in zip(grams, seen, strict=True))
                totals = np.bincount(trie.parents[level], trie.counts[level], minlength=len(contexts))
                lines = [(context, n) for context, n in zip(contexts, totals.tolist(), strict=True) if n]
            else:
                lines = [(g[0], n) for g, n in zip(grams, seen, strict=True) if n]
            file.write(f"{SEPARATOR}\n")
            file.writelines(f"{context}\t{base + n}\n" for context, n in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / f"{level + 1}.ckpt")
        contexts = grams


def read_fastllm(folder: str | Path, order: int, vocab_size: int, added: float) -> Counts:
    """Counts of orders 1..`order` from a folder of K.ckpt files. UserError names a file or a line that cannot be."""
    grams: dict[tuple[int, ...], float] = {}
    for size in range(1, order + 1):
        path = Path(folder) / f"{size}.ckpt"
        if not path.is_file():
            raise UserError(f"{path}: no such file; the format has one for every order from 1 to {order}")
        _read_file(path, size, vocab_size, added, grams)
    longer = Counter()
    for gram, n in grams.items():
        if len(gram) > 1:
            longer[gram[:-1]] += n
    # A shorter n-gram occurs once more than its continuations wherever a sequence ends with it.
    rest = {gram: n - (longer[gram] if len(gram) < order else 0) for gram, n in grams.items()}
    for gram, n in rest.items():
        if n < 0:
            raise UserError(f"{folder}: {gram} occurs less often than what follows it; its files do not belong together")
    left = [(gram, n) for gram, n in rest.items() if n]
    windows = np.zeros((len(left), order), np.int64)
    for i, (gram, _) in enumerate(left):
        windows[i, : len(gram)] = np.array(gram) + 1
    return from_windows(windows, np.array([n for _, n in left], np.int64), vocab_size)


def _read_file(path: Path, size: int, vocab_size: int, added: float, grams: dict) -> None:
    totals = False
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip("\n").split("\t")
            if fields == [SEPARATOR]:
                totals = True
                continue
            if totals and size > 1:
                # totals of contexts follow from the n-grams
                break
            try:
                context = [int(part) for part in fields[0].strip("()").split(",") if part.strip()]
                gram = tuple(context if size == 1 else [*context, int(fields[1])])
                count = float(fields[-1]) - (added * vocab_size if size == 1 else 0)
                if len(gram) != size or len(fields) != (2 if size == 1 else 3) or not all(0 <= i < vocab_size for i in gram):
                    raise ValueError
            except (ValueError, IndexError):
                raise UserError(f"{path}, line {number}: no {size}-gram with a count and ids below {vocab_size}") from None
            if count < 0 or abs(count - round(count)) > 1e-3:
                raise UserError(f"{path}, line {number}: {count} is no count; is the smoothing parameter another?")
            if round(count):
                grams[gram] = round(count)
    if not totals:
        raise UserError(f"{path}: cut short, it has no {SEPARATOR} line")
