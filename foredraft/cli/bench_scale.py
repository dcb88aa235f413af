"""`foredraft bench scale`: time and memory an article as articles, sources and outputs grow."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def scale(
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    drafter: Annotated[str, typer.Option(help="As foredraft summarize takes it; none is plain decoding.")] = "lookup",
    data: Annotated[Path | None, typer.Option(help="jsonl(.gz) of article/highlights; default: sample texts.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The first articles only; they come round again.")] = 200,
    articles: Annotated[str, typer.Option(help="How many, with commas.")] = "1,4,16,64,256,1024,4096",
    source: Annotated[str, typer.Option(help="Source tokens, with commas.")] = "64,128,256,512,1024,2048",
    output: Annotated[str, typer.Option(help="Output tokens, with commas.")] = "16,32,64,128,256,512",
    memory: Annotated[int, typer.Option(min=0, help="Articles over which memory is watched; 0: not.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="Articles decoded together.")] = 8,
    draft_tokens: Annotated[int, typer.Option(min=0, help="Tokens drafted a round (K).")] = 5,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest summary, in tokens.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each source and output length.")] = 3,
    weights: Annotated[str | None, typer.Option(help="The decoder's: fp32, bf16 or int8; default: as stored.")] = None,
    out: Annotated[Path, typer.Option(help="The record's folder; a line is added.")] = Path("bench/results"),
) -> None:
    """Measure how time and memory grow. The last line is JSON."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    import foredraft
    from foredraft.bench.harness import cases, machine, record
    from foredraft.bench.harness.evaluate import common_fields
    from foredraft.bench.harness.settings import Settings
    from foredraft.bench.studies import scale as scaling
    from foredraft.cli.options import parse_numbers
    from foredraft.cli.output import announce_compilation

    sizes = {name: parse_numbers(f"--{name}", text, int, low) for name, text, low in (
        ("articles", articles, 1), ("source", source, 2), ("output", output, 1))}
    announce_compilation()
    model = foredraft.load(target, drafter=None if drafter == "none" else drafter, weights=weights)
    found = cases.load_cases(data, model.tokenizer, limit=limit, max_source=model.source_limit)
    settings = Settings(batch_size=batch_size, draft_tokens=draft_tokens, max_new_tokens=max_new_tokens, repeats=repeats)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=1 + sum(map(len, sizes.values())))
        measured = scaling.scale(model, [case.source for case in found], **sizes, memory=memory, batch_size=batch_size,
                                 draft_tokens=draft_tokens, max_new_tokens=max_new_tokens, repeats=repeats,
                                 on_point=lambda: progress.advance(task))
    row = {"kind": "scale"} | common_fields(model, cases.describe(data, found), settings) | {
        "foredraft": foredraft.__version__, "command": shlex.join(["foredraft", *sys.argv[1:]]),
        "drafter": {"name": drafter}, "draft_tokens": draft_tokens,
    } | measured
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for name, points in row["curves"].items():
        table = Table(title=f"by {name}", title_justify="left")
        for head in (name, "ms an article", "fastest", "MB an article", "resident MB"):
            table.add_column(head, justify="right")
        for point in points:
            each, whole = point["bytes_per_article"], point["rss"]
            table.add_row(f"{point['size']:,}", f"{point['ms_per_article']:.2f}", f"{point['least_ms']:.2f}",
                          "-" if each is None else f"{each / 1e6:,.2f}", "-" if whole is None else f"{whole / 1e6:,.0f}")
        console.print(table)
    if row["memory"]:
        console.print("memory over {n:,} articles: {slope:+.0f} bytes an article (95 % interval {low:+.0f} to {high:+.0f})"
                      .format(n=row["memory"]["articles"][-1], **row["memory"]["slope"]))
    path = out / f"scale-{machine.file_name(row['machine'])}.jsonl"
    record.append_lines(path, [row])
    if not row["complete"]:
        typer.echo(f"foredraft: interrupted; {path} holds what was measured", err=True)
        raise typer.Exit(1)
    print(json.dumps({"record": str(path), "row": row}))
