"""`foredraft bench big-little`: the thresholds of Big Little Decoder, LOSSY, beside lossless drafts and plain decoding."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer


def big_little(
    data: Annotated[Path | None, typer.Option(help="jsonl(.gz) of article/highlights; default: sample texts.")] = None,
    drafter: Annotated[str, typer.Option(help="The small model: lstm, or the folder of a trained drafter.")] = "lstm",
    fallback: Annotated[str, typer.Option(help="Largest probabilities below which it stops, with commas.")] = "0.3,0.6,0.9",
    rollback: Annotated[str, typer.Option(help="Nats from the target that stand, with commas.")] = "1,2,4",
    draft_tokens: Annotated[int, typer.Option(help="Tokens that it writes at most before the target reads.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Articles decoded together.")] = 1,
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first articles only.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed passes over the articles.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Longest summary, in tokens.")] = 128,
    out: Annotated[Path, typer.Option(help="The record's folder; lines are added.")] = Path("bench/results"),
) -> None:
    """Speed and ROUGE of Big Little Decoder, which is LOSSY, by its thresholds. The last line is JSON."""
    from rich.console import Console
    from rich.progress import Progress

    import foredraft
    from foredraft.bench.harness import cases, machine, record
    from foredraft.bench.harness.settings import Settings
    from foredraft.bench.studies import big_little as bench
    from foredraft.cli.options import parse_numbers
    from foredraft.cli.output import announce_compilation

    grid = [(below, apart) for below in parse_numbers("--fallback", fallback, float, 0)
            for apart in parse_numbers("--rollback", rollback, float, 0)]
    settings = Settings(batch_size=batch_size, draft_tokens=draft_tokens, max_new_tokens=max_new_tokens, repeats=repeats)
    announce_compilation()
    model = foredraft.load(target, drafter=drafter)
    articles = cases.load_cases(data, model.tokenizer, limit=limit, max_source=model.source_limit)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=repeats * -(-len(articles) // batch_size))
        found = bench.thresholds(model, articles, settings, grid, lambda: progress.advance(task))
    known = model.describe()
    common = {
        "kind": "big-little", "time": datetime.now(UTC).isoformat(timespec="seconds"), "foredraft": foredraft.__version__,
        "command": shlex.join(["foredraft", *sys.argv[1:]]), "machine": machine.describe(),
        "target": {name: known[name] for name in ("model", "hash", "weights", "parameters", "threads")},
        "data": cases.describe(data, articles), "drafter": drafter, "draft_tokens": draft_tokens, "batch_size": batch_size,
        "max_new_tokens": max_new_tokens, "repeats": repeats,
    }
    rows = [common | row for row in found]
    _show(rows, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    path = out / f"big-little-{machine.file_name(common['machine'])}.jsonl"
    record.append_lines(path, rows)
    print(json.dumps({"record": str(path), "rows": rows}))


def _show(rows: list[dict], console) -> None:
    from rich.table import Table

    from foredraft.bench.report.tables import number, rouge

    def over(row: dict, name: str) -> str:
        return "{median:.2f} ({low:.2f}-{high:.2f})".format(**row[name]) if row.get(name) else "-"

    of = rows[0]
    table = Table(
        title=f"Big Little Decoder with {of['drafter']}, up to {of['draft_tokens']} drafts, B={of['batch_size']}, "
              f"{of['data']['articles']} x {of['data']['name']}", title_justify="left", caption_justify="left",
        caption="ids a second of decoding (95 % interval over batches); LOSSY rows, fallback and rollback, write other "
                "summaries, so that their rates are no speed-ups of the target")
    for name in ("policy", "tok/s", "speed-up", "LOSSY rate over plain", "LOSSY rate over lossless", "articles that differ",
                 "ROUGE-1/2/Lsum", "ids", "tokens a round", "accepted / tested"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows:
        table.add_row(
            f"LOSSY {row['method']}" if row["lossy"] else row["method"], f"{row['tokens_per_second']['median']:,.0f}",
            over(row, "speed_up"), over(row, "over_plain"), over(row, "over_lossless"),
            f"{row['differ']} of {row['data']['articles']}", rouge(row), f"{row['length']:.1f}",
            number(row["tokens_per_step"]), number(row["rate"]))
    console.print(table)
