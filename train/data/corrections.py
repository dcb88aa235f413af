"""Pairs for the correction of text: sentences with errors as sources, the sentences themselves as targets.

Most tokens of such a target are its source's, so it shows what copying drafts gain where copying is the task.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

from foredraft.atomic_write import open_atomic
from foredraft.errors import UserError
from foredraft.train.data.extracts import sentences
from foredraft.train.data.pairs import read_texts

# Words of a sentence, and its longest length in characters: longer ones are often lists or broken markup.
LEAST_WORDS, MOST_CHARACTERS = 5, 240
# Words that a reader can put back from the others; only these are dropped.
DROPPED = frozenset("a an the of to in on at for with by from as is are was were has have had be been that and".split())
# Letters beside each letter on a keyboard.
NEIGHBOURS = {letter: row[max(0, at - 1) : at] + row[at + 1 : at + 2]
              for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm") for at, letter in enumerate(row)}
MARKS = ",.;:!?'\""


def typo(word: str, draw: random.Random) -> str:
    """The word with two letters exchanged, or a letter dropped, doubled or hit beside its key; short words stay."""
    inner = [at for at in range(1, len(word) - 1) if word[at].isalpha() and word[at + 1].isalpha()]
    if len(word) < 4 or not inner:
        return word
    at = draw.choice(inner)
    letter = word[at].lower()
    return word[:at] + draw.choice((
        word[at + 1] + word[at], word[at + 1], word[at] * 2 + word[at + 1],
        draw.choice(NEIGHBOURS.get(letter, letter)) + word[at + 1])) + word[at + 2 :]


def other_case(word: str) -> str:
    """The word with its first letter in the other case."""
    return word[:1].swapcase() + word[1:]


def without_mark(word: str) -> str:
    """The word without its last punctuation mark."""
    at = max(word.rfind(mark) for mark in MARKS)
    return word if at < 0 else word[:at] + word[at + 1 :]


def corrupt(sentence: str, rate: float, draw: random.Random) -> str:
    """The sentence with an error in a share `rate` of its words: typos, dropped and doubled words, case, punctuation.

    A random kind of error is tried at each chosen word, so a word to which it does not apply stays as it is.
    """
    words = []
    for word in sentence.split():
        if draw.random() >= rate:
            words.append(word)
            continue
        kind = draw.choices(("typo", "drop", "double", "case", "mark"), (4, 2, 1, 2, 1))[0]
        if kind == "typo":
            words.append(typo(word, draw))
        elif kind == "drop":
            words += [] if word.lower() in DROPPED else [typo(word, draw)]
        elif kind == "double":
            words += [word, word]
        else:
            words.append(other_case(word) if kind == "case" else without_mark(word))
    return " ".join(words)


def corrections(data: Path, rate: float, seed: int, prefix: str = "", variants: int = 1) -> Iterator[dict[str, str]]:
    """Pairs of all sentences of the articles, `variants` of each sentence; lines that are no article raise UserError."""
    draw, seen = random.Random(seed), set()
    for (article,) in read_texts(data, ("article",)):
        for sentence in sentences(article):
            clean = " ".join(sentence.split())
            if len(clean.split()) < LEAST_WORDS or len(clean) > MOST_CHARACTERS or clean in seen:
                continue
            seen.add(clean)
            for _ in range(variants):
                if source := corrupt(clean, rate, draw):
                    yield {"article": prefix + source, "highlights": clean}


def write_corrections(data: Path, out: Path, limit: int | None, rate: float, seed: int, prefix: str = "",
                      variants: int = 1) -> dict[str, int]:
    """Write a pair file of the sentences of a pair file.

    Parameters
    ----------
    data
        .jsonl or .jsonl.gz with `article` on every line.
    out
        The .jsonl.gz file to write.
    limit
        Pairs at most, drawn from all; so many are in memory together.
    rate
        Share of the words with an error, 0 to 1.
    seed
        Of the errors, the choice and the order.
    prefix
        Put before every source, as the task prefixes of T5 are.
    variants
        Pairs of each sentence, with errors of their own.

    Returns
    -------
    dict
        "pairs", and how many of them are "unchanged": without an error.
    """
    if not 0 <= rate <= 1:
        raise UserError(f"rate is {rate}; give a share from 0 to 1")
    draw, pairs = random.Random(seed), []
    for number, pair in enumerate(corrections(data, rate, seed, prefix, variants)):
        if limit is None or number < limit:
            pairs.append(pair)
        # each pair so far is kept with the same probability (reservoir sampling, Vitter 1985, algorithm R)
        elif (place := draw.randint(0, number)) < limit:
            pairs[place] = pair
    if not pairs:
        raise UserError(f"{data}: has no sentence of {LEAST_WORDS} words or more; give another file")
    draw.shuffle(pairs)
    # without a time stamp, so that the same pairs yield the same bytes
    with open_atomic(out) as file, gzip.GzipFile("", "wb", 4, file, mtime=0) as lines:
        for pair in pairs:
            lines.write(json.dumps(pair).encode() + b"\n")
    return {"pairs": len(pairs), "unchanged": sum(pair["article"] == prefix + pair["highlights"] for pair in pairs)}
