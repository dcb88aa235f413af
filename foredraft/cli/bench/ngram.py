"""`foredraft bench ngram`: speed, size and acceptance of n-gram tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.errors import UserError

PARTS = ("counting", "queries", "size", "drafting", "opening", "acceptance")


def ngram(
    train: Annotated[list[Path], typer.Option(help="Summaries that the tables are fitted on; repeatable.")],
    test: Annotated[Path, typer.Option(help="Articles, .jsonl(.gz): text for queries, and for drafts of the target.")],
    target: options.Target = None,
    pseudo: Annotated[
        list[Path] | None,
        typer.Option(help="Output of `foredraft pseudo`: tables are fitted on it too; repeatable.")] = None,
    field: Annotated[str, typer.Option(help="Name of the text in a line.")] = "highlights",
    train_limit: Annotated[int | None, typer.Option(min=1, help="Use only the first summaries of --train.")] = None,
    parts: Annotated[str, typer.Option(help=f"Separated by commas: {', '.join(PARTS)}.")] = ",".join(PARTS),
    order: Annotated[int, typer.Option(min=2, max=8, help="Longest n-gram of the speed measurements.")] = 4,
    orders: Annotated[str, typer.Option(help="Orders in the acceptance table, separated by commas.")] = "2,3,4,5",
    draft_tokens: options.DraftTokensList = "5,8",
    skip: Annotated[int, typer.Option(min=0, help="Test articles to skip before those of the acceptance table.")] = 0,
    limit: options.Limit = 100,
    temperatures: options.TemperatureList = "0,1",
    repeats: options.Repeats = 3,
    megabytes: Annotated[int, typer.Option(min=1, help="Size of the file that is opened.")] = 1000,
    lmplz: Annotated[str | None, typer.Option(help="KenLM's lmplz. Default: the one on the PATH, if any.")] = None,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Measure counting, queries, sizes, drafts and acceptance."""
    from foredraft.bench.harness.ngram_drafts import drafts_of_tables, name_of
    from foredraft.bench.harness.ngram_speed import encoded, speeds
    from foredraft.bench.harness.record import common_fields
    from foredraft.bench.report.ngram_tables import tables
    from foredraft.cli.measuring import counting, finish, open_model

    wanted = parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise UserError(f"--parts: {', '.join(sorted(unknown))} not known; choose from {', '.join(PARTS)}")
    model = open_model(target)
    row = common_fields("ngram", model=model) | {
        "train": [path.name for path in train], "train_limit": train_limit, "pseudo": [path.name for path in pseudo or []],
        "test": test.name}
    gold = encoded(train, field, model, train_limit)
    row |= speeds(wanted, model, gold, test, field, order, repeats, megabytes, lmplz)
    if "acceptance" in wanted:
        row["articles"] = {"skipped": skip, "decoded": limit}
        grid = (
            options.parse_numbers("--orders", orders, int, 2), options.parse_numbers("--draft-tokens", draft_tokens, int, 1),
            options.parse_numbers("--temperatures", temperatures, float, 0))
        with counting() as advance:
            fits = {"gold": gold} | {name_of(path): encoded([path], field, model) for path in pseudo or []}
            row["acceptance"] = drafts_of_tables(model, fits, test, skip, limit, *grid, advance)
    finish([row], out, tables(row), as_json, wide)
