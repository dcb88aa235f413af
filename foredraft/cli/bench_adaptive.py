"""`foredraft bench adaptive`: draft lengths that adapt, fixed ones and plain decoding in turns."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer


def adaptive(
    data: Annotated[Path | None, typer.Option(help="jsonl(.gz) of article/highlights; default: sample texts.")] = None,
    drafter: Annotated[
        list[str] | None, typer.Option(help="As foredraft.load takes it; may be repeated; default: lookup and ngram.")
    ] = None,
    temperature: Annotated[str, typer.Option(help="With commas between; 0 is greedy.")] = "0,1",
    batch_size: Annotated[str, typer.Option(help="Articles decoded together, with commas between.")] = "1,8",
    draft_tokens: Annotated[str, typer.Option(help="Fixed K beside auto, with commas between.")] = "1,3,5",
    wrong: Annotated[bool, typer.Option("--wrong/--no-wrong", help="Each drafter with every id wrong, too.")] = True,
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first articles only.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed passes over the articles.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Longest summary, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the sampling, above temperature 0.")] = 0,
    out: Annotated[Path, typer.Option(help="The record's folder; lines are added.")] = Path("bench/results"),
) -> None:
    """Is draft_tokens="auto" never slower than plain decoding, near the best K and the oracle? The last line is JSON."""
    from rich.console import Console
    from rich.progress import Progress

    import foredraft
    from foredraft.bench.harness import cases, machine, record
    from foredraft.bench.harness.settings import Settings
    from foredraft.bench.studies import adaptive as lengths
    from foredraft.cli.options import parse_numbers
    from foredraft.cli.output import announce_compilation

    temperatures = parse_numbers("--temperature", temperature, float, 0)
    sizes, Ks = parse_numbers("--batch-size", batch_size, int, 1), parse_numbers("--draft-tokens", draft_tokens, int, 1)
    announce_compilation()
    plain = foredraft.load(target, drafter=None)
    articles = cases.load_cases(data, plain.tokenizer, limit=limit, max_source=plain.source_limit)
    known = plain.describe()
    common = {
        "kind": "adaptive", "time": datetime.now(UTC).isoformat(timespec="seconds"), "foredraft": foredraft.__version__,
        "command": shlex.join(["foredraft", *sys.argv[1:]]), "machine": machine.describe("cpu"),
        "target": {name: known[name] for name in ("model", "hash", "weights", "parameters", "threads")},
        "data": cases.describe(data, articles), "max_new_tokens": max_new_tokens, "repeats": repeats, "seed": seed,
    }
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for spec in drafter or ("lookup", "ngram"):
            model = plain.with_drafter(spec)
            models = {spec: model}
            if wrong:
                vocab_size = plain.target.config.vocab_size
                models[f"{spec}, wrong"] = plain.with_drafter(lengths.Wrong(model.drafter, vocab_size))
            for name, drafting in models.items():
                for T, B in ((T, B) for T in temperatures for B in sizes):
                    settings = Settings(batch_size=B, temperature=T, max_new_tokens=max_new_tokens, repeats=repeats,
                                        seed=seed)
                    task = progress.add_task(f"{name} T={T:g} B={B}", total=repeats * -(-len(articles) // B))
                    found = lengths.lengths(drafting, [case.source for case in articles], settings,
                                            Ks if drafting is model else [], lambda task=task: progress.advance(task))
                    rows += [common | {"drafter": name, "temperature": T, "batch_size": B} | row for row in found]
    _show(rows, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    path = out / f"adaptive-{machine.file_name(common['machine'])}.jsonl"
    record.append_lines(path, rows)
    print(json.dumps({"record": str(path), "rows": rows}))


def _show(rows: list[dict], console) -> None:
    from rich.table import Table

    table = Table(title="draft lengths: ids a second of decoding over plain decoding's (95 % interval over batches)",
                  caption="oracle: modelled, each round drafting what is going to stand, at the costs of the runs",
                  title_justify="left", caption_justify="left")
    for name in ("drafter", "T", "B", "K", "tok/s", "over plain", "tokens a round", "drafted", "accepted / tested",
                 "differ", "of the best K", "of the oracle"):
        table.add_column(name, justify="left" if name == "drafter" else "right")
    for row in rows:
        over, rate = row["speed_up"], row["rate"]
        table.add_row(
            row["drafter"], f"{row['temperature']:g}", str(row["batch_size"]), row["draft_tokens"],
            f"{row['tokens_per_second']['median']:,.0f}",
            f"{over['median']:.3f}" + (f" ({over['low']:.3f}-{over['high']:.3f})" if "low" in over else ""),
            f"{row['tokens_per_step']:.2f}", f"{row['drafted_per_step']:.2f}", "-" if rate is None else f"{rate:.2f}",
            "-" if row["differ"] is None else str(row["differ"]),
            *(f"{row[name]:.2f}" if name in row else "-" for name in ("of_best", "of_oracle")))
    console.print(table)
