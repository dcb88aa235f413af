"""`foredraft bench run`: decoding methods side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.errors import UserError


def run(
    suite: Annotated[
        str | None, typer.Option(help="Named settings: quick, cpu, gpu, paper, spec-bench. Other options override them.")
    ] = None,
    target: options.Target = None,
    data: options.Data = None,
    limit: options.Limit = None,
    batch_sizes: options.BatchSizeList = None,
    methods: Annotated[str | None,
                       typer.Option(help="Separated by commas, such as plain,lookup,ngram:PATH. Default: all.")] = None,
    drafters: Annotated[str | None, typer.Option(help="Folders of trained drafters to add, separated by commas.")] = None,
    draft_tokens: options.DraftTokensList = None,
    temperatures: options.TemperatureList = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Timed passes over the articles. Default: 3.")] = None,
    max_new_tokens: options.MaxNewTokens = 128,
    max_source: options.MaxSource = None,
    assistant: Annotated[str | None, typer.Option(help="Small T5 for transformers' assisted generation.")] = None,
    seed: options.Seed = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cpu.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Encoder: float32 or bfloat16. Default: float32.")] = None,
    weights: options.Weights = None,
    footprints: Annotated[
        bool | None,
        typer.Option(help="Also measure loading, first token and memory of each method, each in its own process.")
    ] = None,
    spec_bench: Annotated[Path | None, typer.Option(help="Folder for answers in Spec-Bench's format.")] = None,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Compare decoding methods on the same articles: first their tokens, then their speed."""
    from foredraft.bench.harness import bench_run, cases, machine, record, suites
    from foredraft.bench.harness.methods import METHODS, OF_ARGUMENT
    from foredraft.bench.harness.settings import Settings
    from foredraft.bench.report import runs_table
    from foredraft.cli.measuring import counting, open_model, read_articles, show, stop_if_interrupted

    asked = suites.chosen(suite, dict(
        limit=limit, batch_sizes=batch_sizes, temperatures=temperatures, draft_tokens=draft_tokens, repeats=repeats,
        methods=methods, device=device, dtype=dtype, footprints=footprints))
    settings = [
        Settings(batch_size=size, draft_tokens=K, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed,
                 repeats=asked["repeats"], warm_up=asked["warm_up"], device=asked["device"], assistant=assistant)
        for temperature in options.parse_numbers("--temperatures", asked["temperatures"], float, 0)
        for size in options.parse_numbers("--batch-sizes", asked["batch_sizes"], int, 1)
        for K in options.parse_numbers("--draft-tokens", asked["draft_tokens"], int, 0)]
    as_spec_bench = suite == "spec-bench" or spec_bench is not None
    if as_spec_bench and any(one.batch_size > 1 or one.do_sample for one in settings):
        flag = "--suite spec-bench" if spec_bench is None else "--spec-bench"
        raise UserError(f"{flag}: Spec-Bench decodes greedily, one request at a time; drop other --batch-sizes and "
                        "--temperatures")
    names = (asked["methods"] or ",".join(name for name in METHODS if name not in OF_ARGUMENT)).split(",")
    names += [f"drafter:{path}" for path in (drafters or "").split(",") if path]
    model = open_model(target, device=asked["device"], dtype=asked["dtype"], weights=weights)
    articles = read_articles(data, model, asked["limit"], max_source)
    rows = []
    for number, one in enumerate(settings):
        common = bench_run.common_fields(model, one, cases.describe(data, articles))
        path = out / f"{machine.file_name(common['machine'])}.jsonl"
        figures: dict[str, dict] = {}
        # each K has a folder of answers
        folder = spec_bench / f"K{one.draft_tokens}" if spec_bench and len(settings) > 1 else spec_bench
        on_samples = _spec_bench_writer(folder, model, articles, figures) if as_spec_bench else (lambda *_: None)
        with counting(one.repeats * -(-len(articles) // one.batch_size)) as advance:
            # footprints once: K and temperature do not change them
            found = bench_run.compare(model, articles, one, names, common, advance, asked["footprints"] and number == 0,
                                      on_samples)
        show(runs_table.tables(found), wide)
        # stored at once: an interrupted command keeps the settings that are complete
        if suite == "spec-bench":
            # a record of its own: warm-up and means differ from those of a comparison
            path = path.with_name(f"spec-bench-{path.name}")
            rows_of = [row | {"spec_bench": figures.get(row["method"])} for row in found]
            of_run = {name: found[0][name] for name in ("repeats", "data")}
            record.append_lines(path, [{"kind": "spec-bench"} | common | of_run | {"rows": rows_of}])
        else:
            record.append(path, found)
        rows += found
        stop_if_interrupted(
            found[0]["repeats"] == one.repeats and found[0]["data"]["articles"] == len(articles), path)
    print(json.dumps({"record": str(path), "rows": rows}) if as_json else f"record: {path}")


def _spec_bench_writer(folder: Path | None, model, articles, figures: dict[str, dict]):
    """A function of the samples of all methods: prints Spec-Bench's figures, puts them into `figures` by method and, with a
    folder, writes Spec-Bench's files."""
    from foredraft.bench.harness import spec_bench
    from foredraft.bench.harness.methods import REFERENCE

    def write(samples, methods) -> None:
        for name, passes in samples.items():
            known = not methods[name].speculates
            figures[name] = spec_bench.summary(passes, samples[REFERENCE], known)
            if folder is not None and known:
                spec_bench.write(folder, name, passes, model.tokenizer, [case.name for case in articles[: len(passes[0])]])
            accepted = f"{figures[name]['mean_accepted_tokens']:.2f}" if known else "unknown"
            print("Spec-Bench, {}: {} mean accepted tokens, {tokens_per_second:.0f} tokens a second (deviation "
                  "{tokens_per_second_deviation:.0f}), speed-up {speed_up:.2f} ({speed_up_deviation:.2f})".format(
                      name, accepted, **figures[name]))

    return write
