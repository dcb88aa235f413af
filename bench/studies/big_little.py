"""Big Little Decoder (Kim et al. 2023), LOSSY: speed and ROUGE by its thresholds.

    python -m foredraft.bench.studies.big_little --data articles.jsonl --limit 100
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from foredraft.bench.harness import measure
from foredraft.bench.harness.bench_run import Rouge
from foredraft.bench.harness.cases import Case, describe
from foredraft.bench.harness.methods import drafting_method
from foredraft.bench.harness.record import common_fields
from foredraft.bench.harness.settings import Settings
from foredraft.bench.report.tables import Table, gate, interval, number, rouge
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, read_articles, run_script

PLAIN, LOSSLESS = "plain", "lossless"
HEADS = ("policy", "tok/s", "speed-up", "LOSSY over plain", "LOSSY over lossless", "outputs that differ", "ROUGE-1/2/Lsum",
         "length", "tokens/step", "accepted/tested")
WIDE = ("LOSSY over lossless", "length", "tokens/step", "accepted/tested")


def thresholds(model, cases: Sequence[Case], settings: Settings, grid: Sequence[tuple[float, float]],
               on_batch: Callable[[], None] = lambda: None) -> list[dict]:
    """A record for plain decoding, for lossless drafts of settings.draft_tokens, and for each (fallback, rollback) of
    `grid`.

    Lossless records have `speed_up` over plain decoding (None where a token differs). Lossy ones have none: `lossy` names
    their policy; `over_plain` and `over_lossless` are ratios of tokens a second of unequal outputs. `differ`: articles whose
    tokens are not plain decoding's. `length`: mean tokens of a summary.
    """
    methods = {PLAIN: drafting_method(model.with_drafter(None), settings, 0),
               LOSSLESS: drafting_method(model, settings, settings.draft_tokens)}
    methods |= {f"{fallback:g},{rollback:g}": drafting_method(model, settings, settings.draft_tokens,
                                                              big_little=(fallback, rollback))
                for fallback, rollback in grid}
    samples = measure.measure(methods, [case.source for case in cases], settings, end_token=model.target.end_token,
                              on_batch=on_batch)
    scores = Rouge(model.tokenizer, [case.reference for case in cases])
    rows = []
    for name, taken in samples.items():
        found, differ = measure.acceptance(taken), measure.differing(samples[PLAIN], taken)
        lossy = taken[0][0].stats.lossy
        outputs = [output for sample in taken[0] for output in sample.outputs]
        row = {"method": name, "lossy": lossy, "differ": differ, "rouge": scores(outputs),
               "tokens_per_second": measure.tokens_per_second(taken, with_encoding=False),
               "tokens_per_step": found["tokens_per_step"], "drafted_per_step": found["drafted"] / found["steps"],
               "rate": found["rate"], "length": sum(map(len, outputs)) / len(outputs)}
        if lossy:
            row |= {f"over_{other}": measure.speed_up(samples[other], taken, with_encoding=False)
                    for other in (PLAIN, LOSSLESS)}
        else:
            row["speed_up"] = measure.speed_up(samples[PLAIN], taken, with_encoding=False) if differ == 0 else None
        rows.append(row)
    return rows


def main(
    data: options.Data = None,
    drafter: Annotated[str, typer.Option(help="The small model: lstm, or the folder of a trained drafter.")] = "lstm",
    fallback: Annotated[str, typer.Option(help="Probabilities below which the small model stops, separated by "
                                               "commas.")] = "0.3,0.6,0.9",
    rollback: Annotated[str, typer.Option(help="Largest distance in nats that is accepted, separated by commas.")] = "1,2,4",
    draft_tokens: options.MaxDraftTokens = 10,
    batch_size: options.BatchSize = 1,
    target: options.Target = None,
    limit: options.Limit = None,
    repeats: options.Repeats = 3,
    max_new_tokens: options.MaxNewTokens = 128,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Speed and ROUGE of Big Little Decoder, which is LOSSY, by its thresholds."""
    grid = [(below, apart) for below in options.parse_numbers("--fallback", fallback, float, 0)
            for apart in options.parse_numbers("--rollback", rollback, float, 0)]
    settings = Settings(batch_size=batch_size, draft_tokens=draft_tokens, max_new_tokens=max_new_tokens, repeats=repeats)
    model = open_model(target, drafter)
    articles = read_articles(data, model, limit)
    with counting(repeats * -(-len(articles) // batch_size)) as advance:
        found = thresholds(model, articles, settings, grid, advance)
    common = common_fields("big-little", model=model, data=describe(data, articles)) | {
        "drafter": drafter, "draft_tokens": draft_tokens, "batch_size": batch_size, "max_new_tokens": max_new_tokens,
        "repeats": repeats}
    rows = [common | row for row in found]
    lines = [[f"LOSSY {row['method']}" if row["lossy"] else row["method"], f"{row['tokens_per_second']['median']:,.0f}",
              *(interval(row.get(name)) for name in ("speed_up", "over_plain", "over_lossless")), gate(row), rouge(row),
              f"{row['length']:.1f}", number(row["tokens_per_step"]), number(row["rate"])] for row in rows]
    finish(rows, out, [Table(
        f"Big Little Decoder with {drafter}, K={draft_tokens}, B={batch_size}, {len(articles)} articles", HEADS, lines, WIDE,
        "tokens a second of decoding (95 % interval over batches). LOSSY policies write other summaries: no speed-up")],
        as_json, wide)


if __name__ == "__main__":
    run_script(main)
