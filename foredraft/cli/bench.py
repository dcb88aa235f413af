"""The measuring commands: the group `foredraft bench`, and `foredraft bench run`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli.lazy import group
from foredraft.errors import UserError

bench = group({
    "run": ("foredraft.cli.bench:run", "Compare decoding methods on the same articles."),
    "steps": ("foredraft.cli.bench_steps:steps", "Time plain decode steps at a real model's sizes."),
    "throughput": ("foredraft.cli.bench_throughput:throughput", "Articles and tokens a second by batch size."),
    "ngram": ("foredraft.cli.bench_ngram:ngram", "Size and speed of n-gram tables, beside KenLM."),
    "gpu": ("foredraft.cli.bench_kernels:kernels", "Time the kernels of a device."),
    "compare": ("foredraft.cli.bench_compare:compare", "Find cases that became slower between two runs."),
    "adaptive": ("foredraft.cli.bench_adaptive:adaptive", "Study: adaptive draft lengths."),
    "big-little": ("foredraft.cli.bench_big_little:big_little", "Study: Big Little Decoder."),
    "regression": ("foredraft.cli.bench_compare:regression", "Study: does the alarm of compare work?"),
    "kernels": ("foredraft.cli.bench_kernels:kernels", "Study: kernels."),
    "scale": ("foredraft.cli.bench_scale:scale", "Study: scaling."),
    "methods": ("foredraft.cli.bench_methods:methods", "Study: methods."),
    "model": ("foredraft.cli.bench_model:model", "Study: roofline."),
    "compiled": ("foredraft.cli.bench_compiled:compiled", "Study: compiled kernels."),
    "theory": ("foredraft.cli.bench_theory:theory", "Study: predicted and measured speed-up."),
    "weights": ("foredraft.cli.bench_weights:weights", "Study: storage of the weights."),
}, help="Measure decoding methods side by side.")


def run(
    suite: Annotated[
        str | None, typer.Option(help="Settings by name: quick, cpu, gpu, paper, spec-bench; options go before.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="T5 checkpoint, folder or hub id; default: embedded.")] = None,
    data: Annotated[Path | None, typer.Option(help="jsonl(.gz) of article/highlights; default: sample texts.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first articles only.")] = None,
    batch_sizes: Annotated[
        str | None, typer.Option("--batch-sizes", "--batch-size", help="Articles decoded together, with commas; default: 1.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="With commas between, ngram:PATH too; default: all.")] = None,
    drafters: Annotated[str | None, typer.Option(help="Folders of trained drafters besides, with commas.")] = None,
    draft_tokens: Annotated[str | None, typer.Option(help="Tokens drafted a round (K), with commas; default: 5.")] = None,
    temperatures: Annotated[
        str | None, typer.Option("--temperatures", "--temperature", help="With commas; 0, the default, is greedy.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed passes over the articles; default: 3.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest summary, in tokens.")] = 128,
    max_source: Annotated[int | None, typer.Option(help="Source tokens kept; default: the target's, or 512.")] = None,
    assistant: Annotated[str | None, typer.Option(help="Small T5 for transformers' assisted generation.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling, above temperature 0.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, the default, or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the encoder: float32, the default, or bfloat16.")] = None,
    weights: Annotated[str | None, typer.Option(help="The decoder's: fp32, bf16 or int8; default: as stored.")] = None,
    footprints: Annotated[
        bool | None, typer.Option(help="Loading, first token and memory of each method, in a process of its own.")
    ] = None,
    spec_bench: Annotated[Path | None, typer.Option(help="Folder for answers in Spec-Bench's format.")] = None,
    out: Annotated[Path, typer.Option(help="The record's folder; a line a method is added.")] = Path("bench/results"),
) -> None:
    """Compare decoding methods on the same articles; tokens first, then speed. The last line is JSON."""
    import foredraft
    from foredraft.bench.harness import bench_run as compare
    from foredraft.bench.harness import cases, machine, record, suites
    from foredraft.bench.harness.methods import METHODS, OF_ARGUMENT
    from foredraft.bench.harness.settings import Settings
    from foredraft.cli.options import parse_numbers
    from foredraft.cli.output import announce_compilation

    asked = suites.chosen(suite, dict(
        limit=limit, batch_sizes=batch_sizes, temperatures=temperatures, draft_tokens=draft_tokens, repeats=repeats,
        methods=methods, device=device, dtype=dtype, footprints=footprints))
    settings = [
        Settings(batch_size=size, draft_tokens=K, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed,
                 repeats=asked["repeats"], warm_up=asked["warm_up"], device=asked["device"], assistant=assistant)
        for temperature in parse_numbers("--temperatures", asked["temperatures"], float, 0)
        for size in parse_numbers("--batch-sizes", asked["batch_sizes"], int, 1)
        for K in parse_numbers("--draft-tokens", asked["draft_tokens"], int, 0)]
    if (spec_bench is not None or suite == "spec-bench") and any(one.batch_size > 1 or one.do_sample for one in settings):
        flag = "--suite spec-bench" if spec_bench is None else "--spec-bench"
        raise UserError(f"{flag}: its answers are greedy and one at a time; leave out other --batch-sizes and "
                        "--temperatures")
    names = (asked["methods"] or ",".join(name for name in METHODS if name not in OF_ARGUMENT)).split(",")
    names += [f"drafter:{path}" for path in (drafters or "").split(",") if path]
    announce_compilation()
    model = foredraft.load(target, drafter=None, device=asked["device"], dtype=asked["dtype"], weights=weights)
    articles = cases.load_cases(data, model.tokenizer, limit=asked["limit"], max_source=max_source or model.source_limit)
    described, command = cases.describe(data, articles), shlex.join(["foredraft", *sys.argv[1:]])
    rows = []
    for number, one in enumerate(settings):
        common = compare.common_fields(model, one, described, command, foredraft.__version__)
        path = out / f"{machine.file_name(common['machine'])}.jsonl"
        theirs = suite == "spec-bench" or spec_bench is not None
        told: dict[str, dict] = {}
        # every K has its answers
        folder = spec_bench / f"K{one.draft_tokens}" if spec_bench and len(settings) > 1 else spec_bench
        answers = _tell_spec_bench(folder, model, articles, told) if theirs else None
        # each setting takes its footprint once: K and temperature change nothing in it
        footprint = asked["footprints"] and number == 0
        found = _compare(model, articles, one, names, common, footprints=footprint, on_samples=answers)
        # stored at once, so that a run that is broken off keeps what it has
        if suite == "spec-bench":
            # other warm-ups and means: a record of its own, beside which the comparisons stand as they are
            path = path.with_name(f"spec-bench-{path.name}")
            rows_of = [row | {"spec_bench": told.get(row["method"])} for row in found]
            of_run = {name: found[0][name] for name in ("repeats", "data")}
            record.append_lines(path, [{"kind": "spec-bench"} | common | of_run | {"rows": rows_of}])
        else:
            record.append(path, found)
        rows += found
        if found[0]["repeats"] < one.repeats or found[0]["data"]["articles"] < len(articles):
            typer.echo(f"foredraft: interrupted; {path} holds what was complete", err=True)
            raise typer.Exit(1)
    print(json.dumps({"record": str(path), "rows": rows}))


def _tell_spec_bench(folder: Path | None, model, articles, told: dict[str, dict]):
    """A function of the samples of all methods: writes Spec-Bench's files, if there is a folder for them, prints its figures
    and puts them into `told` by method."""
    from foredraft.bench.harness import spec_bench
    from foredraft.bench.harness.methods import REFERENCE

    def write(samples, methods) -> None:
        for name, passes in samples.items():
            told[name] = spec_bench.summary(passes, samples[REFERENCE], rounds=not methods[name].speculates)
            rounds = "-"
            if methods[name].speculates:
                print(f"{name}: no answers for Spec-Bench, for it does not tell its rounds")
            else:
                rounds = f"{told[name]['mean_accepted_tokens']:.2f}"
                if folder is not None:
                    names = [case.name for case in articles[: len(passes[0])]]
                    spec_bench.write(folder, name, passes, model.tokenizer, names)
            print("{}: {} tokens a round, {tokens_per_second:.0f} tokens a second (deviation "
                  "{tokens_per_second_deviation:.0f}), {speed_up:.2f}x ({speed_up_deviation:.2f}), Spec-Bench's way".format(
                      name, rounds, **told[name]))

    return write


def _compare(model, articles, settings, names: list[str], common: dict, footprints: bool = False,
             on_samples=None) -> list[dict]:
    """Measure under a progress bar on stderr, and print the tables on stdout."""
    from rich.console import Console
    from rich.progress import Progress

    from foredraft.bench.harness import bench_run as compare
    from foredraft.bench.report import runs_table as report

    batches = settings.repeats * -(-len(articles) // settings.batch_size)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=batches)
        rows = compare.compare(model, articles, settings, names, common, on_batch=lambda: progress.advance(task),
                               footprints=footprints, on_samples=on_samples or (lambda *_: None))
    report.show(rows, Console(highlight=False, width=None if sys.stdout.isatty() else 190))
    return rows
