"""The cost model beside the clock: the speed-up that alpha, c and v(K+1) predict for each K, and the measured one.

    python -m foredraft.bench.studies.theory --drafter lookup --data articles.jsonl --limit 100
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.evaluate import drafter_spec, evaluate
from foredraft.bench.harness.record import common_fields
from foredraft.bench.harness.settings import Settings
from foredraft.bench.report.other_tables import theory_table
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, read_articles, run_script

# K = 0: plain decoding, to which all others are compared
_ONE = {"median": 1.0, "p20": 1.0, "p80": 1.0, "low": 1.0, "high": 1.0}
_PLAIN = {"draft_tokens": 0, "acceptance": None, "c": None, "v": 1.0, "predicted": 1.0, "accounted": 1.0, "differing": 0,
          "speed_up": _ONE}


def theory(model, sources: Sequence[Sequence[int]], settings: Settings, draft_tokens: Sequence[int],
           on_batch: Callable[[], None] = lambda: None) -> dict:
    """Figures of harness.evaluate for each K, 0 included, with `accounted`, `picked`, `best` and `kept`.

    `accounted`: measured tokens per step over the measured cost of a step in plain steps. If it agrees with the measured
    speed-up and `predicted` does not, then acceptances are not independent as the model assumes. `picked`: the K with the
    highest prediction. `best`: the K with the highest measured speed-up. `kept`: the picked K's share of the best speed-up.
    """
    one = "drafter"
    return with_picks(evaluate({one: model}, sources, settings, {one: [K for K in draft_tokens if K]}, on_batch)[one])


def with_picks(figures: dict) -> dict:
    """The figures of harness.evaluate with accounted, picked, best and kept."""
    rows = [_PLAIN, *(row | {"accounted": accounted(row)} for row in figures["rows"])]
    predictions = {row["draft_tokens"]: row["predicted"] for row in rows if row["predicted"] is not None}
    measured = {row["draft_tokens"]: row["speed_up"]["median"] for row in rows if "speed_up" in row}
    picked, best = max(predictions, key=predictions.__getitem__), max(measured, key=measured.__getitem__)
    kept = measured[picked] / measured[best] if picked in measured else None
    return figures | {"rows": rows, "picked": picked, "best": best, "kept": kept}


def accounted(row: dict) -> float | None:
    """Tokens per step over the cost of a step: c for each token that was really drafted, plus v."""
    found = row["acceptance"]
    if row["c"] is None or not found["steps"]:
        return None
    return found["tokens_per_step"] / (row["c"] * found["drafted"] / found["steps"] + row["v"])


def main(
    ckpt_path: options.CkptPath = None,
    drafter: Annotated[str | None, typer.Option(help="lookup or ngram, if there is no checkpoint. Default: lookup.")] = None,
    target: options.Target = None,
    data: options.Data = None,
    limit: options.Limit = None,
    most: Annotated[int, typer.Option(min=1, help="K from 0 to this.")] = 10,
    temperature: options.TemperatureList = "0,1",
    max_new_tokens: options.MaxNewTokens = 128,
    batch_size: options.BatchSize = 1,
    repeats: options.Repeats = 3,
    weights: options.Weights = None,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
) -> None:
    """Predict the speed-up of K = 0, 1, 2 ... from alpha, c and v, and measure it."""
    temperatures = options.parse_numbers("--temperature", temperature, float, 0)
    spec, kind = drafter_spec(ckpt_path, drafter or (None if ckpt_path else "lookup"))
    model = open_model(target, spec, weights=weights)
    articles = read_articles(data, model, limit)
    with counting() as advance:
        found = [theory(model, [case.source for case in articles], Settings(
            batch_size=batch_size, temperature=T, max_new_tokens=max_new_tokens, repeats=repeats), range(most + 1), advance)
            for T in temperatures]
    name = ckpt_path.name if ckpt_path else kind
    row = common_fields("theory", model=model, data=describe(data, articles)) | {
        "batch_size": batch_size, "max_new_tokens": max_new_tokens, "seed": 0, "repeats": repeats,
        "drafter": {"name": name, "kind": kind}, "figures": found}
    finish([row], out, (theory_table(name, figures) for figures in found), as_json)


if __name__ == "__main__":
    run_script(main)
