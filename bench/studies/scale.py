"""Time and memory by number of articles, source tokens and output tokens, and the slope of memory over many articles.

    python -m foredraft.bench.studies.scale --data articles.jsonl
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.interleave import wait_until_idle
from foredraft.bench.harness.record import common_fields, store
from foredraft.bench.report.tables import Table, number
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, read_articles, run_script, show, stop_if_interrupted
from foredraft.memory import peak_resident_bytes, reset_peak, resident_bytes, trim_heap

# an end token that the target never emits: outputs then have exactly the requested length
NEVER = -1


def let_go() -> None:
    """Return the memory of earlier work to the system, so that a size is measured without the size before it."""
    gc.collect()
    trim_heap()


def curve(sizes: Sequence[int], decode: Callable[[int], int], repeats: int, points: list[dict], loaded: int | None = None,
          before: Callable[[], None] = lambda: None, on_point: Callable[[], None] = lambda: None) -> None:
    """Append a point for each size to `points`; `before` is called before each size.

    decode(size) returns how many articles it decoded. A point has `ms_per_article`, the median over `repeats` calls;
    `bytes_per_article`, the peak of resident memory over `loaded` divided by the articles (None if unknown); and `rss`.
    """
    for size in sizes:
        before()
        reset_peak()
        taken = []
        for _ in range(repeats):
            wait_until_idle()
            start = time.perf_counter()
            count = decode(size)
            taken.append((time.perf_counter() - start) * 1e3 / count)
        peak = peak_resident_bytes()
        points.append({"size": size, "ms_per_article": median(taken), "least_ms": min(taken), "rss": resident_bytes(),
                       "bytes_per_article": None if peak is None or loaded is None else max(0, peak - loaded) / count})
        on_point()


def scale(model, sources: Sequence[Sequence[int]], *, articles: Sequence[int], source: Sequence[int], output: Sequence[int],
          memory: int, batch_size: int, draft_tokens: int, max_new_tokens: int, repeats: int,
          on_point: Callable[[], None] = lambda: None) -> dict:
    """Curves by articles, source and output length; the memory slope; whether the measurement is complete.

    The `articles` curve decodes the articles as they are. `source` and `output` decode one batch whose outputs have exactly
    `max_new_tokens` tokens, or the size's. An interrupted measurement returns what it has, with complete = False.
    """
    options = dict(draft_tokens=draft_tokens, batch_size=batch_size)

    def some(count: int) -> Iterator[list[int]]:
        return (list(one) for one in islice(cycle(sources), count))

    def afresh() -> None:
        model.target.cache.clear()
        let_go()

    def by_articles(count: int) -> int:
        model.generate(list(some(count)), max_new_tokens=max_new_tokens, **options)
        return count

    def of_length(length: int, tokens: int) -> int:
        ids = _stretched(sources, length, batch_size, model.target.end_token)
        end, model.target.end_token = model.target.end_token, NEVER
        try:
            # max_source: sources longer than the checkpoint's limit are not truncated
            model.generate(ids, max_new_tokens=tokens, max_source=length, **options)
        finally:
            model.target.end_token = end
        return batch_size

    # warm-up: what the first call loads belongs to no size
    by_articles(1)
    afresh()
    loaded, longest = resident_bytes(), max(map(len, sources))
    curves = {"articles": [], "output": [], "source": []}
    found = {"loaded_bytes": loaded, "curves": curves, "memory": None, "complete": False}
    try:
        # the slope first: the memory of larger sizes would hide a leak
        if memory:
            found["memory"] = memory_over(model, sources, memory, options | {"max_new_tokens": max_new_tokens})
        on_point()
        for name, sizes, decode, times in (
            ("articles", articles, by_articles, 1),
            ("output", output, lambda size: of_length(longest, size), repeats),
            ("source", source, lambda size: of_length(size, max_new_tokens), repeats),
        ):
            curve(sizes, decode, times, curves[name], loaded, afresh, on_point)
        found["complete"] = True
    except KeyboardInterrupt:
        if not any(curves.values()) and found["memory"] is None:
            raise
    return found


def _stretched(sources: Sequence[Sequence[int]], length: int, count: int, end: int) -> list[list[int]]:
    """`count` sources of exactly `length` tokens, made of the articles in order, the end token last."""
    flat = cycle([token for one in sources for token in one if token != end])
    return [[*islice(flat, length - 1), end] for _ in range(count)]


def memory_over(model, sources: Sequence[Sequence[int]], articles: int, options: dict) -> dict | None:
    """Resident memory after each batch, and its slope in bytes an article without the first fifth, in which the heap
    settles.

    Freed memory is returned to the system before each reading; else a fragmented heap would look like a leak.
    """
    if peak_resident_bytes() is None:
        return None
    size, flow = options["batch_size"], cycle(sources)
    # allocated beforehand: a growing list would be part of the slope
    rss = np.zeros(-(-articles // size), np.int64)
    for batch in range(len(rss)):
        model.generate([list(next(flow)) for _ in range(size)], **options)
        let_go()
        rss[batch] = resident_bytes()
    decoded, skipped = (np.arange(len(rss)) + 1) * size, len(rss) // 5
    return {"articles": decoded.tolist(), "rss": rss.tolist(), "slope": slope(decoded[skipped:], rss[skipped:])}


def slope(x: Sequence[float], y: Sequence[float], resamples: int = 2000) -> dict[str, float]:
    """Least-squares slope and its 95 % interval, by a block bootstrap of the residuals, because memory moves in lasting
    steps."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    centred = x - x.mean()
    weight = centred / (centred**2).sum() if len(x) > 1 else centred
    fitted = weight @ y
    rest = y - y.mean() - fitted * centred
    size = max(1, int(len(y) ** 0.5))
    starts = np.random.default_rng(0).integers(0, len(y), (resamples, -(-len(y) // size)))
    blocks = (starts[..., None] + np.arange(size)).reshape(resamples, -1)[:, : len(y)] % len(y)
    low, high = np.percentile(fitted + rest[blocks] @ weight, [2.5, 97.5])
    return {"slope": float(fitted), "low": float(low), "high": float(high)}


def main(
    target: options.Target = None,
    drafter: options.Drafter = "lookup",
    data: options.Data = None,
    limit: options.Limit = 200,
    articles: Annotated[str, typer.Option(help="Numbers of articles, separated by commas.")] = "1,4,16,64,256,1024,4096",
    source: Annotated[str, typer.Option(help="Source tokens, separated by commas.")] = "64,128,256,512,1024,2048",
    output: Annotated[str, typer.Option(help="Output tokens, separated by commas.")] = "16,32,64,128,256,512",
    memory: Annotated[int, typer.Option(min=0, help="Articles of the memory slope; 0 is off.")] = 2000,
    batch_size: options.BatchSize = 8,
    draft_tokens: options.MaxDraftTokens = 5,
    max_new_tokens: options.MaxNewTokens = 64,
    repeats: options.Repeats = 3,
    weights: options.Weights = None,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
) -> None:
    """Measure how time and memory grow; --limit articles are repeated as often as needed."""
    sizes = {name: options.parse_numbers(f"--{name}", text, int, low) for name, text, low in (
        ("articles", articles, 1), ("source", source, 2), ("output", output, 1))}
    model = open_model(target, None if drafter == "none" else drafter, weights=weights)
    found = read_articles(data, model, limit)
    with counting(1 + sum(map(len, sizes.values()))) as advance:
        measured = scale(model, [case.source for case in found], **sizes, memory=memory, batch_size=batch_size,
                         draft_tokens=draft_tokens, max_new_tokens=max_new_tokens, repeats=repeats, on_point=advance)
    row = common_fields("scale", model=model, data=describe(data, found)) | {
        "batch_size": batch_size, "max_new_tokens": max_new_tokens, "repeats": repeats, "drafter": {"name": drafter},
        "draft_tokens": draft_tokens} | measured
    if not row["complete"]:
        show(_tables(row))
        stop_if_interrupted(False, store([row], out))
    finish([row], out, _tables(row), as_json)


def _tables(row: dict) -> Iterator[Table | str]:
    for name, points in row["curves"].items():
        yield Table(f"by {name}", (name, "ms an article", "fastest", "MB an article", "resident MB"), [
            [f"{point['size']:,}", number(point["ms_per_article"]), number(point["least_ms"]),
             *("-" if value is None else f"{value / 1e6:,.2f}" for value in (point["bytes_per_article"], point["rss"]))]
            for point in points])
    if row["memory"]:
        yield "memory over {n:,} articles: {slope:+.0f} bytes an article (95 % interval {low:+.0f} to {high:+.0f})".format(
            n=row["memory"]["articles"][-1], **row["memory"]["slope"])


if __name__ == "__main__":
    run_script(main)
