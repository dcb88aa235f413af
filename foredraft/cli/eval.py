"""`foredraft eval`: what a drafter is worth on a target."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.options import parse_numbers


def evaluate(
    ckpt_path: Annotated[
        Path | None, typer.Option("--ckpt-path", "--ckpt_path", help="A trained drafter's folder, or an n-gram table.")
    ] = None,
    drafter: Annotated[
        str | None, typer.Option(
            help="Its kind; default: told from the checkpoint. lookup, ngram and tree:SHAPE:NAME need none.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    data: Annotated[Path | None, typer.Option(help="jsonl(.gz) of article/highlights; default: sample texts.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first articles only.")] = None,
    draft_tokens: Annotated[str, typer.Option(help="Tokens drafted a round (K), with commas between.")] = "1,3,5",
    temperature: Annotated[str, typer.Option(help="With commas between; 0 is greedy.")] = "0,1",
    gen_length: Annotated[
        int, typer.Option("--gen-length", "--gen_length", "--max-new-tokens", help="Longest summary, in tokens.")
    ] = 128,
    batch_size: Annotated[int, typer.Option("--batch-size", "--batch_size", help="Articles decoded together.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed passes over the articles.")] = 1,
    max_source: Annotated[int | None, typer.Option(help="Source tokens kept; default: the target's, or 512.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling, above temperature 0.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    weights: Annotated[str | None, typer.Option(help="The decoder's: fp32, bf16 or int8; default: as stored.")] = None,
    big_little: Annotated[
        str | None, typer.Option(help="FALLBACK,ROLLBACK of Big Little Decoder: LOSSY, at temperature 0; default: off.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Add the record to this .jsonl file.")] = None,
) -> None:
    """Acceptance, cost and speed-up of a drafter, predicted and measured. The last line is JSON."""
    from rich.console import Console
    from rich.progress import Progress

    import foredraft
    from foredraft.bench.harness import cases, record
    from foredraft.bench.harness import evaluate as evaluation
    from foredraft.bench.harness.settings import Settings
    from foredraft.cli.output import announce_compilation
    lossy = options.parse_big_little(big_little)
    Ks = parse_numbers("--draft-tokens", draft_tokens, int, 1)
    temperatures = parse_numbers("--temperature", temperature, float, 0)
    spec, kind = evaluation.drafter_spec(ckpt_path, drafter)
    announce_compilation()
    model = foredraft.load(target, drafter=spec, device=device, weights=weights)
    articles = cases.load_cases(data, model.tokenizer, limit=limit, max_source=max_source or model.source_limit)
    sources = [case.source for case in articles]
    batches = repeats * -(-len(articles) // batch_size) + -(-len(articles) // 8)
    found = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=batches * len(temperatures))
        for value in temperatures:
            settings = Settings(batch_size=batch_size, temperature=value, max_new_tokens=gen_length, repeats=repeats,
                                seed=seed, device=device)
            found.append(evaluation.evaluate({kind: model}, sources, settings, {kind: Ks}, lambda: progress.advance(task),
                                             lossy))
    row = {"kind": "eval"} | evaluation.common_fields(model, cases.describe(data, articles), settings) | {
        "foredraft": foredraft.__version__, "command": shlex.join(["foredraft", *sys.argv[1:]]),
        "drafter": {"kind": kind, "path": None if ckpt_path is None else ckpt_path.name},
        "figures": [figures[kind] for figures in found]}
    show_table(row, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    if out is not None:
        record.append_lines(out, [row])
    print(json.dumps(row))


def show_table(row: dict, console) -> None:
    from rich.table import Table

    of, data = row["target"], row["data"]
    table = Table(
        title=f"{row['drafter']['kind']} for {of['model']} ({of['hash'][:12]}) on {data['articles']} x {data['name']}, "
              f"batch {row['batch_size']}", title_justify="left", caption_justify="left",
        caption="alpha: over all prefixes of the target's output, 95 % interval over articles; c, v: in plain steps; "
                "speed-up: of decoding, and with encoding")
    for name in ("T", "alpha", "K", "accepted / tested", "/ drafted", "by place", "tokens a round", "coverage", "c",
                 "v(K+1)", "predicted", "measured", "whole"):
        table.add_column(name, justify="right")
    for figures in row["figures"]:
        alpha = figures["alpha"]
        for one in figures["rows"]:
            found = one["acceptance"]
            by_place = " ".join("-" if rate is None else f"{rate:.2f}" for rate in found["at"])
            speeds = [f"{one[name]['median']:.2f}x" if name in one else
                      f"{'LOSSY, ' if 'lossy' in one else ''}{one['differing']} differ"
                      for name in ("speed_up", "speed_up_whole")]
            table.add_row(
                f"{figures['temperature']:g}", f"{alpha['value']:.3f} ({alpha['low']:.3f}-{alpha['high']:.3f})",
                str(one["draft_tokens"]), *(_rate(found[name], ".3f") for name in ("rate", "per_drafted")), by_place,
                *(_rate(found[name], form) for name, form in (("tokens_per_step", ".2f"), ("coverage", ".0%"))),
                *(_rate(one[name], ".3f") for name in ("c", "v")), _rate(one["predicted"], ".2f", "x"), *speeds)
    console.print(table)


def _rate(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
