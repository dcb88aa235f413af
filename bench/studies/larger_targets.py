"""Decoding methods on targets of a larger size that behave like the original (`foredraft widen`).

    python -m foredraft.bench.studies.larger_targets --data articles.jsonl --geometry flan-t5-base,flan-t5-xl
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from foredraft import embedded
from foredraft.bench.harness.bench_run import compare
from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.methods import METHODS, REFERENCE
from foredraft.bench.harness.record import common_fields, store
from foredraft.bench.harness.settings import Settings
from foredraft.bench.report import larger_table
from foredraft.bench.report.collection import SUMMARIES
from foredraft.bench.report.tables import Table
from foredraft.cli import options
from foredraft.cli.measuring import counting, open_model, read_articles, run_script, show, stop_if_interrupted
from foredraft.engine.models.checkpoint import weights_hash
from foredraft.engine.models.geometry import SIZES
from foredraft.engine.models.hub import find_checkpoint
from foredraft.engine.models.projection import FILE, read_settings
from foredraft.engine.models.widened_checkpoint import widen_checkpoint
from foredraft.engine.params import AUTO
from foredraft.errors import UserError

USUAL = "lookup,ngram,lookup+ngram,lstm,auto"
# of the widened checkpoints: what large models are published in
DTYPE = "bfloat16"


def costs(plain: dict, row: dict, draft_tokens: int) -> dict[str, float | None] | None:
    """What a method's drafts and target passes cost, in plain decoding's target passes, and the speed-up that follows.

    Returns
    -------
    dict or None
        Without drafts None. `c`: of a drafted token. `v`: of a pass over a sequence's drafts and its last token, v(K+1) if
        every draft has K tokens. `predicted`: tokens a step by alpha, (1 - alpha^(K+1)) / (1 - alpha), over v + c K
        (Leviathan et al. 2023, Theorem 3.8, with v in place of 1); None without alpha.
    """
    found, seconds, drafts = row["acceptance"], row["seconds"], row["acceptance"] and row["acceptance"]["drafted"]
    if not drafts or None in (seconds["draft"], seconds["verify"]):
        return None
    unit = plain["seconds"]["verify"] / plain["acceptance"]["steps"]
    c, v = seconds["draft"] / drafts / unit, seconds["verify"] / found["steps"] / unit
    alpha = found.get("alpha_tv")
    tokens = None if alpha is None else sum(alpha**position for position in range(draft_tokens + 1))
    predicted = None if tokens is None or row["method"] == AUTO else tokens / (v + c * draft_tokens)
    return {"c": c, "v": v, "predicted": predicted}


def measure(model, articles: Sequence, settings: Settings, methods: Sequence[str], common: dict,
            on_batch: Callable[[], None] = lambda: None) -> list[dict]:
    """bench_run.compare() with `costs` of each method."""
    common = common | {name: getattr(settings, name) for name in (
        "batch_size", "max_new_tokens", "draft_tokens", "temperature", "seed")}
    rows = compare(model, articles, settings, methods, common, on_batch)
    return [row | {"costs": None if row["absent"] or row["method"] == REFERENCE else costs(
        rows[0], row, settings.draft_tokens)} for row in rows]


def widened_target(original: Path, path: Path, geometry: str) -> Path:
    """The checkpoint at `path`, written if it is not there. UserError: it was made of another target."""
    if not (path / "config.json").exists():
        widen_checkpoint(original, path, geometry, DTYPE)
    elif read_settings(path / FILE).get("target_hash") != weights_hash(original):
        raise UserError(f"--widened: {path} was made of another target; give another folder")
    return path


def main(
    geometry: Annotated[str, typer.Option(help=f"Sizes, separated by commas: {', '.join(SIZES)}.")] = "flan-t5-base",
    data: options.Data = None,
    target: options.Target = None,
    task: Annotated[str, typer.Option(help="What the target was trained for; each task has its tables.")] = SUMMARIES,
    widened: Annotated[Path | None, typer.Option(
        help="Folder that keeps the widened checkpoints, one for each size. Default: a temporary one.")] = None,
    methods: Annotated[
        str, typer.Option(help="Of `bench run`, separated by commas; plain decoding is always measured.")] = USUAL,
    limit: options.Limit = 16,
    batch_size: options.BatchSizeList = "1",
    temperature: options.TemperatureList = "0,1",
    draft_tokens: options.MaxDraftTokens = 5,
    repeats: options.Repeats = 2,
    max_new_tokens: options.MaxNewTokens = 64,
    assistant: Annotated[str | None, typer.Option(help="Small T5 for transformers' assisted generation.")] = None,
    dtype: options.Dtype = AUTO,
    weights: options.Weights = "int8",
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Measure methods on widened targets; each size and setting is stored when it is complete."""
    sizes, names = geometry.split(","), methods.split(",")
    if unknown := [size for size in sizes if size not in SIZES]:
        raise UserError(f"--geometry: {unknown[0]!r} is not known; one of {', '.join(SIZES)}")
    if unknown := [name for name in names if name.partition(":")[0] not in METHODS]:
        raise UserError(f"--methods: no method named {unknown[0]!r}; choose from {', '.join(METHODS)}")
    settings = [Settings(B, draft_tokens, T, max_new_tokens, repeats, warm_up=1, assistant=assistant)
                for T in options.parse_numbers("--temperature", temperature, float, 0)
                for B in options.parse_numbers("--batch-size", batch_size, int, 1)]
    stored: list[dict] = []
    original = find_checkpoint(embedded.TARGET if target is None else target)
    with nullcontext(widened) if widened else tempfile.TemporaryDirectory(prefix="foredraft-widened-") as folder:
        for size in sizes:
            model = open_model(str(widened_target(original, Path(folder) / size, size)), dtype=dtype, weights=weights)
            articles = read_articles(data, model, limit)
            common = common_fields("larger-target", model=model, data=describe(data, articles)) | {
                "geometry": size, "task": task, "behaves_like": weights_hash(original), "encoder": model.dtype}
            for one in settings:
                text = f"{size} T={one.temperature:g} B={one.batch_size}"
                with counting(repeats * -(-len(articles) // one.batch_size), text) as advance:
                    rows = measure(model, articles, one, names, common, advance)
                complete = rows[0]["repeats"] == repeats and rows[0]["data"]["articles"] == len(articles)
                if complete:
                    record = store(rows, out)
                    stored += rows
                show([Table(text, larger_table.HEADS, larger_table.lines(rows), larger_table.WIDE),
                      *(f"{row['method']} is absent: {row['absent']}" for row in rows if row["absent"])], wide)
                stop_if_interrupted(complete, out)
    print(json.dumps({"record": str(record), "rows": stored}) if as_json else f"record: {record}")


if __name__ == "__main__":
    run_script(main)
