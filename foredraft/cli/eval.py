"""`foredraft eval`: acceptance, cost and speed-up of a drafter on a target."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.cli.options import parse_numbers
from foredraft.cli.output import announce_compilation, console, progress


def evaluate(
    ckpt_path: options.CkptPath = None,
    drafter: Annotated[
        str | None, typer.Option(
            help="Kind of the drafter. Default: the checkpoint's. lookup, ngram and tree:SHAPE:NAME need none.")
    ] = None,
    target: options.Target = None,
    data: options.Data = None,
    limit: options.Limit = None,
    draft_tokens: options.DraftTokensList = "1,3,5",
    temperature: options.TemperatureList = "0,1",
    gen_length: options.MaxNewTokens = 128,
    batch_size: options.BatchSize = 1,
    repeats: options.Repeats = 1,
    max_source: options.MaxSource = None,
    seed: options.SamplingSeed = 0,
    device: options.Device = "cpu",
    weights: options.Weights = None,
    big_little: options.BigLittle = None,
    out: Annotated[Path | None, typer.Option(help="Append the record to this .jsonl file.")] = None,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """Acceptance, cost and speed-up of a drafter, predicted and measured."""
    import foredraft
    from foredraft.bench.harness import cases, record
    from foredraft.bench.harness import evaluate as evaluation
    from foredraft.bench.harness.settings import Settings

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
    with progress() as bar:
        task = bar.add_task("measuring", total=batches * len(temperatures))
        for value in temperatures:
            settings = Settings(batch_size=batch_size, temperature=value, max_new_tokens=gen_length, repeats=repeats,
                                seed=seed, device=device)
            found.append(evaluation.evaluate({kind: model}, sources, settings, {kind: Ks}, lambda: bar.advance(task),
                                             lossy))
    evaluated = {"kind": "eval"} | evaluation.common_fields(model, cases.describe(data, articles), settings) | {
        "foredraft": foredraft.__version__, "command": shlex.join(["foredraft", *sys.argv[1:]]),
        "drafter": {"kind": kind, "path": None if ckpt_path is None else ckpt_path.name},
        "figures": [figures[kind] for figures in found]}
    show_table(evaluated, wide)
    if out is not None:
        record.append_lines(out, [evaluated])
    if as_json:
        print(json.dumps(evaluated))


def show_table(record: dict, wide: bool = False) -> None:
    """Print the record of an evaluation; `wide` adds the acceptance by position, the coverage and the interval of alpha."""
    from rich import box
    from rich.table import Table

    target, data = record["target"], record["data"]
    table = Table(
        title=f"{record['drafter']['kind']} for {target['model']} ({target['hash'][:12]}) on {data['articles']} x "
              f"{data['name']}, batch {record['batch_size']}",
        caption="alpha: acceptance rate over all prefixes of the target's output. accepted: of verified draft tokens. "
                "c, v: cost of a drafted token and of a target pass over K+1 positions, in plain steps.",
        title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    for name in ("T", "alpha", "K", "accepted", "tokens/step", "c", "v", "predicted", "measured", "with encoding"):
        table.add_column(name, justify="right")
    for name in ("accepted/drafted", "by position", "coverage", "95 % of alpha") if wide else ():
        table.add_column(name, justify="right")
    for figures in record["figures"]:
        alpha = figures["alpha"]
        for one in figures["rows"]:
            found = one["acceptance"]
            cells = [
                f"{figures['temperature']:g}", f"{alpha['value']:.3f}", str(one["draft_tokens"]),
                _cell(found["rate"], ".3f"), _cell(found["tokens_per_step"], ".2f"),
                _cell(one["c"], ".3f"), _cell(one["v"], ".3f"),
                _cell(one["predicted"], ".2f", "x"), _speed_up(one, "speed_up"), _speed_up(one, "speed_up_whole")]
            if wide:
                by_position = " ".join("-" if rate is None else f"{rate:.2f}" for rate in found["at"])
                cells += [_cell(found["per_drafted"], ".3f"), by_position, _cell(found["coverage"], ".0%"),
                          f"{alpha['low']:.3f}-{alpha['high']:.3f}"]
            table.add_row(*cells)
    console(wide).print(table)


def _speed_up(one: dict, field: str) -> str:
    """A measured speed-up; where the tokens differ from plain decoding's there is none."""
    if field in one:
        return f"{one[field]['median']:.2f}x"
    return f"{'LOSSY, ' if 'lossy' in one else ''}{one['differing']} differ"


def _cell(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
