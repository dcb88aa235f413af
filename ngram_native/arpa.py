"""Reading and writing ARPA text, the format of SRILM and KenLM: one n-gram a line with log10 probability and back-off.

A file contains words. The list `words` [V], made by arpa_words, maps tokens to words. A table that was read from ARPA keeps
the file's probabilities and back-offs. If the file omits a prefix or suffix of an n-gram, that node is added with the
probability that backing off gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from foredraft.atomic_write import open_atomic
from foredraft.errors import UserError
from foredraft.ngram_native.arpa_lines import parse
from foredraft.ngram_native.assemble import Levels, assemble, levels_of
from foredraft.ngram_native.table import Table

# T5's special tokens (start, end, unknown) and their words in ARPA.
SPECIAL_WORDS = {0: "<s>", 1: "</s>", 2: "<unk>"}
# Other spellings that files are read with.
OTHER_WORDS = {"<UNK>": 2}
# log10 of a probability of 0, as SRILM writes it.
LOG_ZERO = -99.0


def arpa_words(vocab_size: int, vocabulary: Mapping[str, int] | None = None) -> list[str]:
    """The word of every token.

    Parameters
    ----------
    vocab_size
        V.
    vocabulary
        The tokenizer's vocabulary, text to token. Without it, and for text with white space, a word is the token's number.

    Returns
    -------
    list of str
        [V]; the special tokens are `<s>`, `</s>` and `<unk>`.
    """
    words = [str(token) for token in range(vocab_size)]
    for text, token in (vocabulary or {}).items():
        if token < vocab_size and text.split() == [text]:
            words[token] = text
    for token, word in SPECIAL_WORDS.items():
        words[token] = word
    return words


def write_arpa(table: Table, path: str | Path, words: Sequence[str]) -> None:
    """Write a table as ARPA text, atomically.

    Parameters
    ----------
    table
        Any smoothing but Laplace.
    path
        The file to write.
    words
        [V], as arpa_words returns them.

    Raises
    ------
    UserError
        The table is a Laplace table.
    """
    if table.strict:
        raise UserError(f"{path}: a {table.smoothing} table backs off to 1/V, which ARPA cannot express; "
                        "fit another smoothing, or use export --text")
    levels = levels_of(table)
    with open_atomic(path, "w", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {k}={size}\n" for k, size in enumerate(table.sizes, 1)))
        names: list[str] = [""]
        for level, ids in enumerate(levels.ids):
            before, parents = names, levels.parents[level].tolist()
            names = [f"{before[parent]} {words[token]}".lstrip(" ")
                     for parent, token in zip(parents, ids.tolist(), strict=True)]
            logs = _log10(levels.probabilities[level])
            if level == 0:
                logs[0] = LOG_ZERO  # the start token is never predicted
            file.write(f"\n\\{level + 1}-grams:\n")
            if level < len(levels.backoffs) and table.order > 1:
                lines = zip(logs.tolist(), names, _log10(levels.backoffs[level]).tolist(), strict=True)
                file.writelines(f"{log:.7g}\t{name}\t{backoff:.7g}\n" for log, name, backoff in lines)
            else:
                file.writelines(f"{log:.7g}\t{name}\n" for log, name in zip(logs.tolist(), names, strict=True))
        file.write("\n\\end\\\n")


def _log10(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, np.log10(np.maximum(values, 1e-99)), LOG_ZERO)


def read_arpa(path: str | Path, words: Sequence[str], tokenizer: str | None = None, quantise: bool = False) -> Table:
    """Read ARPA text.

    Parameters
    ----------
    path
        The file to read.
    words
        [V], the word of every token (arpa_words).
    tokenizer
        Fingerprint of the tokenizer's vocabulary, stored in the table.
    quantise
        Store probabilities in 16 bits.

    Returns
    -------
    Table
        A table whose smoothing is called "arpa".

    Raises
    ------
    UserError
        A line that cannot be read, named by its number; a missing or truncated file (arpa_lines.parse).
    """
    token_of = {word.encode(): token for word, token in OTHER_WORDS.items() if token < len(words)}
    token_of |= {word.encode(): token for token, word in enumerate(words)}
    found = parse(Path(path), token_of)
    grams, logs, backoffs = found.grams, found.logs, found.backoffs
    order, vocab_size = len(grams), len(words)
    unigrams, first_backoffs = np.zeros(vocab_size), np.ones(vocab_size)
    at = np.array(grams[0], np.int64).reshape(-1)
    unigrams[at], first_backoffs[at] = _power(logs[0]), _power(backoffs[0])
    # the start token is never predicted; KenLM gives it probability 1
    unigrams[0] = 0
    sets = [np.arange(vocab_size).reshape(-1, 1)] + [np.array(g, np.int64).reshape(len(g), k + 2)
                                                     for k, g in enumerate(grams[1:])]
    known = [unigrams] + [_power(log) for log in logs[1:]]
    weights = [first_backoffs] + [_power(backoff) for backoff in backoffs[1:]]
    for level in range(order - 1, 0, -1):
        if level > 1:
            # prefixes and suffixes that the file omits: NaN until their backed-off probability is known
            required = np.concatenate([sets[level][:, :-1], sets[level][:, 1:]])
            given = len(sets[level - 1])
            complete, first = np.unique(np.concatenate([sets[level - 1], required]), axis=0, return_index=True)
            added = first >= given
            known[level - 1] = np.where(added, np.nan, np.append(known[level - 1], 0)[np.minimum(first, given)])
            weights[level - 1] = np.where(added, 1.0, np.append(weights[level - 1], 0)[np.minimum(first, given)])
            sets[level - 1] = complete
        if level == order - 1:
            sorting = np.lexsort(sets[level].T[::-1])
            sets[level], known[level], weights[level] = sets[level][sorting], known[level][sorting], weights[level][sorting]
    levels = Levels([np.arange(vocab_size)], [np.zeros(vocab_size, np.int64)], [np.zeros(vocab_size, np.int64)],
                    [unigrams], [first_backoffs])
    keys: list[np.ndarray] = []

    def node_of(columns: np.ndarray) -> np.ndarray:
        node = columns[:, 0]
        for depth in range(1, columns.shape[1]):
            node = np.searchsorted(keys[depth - 1], node * vocab_size + columns[:, depth])
        return node

    for level in range(1, order):
        parents, suffixes = node_of(sets[level][:, :-1]), node_of(sets[level][:, 1:])
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
    return np.where(values <= LOG_ZERO, 0.0, 10.0**values)
