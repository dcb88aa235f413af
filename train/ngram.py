"""Fitting the n-gram drafter's table from summaries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from foredraft.errors import UserError
from foredraft.ngram_native import smooth
from foredraft.ngram_native.count import Counts, count, merge
from foredraft.ngram_native.table import Table, vocabulary_fingerprint
from foredraft.train.data import read_texts

START, END = 0, 1
MAX_ORDER = 8
# T5 checkpoints round the tokenizer's vocabulary up to a multiple of this.
VOCABULARY_MULTIPLE = 128
# Texts tokenised together, and ids counted together: the first feeds the progress bar, the second bounds the memory.
BATCH = 1024
SHARD = 1 << 24


@dataclass(frozen=True)
class Fitted:
    """What a fit did: texts and ids counted (start and end tokens included), the table."""

    texts: int
    tokens: int
    table: Table


def fit_ngram(
    paths: Sequence[str | Path], out: str | Path, tokenizer: str | Path, order: int = 4, field: str = "highlights",
    smoothing: str = "kneser-ney", discount: float | None = None, min_count: int = 1, max_bytes: int | None = None,
    vocab_size: int | None = None, progress: bool = True,
) -> Fitted:
    """Count `field` of every line of the jsonl or jsonl.gz files and write a table file to `out`.

    Each text is counted as the decoder sees it: start token, ids, `</s>`. tokenizer: tokenizer.json or its folder.
    vocab_size: the target's V; by default config.json's beside the tokenizer, else the tokenizer's, rounded up as T5
    does.
    """
    if not 1 <= order <= MAX_ORDER:
        raise UserError(f"order {order} is out of range; use 1 to {MAX_ORDER}")
    if smoothing not in smooth.SMOOTHINGS:
        raise UserError(f"smoothing {smoothing!r} is not known; use {' or '.join(smooth.SMOOTHINGS)}")
    if discount is not None and not 0 < discount < 1:
        raise UserError(f"discount {discount} is out of range; it is taken from every count and lies between 0 and 1")
    if not paths:
        raise UserError("no data; name a .jsonl or .jsonl.gz file of summaries")
    encoder, vocab_size = _tokenizer(Path(tokenizer), vocab_size)
    counts, texts, tokens, shard = None, 0, 0, []

    def count_shard(counts: Counts | None) -> Counts:
        starts = np.cumsum([0, *map(len, shard)])
        new = count(np.concatenate(shard), starts, order, vocab_size)
        shard.clear()
        return new if counts is None else merge(counts, new)

    waiting = 0
    with tqdm(desc="counting", unit=" texts", disable=not progress) as bar:
        for sequences in _sequences(paths, field, encoder):
            shard += sequences
            waiting += sum(map(len, sequences))
            texts += len(sequences)
            bar.update(len(sequences))
            if waiting >= SHARD:
                counts, tokens, waiting = count_shard(counts), tokens + waiting, 0
        if not texts:
            raise UserError(f"{paths[0]}: holds no texts; every line must have one under '{field}'")
        if shard:
            counts, tokens = count_shard(counts), tokens + waiting
    table = smooth.fit(counts, smoothing, discount, min_count, max_bytes, vocabulary_fingerprint(encoder.get_vocab()))
    table.save(out)
    return Fitted(texts, tokens, table)


def _sequences(paths: Sequence[str | Path], field: str, encoder: Tokenizer) -> Iterator[list[np.ndarray]]:
    """Batches of [n] int64 sequences, each start token, ids, end token."""
    batch: list[str] = []

    def encoded() -> list[np.ndarray]:
        ids = [encoding.ids for encoding in encoder.encode_batch(batch, add_special_tokens=False)]
        batch.clear()
        return [np.array([START, *text, END]) for text in ids]

    for path in paths:
        for (text,) in read_texts(path, (field,)):
            batch.append(text)
            if len(batch) == BATCH:
                yield encoded()
    if batch:
        yield encoded()


def _tokenizer(path: Path, vocab_size: int | None) -> tuple[Tokenizer, int]:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such tokenizer; name a tokenizer.json or a checkpoint folder with one")
    try:
        encoder = Tokenizer.from_file(str(file))
    # The tokenizers library raises the bare class.
    except Exception as error:
        raise UserError(f"{file}: not a tokenizer ({error}); name a T5 tokenizer.json") from None
    known = encoder.get_vocab_size()
    config = file.with_name("config.json")
    if vocab_size is None and config.is_file():
        vocab_size = json.loads(config.read_text()).get("vocab_size")
    if vocab_size is None:
        vocab_size = -(-known // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if vocab_size < known:
        raise UserError(f"{file}: has {known} ids, the target only {vocab_size}; give the target's own tokenizer")
    return encoder, vocab_size
