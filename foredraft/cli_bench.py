"""The measuring commands: `foredraft bench run` and `foredraft demo`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli_bench_compare import compare as compare_command
from foredraft.cli_bench_compare import regression
from foredraft.cli_bench_kernels import kernels
from foredraft.cli_bench_model import model as model_command
from foredraft.cli_bench_ngram import ngram
from foredraft.cli_bench_steps import steps
from foredraft.cli_bench_theory import theory
from foredraft.cli_bench_weights import weights as weights_command

bench = typer.Typer(help="Measure decoding methods side by side.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add `bench` and `demo` to the application."""
    bench.command("compare")(compare_command)
    bench.command("regression")(regression)
    bench.command("kernels")(kernels)
    bench.command("steps")(steps)
    bench.command("model")(model_command)
    bench.command("ngram")(ngram)
    bench.command("theory")(theory)
    bench.command("weights")(weights_command)
    app.add_typer(bench, name="bench")
    app.command("demo")(demo)


@bench.callback()
def options() -> None:
    """Measure decoding methods side by side."""


@bench.command("run")
def run(
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    data: Annotated[Path | None, typer.Option(help="jsonl(.gz) of article/highlights; default: sample texts.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first articles only.")] = None,
    batch_size: Annotated[int, typer.Option(help="Articles decoded together.")] = 1,
    methods: Annotated[str | None, typer.Option(help="With commas between, ngram:PATH too; default: all.")] = None,
    draft_tokens: Annotated[int, typer.Option(help="Tokens drafted a round (K).")] = 5,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    repeats: Annotated[int, typer.Option(help="Timed passes over the articles.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Longest summary, in tokens.")] = 128,
    max_source: Annotated[int | None, typer.Option(help="Source tokens kept; default: the target's, or 512.")] = None,
    assistant: Annotated[str | None, typer.Option(help="Small T5 for transformers' assisted generation.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling, above temperature 0.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the encoder: float32 or bfloat16.")] = "float32",
    weights: Annotated[str | None, typer.Option(help="The decoder's: fp32, bf16 or int8; default: as stored.")] = None,
    out: Annotated[Path, typer.Option(help="The record's folder; a line a method is added.")] = Path("bench/results"),
) -> None:
    """Compare decoding methods on the same articles; tokens first, then speed. The last line is JSON."""
    import foredraft
    from foredraft import show
    from foredraft.bench import cases, compare, machine, record
    from foredraft.bench.methods import METHODS
    from foredraft.bench.settings import Settings

    settings = Settings(
        batch_size=batch_size, draft_tokens=draft_tokens, temperature=temperature, max_new_tokens=max_new_tokens,
        repeats=repeats, seed=seed, device=device, assistant=assistant,
    )
    show.announce_compilation()
    model = foredraft.load(target, drafter=None, device=device, dtype=dtype, weights=weights)
    articles = cases.load_cases(data, model.tokenizer, limit=limit, max_source=max_source or model.source_limit)
    command = shlex.join(["foredraft", *sys.argv[1:]])
    described = cases.describe(data, articles)
    common = compare.common_fields(model, settings, described, command, foredraft.__version__)
    rows = _compare(model, articles, settings, methods.split(",") if methods else list(METHODS), common)
    path = out / f"{machine.file_name(common['machine'])}.jsonl"
    record.append(path, rows)
    print(json.dumps({"record": str(path), "rows": rows}))


def demo() -> None:
    """Summarise two sample texts, drafts coloured, then measure what the drafts gain. About a minute."""
    from rich.console import Console

    import foredraft
    from foredraft import show
    from foredraft.bench import cases, compare, report
    from foredraft.bench.settings import Settings

    console = Console(highlight=False)
    show.announce_compilation()
    model = foredraft.load(drafter="lookup")
    texts = cases.sample_texts()[:2]
    for name, text in texts:
        console.print(f"{name}: {text[:160]} ...", style="dim", markup=False)
    out = model.generate([text for _, text in texts], max_new_tokens=64)
    show.summaries(console, [name for name, _ in texts], out, model.tokenizer)
    settings = Settings(max_new_tokens=64, repeats=2)
    articles = cases.load_cases(None, model.tokenizer, max_source=model.source_limit)
    described = cases.describe(None, articles)
    common = compare.common_fields(model, settings, described, "foredraft demo", foredraft.__version__)
    rows = _compare(model, articles, settings, ["lookup", "ngram", "hf-greedy"], common)
    console.print(report.gain(rows))
    print(json.dumps({"rows": rows}))


def _compare(model, articles, settings, names: list[str], common: dict) -> list[dict]:
    """Measure under a progress bar on stderr, and print the tables on stdout."""
    from rich.console import Console
    from rich.progress import Progress

    from foredraft.bench import compare, report

    batches = settings.repeats * -(-len(articles) // settings.batch_size)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=batches)
        rows = compare.compare(model, articles, settings, names, common, on_batch=lambda: progress.advance(task))
    report.show(rows, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    return rows
