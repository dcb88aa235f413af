"""Fitting the n-gram drafter's table to summaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from foredraft.errors import UserError
from foredraft.json_file import read_object
from foredraft.ngram_native import smooth
from foredraft.ngram_native.counts import MAX_ORDER
from foredraft.ngram_native.counts_file import StreamCounter
from foredraft.ngram_native.table import Table, vocabulary_fingerprint
from foredraft.train.data.pairs import read_saved_pairs, read_texts
from foredraft.train.data.shards import read_pseudo

START, END = 0, 1
# T5 checkpoints round the tokenizer's vocabulary up to a multiple of this.
VOCABULARY_MULTIPLE = 128
# Texts that are tokenised together.
BATCH = 1024


@dataclass(frozen=True)
class Fitted:
    """The result of a fit: numbers of texts and of tokens (with start and end tokens), and the table."""

    texts: int
    tokens: int
    table: Table


def fit_ngram(
    paths: Sequence[str | Path], out: str | Path, tokenizer: str | Path, order: int = 4, field: str = "highlights",
    smoothing: str = "kneser-ney", discount: float | None = None, min_count: int = 1, max_bytes: int | None = None,
    vocab_size: int | None = None, added: float = 1.0, factor: float = 0.4, quantise: bool = False, progress: bool = True,
) -> Fitted:
    """Count texts and write a table.

    Parameters
    ----------
    paths, tokenizer, order, field, vocab_size, progress
        See count_texts.
    out
        The `.ngram` file to write.
    smoothing, discount, min_count, max_bytes, added, factor, quantise
        See foredraft.ngram_native.smooth.fit.

    Returns
    -------
    Fitted

    Raises
    ------
    UserError
        A parameter is out of range, or a file cannot be read.
    """
    check_smoothing(smoothing, discount, added, factor)
    counter = count_texts(paths, tokenizer, order, field, vocab_size, progress=progress)
    table = smooth.fit(counter.finish(), smoothing, discount, min_count, max_bytes, added, factor, quantise)
    check_size(table, max_bytes)
    table.save(out)
    return Fitted(counter.texts, counter.tokens, table)


def check_size(table: Table, max_bytes: int | None) -> None:
    """UserError: the size limit left no n-gram."""
    if max_bytes is not None and not sum(table.sizes[1:]) and len(table.sizes) > 1:
        raise UserError(f"--max-size {max_bytes / 1e6:g} leaves no n-gram; without any the table takes "
                        f"{table.nbytes / 1e6:.3f} MB, give more")


def check_smoothing(smoothing: str, discount: float | None = None, added: float = 1.0, factor: float = 0.4) -> None:
    """Raise UserError for a smoothing or a parameter that smooth.fit refuses."""
    if smoothing not in smooth.SMOOTHINGS:
        raise UserError(f"smoothing is {smoothing!r}; use {' or '.join(smooth.SMOOTHINGS)}")
    if discount is not None and not 0 < discount < 1:
        raise UserError(f"discount is {discount}; give a number between 0 and 1")
    if not added > 0:
        raise UserError(f"added is {added}; give a number above 0, which Laplace adds to every count")
    if not 0 < factor <= 1:
        raise UserError(f"factor is {factor}; give a number above 0 and at most 1, by which stupid back-off multiplies")


def count_texts(
    paths: Sequence[str | Path], tokenizer: str | Path, order: int = 4, field: str = "highlights",
    vocab_size: int | None = None, memory: int = 1 << 30, progress: bool = True, folder: str | Path | None = None,
) -> StreamCounter:
    """Count the n-grams of text files in bounded memory.

    Parameters
    ----------
    paths
        .jsonl, .jsonl.gz and .parquet files with texts, which are counted as the decoder sees them (start token, tokens,
        `</s>`); .npy files with tokens (one vector, split after every `</s>`); .npz files of train.data.pairs; folders of
        train.data.pseudo, whose tokens are counted as the target emitted them.
    tokenizer
        tokenizer.json, or its folder.
    order
        N.
    field
        Name of the text in a record.
    vocab_size
        The target's V. By default it is read from the config.json beside the tokenizer, else it is the tokenizer's,
        rounded up as T5 does.
    memory
        Approximate limit in bytes.
    progress
        Whether to show a progress bar.
    folder
        Folder for sorted runs that exceed the memory.

    Returns
    -------
    StreamCounter
        Call its `finish` for the counts.

    Raises
    ------
    UserError
        A parameter is out of range, or a file cannot be read.
    """
    if not 1 <= order <= MAX_ORDER:
        raise UserError(f"order is {order}; use 1 to {MAX_ORDER}")
    if not paths:
        raise UserError("no data; give a .jsonl, .jsonl.gz, .parquet, .npy or .npz file of summaries")
    encoder, vocab_size = open_tokenizer(Path(tokenizer), vocab_size)
    counter = StreamCounter(order, vocab_size, memory, vocabulary_fingerprint(encoder.get_vocab()), folder)
    with tqdm(desc="counting", unit=" texts", disable=not progress) as bar:
        for path in paths:
            for batch in sequences(Path(path), field, encoder):
                for sequence in batch:
                    if len(sequence) and int(sequence.max()) >= vocab_size:
                        raise UserError(f"{path}: contains the token {sequence.max()}, but the target has {vocab_size}; "
                                        "use tokens of the target's tokenizer")
                counter.add(batch)
                bar.update(len(batch))
    if not counter.texts:
        raise UserError(f"{paths[0]}: contains no texts; every line must have one under '{field}'")
    return counter


def sequences(path: Path, field: str, encoder: Tokenizer) -> Iterator[list[np.ndarray]]:
    """Yield batches of sequences [n] int64: start token, tokens, end token.

    Truncated sequences of a pseudo-dataset have no end token.
    """
    if path.is_dir():
        records = read_pseudo(path)
        while batch := list(islice(records, BATCH)):
            yield [np.array([START, *one["target_ids"]]) for one in batch]
        return
    if path.suffix in (".npy", ".npz"):
        yield from _stored_tokens(path)
        return
    texts = _parquet_texts(path, field) if path.suffix == ".parquet" else (text for (text,) in read_texts(path, (field,)))
    while batch := list(islice(texts, BATCH)):
        yield [np.array([START, *one.ids, END]) for one in encoder.encode_batch(batch, add_special_tokens=False)]


def _parquet_texts(path: Path, field: str) -> Iterator[str]:
    """Yield the texts of a column of a Parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow; pip install 'foredraft[train]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise UserError(f"{path}: no column '{field}'; it has {', '.join(file.schema_arrow.names)}")
            for records in file.iter_batches(BATCH, columns=[field]):
                for text in records.column(0).to_pylist():
                    if not isinstance(text, str) or not text.strip():
                        raise UserError(f"{path}: a record without text in '{field}'; every record needs one")
                    yield text
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: unreadable ({' '.join(str(error).split())}); download the file again") from None


def _stored_tokens(path: Path) -> Iterator[list[np.ndarray]]:
    """Yield batches of the sequences of a file of tokens, each with the start token before it."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .npy of tokens or a .npz of pairs")
    if path.suffix == ".npz":
        pairs = read_saved_pairs(path)
        tokens, starts = pairs.targets, pairs.target_starts
    else:
        try:
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header raises many types
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{path}: not an array of tokens ({reason}); save one vector with numpy.save") from None
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise UserError(f"{path}: has shape {tokens.shape} of {tokens.dtype}; give one vector of integers")
        if len(tokens) and int(tokens.min()) < 0:
            raise UserError(f"{path}: contains the token {tokens.min()}; tokens are 0 or more")
        starts = np.unique(np.concatenate([[0], np.flatnonzero(tokens == END) + 1, [len(tokens)]]))
    for begin in range(0, len(starts) - 1, BATCH):
        bounds = starts[begin : begin + BATCH + 1]
        yield [np.concatenate([[START], tokens[a:b]]).astype(np.int64) for a, b in pairwise(bounds)]


def open_tokenizer(path: Path, vocab_size: int | None) -> tuple[Tokenizer, int]:
    """The tokenizer and the target's V."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such tokenizer; give a tokenizer.json or a checkpoint folder with one")
    try:
        encoder = Tokenizer.from_file(str(file))
    # the tokenizers library raises Exception itself
    except Exception as error:
        raise UserError(f"{file}: not a tokenizer ({error}); give a T5 tokenizer.json") from None
    known = encoder.get_vocab_size()
    config = file.with_name("config.json")
    if vocab_size is None and config.is_file():
        vocab_size = read_object(config).get("vocab_size")
        if vocab_size is not None and type(vocab_size) is not int:
            raise UserError(f"{config}: vocab_size is {vocab_size!r}; give a whole number")
    if vocab_size is None:
        vocab_size = -(-known // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if vocab_size < known:
        raise UserError(f"{file}: has {known} tokens, the target only {vocab_size}; give the target's own tokenizer")
    return encoder, vocab_size
