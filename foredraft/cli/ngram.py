"""`foredraft ngram`: counts and tables on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foredraft.errors import UserError

ngram = typer.Typer(help="Count, fit, inspect and convert n-gram tables.", no_args_is_help=True, rich_markup_mode=None)

Tokenizer = Annotated[Path, typer.Option(help="The target's folder, or its tokenizer.json.")]
OptionalTokenizer = Annotated[
    Path | None, typer.Option(help="Names the ids by its tokens; without it words are ids in digits.")]
Quantise = Annotated[bool, typer.Option("--quantise", "--quantize", help="Probabilities in 16 bits.")]
MaxSize = Annotated[float | None, typer.Option(min=0.0, help="Largest table in MB (10^6 bytes).")]


@ngram.command("count")
def count(
    data: Annotated[list[Path], typer.Argument(help="Texts: .jsonl, .jsonl.gz, .parquet; ids: .npy, .npz.")],
    tokenizer: Tokenizer,
    out: Annotated[Path, typer.Option(help="Counts file to write.")],
    order: Annotated[int, typer.Option(help="Longest n-gram, 1 to 8.")] = 4,
    field: Annotated[str, typer.Option(help="Name of the text in a line or column.")] = "highlights",
    memory: Annotated[int, typer.Option(min=1, help="MB to count in; what outgrows it is merged on disk.")] = 1024,
    update: Annotated[Path | None, typer.Option(help="Counts file that the new counts are added to.")] = None,
    vocab_size: Annotated[int | None, typer.Option(min=2, help="The target's; default: from its config.json.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Count the files in parallel with Ray.")] = False,
) -> None:
    """Count texts into a .counts file."""
    from foredraft.ngram_native.counts_file import merge_files
    from foredraft.train.drafter.fit_ngram import count_texts

    out.parent.mkdir(parents=True, exist_ok=True)
    if ray:
        from foredraft.train.drafter.fit_ngram_ray import count_shards

        counts = count_shards(data, out, tokenizer, order, field, vocab_size, memory << 20, update)
    else:
        counter = count_texts(data, tokenizer, order, field, vocab_size, memory << 20, folder=out.parent)
        if update is None:
            counts = counter.finish(out)
        else:
            part = out.with_name(f".{out.name}.part")
            try:
                counter.finish(part)
                counts = merge_files([update, part], out)
            finally:
                part.unlink(missing_ok=True)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {counts.tokens} ids, {len(counts.counts)} windows of {order}")


@ngram.command("merge")
def merge(
    counts: Annotated[list[Path], typer.Argument(help="Counts files.")],
    out: Annotated[Path, typer.Option(help="Counts file to write.")],
) -> None:
    """Merge counts of shards: exactly the counts of all their texts together, in bounded memory."""
    from foredraft.ngram_native.counts_file import merge_files

    out.parent.mkdir(parents=True, exist_ok=True)
    whole = merge_files(counts, out)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {whole.tokens} ids, {len(whole.counts)} windows of {whole.order}")


@ngram.command("fit")
def fit(
    counts: Annotated[Path, typer.Argument(help="Counts file.")],
    out: Annotated[Path, typer.Option(help="Table file to write.")],
    smoothing: Annotated[str, typer.Option(help="kneser-ney, absolute, laplace or stupid-backoff.")] = "kneser-ney",
    discount: Annotated[float | None, typer.Option(help="Taken from every count; default: estimated.")] = None,
    added: Annotated[float, typer.Option(help="Laplace's parameter.")] = 1.0,
    factor: Annotated[float, typer.Option(help="Stupid back-off's factor.")] = 0.4,
    min_count: Annotated[int, typer.Option(min=1, help="Drop longer n-grams seen less often.")] = 1,
    max_size: MaxSize = None,
    quantise: Quantise = False,
) -> None:
    """Smooth counts into a table."""
    from foredraft.ngram_native import smooth
    from foredraft.ngram_native.counts_file import open_counts
    from foredraft.train.drafter.fit_ngram import check_smoothing

    check_smoothing(smoothing, discount, added, factor)
    table = smooth.fit(open_counts(counts), smoothing, discount, min_count, _bytes(max_size), added, factor, quantise)
    _save(table, out)


@ngram.command("prune")
def prune(
    table: Annotated[Path, typer.Argument(help="Table file.")],
    max_size: Annotated[float, typer.Option(min=0.0, help="Largest table in MB (10^6 bytes).")],
    out: Annotated[Path, typer.Option(help="Table file to write.")],
    quantise: Quantise = False,
) -> None:
    """Drop the n-grams that change a table's predictions least. By count: `fit --min-count`, which has the counts."""
    from foredraft.ngram_native.assemble import prune as prune_table
    from foredraft.ngram_native.table import Table

    _save(prune_table(Table.open(table), int(max_size * 1e6), quantise or None), out)


@ngram.command("info")
def info(
    path: Annotated[Path, typer.Argument(help="Table or counts file.")],
    as_json: Annotated[bool, typer.Option("--json", help="As one line of JSON.")] = False,
) -> None:
    """Say what a file holds, from its header."""
    known = _describe(path)
    print(json.dumps(known) if as_json else "\n".join(f"{name}: {value}" for name, value in known.items()))


@ngram.command("verify")
def verify(paths: Annotated[list[Path], typer.Argument(help="Table or counts files.")]) -> None:
    """Read every page and check its sum."""
    from foredraft.ngram_native import files

    for path in paths:
        print(f"{path}: {files.verify(path, _kind(path)) / 1e6:.2f} MB of arrays are what was written")


@ngram.command("score")
def score(
    table: Annotated[Path, typer.Argument(help="Table file.")],
    data: Annotated[list[Path], typer.Argument(help="What `count` reads.")],
    tokenizer: Tokenizer,
    field: Annotated[str, typer.Option(help="Name of the text in a line or column.")] = "highlights",
) -> None:
    """Say how well a table predicts texts: ids, log-likelihood and perplexity, as one line of JSON."""
    import numpy as np

    from foredraft.engine.drafters.ngram import open_table
    from foredraft.ngram_native import batch_query as batch
    from foredraft.ngram_native.device_table import export_device
    from foredraft.train.drafter.fit_ngram import open_tokenizer, sequences

    encoder = open_tokenizer(tokenizer, None)[0]
    device, total, ids, texts = export_device(open_table(table, tokenizer=encoder)), 0.0, 0, 0
    for path in data:
        for read in sequences(path, field, encoder):
            tokens = np.concatenate(read).astype(np.int64)
            if not 0 <= tokens.min() <= tokens.max() < device.vocab_size:
                raise UserError(f"{path}: holds ids {tokens.min()}..{tokens.max()}, the table 0..{device.vocab_size - 1}")
            total += float(batch.score(device, tokens, np.cumsum([0, *map(len, read)])).sum())
            ids, texts = ids + len(tokens) - len(read), texts + len(read)
    if not ids:
        raise UserError(f"{data[0]}: holds no texts; every line must have one under '{field}'")
    print(json.dumps({"texts": texts, "ids": ids, "log_likelihood": total, "perplexity": float(np.exp(-total / ids))}))


@ngram.command("export")
def export(
    path: Annotated[Path, typer.Argument(help="Table file; for --text a counts file.")],
    arpa: Annotated[Path | None, typer.Option(help="ARPA text to write, for KenLM and SRILM.")] = None,
    text: Annotated[Path | None, typer.Option(help="Folder to write in the original project's format.")] = None,
    device: Annotated[Path | None, typer.Option(help=".npz to write: the hash that a GPU probes.")] = None,
    tokenizer: OptionalTokenizer = None,
    added: Annotated[float, typer.Option(help="Laplace's parameter, in the totals of --text.")] = 1.0,
) -> None:
    """Write a table as ARPA text or as a device hash, or counts in the original project's text format."""
    if arpa is None and text is None and device is None:
        raise UserError("nothing to export to; name --arpa FILE, --text FOLDER or --device FILE.npz")
    from foredraft.ngram_native.counts_file import open_counts
    from foredraft.ngram_native.table import Table

    if text is not None:
        from foredraft.ngram_native.fastllm_text import write_fastllm

        write_fastllm(open_counts(path), text, added)
        print(f"{text}: one K.ckpt for each order")
    if arpa is not None:
        from foredraft.ngram_native.arpa import arpa_words, write_arpa

        table = Table.open(path)
        write_arpa(table, arpa, arpa_words(table.vocab_size, _vocabulary(tokenizer, table.tokenizer)))
        print(f"{arpa}: {arpa.stat().st_size / 1e6:.2f} MB")
    if device is not None:
        from foredraft.ngram_native.device_table import export_device, save_device

        save_device(export_device(Table.open(path)), device)
        print(f"{device}: {device.stat().st_size / 1e6:.2f} MB")


@ngram.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="ARPA text, or a folder of the original project's K.ckpt files.")],
    out: Annotated[Path, typer.Option(help="Table to write; from a folder: counts file.")],
    tokenizer: OptionalTokenizer = None,
    vocab_size: Annotated[int | None, typer.Option(min=2, help="The target's; default: the tokenizer's.")] = None,
    order: Annotated[int, typer.Option(help="Longest n-gram to read from a folder.")] = 3,
    added: Annotated[float, typer.Option(help="Laplace's parameter that the folder was saved with.")] = 1.0,
    quantise: Quantise = False,
) -> None:
    """Read ARPA text into a table, or the original project's text format into counts."""
    fingerprint = None
    if tokenizer is not None:
        from foredraft.ngram_native.table import vocabulary_fingerprint
        from foredraft.train.drafter.fit_ngram import open_tokenizer

        encoder, vocab_size = open_tokenizer(tokenizer, vocab_size)
        fingerprint = vocabulary_fingerprint(encoder.get_vocab())
    if vocab_size is None:
        raise UserError("--vocab-size or --tokenizer is missing: how many ids does the target have?")
    if path.is_dir():
        from foredraft.ngram_native.counts_file import save_counts
        from foredraft.ngram_native.fastllm_text import read_fastllm

        counts = read_fastllm(path, order, vocab_size, added)
        counts.tokenizer = fingerprint
        save_counts(counts, out)
        print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {counts.tokens} ids")
        return
    from foredraft.ngram_native.arpa import arpa_words, read_arpa

    words = arpa_words(vocab_size, encoder.get_vocab() if tokenizer is not None else None)
    _save(read_arpa(path, words, fingerprint, quantise), out)


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(megabytes * 1e6)


def _save(table, out: Path) -> None:
    table.save(out)
    grams = sum(table.sizes[1:])
    sizes = ", ".join(f"{size} of {order}" for order, size in enumerate(table.sizes[1:], 2))
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {table.nbytes / max(grams, 1):.1f} bytes an n-gram; n-grams: {sizes}")


def _kind(path: Path):
    from foredraft.ngram_native import counts_file as counter
    from foredraft.ngram_native import files, table

    if not path.is_file():
        raise UserError(f"{path}: no such file; name a .ngram table or a .counts file")
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
