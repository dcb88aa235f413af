"""Speeds of the n-gram library: counting, queries, drafts, opening; beside a dictionary, and KenLM if it is installed."""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from foredraft.bench.harness.interleave import best_of
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.thread_count import available_threads
from foredraft.ngram_native import batch_query as batch
from foredraft.ngram_native import files, query, smooth
from foredraft.ngram_native.arpa import arpa_words, write_arpa
from foredraft.ngram_native.count import count
from foredraft.ngram_native.counts import Counts
from foredraft.ngram_native.device_table import export_device
from foredraft.ngram_native.table import KIND, Table


def encoded(paths: Sequence[Path], field: str, model, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n] and starts [m + 1] of the first `limit` texts, each with its start and end tokens."""
    from foredraft.train.drafter.fit_ngram import sequences

    read = (ids for path in paths for batch in sequences(path, field, model.tokenizer) for ids in batch)
    found = list(islice(read, limit))
    return np.concatenate(found), np.cumsum([0, *map(len, found)])


def speeds(wanted: Sequence[str], model, texts: tuple[np.ndarray, np.ndarray], test: Path, field: str, order: int,
           repeats: int, megabytes: int, lmplz: str | None) -> dict:
    """The figures of each part in `wanted`: counting, queries, drafting, size, opening."""
    found, parts = {}, set(wanted) & {"counting", "queries", "drafting", "size"}
    if parts:
        tokens, starts = texts
        V = model.target.config.vocab_size
        counts = count(tokens, starts, order, V)
    if "counting" in parts:
        found["counting"] = counting(tokens, starts, order, V, repeats, lmplz)
    if parts & {"queries", "drafting"}:
        tests = encoded([test], field, model)
        for name, quantise in (("float32", False), ("quantised", True)):
            table = smooth.fit(counts, quantise=quantise)
            for part, measured in (("queries", queries), ("drafting", drafting)):
                if part in parts:
                    found.setdefault(part, {})[name] = measured(table, *tests, repeats)
    if "size" in parts:
        found["size"] = sizes(counts)
    if "opening" in wanted:
        found["opening"] = opening(megabytes)
    return found


def counting(tokens: np.ndarray, starts: np.ndarray, order: int, vocab_size: int, repeats: int, lmplz: str | None) -> dict:
    """Tokens a second to the sorted counts, to the trie of all orders, to a dictionary, and of lmplz to its ARPA file."""
    n, threads = len(tokens), available_threads()
    native = best_of(lambda: count(tokens, starts, order, vocab_size), repeats)
    single = best_of(lambda: count(tokens, starts, order, vocab_size, threads=1), repeats)
    levels = best_of(lambda: count(tokens, starts, order, vocab_size).trie(), repeats)
    table = best_of(lambda: smooth.fit(count(tokens, starts, order, vocab_size)), 1)
    few = int(np.searchsorted(starts, min(n, 500_000)))
    sequences = [tokens[a:b].tolist() for a, b in zip(starts[:few], starts[1 : few + 1], strict=True)]
    begin = time.perf_counter()
    counts: Counter = Counter()
    for ids in sequences:
        for size in range(1, order + 1):
            for i in range(len(ids) - size + 1):
                counts[tuple(ids[i : i + size])] += 1
    plain = time.perf_counter() - begin
    found = {"tokens": n, "order": order, "threads": threads, "native": n / native, "native_one_thread": n / single,
             "native_with_trie": n / levels, "native_to_table": n / table, "dict": sum(map(len, sequences)) / plain,
             "dict_tokens": sum(map(len, sequences))}
    found["over_dict"] = found["native"] / found["dict"]
    found["over_dict_one_thread"] = found["native_one_thread"] / found["dict"]
    if lmplz := lmplz or shutil.which("lmplz"):
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "corpus.txt"
            # lmplz adds the start and the end itself
            text.write_text("".join(" ".join(map(str, tokens[a + 1 : b - 1].tolist())) + "\n"
                                    for a, b in zip(starts[:-1], starts[1:], strict=True)))
            begin = time.perf_counter()
            subprocess.run([lmplz, "-o", str(order), "-S", "2G", "-T", folder, "--discount_fallback", "--text", str(text),
                            "--arpa", str(Path(folder) / "out.arpa")], check=True, capture_output=True)
            found["lmplz_to_arpa"] = n / (time.perf_counter() - begin)
    return found


def queries(table: Table, tokens: np.ndarray, starts: np.ndarray, repeats: int) -> dict:
    """Queries a second on one core over the n-grams of a test text, and its perplexity."""
    N = table.order
    contexts, words = _windows(tokens, starts, N)
    out = np.empty(len(words))
    n = len(words)
    draw = np.random.default_rng(0).permutation(n)
    shuffled = contexts[draw].copy(), words[draw].copy()
    found = {
        "n": n, "trie": n / best_of(lambda: query.probabilities(table, contexts, words, out), repeats),
        "trie_shuffled": n / best_of(lambda: query.probabilities(table, *shuffled, out), repeats),
        "trie_one_call_each": 20_000 / best_of(lambda: [query.probability(table, c, w) for c, w in
                                                   zip(contexts[:20_000], words[:20_000], strict=True)], 1)}
    device, scores = export_device(table), np.empty(len(tokens))
    found["batch"] = n / best_of(lambda: batch.probabilities(device, contexts, words, out), repeats)
    found["batch_shuffled"] = n / best_of(lambda: batch.probabilities(device, *shuffled, out), repeats)
    found["score"] = n / best_of(lambda: batch.score(device, tokens, starts, scores), repeats)
    found["score_cold"] = n / best_of(lambda: batch.score(device, tokens, starts, scores), repeats, evict)
    # memory alone: random cache lines of the same array, whose addresses do not depend on each other
    lines = np.random.default_rng(0).permutation(len(device.grams))[:1_000_000]
    found["random_lines"] = len(lines) / best_of(lambda: _read_lines(device.grams, lines), repeats)
    ids = [[int(w) for w in tokens[a:b]] for a, b in zip(starts[:-1], starts[1:], strict=True)]
    values, backoffs = _dictionaries(table)

    def by_dict() -> None:
        for sequence in ids:
            for i in range(1, len(sequence)):
                weight, context = 1.0, tuple(sequence[max(i - N + 1, 0) : i])
                while (gram := (*context, sequence[i])) not in values:
                    weight *= backoffs.get(context, 1.0)
                    context = context[1:]
                weight *= values[gram]

    found["dict"] = n / best_of(by_dict, 1)
    log = query.score(table, tokens, starts).sum()
    found["perplexity"] = math.exp(-log / n)
    try:
        import kenlm
    except ImportError:
        return found
    with tempfile.TemporaryDirectory() as folder:
        arpa = Path(folder) / "table.arpa"
        names = arpa_words(table.vocab_size)
        write_arpa(table, arpa, names)
        model = kenlm.Model(str(arpa))
    texts = [" ".join(names[w] for w in sequence[1:-1]) for sequence in ids]

    def full_scores() -> list[float]:
        return [value for text in texts for value, _, _ in model.full_scores(text)]

    def one_call_each() -> None:
        before, after = kenlm.State(), kenlm.State()
        for words in spelt:
            model.BeginSentenceWrite(before)
            for word in words:
                model.BaseScore(before, word, after)
                before, after = after, before

    # one score a word, as `score` gives; one sum a sentence; one call a word with its state
    found["kenlm_full_scores"] = n / best_of(full_scores, repeats)
    found["kenlm_full_scores_cold"] = n / best_of(full_scores, repeats, evict)
    found["kenlm_sentences"] = n / best_of(lambda: [model.score(text) for text in texts], repeats)
    spelt = [[names[w] for w in sequence[1:-1]] for sequence in ids[:1000]]
    found["kenlm_words"] = sum(map(len, spelt)) / best_of(one_call_each, repeats)
    found["kenlm_perplexity"] = 10 ** (-sum(full_scores()) / n)
    found["over_kenlm"] = {
        "score_over_full_scores": found["score"] / found["kenlm_full_scores"],
        "score_over_full_scores_cold": found["score_cold"] / found["kenlm_full_scores_cold"],
        "score_over_sentences": found["score"] / found["kenlm_sentences"],
        "batch_over_words": found["batch"] / found["kenlm_words"]}
    return found


@njit()
def _read_lines(table, lines):
    total = np.int64(0)
    for line in lines:
        total ^= table[line, 0]
    return total


def evict() -> None:
    """Evict the measured data from the caches, by writing more than they hold."""
    np.ones(1 << 27)


def _dictionaries(table: Table) -> tuple[dict, dict]:
    from foredraft.ngram_native.assemble import levels_of

    levels, grams, values, backoffs = levels_of(table), [()], {}, {(): 1.0}
    for level, ids in enumerate(levels.ids):
        grams = [(*grams[p], w) for p, w in zip(levels.parents[level].tolist(), ids.tolist(), strict=True)]
        values.update(zip(grams, levels.probabilities[level].tolist(), strict=True))
        if level < table.order - 1:
            backoffs.update(zip(grams, levels.backoffs[level].tolist(), strict=True))
    return values, backoffs


def _windows(tokens: np.ndarray, starts: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Contexts [n, order - 1] (filled with the start token) and words [n] of every token but the first of a text."""
    first = np.repeat(starts[:-1], np.diff(starts))
    at = np.flatnonzero(np.arange(len(tokens)) > first)
    back = at[:, None] - np.arange(order - 1, 0, -1)
    return np.where(back < first[at][:, None], 0, tokens[np.maximum(back, 0)]).astype(np.int64), tokens[at].astype(np.int64)


def sizes(counts: Counts) -> dict:
    """Bytes of plain and quantised tables, per n-gram of two tokens or more; the fixed size of unigrams is left out."""
    found = {}
    for name, quantise in (("float32", False), ("quantised", True)):
        table = smooth.fit(counts, quantise=quantise)
        grams = sum(table.sizes[1:])
        fixed = smooth.fit(counts, quantise=quantise, min_count=2**62).nbytes
        found[name] = {"bytes": table.nbytes, "ngrams": grams, "bytes_per_ngram": (table.nbytes - fixed) / grams}
    return found


def drafting(table: Table, tokens: np.ndarray, starts: np.ndarray, repeats: int) -> list[dict]:
    """Microseconds of one call by sequences and K; every sequence drafts K tokens."""
    rows = []
    for B in (1, 8, 32):
        texts, lengths = np.zeros((B, 33), np.int64), np.zeros(B, np.int64)
        for row in range(B):
            ids = tokens[starts[row] : starts[row + 1]][:16]
            texts[row, : len(ids)], lengths[row] = ids, len(ids)
        for K in (1, 4, 8):
            proposed, counts, allowed = np.zeros((B, K), np.int64), np.zeros(B, np.int64), np.full(B, K)

            def calls(texts=texts, lengths=lengths, allowed=allowed, proposed=proposed, counts=counts) -> None:
                for _ in range(200):
                    query.draft(table, texts, lengths, allowed, -1, 0.0, proposed, counts)

            rows.append({"rows": B, "K": K, "microseconds": best_of(calls, repeats) / 200 * 1e6})
    return rows


def opening(megabytes: int) -> dict:
    """Milliseconds to open a table file of this size: its header is read, its arrays are mapped."""
    nodes = megabytes * 250_000
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "large.ngram"
        shapes = {"unigrams": (np.float32, (2,)), "ids": (np.uint16, (0,)), "probabilities": (np.float32, (nodes,)),
                  "first_child": (np.uint16, (1,)), "backoffs": (np.float32, (0,)), "best": (np.uint16, (0,)),
                  "best_probability": (np.float32, (0,))}
        fields = {"order": 1, "vocab_size": 2, "sizes": [2], "smoothing": "kneser-ney", "discounts": [], "tokenizer": None,
                  "quantised": False}
        with files.create(path, KIND, fields, shapes):
            pass
        seconds = best_of(lambda: Table.open(path), 5)
        return {"bytes": path.stat().st_size, "milliseconds": seconds * 1e3}
