"""`foredraft corrections`: pairs to train a target that corrects text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.output import print_figures
from foredraft.errors import UserError
from foredraft.outputs import check_file


def corrections(
    data: Annotated[Path, typer.Option(help="Texts: .jsonl or .jsonl.gz with `article` on every line.")],
    out: Annotated[Path, typer.Option(help="The pair file to write, .jsonl.gz.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Pairs at most, drawn from all. Default: all.")] = None,
    rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the words with an error.")] = 0.12,
    variants: Annotated[int, typer.Option(min=1, help="Pairs of each sentence, with errors of their own.")] = 1,
    prefix: Annotated[str, typer.Option(help="Text before every source.")] = "grammar: ",
    seed: Annotated[int, typer.Option(help="Seed of the errors and of the order.")] = 0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write sentences with synthetic errors and their corrections, for `foredraft train-target`.

    Typos, dropped and doubled words, wrong case, missing punctuation marks.
    """
    from foredraft.train.data.corrections import write_corrections

    if out.suffix != ".gz":
        raise UserError(f"--out {out}: the pairs are compressed; give a name that ends in .jsonl.gz")
    check_file(out, [data], lambda _: False, "pair file that foredraft may replace", overwrite)
    print_figures({"out": str(out)} | write_corrections(data, out, limit, rate, seed, prefix, variants), as_json)
