"""`foredraft bench throughput`: many articles, by batch size, against fixed batches and other engines."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.errors import UserError

ENGINES = ("scheduled", "scheduled+drafts", "fixed", "fixed+drafts", "transformers", "ctranslate2")


def throughput(
    data: Annotated[Path | None, typer.Option(help="jsonl(.gz) of article/highlights; default: sample texts.")] = None,
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    geometry: Annotated[str | None, typer.Option(help="Random weights of these sizes instead, as in bench steps.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first articles only.")] = None,
    batch_sizes: Annotated[str, typer.Option(help="Rows, with commas.")] = "1,4,16,64",
    engines: Annotated[str, typer.Option(help="With commas: " + ", ".join(ENGINES) + ".")] = ",".join(ENGINES),
    drafter: Annotated[str, typer.Option(help="Of the engines with drafts; none with a geometry.")] = "lookup",
    draft_tokens: Annotated[str, typer.Option(help="Tokens drafted a round (K), or auto.")] = "auto",
    repeats: Annotated[int, typer.Option(help="Timed turns.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Longest summary, in tokens.")] = 128,
    max_source: Annotated[int | None, typer.Option(help="Source tokens kept; default: the target's, or 512.")] = None,
    weights: Annotated[str | None, typer.Option(help="The decoder's: fp32, bf16 or int8; default: as stored.")] = None,
    out: Annotated[Path, typer.Option(help="The record's folder; a line is added.")] = Path("bench/results"),
) -> None:
    """Articles and tokens a second by batch size. The last line is JSON."""
    from rich.console import Console
    from rich.progress import Progress

    import foredraft
    from foredraft.bench.harness import cases, machine, record
    from foredraft.bench.harness import throughput as bench
    from foredraft.bench.harness.geometry import write_checkpoint
    from foredraft.bench.harness.settings import Settings
    from foredraft.cli.output import announce_compilation
    try:
        sizes = [int(size) for size in batch_sizes.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise UserError(f"--batch-sizes {batch_sizes!r} are no whole numbers of at least 1; write 1,4,16,64")
    names = engines.split(",")
    if unknown := [name for name in names if name not in ENGINES]:
        raise UserError(f"--engines: no engine called {unknown[0]!r}; choose from {', '.join(ENGINES)}")
    K = options.parse_draft_tokens(draft_tokens)
    settings = Settings(max_new_tokens=max_new_tokens, repeats=repeats)
    announce_compilation()
    with tempfile.TemporaryDirectory(prefix="foredraft-throughput-") if geometry else nullcontext() as folder:
        tokenizer = foredraft.load(drafter=None).tokenizer if geometry else None
        path = write_checkpoint(geometry, folder) if geometry else target
        model = foredraft.load(path, drafter=None, weights=weights)
        articles = cases.load_cases(data, tokenizer or model.tokenizer, limit=limit,
                                    max_source=max_source or model.source_limit)
        sources = [list(case.source) for case in articles]
        turns = repeats * len(sizes) * len({"scheduled", *names})
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("measuring", total=turns)
            found = bench.measure(model, None if geometry or drafter == "none" else drafter, K, sources, sizes, names,
                                  settings, on_turn=lambda: progress.advance(task))
        known = model.describe()
        row = {
            "kind": "throughput", "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "foredraft": foredraft.__version__, "command": shlex.join(["foredraft", *sys.argv[1:]]),
            "machine": machine.describe(), "geometry": geometry, "drafter": drafter, "draft_tokens": K,
            "target": {name: known[name] for name in ("model", "hash", "dtype", "weights", "parameters", "threads")},
            "data": cases.describe(data, articles), "max_new_tokens": max_new_tokens, "repeats": repeats, **found,
            "memory": bench.memory(model.path, sources, max(sizes), max_new_tokens),
        }
    show_table(row, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    path = out / f"throughput-{machine.file_name(row['machine'])}.jsonl"
    record.append_lines(path, [row])
    print(json.dumps({"record": str(path), "row": row}))


def show_table(row: dict, console) -> None:
    """The record as tables for people; a rate is printed only where the tokens are plain decoding's."""
    from rich.table import Table

    data, lengths = row["data"], row["data"]["source_tokens"]
    what = f"{data['articles']} x {data['name']}, {lengths['min']}-{lengths['max']} source tokens, " \
           f"{row['geometry'] or row['target']['model']}, {row['machine']['threads']} threads"
    table = Table(title=what, title_justify="left")
    for name in ("engine", "B", "articles/s", "tokens/s", "p20-p80", "time over scheduled", "rows busy", "tokens a round",
                 "encode", "draft", "verify", "other", "of the floor", "differ"):
        table.add_column(name, justify="right")
    for one in row["rows"]:
        same, seconds = one["differ"] == 0, one["seconds"]
        rate = one["tokens_per_second"]
        table.add_row(
            one["engine"], str(one["batch_size"]), f"{one['articles_per_second']['median']:.2f}" if same else "-",
            f"{rate['median']:,.0f}" if same else "-", f"{rate['p20']:,.0f}-{rate['p80']:,.0f}" if same else "-",
            _over(one["over_scheduled"]) if same else "-",
            "-" if one["slot_utilisation"] is None else f"{one['slot_utilisation']:.0%}",
            "-" if one["tokens_per_step"] is None else f"{one['tokens_per_step']:.2f}",
            *(f"{seconds[part] / seconds['total']:.0%}" if part in seconds else "-"
              for part in ("encode", "draft", "verify", "other")),
            "-" if one["floor"] is None else f"{one['floor']['total'] / seconds['total']:.0%}", str(one["differ"]))
    console.print(table)
    for name, reason in row["absent"].items():
        console.print(f"{name} is absent: {reason}", markup=False)
    if row["memory"] is not None:
        grown, accounted = (row["memory"][name] / 1e6 for name in ("grown_bytes", "accounted_bytes"))
        console.print(f"keys and values at B={row['memory']['batch_size']}: {accounted:,.1f} MB accounted, the process grew "
                      f"by {grown:,.1f} MB")


def _over(ratio: dict) -> str:
    bound = "" if ratio["low"] is None else f" ({ratio['low']:.3f}-{ratio['high']:.3f})"
    return f"{ratio['mean']:.3f}{bound}"
