"""`foredraft bench weights`: what storing the decoder in fewer bits changes."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer


def weights(
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    data: Annotated[Path | None, typer.Option(help="jsonl(.gz) of article/highlights; default: sample texts.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first articles only.")] = None,
    weights: Annotated[str, typer.Option(help="Storages held against fp32, with commas.")] = "bf16,int8",
    max_new_tokens: Annotated[int, typer.Option(help="Longest summary, in tokens.")] = 128,
    max_source: Annotated[int | None, typer.Option(help="Source tokens kept; default: the target's, or 512.")] = None,
    out: Annotated[Path, typer.Option(help="The record's folder; a line is added.")] = Path("bench/results"),
) -> None:
    """Hold bf16 and int8 weights against fp32: logits, choices, ROUGE. The last line is JSON."""
    from rich.console import Console
    from rich.progress import Progress

    import foredraft
    from foredraft.bench.harness import cases, machine, record
    from foredraft.bench.studies.weights import EXACT, compare_weights
    from foredraft.cli.output import announce_compilation

    announce_compilation()
    names = weights.split(",")
    articles: list[cases.Case] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=None)

        def cases_of(model) -> list[cases.Case]:
            longest = max_source or model.source_limit
            articles.extend(cases.load_cases(data, model.tokenizer, limit=limit, max_source=longest))
            progress.update(task, total=len(articles) * len({EXACT, *names}))
            return articles

        model, found = compare_weights(target, names, cases_of, max_new_tokens, lambda: progress.advance(task))
    known = model.describe()
    row = {
        "kind": "weights", "time": datetime.now(UTC).isoformat(timespec="seconds"), "foredraft": foredraft.__version__,
        "command": shlex.join(["foredraft", *sys.argv[1:]]), "machine": machine.describe(),
        "target": {name: known[name] for name in ("model", "hash", "parameters", "threads")},
        "data": cases.describe(data, articles), "max_new_tokens": max_new_tokens, "weights": found,
    }
    show_table(row, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    path = out / f"weights-{machine.file_name(row['machine'])}.jsonl"
    record.append_lines(path, [row])
    print(json.dumps({"record": str(path), "row": row}))


def show_table(row: dict, console) -> None:
    from rich.table import Table

    of, data = row["target"], row["data"]
    table = Table(title=f"{of['model']} ({of['hash'][:12]}) on {data['articles']} x {data['name']}, greedy",
                  title_justify="left", caption="distributions over every prefix of fp32's output; ROUGE: F1 in percent",
                  caption_justify="left")
    for name in ("weights", "decoder MB", "KL, nats", "same choice", "logits apart: mean", "largest", "ROUGE-1", "ROUGE-2",
                 "ROUGE-Lsum", "ROUGE-L to fp32's", "same summaries"):
        table.add_column(name, justify="right")
    for stored, figures in row["weights"].items():
        apart = [f"{figures[name]:{form}}" if name in figures else "-" for name, form in
                 (("kl_nats", ".2g"), ("argmax", ".2%"), ("logit_mean", ".2g"), ("logit_max", ".2g"))]
        human = [f"{figures['rouge'][kind]:.2f}" if figures["rouge"] else "-" for kind in ("rouge1", "rouge2", "rougeLsum")]
        table.add_row(stored, f"{figures['bytes'] / 1e6:.1f}", *apart, *human, f"{figures['rouge_to_fp32']['rougeL']:.1f}",
                      f"{figures['same_summaries']} of {figures['summaries']}")
    console.print(table)
