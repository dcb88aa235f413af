"""`foredraft train --drafter ngram`; everything heavy is imported inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.errors import UserError

DRAFTERS = ("ngram",)


def register(app: typer.Typer) -> None:
    """Add `train` to the application."""
    app.command("train")(train)


def train(
    drafter: Annotated[str, typer.Option(help="What to train: ngram.")],
    tokenizer: Annotated[Path, typer.Option(help="The target's folder, or its tokenizer.json.")],
    data: Annotated[list[Path] | None, typer.Option(help="Summaries, .jsonl or .jsonl.gz; may be repeated.")] = None,
    pseudo_dataset_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--pseudo-dataset-path", "--pseudo_dataset_path", help="The target's own summaries, counted with --data's."
        ),
    ] = None,
    exp_name: Annotated[
        str, typer.Option("--exp-name", "--exp_name", help="Without --out the table is runs/EXP_NAME/table.ngram.")
    ] = "ngram",
    out: Annotated[Path | None, typer.Option(help="Table file to write.")] = None,
    ngram_n: Annotated[int, typer.Option("--ngram-n", "--ngram_n", help="Longest n-gram, 1 to 8.")] = 4,
    field: Annotated[str, typer.Option(help="Name of the text in a line.")] = "highlights",
    smoothing: Annotated[str, typer.Option(help="kneser-ney or absolute.")] = "kneser-ney",
    discount: Annotated[float | None, typer.Option(help="Taken from every count; default: estimated.")] = None,
    min_count: Annotated[int, typer.Option(min=1, help="Drop longer n-grams seen less often.")] = 1,
    max_size: Annotated[float | None, typer.Option(min=0.0, help="Largest table in MB (10^6 bytes).")] = None,
    vocab_size: Annotated[int | None, typer.Option(min=2, help="The target's; default: from its config.json.")] = None,
) -> None:
    """Train a drafter."""
    if drafter not in DRAFTERS:
        raise UserError(f"--drafter {drafter} is not known; use {' or '.join(DRAFTERS)}")
    from foredraft.train.ngram import fit_ngram

    out = out or Path("runs") / exp_name / "table.ngram"
    fitted = fit_ngram(
        [*(data or []), *(pseudo_dataset_path or [])], out, tokenizer, order=ngram_n, field=field, smoothing=smoothing,
        discount=discount, min_count=min_count, max_bytes=None if max_size is None else int(max_size * 1e6),
        vocab_size=vocab_size,
    )
    sizes = ", ".join(f"{size} of {order}" for order, size in enumerate(fitted.table.sizes[1:], 2))
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB from {fitted.texts} texts, {fitted.tokens} ids; n-grams: {sizes}")
