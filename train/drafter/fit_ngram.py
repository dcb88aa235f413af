"""Fitting the n-gram drafter's table from summaries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from foredraft.errors import UserError
from foredraft.ngram_native import smooth
from foredraft.ngram_native.counts import MAX_ORDER
from foredraft.ngram_native.counts_file import StreamCounter
from foredraft.ngram_native.table import Table, vocabulary_fingerprint
from foredraft.train.data.pairs import read_saved_pairs, read_texts
from foredraft.train.data.shards import read_pseudo

START, END = 0, 1
# T5 checkpoints round the tokenizer's vocabulary up to a multiple of this.
VOCABULARY_MULTIPLE = 128
# Texts tokenised together; the progress bar moves by them.
BATCH = 1024


@dataclass(frozen=True)
class Fitted:
    """What a fit did: texts and ids counted (start and end tokens included), the table."""

    texts: int
    tokens: int
    table: Table


def fit_ngram(
    paths: Sequence[str | Path], out: str | Path, tokenizer: str | Path, order: int = 4, field: str = "highlights",
    smoothing: str = "kneser-ney", discount: float | None = None, min_count: int = 1, max_bytes: int | None = None,
    vocab_size: int | None = None, added: float = 1.0, factor: float = 0.4, quantise: bool = False, progress: bool = True,
) -> Fitted:
    """Count texts (count_texts) and write a table file to `out`; the smoothing's options are those of smooth.fit."""
    check_smoothing(smoothing, discount, added, factor)
    counter = count_texts(paths, tokenizer, order, field, vocab_size, progress=progress)
    table = smooth.fit(counter.finish(), smoothing, discount, min_count, max_bytes, added, factor, quantise)
    table.save(out)
    return Fitted(counter.texts, counter.tokens, table)


def check_smoothing(smoothing: str, discount: float | None = None, added: float = 1.0, factor: float = 0.4) -> None:
    """UserError for a smoothing or a parameter that smooth.fit does not take."""
    if smoothing not in smooth.SMOOTHINGS:
        raise UserError(f"smoothing {smoothing!r} is not known; use {' or '.join(smooth.SMOOTHINGS)}")
    if discount is not None and not 0 < discount < 1:
        raise UserError(f"discount {discount} is out of range; it is taken from every count and lies between 0 and 1")
    if not added > 0:
        raise UserError(f"added {added} is out of range; Laplace adds more than 0 to every count")
    if not 0 < factor <= 1:
        raise UserError(f"factor {factor} is out of range; stupid back-off multiplies by 0 to 1")


def count_texts(
    paths: Sequence[str | Path], tokenizer: str | Path, order: int = 4, field: str = "highlights",
    vocab_size: int | None = None, memory: int = 1 << 30, progress: bool = True, folder: str | Path | None = None,
) -> StreamCounter:
    """Count `field` of every row of the files, in about `memory` bytes; runs that outgrow it wait in `folder`.

    .jsonl, .jsonl.gz and .parquet hold texts, each counted as the decoder sees it: start token, ids, `</s>`; .npy holds ids
    (one vector, cut after every `</s>`), .npz pairs as foredraft.train.data.pairs saves them, a folder the target's own
    summaries (foredraft.train.data.pseudo), whose ids are counted as the target wrote them. tokenizer: tokenizer.json or its
    folder. vocab_size: the target's V; by default config.json's beside the tokenizer, else the tokenizer's, rounded up as T5
    does.
    """
    if not 1 <= order <= MAX_ORDER:
        raise UserError(f"order {order} is out of range; use 1 to {MAX_ORDER}")
    if not paths:
        raise UserError("no data; name a .jsonl, .jsonl.gz, .parquet, .npy or .npz file of summaries")
    encoder, vocab_size = open_tokenizer(Path(tokenizer), vocab_size)
    counter = StreamCounter(order, vocab_size, memory, vocabulary_fingerprint(encoder.get_vocab()), folder)
    with tqdm(desc="counting", unit=" texts", disable=not progress) as bar:
        for path in paths:
            for batch in sequences(Path(path), field, encoder):
                for sequence in batch:
                    if len(sequence) and int(sequence.max()) >= vocab_size:
                        raise UserError(f"{path}: holds the id {sequence.max()}, the target has {vocab_size} ids; "
                                        "count the ids of its own tokenizer")
                counter.add(batch)
                bar.update(len(batch))
    if not counter.texts:
        raise UserError(f"{paths[0]}: holds no texts; every line must have one under '{field}'")
    return counter


def sequences(path: Path, field: str, encoder: Tokenizer) -> Iterator[list[np.ndarray]]:
    """Batches of [n] int64 sequences, each start token, ids, end token; of a folder that `foredraft pseudo` wrote, as they
    were written, those cut at its limit without an end."""
    if path.is_dir():
        records = read_pseudo(path)
        while batch := list(islice(records, BATCH)):
            yield [np.array([START, *one["target_ids"]]) for one in batch]
        return
    if path.suffix in (".npy", ".npz"):
        yield from _stored_ids(path)
        return
    texts = _parquet_texts(path, field) if path.suffix == ".parquet" else (text for (text,) in read_texts(path, (field,)))
    while batch := list(islice(texts, BATCH)):
        yield [np.array([START, *one.ids, END]) for one in encoder.encode_batch(batch, add_special_tokens=False)]


def _parquet_texts(path: Path, field: str) -> Iterator[str]:
    """The column of a Parquet file, a row group at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow; pip install 'foredraft[train]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise UserError(f"{path}: no column '{field}'; it has {', '.join(file.schema_arrow.names)}")
            for rows in file.iter_batches(BATCH, columns=[field]):
                for text in rows.column(0).to_pylist():
                    if not isinstance(text, str) or not text.strip():
                        raise UserError(f"{path}: a row without text in '{field}'; every row needs one")
                    yield text
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: unreadable ({' '.join(str(error).split())}); fetch the file again") from None


def _stored_ids(path: Path) -> Iterator[list[np.ndarray]]:
    """Sequences of an id file, the start token put before each."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .npy of ids or a .npz of pairs")
    if path.suffix == ".npz":
        pairs = read_saved_pairs(path)
        ids, starts = pairs.targets, pairs.target_starts
    else:
        try:
            ids = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise UserError(f"{path}: not an array of ids ({error}); save one vector with numpy.save") from None
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise UserError(f"{path}: has shape {ids.shape} of {ids.dtype}; give one vector of integer ids")
        if len(ids) and int(ids.min()) < 0:
            raise UserError(f"{path}: holds the id {ids.min()}; ids are 0 or more")
        starts = np.unique(np.concatenate([[0], np.flatnonzero(ids == END) + 1, [len(ids)]]))
    for begin in range(0, len(starts) - 1, BATCH):
        bounds = starts[begin : begin + BATCH + 1]
        yield [np.concatenate([[START], ids[a:b]]).astype(np.int64) for a, b in pairwise(bounds)]


def open_tokenizer(path: Path, vocab_size: int | None) -> tuple[Tokenizer, int]:
    """The tokenizer and the target's V."""
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
