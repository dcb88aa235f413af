"""`foredraft bench theory`: the cost model against the clock, for every K."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli.options import parse_numbers


def theory(
    ckpt_path: Annotated[
        Path | None, typer.Option("--ckpt-path", "--ckpt_path", help="A trained drafter's folder, or an n-gram table.")
    ] = None,
    drafter: Annotated[str | None, typer.Option(help="lookup or ngram, without a checkpoint; default: lookup.")] = None,
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    data: Annotated[Path | None, typer.Option(help="jsonl(.gz) of article/highlights; default: sample texts.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first articles only.")] = None,
    most: Annotated[int, typer.Option(min=1, help="K from 0 to this.")] = 10,
    temperature: Annotated[str, typer.Option(help="With commas between; 0 is greedy.")] = "0,1",
    max_new_tokens: Annotated[int, typer.Option(help="Longest summary, in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Articles decoded together.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed passes over the articles.")] = 3,
    weights: Annotated[str | None, typer.Option(help="The decoder's: fp32, bf16 or int8; default: as stored.")] = None,
    out: Annotated[Path, typer.Option(help="The record's folder; a line is added.")] = Path("bench/results"),
) -> None:
    """Predict the speed-up of K = 0, 1, 2 ... from alpha, c and v, and measure it. The last line is JSON."""
    from rich.console import Console
    from rich.progress import Progress

    import foredraft
    from foredraft.bench.harness import cases, machine, record
    from foredraft.bench.harness.evaluate import common_fields, drafter_spec
    from foredraft.bench.harness.settings import Settings
    from foredraft.bench.studies.theory import theory as measured
    from foredraft.cli.output import announce_compilation

    temperatures = parse_numbers("--temperature", temperature, float, 0)
    spec, kind = drafter_spec(ckpt_path, drafter or (None if ckpt_path else "lookup"))
    announce_compilation()
    model = foredraft.load(target, drafter=spec, weights=weights)
    articles = cases.load_cases(data, model.tokenizer, limit=limit, max_source=model.source_limit)
    found = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=None)
        for value in temperatures:
            settings = Settings(batch_size=batch_size, temperature=value, max_new_tokens=max_new_tokens, repeats=repeats)
            found.append(measured(model, [case.source for case in articles], settings, range(most + 1),
                                  lambda: progress.advance(task)))
    row = {"kind": "theory"} | common_fields(model, cases.describe(data, articles), settings) | {
        "foredraft": foredraft.__version__, "command": shlex.join(["foredraft", *sys.argv[1:]]),
        "drafter": {"name": ckpt_path.name if ckpt_path else kind, "kind": kind}, "figures": found}
    show_table(row, Console(highlight=False, width=None if sys.stdout.isatty() else 140))
    path = out / f"theory-{machine.file_name(row['machine'])}.jsonl"
    record.append_lines(path, [row])
    print(json.dumps({"record": str(path), "row": row}))


def show_table(row: dict, console) -> None:
    from rich.table import Table

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    for figures in row["figures"]:
        kept = "" if figures["kept"] is None else f", which gives {figures['kept']:.0%} of the best"
        table = Table(
            title=f"{row['drafter']['name']} at T={figures['temperature']:g}: alpha {figures['alpha']['value']:.3f}; the "
                  f"model picks K={figures['picked']}, the clock K={figures['best']}{kept}", title_justify="left",
            caption="accounted: measured tokens a round over the measured cost of a round", caption_justify="left")
        for name in ("K", "c", "v(K+1)", "tokens a round", "predicted", "accounted", "measured (95 %)"):
            table.add_column(name, justify="right")
        for one in figures["rows"]:
            speed = "{median:.2f}x ({low:.2f}-{high:.2f})".format(**one["speed_up"]) if "speed_up" in one else "other tokens"
            table.add_row(str(one["draft_tokens"]), number(one["c"], 3), number(one["v"]),
                          number(one["acceptance"]["tokens_per_step"] if one["acceptance"] else 1.0),
                          number(one["predicted"]), number(one["accounted"]), speed)
        console.print(table)
