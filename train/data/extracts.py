"""Oracle extracts: the sentences of an article that together are most similar to its human summary.

A small model learns to copy long before it learns to paraphrase. Trained on a mixture of extracts and human summaries it
copies whole sentences, as larger summarisers do on news. The extract is the greedy oracle of Nallapati et al. 2017,
"SummaRuNNer", section 3: add the sentence that raises ROUGE most, until none does.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from foredraft.atomic_write import open_atomic
from foredraft.errors import UserError
from foredraft.train.data.pairs import read_pairs

_SENTENCE_END = re.compile(r"(?<=[.!?])(?:[\"'”’)]*)\s+")
_WORD = re.compile(r"[a-z0-9]+")


def sentences(text: str) -> list[str]:
    """The sentences of a text, split after `.`, `!`, `?` and closing quotes, which stay with their sentence."""
    return [piece.strip() for piece in _SENTENCE_END.split(text) if piece.strip()]


def _grams(text: str) -> tuple[Counter, Counter]:
    """Unigrams and bigrams of words."""
    words = _WORD.findall(text.lower())
    return Counter(words), Counter(zip(words, words[1:], strict=False))


def _f_measure(found: Counter, wanted: Counter) -> float:
    shared = sum((found & wanted).values())
    return 2 * shared / (sum(found.values()) + sum(wanted.values())) if shared else 0.0


def best_extract(pieces: list[str], lengths: list[int], summary: str, longest: int) -> list[int]:
    """Greedy choice of sentences by the sum of their ROUGE-1 and ROUGE-2 F-measures with the summary.

    Parameters
    ----------
    pieces
        The sentences.
    lengths
        Tokens of each sentence.
    summary
        The human summary.
    longest
        Limit of the extract's tokens.

    Returns
    -------
    list of int
        Indices of the chosen sentences, ascending.
    """
    wanted = _grams(summary)
    grams = [_grams(piece) for piece in pieces]
    chosen: list[int] = []
    found, best, used = (Counter(), Counter()), 0.0, 0
    while True:
        scored = [
            (sum(_f_measure(found[n] + grams[i][n], wanted[n]) for n in (0, 1)), -i)
            for i in range(len(pieces)) if i not in chosen and used + lengths[i] <= longest
        ]
        if not scored or max(scored)[0] <= best:
            return sorted(chosen)
        best, index = max(scored)
        chosen.append(-index)
        found = tuple(found[n] + grams[-index][n] for n in (0, 1))
        used += lengths[-index]


def mix_extracts(data: str | Path, out: str | Path, tokenizer, share: float, max_source: int = 256,
                 max_target: int = 104, seed: int = 0) -> int:
    """Write a pair file in which a random share of the summaries is replaced by extracts.

    Parameters
    ----------
    data
        The pair file.
    out
        The .jsonl.gz file to write.
    tokenizer
        A tokenizers.Tokenizer.
    share
        Share of the pairs, 0 to 1.
    max_source, max_target
        An extract has at most `max_target` tokens, of sentences that end within the first `max_source` tokens.
    seed
        Seed of the choice.

    Returns
    -------
    int
        Number of summaries replaced.
    """
    if not 0 <= share <= 1:
        raise UserError(f"share is {share}; give a number from 0 to 1")
    rng = np.random.default_rng(seed)
    replaced = 0
    # without a time stamp, so that the same pairs yield the same bytes
    with open_atomic(out) as file, gzip.GzipFile("", "wb", 4, file, mtime=0) as lines:
        for article, highlights in tqdm(read_pairs(data), unit=" pairs", desc="extracts", mininterval=1.0):
            if rng.random() < share:
                pieces = sentences(article)[: max_source // 2]
                lengths = [len(e.ids) - 1 for e in tokenizer.encode_batch(pieces)]
                fits = int(np.searchsorted(np.cumsum(lengths), max_source - 1, side="right"))
                kept = best_extract(pieces[:fits], lengths[:fits], highlights, max_target - 1)
                if kept:
                    highlights = " ".join(pieces[i] for i in kept)
                    replaced += 1
            lines.write(json.dumps({"article": article, "highlights": highlights}).encode() + b"\n")
    return replaced
