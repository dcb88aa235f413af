"""What the measuring commands and the scripts in bench/ share: the articles, the end of a run, and running a script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from foredraft.cli.lazy import SETTINGS
from foredraft.cli.output import announce_compilation, console, interrupted, notice, progress
from foredraft.errors import UserError


def open_model(target: str | None, drafter: str | None = None, **options):
    """foredraft.load, after a notice if kernels have to be compiled first."""
    import foredraft

    announce_compilation()
    return foredraft.load(target, drafter=drafter, **options)


def read_articles(data: Path | None, model, limit: int | None, max_source: int | None = None, tokenizer=None) -> list:
    """bench.harness.cases.Case of the first `limit` articles; the sample texts without `data`."""
    from foredraft.bench.harness.cases import load_cases

    return load_cases(data, tokenizer or model.tokenizer, limit=limit, max_source=max_source or model.source_limit)


@contextmanager
def counting(total: int | None = None, text: str = "measuring"):
    """A progress bar on stderr; yields the function that advances it."""
    with progress() as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)


def finish(rows: Sequence[dict], out: Path, tables: Iterable, as_json: bool, wide: bool = False) -> None:
    """Print tables and lines of text, append the records to their file in `out`; with `as_json` print them as the last
    line."""
    from foredraft.bench.harness.record import store

    show(tables, wide)
    path = store(rows, out)
    print(json.dumps({"record": str(path), "rows": list(rows)}) if as_json else f"record: {path}")


def show(tables: Iterable, wide: bool = False) -> None:
    """Print report.tables.Table objects and lines of text."""
    shown = console(wide)
    for table in tables:
        if isinstance(table, str):
            shown.print(table, markup=False)
        else:
            table.show(shown, wide)


def stop_if_interrupted(complete: bool, out: Path) -> None:
    if not complete:
        interrupted(f"{out} holds what was complete")


def run_script(main: Callable) -> None:
    """Run the main function of a script with its options; a UserError is one line on stderr and exit code 2."""
    app = typer.Typer(**SETTINGS)
    app.command()(main)
    try:
        app()
    except UserError as error:
        notice(" ".join(str(error).split()))
        raise SystemExit(2) from None
