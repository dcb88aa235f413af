"""`foredraft bench methods`: every way of drafting at every setting, beside each other and beside plain decoding."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from foredraft.errors import UserError


def methods(
    data: Annotated[Path | None, typer.Option(help="jsonl(.gz) of article/highlights; default: sample texts.")] = None,
    drafter: Annotated[
        list[str] | None, typer.Option(help="Besides the usual ones, as foredraft.load takes it; may be repeated.")
    ] = None,
    only: Annotated[bool, typer.Option("--only", help="Only what --drafter names.")] = False,
    t5: Annotated[Path | None, typer.Option(help="A trained T5 drafter's folder, for staged:lookup,FOLDER.")] = None,
    temperature: Annotated[str, typer.Option(help="With commas between; 0 is greedy.")] = "0,1",
    batch_size: Annotated[str, typer.Option(help="Articles decoded together, with commas between.")] = "1,8",
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The first articles are measured.")] = 40,
    tune: Annotated[int, typer.Option(min=1, help="On the ones after these each drafter's K is chosen.")] = 16,
    widths: Annotated[str, typer.Option(help="The K to choose from.")] = "1,2,3,5,8,12",
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes over the articles.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Longest summary, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the sampling, above temperature 0.")] = 0,
    out: Annotated[Path, typer.Option(help="The record's folder; lines are added.")] = Path("bench/results"),
) -> None:
    """Which drafter to use when, and is "auto" near the best? Settings are stored as they end. The last line is JSON."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    import foredraft
    from foredraft.bench.harness import cases, machine, record
    from foredraft.bench.harness.settings import Settings
    from foredraft.bench.studies import methods_comparison as contest
    from foredraft.cli.options import parse_numbers
    from foredraft.cli.output import announce_compilation
    from foredraft.engine.params import AUTO

    if only and not drafter:
        raise UserError("--only: leaves nothing to compare; name something with --drafter")
    usual = () if only else (*contest.DRAFTERS, *([f"staged:lookup,{t5}"] if t5 else []), AUTO)
    settings = [
        Settings(batch_size=size, temperature=T, max_new_tokens=max_new_tokens, repeats=repeats, seed=seed)
        for T in parse_numbers("--temperature", temperature, float, 0)
        for size in parse_numbers("--batch-size", batch_size, int, 1)]
    Ks = parse_numbers("--widths", widths, int, 1)
    announce_compilation()
    plain = foredraft.load(target, drafter=None)
    articles = cases.load_cases(data, plain.tokenizer, limit=limit + tune, max_source=plain.source_limit)
    if len(articles) < limit + tune:
        raise UserError(f"--limit {limit} and --tune {tune}: there are {len(articles)} articles; lower one of the two")
    measured, others = articles[:limit], articles[limit:]
    known, rows = plain.describe(), []
    common = {
        "kind": "methods", "time": datetime.now(UTC).isoformat(timespec="seconds"), "foredraft": foredraft.__version__,
        "command": shlex.join(["foredraft", *sys.argv[1:]]), "machine": machine.describe("cpu"),
        "target": {name: known[name] for name in ("model", "hash", "weights", "parameters", "threads")},
        "data": cases.describe(data, measured), "tuned_on": tune, "max_new_tokens": max_new_tokens, "repeats": repeats,
        "seed": seed,
    }
    path, console = out / f"methods-{machine.file_name(common['machine'])}.jsonl", Console(
        highlight=False, width=None if sys.stdout.isatty() else 160)
    for one in settings:
        with Progress(TextColumn("{task.description}: {task.completed} batches"), TimeElapsedColumn(),
                      console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"T={one.temperature:g} B={one.batch_size}", total=None)
            found = contest.contest(
                plain, [*usual, *(drafter or ())], [case.source for case in measured], [case.source for case in others], one,
                common | {"temperature": one.temperature, "batch_size": one.batch_size}, Ks,
                lambda task=task: progress.advance(task))
        # stored at once, so that a run that is broken off keeps what it has
        record.append_lines(path, found)
        rows += found
        _show(found, console)
    print(json.dumps({"record": str(path), "rows": rows}))


def _show(rows: list[dict], console) -> None:
    from rich.table import Table

    from foredraft.bench.report.methods_table import HEADS, lines

    table = Table(title=f"T={rows[0]['temperature']:g}, B={rows[0]['batch_size']}: decoding over plain decoding and over "
                  "the fastest other way (95 % intervals over batches)", title_justify="left")
    for name in HEADS:
        table.add_column(name, justify="left" if name == "way" else "right")
    for line in lines(rows):
        table.add_row(*line)
    console.print(table)
    for row in rows:
        if row["absent"] is not None:
            console.print(f"{row['drafter']} is absent: {row['absent']}", markup=False, highlight=False)
