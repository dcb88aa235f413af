"""`foredraft ngram`: n-gram counts and tables on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.lazy import SETTINGS
from foredraft.cli.output import print_figures
from foredraft.errors import UserError
from foredraft.outputs import check_file, check_folder

ngram = typer.Typer(help="Count, fit, inspect and convert n-gram tables.", no_args_is_help=True, **SETTINGS)

Tokenizer = Annotated[Path, typer.Option(help="The target's folder, or its tokenizer.json.")]
OptionalTokenizer = Annotated[
    Path | None, typer.Option(help="The words are the tokens of this tokenizer. Default: token numbers.")]
Order = Annotated[int, typer.Option(min=1, max=8, help="Longest n-gram.")]
Counts = Annotated[Path, typer.Option("--out", help="Counts file to write.")]
TableOut = Annotated[Path, typer.Option("--out", help="Table file to write.")]


@ngram.command("count")
def count(
    data: Annotated[list[Path], typer.Argument(help="Texts: .jsonl, .jsonl.gz, .parquet; tokens: .npy, .npz.")],
    tokenizer: Tokenizer,
    out: Counts,
    order: Order = 4,
    field: options.Field = "highlights",
    memory: Annotated[int, typer.Option(min=1, help="Memory to count in, in MB; larger counts are merged on disk.")] = 1024,
    update: Annotated[Path | None, typer.Option(help="Counts file that the new counts are added to.")] = None,
    vocab_size: options.VocabSize = None,
    ray: Annotated[bool, typer.Option("--ray", help="Count the files in parallel with Ray.")] = False,
) -> None:
    """Count the n-grams of texts."""
    from foredraft.atomic_write import work_folder
    from foredraft.ngram_native.counts_file import merge_files
    from foredraft.train.drafter.fit_ngram import count_texts

    _check_out(out, "counts file", *data, tokenizer)
    if ray:
        from foredraft.train.drafter.fit_ngram_ray import count_shards

        counts = count_shards(data, out, tokenizer, order, field, vocab_size, memory << 20, update)
    else:
        with work_folder(out) as folder:
            counter = count_texts(data, tokenizer, order, field, vocab_size, memory << 20, folder=folder)
            if update is None:
                counts = counter.finish(out)
            else:
                counter.finish(folder / "new.counts")
                counts = merge_files([update, folder / "new.counts"], out)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {counts.tokens} tokens, {len(counts.counts)} windows of "
          f"{order}")


@ngram.command("merge")
def merge(
    counts: Annotated[list[Path], typer.Argument(help="Counts files.")],
    out: Counts,
) -> None:
    """Merge counts files in bounded memory; the result equals the counts of all texts together."""
    from foredraft.ngram_native.counts_file import merge_files

    _check_out(out, "counts file", *counts)
    out.parent.mkdir(parents=True, exist_ok=True)
    merged = merge_files(counts, out)
    size = out.stat().st_size / 1e6
    print(f"{out}: {size:.2f} MB, {merged.tokens} tokens, {len(merged.counts)} windows of {merged.order}")


@ngram.command("fit")
def fit(
    counts: Annotated[Path, typer.Argument(help="Counts file.")],
    out: TableOut,
    smoothing: options.Smoothing = "kneser-ney",
    discount: options.Discount = None,
    added: options.Added = 1.0,
    factor: options.Factor = 0.4,
    min_count: options.MinCount = 1,
    max_size: options.MaxSize = None,
    quantise: options.Quantise = False,
) -> None:
    """Smooth counts into a table."""
    from foredraft.ngram_native import smooth
    from foredraft.ngram_native.counts_file import open_counts
    from foredraft.train.drafter.fit_ngram import check_size, check_smoothing

    check_smoothing(smoothing, discount, added, factor)
    _check_out(out, "n-gram table", counts)
    table = smooth.fit(open_counts(counts), smoothing, discount, min_count, _bytes(max_size), added, factor, quantise)
    check_size(table, _bytes(max_size))
    _save(table, out)


@ngram.command("prune")
def prune(
    table: Annotated[Path, typer.Argument(help="Table file.")],
    max_size: Annotated[float, typer.Option(min=0.0, help="Largest table in MB (10^6 bytes).")],
    out: TableOut,
    quantise: options.Quantise = False,
) -> None:
    """Drop the n-grams that change a table's predictions least. To drop n-grams by count, use `fit --min-count`."""
    from foredraft.ngram_native.assemble import prune as prune_table
    from foredraft.ngram_native.table import Table
    from foredraft.train.drafter.fit_ngram import check_size

    _check_out(out, "n-gram table", table)
    pruned = prune_table(Table.open(table), int(max_size * 1e6), quantise or None)
    check_size(pruned, _bytes(max_size))
    _save(pruned, out)


@ngram.command("info")
def info(
    path: Annotated[Path, typer.Argument(help="Table or counts file.")],
    as_json: options.Json = False,
) -> None:
    """Print the header of a file."""
    known = _describe(path)
    print(json.dumps(known) if as_json else "\n".join(f"{name}: {value}" for name, value in known.items()))


@ngram.command("verify")
def verify(paths: Annotated[list[Path], typer.Argument(help="Table or counts files.")]) -> None:
    """Read every page of a file and check its checksum."""
    from foredraft.ngram_native import files

    for path in paths:
        print(f"{path}: {files.verify(path, _kind(path)) / 1e6:.2f} MB of arrays, all checksums match")


@ngram.command("score")
def score(
    table: Annotated[Path, typer.Argument(help="Table file.")],
    data: Annotated[list[Path], typer.Argument(help="Texts or tokens, as for `count`.")],
    tokenizer: Tokenizer,
    field: options.Field = "highlights",
    as_json: options.Json = False,
) -> None:
    """Log-likelihood and perplexity of texts under a table."""
    import numpy as np

    from foredraft.engine.drafters.ngram import open_table
    from foredraft.ngram_native import batch_query as batch
    from foredraft.ngram_native.device_table import export_device
    from foredraft.train.drafter.fit_ngram import open_tokenizer, sequences

    encoder = open_tokenizer(tokenizer, None)[0]
    device, total, scored, texts = export_device(open_table(table, tokenizer=encoder)), 0.0, 0, 0
    for path in data:
        for read in sequences(path, field, encoder):
            tokens = np.concatenate(read).astype(np.int64)
            if not 0 <= tokens.min() <= tokens.max() < device.vocab_size:
                raise UserError(f"{path}: has tokens {tokens.min()} to {tokens.max()}, the table 0 to "
                                f"{device.vocab_size - 1}; give the tokenizer that the table was fitted with")
            total += float(batch.score(device, tokens, np.cumsum([0, *map(len, read)])).sum())
            scored, texts = scored + len(tokens) - len(read), texts + len(read)
    if not scored:
        raise UserError(f"{data[0]}: has no texts; every line needs one under '{field}'")
    perplexity = float(np.exp(-total / scored))
    print_figures({"texts": texts, "tokens": scored, "log_likelihood": total, "perplexity": perplexity}, as_json)


@ngram.command("export")
def export(
    path: Annotated[Path, typer.Argument(help="Table file; for --text a counts file.")],
    arpa: Annotated[Path | None, typer.Option(help="ARPA text to write, for KenLM and SRILM.")] = None,
    text: Annotated[Path | None, typer.Option(help="Folder to write in the text format of FastLLM.")] = None,
    device: Annotated[Path | None, typer.Option(help=".npz to write: the hash table that a GPU reads.")] = None,
    tokenizer: OptionalTokenizer = None,
    added: options.Added = 1.0,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a table as ARPA text or as a hash table for a GPU, or counts in the text format of FastLLM."""
    if arpa is None and text is None and device is None:
        raise UserError("nothing to export; give --arpa FILE, --text FOLDER or --device FILE.npz")
    from foredraft.ngram_native.counts_file import open_counts
    from foredraft.ngram_native.table import Table

    if text is not None:
        from foredraft.ngram_native.fastllm_text import write_fastllm

        check_folder(text, [path])
        write_fastllm(open_counts(path), text, added)
        print(f"{text}: one K.ckpt for each order")
    if arpa is not None:
        from foredraft.ngram_native.arpa import arpa_words, write_arpa

        check_file(arpa, [path], lambda _: False, "ARPA text that foredraft may replace", overwrite)
        table = Table.open(path)
        write_arpa(table, arpa, arpa_words(table.vocab_size, _vocabulary(tokenizer, table.tokenizer)))
        print(f"{arpa}: {arpa.stat().st_size / 1e6:.2f} MB")
    if device is not None:
        from foredraft.ngram_native.device_table import export_device, save_device

        check_file(device, [path], lambda _: False, "table that foredraft may replace", overwrite)
        save_device(export_device(Table.open(path)), device)
        print(f"{device}: {device.stat().st_size / 1e6:.2f} MB")


@ngram.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="ARPA text, or a folder of FastLLM's K.ckpt files.")],
    out: Annotated[Path, typer.Option(help="Table to write; from a folder: counts file to write.")],
    tokenizer: OptionalTokenizer = None,
    vocab_size: options.VocabSize = None,
    order: Annotated[int, typer.Option(min=1, max=8, help="Longest n-gram read from a folder.")] = 3,
    added: options.Added = 1.0,
    quantise: options.Quantise = False,
) -> None:
    """Read ARPA text into a table, or FastLLM's text format into counts."""
    _check_out(out, "counts file" if path.is_dir() else "n-gram table", path, tokenizer)
    fingerprint = None
    if tokenizer is not None:
        from foredraft.ngram_native.table import vocabulary_fingerprint
        from foredraft.train.drafter.fit_ngram import open_tokenizer

        encoder, vocab_size = open_tokenizer(tokenizer, vocab_size)
        fingerprint = vocabulary_fingerprint(encoder.get_vocab())
    if vocab_size is None:
        raise UserError("--vocab-size or --tokenizer is missing; give the vocabulary size of the target or its tokenizer")
    if path.is_dir():
        from foredraft.ngram_native.counts_file import save_counts
        from foredraft.ngram_native.fastllm_text import read_fastllm

        counts = read_fastllm(path, order, vocab_size, added)
        counts.tokenizer = fingerprint
        save_counts(counts, out)
        print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {counts.tokens} tokens")
        return
    from foredraft.ngram_native.arpa import arpa_words, read_arpa

    words = arpa_words(vocab_size, encoder.get_vocab() if tokenizer is not None else None)
    _save(read_arpa(path, words, fingerprint, quantise), out)


def _check_out(out: Path, kind: str, *inputs: Path | None) -> None:
    """Before anything is computed: `out` is new, or an earlier file of this kind, and no input."""
    from foredraft.ngram_native import counts_file, files, table

    magic = counts_file.KIND if kind == "counts file" else table.KIND
    check_file(out, inputs, lambda path: files.has_magic(path, magic), kind)


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(megabytes * 1e6)


def _save(table, out: Path) -> None:
    table.save(out)
    grams = sum(table.sizes[1:])
    sizes = ", ".join(f"{size} of {order}" for order, size in enumerate(table.sizes[1:], 2))
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {table.nbytes / max(grams, 1):.1f} bytes an n-gram; "
          f"n-grams: {sizes}")


def _kind(path: Path):
    from foredraft.ngram_native import counts_file as counter
    from foredraft.ngram_native import files, table

    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .ngram table or a .counts file")
    return counter.KIND if files.has_magic(path, counter.KIND) else table.KIND


def _describe(path: Path) -> dict:
    from foredraft.ngram_native import files

    kind = _kind(path)
    version, header, _ = files.read(path, kind)
    known = {"file": str(path), "kind": kind.name, "version": version, "bytes": path.stat().st_size}
    if "sizes" in header:
        grams = max(sum(header["sizes"][1:]), 1)
        known["bytes_per_ngram"] = round(header["data_bytes"] / grams, 2)
    return known | {name: value for name, value in header.items() if name not in ("arrays", "data_bytes")}


def _vocabulary(tokenizer: Path | None, fingerprint: str | None) -> dict | None:
    if tokenizer is None:
        return None
    from foredraft.ngram_native.table import vocabulary_fingerprint
    from foredraft.train.drafter.fit_ngram import open_tokenizer

    vocabulary = open_tokenizer(tokenizer, None)[0].get_vocab()
    if fingerprint not in (None, vocabulary_fingerprint(vocabulary)):
        raise UserError(f"{tokenizer}: the table was fitted with another tokenizer; give that one")
    return vocabulary
