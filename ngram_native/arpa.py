"""ARPA text, in and out: the format of KenLM and SRILM (log10 probabilities and back-offs, an n-gram a line).

Words stand for ids: `words` [V] are their names, as `arpa_words` makes them. A model read from ARPA keeps the file's own
probabilities and back-offs, whatever smoothing made them; n-grams whose prefix or suffix the file leaves out get those at
the price that backing off to them has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from foredraft.errors import UserError
from foredraft.ngram_native.assemble import Levels, assemble, levels_of
from foredraft.ngram_native.count import MAX_ORDER
from foredraft.ngram_native.table import Table

# The ids of T5 that have names of their own in ARPA: start, end, unknown.
NAMES = {0: "<s>", 1: "</s>", 2: "<unk>"}
ZERO = -99.0


def arpa_words(vocab_size: int, vocabulary: Mapping[str, int] | None = None) -> list[str]:
    """[V] names: the tokenizer's own tokens, or the ids in digits; the start, end and unknown ids by their ARPA names."""
    words = [str(index) for index in range(vocab_size)]
    for token, index in (vocabulary or {}).items():
        if index < vocab_size and token.split() == [token]:
            words[index] = token
    for index, name in NAMES.items():
        words[index] = name
    return words


def write_arpa(table: Table, path: str | Path, words: Sequence[str]) -> None:
    """Write a table as ARPA text: a temporary file, flushed to the disk, then renamed."""
    if table.strict:
        raise UserError(f"{path}: a {table.smoothing} table backs off to 1/V, which ARPA cannot say; "
                        "fit another smoothing, or export --text")
    levels = levels_of(table)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {k}={size}\n" for k, size in enumerate(table.sizes, 1)))
        names: list[str] = [""]
        for level, ids in enumerate(levels.ids):
            before, parents = names, levels.parents[level].tolist()
            names = [f"{before[parent]} {words[word]}".lstrip(" ")
                     for parent, word in zip(parents, ids.tolist(), strict=True)]
            logs = _log10(levels.probabilities[level])
            if level == 0:
                # the start is given, never predicted
                logs[0] = ZERO
            file.write(f"\n\\{level + 1}-grams:\n")
            if level < len(levels.backoffs) and table.order > 1:
                lines = zip(logs.tolist(), names, _log10(levels.backoffs[level]).tolist(), strict=True)
                file.writelines(f"{log:.7g}\t{name}\t{backoff:.7g}\n" for log, name, backoff in lines)
            else:
                file.writelines(f"{log:.7g}\t{name}\n" for log, name in zip(logs.tolist(), names, strict=True))
        file.write("\n\\end\\\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _log10(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, np.log10(np.maximum(values, 1e-99)), ZERO)


def read_arpa(path: str | Path, words: Sequence[str], tokenizer: str | None = None, quantise: bool = False) -> Table:
    """Read ARPA text; `words` [V] name the ids. UserError names the line that cannot be read."""
    number_of = {word.encode(): index for index, word in enumerate(words)}
    grams, logs, backoffs = _parse(Path(path), number_of)
    order, vocab_size = len(grams), len(words)
    unigrams, first_backoffs = np.zeros(vocab_size), np.ones(vocab_size)
    if order:
        at = np.array(grams[0], np.int64).reshape(-1)
        unigrams[at], first_backoffs[at] = _power(logs[0]), _power(backoffs[0])
    sets = [np.arange(vocab_size).reshape(-1, 1)] + [np.array(g, np.int64).reshape(len(g), k + 2)
                                                     for k, g in enumerate(grams[1:])]
    known = [unigrams] + [_power(log) for log in logs[1:]]
    weights = [first_backoffs] + [_power(backoff) for backoff in backoffs[1:]]
    for level in range(order - 1, 0, -1):
        if level > 1:
            # Prefixes and suffixes that the file leaves out; their price, NaN for now, follows below.
            around = np.concatenate([sets[level][:, :-1], sets[level][:, 1:]])
            given = len(sets[level - 1])
            whole, first = np.unique(np.concatenate([sets[level - 1], around]), axis=0, return_index=True)
            added = first >= given
            known[level - 1] = np.where(added, np.nan, np.append(known[level - 1], 0)[np.minimum(first, given)])
            weights[level - 1] = np.where(added, 1.0, np.append(weights[level - 1], 0)[np.minimum(first, given)])
            sets[level - 1] = whole
        if level == order - 1:
            sorting = np.lexsort(sets[level].T[::-1])
            sets[level], known[level], weights[level] = sets[level][sorting], known[level][sorting], weights[level][sorting]
    levels = Levels([np.arange(vocab_size)], [np.zeros(vocab_size, np.int64)], [np.zeros(vocab_size, np.int64)],
                    [unigrams], [first_backoffs])
    keys: list[np.ndarray] = []

    def rank(columns: np.ndarray) -> np.ndarray:
        node = columns[:, 0]
        for place in range(1, columns.shape[1]):
            node = np.searchsorted(keys[place - 1], node * vocab_size + columns[:, place])
        return node

    for level in range(1, order):
        parents, suffixes = rank(sets[level][:, :-1]), rank(sets[level][:, 1:])
        keys.append(parents * vocab_size + sets[level][:, -1])
        backed = levels.backoffs[level - 1][parents] * levels.probabilities[level - 1][suffixes]
        levels.ids.append(sets[level][:, -1])
        levels.parents.append(parents)
        levels.suffixes.append(suffixes)
        levels.probabilities.append(np.where(np.isnan(known[level]), backed, known[level]))
        if level < order - 1:
            levels.backoffs.append(weights[level])
    levels.backoffs = levels.backoffs[: order - 1]
    return assemble(levels, "arpa", (), tokenizer, quantise)


def _power(logs: list[float]) -> np.ndarray:
    values = np.array(logs, np.float64)
    return np.where(values <= ZERO, 0.0, 10.0**values)


def _parse(path: Path, number_of: dict[bytes, int]) -> tuple[list[list], list[list], list[list]]:
    """Per level the ids, log10 probabilities and log10 back-offs."""
    if not path.is_file():
        raise UserError(f"{path}: no such ARPA file")
    grams, logs, backoffs, sizes, level, ended, number = [], [], [], {}, 0, False, 0

    def wrong(what: str) -> UserError:
        return UserError(f"{path}, line {number}: {what}")

    with open(path, "rb") as lines:
        for line in lines:
            number += 1
            fields = line.split()
            if not fields:
                continue
            if fields[0].startswith(b"\\"):
                mark = fields[0].decode("utf-8", "replace")
                if mark == "\\end\\":
                    ended = True
                    break
                if mark.endswith("-grams:"):
                    level = int(mark[1:-7]) if mark[1:-7].isdigit() else 0
                    if level != len(grams) + 1 or level > MAX_ORDER:
                        raise wrong(f"{mark} out of place; orders 1 to {MAX_ORDER} follow each other")
                    for lists in (grams, logs, backoffs):
                        lists.append([])
                continue
            if not level:
                if fields[0] == b"ngram" and len(fields) == 2 and b"=" in fields[1]:
                    size, _, count = fields[1].partition(b"=")
                    sizes[int(size)] = int(count)
                continue
            if len(fields) not in (level + 1, level + 2):
                raise wrong(f"{len(fields)} fields; a probability, {level} words and perhaps a back-off were expected")
            try:
                logs[-1].append(float(fields[0]))
                backoffs[-1].append(float(fields[level + 1]) if len(fields) > level + 1 else 0.0)
                grams[-1].append([number_of[word] for word in fields[1 : level + 1]])
            except ValueError:
                raise wrong("a number that cannot be read") from None
            except KeyError as error:
                raise wrong(f"{error.args[0].decode('utf-8', 'replace')!r} is not in the vocabulary; "
                            "give the tokenizer that the file was made with") from None
            if logs[-1][-1] > 0:
                raise wrong(f"log10 probability {logs[-1][-1]} above 0")
    found = {k: len(g) for k, g in enumerate(grams, 1)}
    if not ended or not grams or found != sizes:
        raise UserError(f"{path}: cut short or no ARPA file ({found} n-grams of {sizes}{'' if ended else ', no end mark'})")
    return grams, logs, backoffs
