"""What more work costs: time and memory against articles, source tokens and output tokens, and a leak's slope."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from statistics import median

import numpy as np

from foredraft.bench.harness.interleave import wait_until_idle
from foredraft.memory import peak_resident_bytes, reset_peak, resident_bytes, trim_heap

NEVER = -1  # an end token that is no id: outputs then have exactly the length asked for


def let_go() -> None:
    """Give back what earlier work left, so that a size is not charged with, nor spared by, the one before it."""
    gc.collect()
    trim_heap()


def curve(sizes: Sequence[int], decode: Callable[[int], int], repeats: int, points: list[dict], loaded: int | None = None,
          before: Callable[[], None] = lambda: None, on_point: Callable[[], None] = lambda: None) -> None:
    """Add a point for each size to `points`: `ms_per_article`, the median over `repeats` calls of decode(size), which
    returns how many articles it decoded; `bytes_per_article`, the peak of resident memory over `loaded`, shared among
    them (None where the system does not tell); `rss` after them. `before` is called before each size."""
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
    """curves: `articles` as they come; `source` and `output` on one batch whose outputs have exactly `max_new_tokens`, or
    the size's, ids. memory: memory_over's findings over so many articles; None without any. complete: False if it was
    interrupted, and has what was measured by then."""
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
            # past the checkpoint's own limit too, at which a source would be cut
            model.generate(ids, max_new_tokens=tokens, max_source=length, **options)
        finally:
            model.target.end_token = end
        return batch_size

    # what is loaded at the first call belongs to no size
    by_articles(1)
    afresh()
    loaded, longest = resident_bytes(), max(map(len, sources))
    curves = {"articles": [], "output": [], "source": []}
    found = {"loaded_bytes": loaded, "curves": curves, "memory": None, "complete": False}
    try:
        # the slope first: what larger sizes need would hide what small ones lose
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
    """`count` sources of exactly `length` ids, article after article, the end token last."""
    flat = cycle([token for one in sources for token in one if token != end])
    return [[*islice(flat, length - 1), end] for _ in range(count)]


def memory_over(model, sources: Sequence[Sequence[int]], articles: int, options: dict) -> dict | None:
    """Resident memory after each batch, once what is freed was given back, and its slope in bytes an article over all but
    the first fifth, which settles. Without that a heap that grew a step for its holes would look like a leak."""
    if peak_resident_bytes() is None:
        return None
    size, flow = options["batch_size"], cycle(sources)
    # no list that grows as it watches
    rss = np.zeros(-(-articles // size), np.int64)
    for number in range(len(rss)):
        model.generate([list(next(flow)) for _ in range(size)], **options)
        let_go()
        rss[number] = resident_bytes()
    decoded, skipped = (np.arange(len(rss)) + 1) * size, len(rss) // 5
    return {"articles": decoded.tolist(), "rss": rss.tolist(), "slope": slope(decoded[skipped:], rss[skipped:])}


def slope(x: Sequence[float], y: Sequence[float], resamples: int = 2000) -> dict[str, float]:
    """Least squares and its 95 % interval, by a bootstrap of blocks of residuals: memory moves in steps that last."""
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
