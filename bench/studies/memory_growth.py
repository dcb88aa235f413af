"""Resident memory over many random requests and over many loads, its slopes, and its peak beside kv_memory.

    python -m foredraft.bench.studies.memory_growth [--requests 10000] [--loads 1000]

Of the embedded model. Requests have random lengths, settings and seeds; they come in streams of random batch size, drafter
and kv_memory, in which some requests are cancelled, and some of which are closed early.
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

from foredraft.bench.harness.record import common_fields
from foredraft.bench.report.tables import Table
from foredraft.bench.studies.scale import let_go, slope
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, read_articles, run_script
from foredraft.engine.generate import Model
from foredraft.engine.load import load
from foredraft.engine.runtime.requests import Request
from foredraft.memory import peak_resident_bytes, reset_peak, resident_bytes

DRAFTERS = ("none", "lookup", "lookup+history", "ngram", "lookup+ngram", "lstm", "cascade:lookup,lstm", "tree:2x2:lstm",
            "auto")
SETTINGS = ({}, {}, {"do_sample": True}, {"do_sample": True, "top_k": 20, "top_p": 0.9}, {"repetition_penalty": 1.2})
LONGEST, NEW, DRAFT, BATCH, BEAMS = 512, 64, 8, 16, 4
# bytes of kv_memory
LIMITS = (8_000_000, 16_000_000, 32_000_000, 64_000_000)
# chances that a result is followed by a cancellation, and by the end of the stream
CANCEL, CLOSE = 0.1, 0.01
# share of the readings that a fit leaves out, while buffers grow to their largest size
WARM_SHARE = 0.2


def random_source(tokens: Sequence[int], end: int, draw: random.Random) -> list[int]:
    """1 to LONGEST tokens of the articles, and the end token."""
    length = draw.randint(1, LONGEST - 1)
    first = draw.randrange(len(tokens) - length)
    return [*tokens[first : first + length], end]


def random_stream(model: Model, tokens: Sequence[int], limit: int, draw: random.Random) -> Counter:
    """Decode a few requests in one stream. Returns their number as "requests", and how many ended in which way."""
    size = draw.randint(1, BATCH)
    beams = BEAMS if model.drafter.name in ("none", "lookup") and draw.random() < 0.2 else 1
    requests = [Request(random_source(tokens, model.target.end_token, draw), max_new_tokens=draw.randint(1, NEW),
                        draft_tokens=draw.randint(0, DRAFT), seed=draw.randrange(2**62), **draw.choice(SETTINGS))
                for _ in range(draw.randint(1, 2 * size))]
    counts = Counter(requests=len(requests))
    with model.stream(requests, batch_size=size, max_new_tokens=NEW, draft_tokens=DRAFT, num_beams=beams, max_source=LONGEST,
                      kv_memory=limit) as stream:
        for result in stream:
            counts[result.finish_reason] += 1
            if draw.random() < CANCEL:
                stream.cancel(draw.randrange(len(requests)))
            if draw.random() < CLOSE:
                break
    counts["dropped"] = len(requests) - sum(counts[name] for name in counts if name != "requests")
    return counts


def handles() -> dict[str, int]:
    """Open files and threads of this process."""
    process = psutil.Process()
    return {"files": process.num_fds() if hasattr(process, "num_fds") else 0, "threads": process.num_threads()}


def over_requests(models: Sequence[Model], tokens: Sequence[int], count: int, draw: random.Random,
                  on_stream: Callable[[int], None] = lambda requests: None) -> dict:
    """At least `count` requests; models share one target.

    Returns
    -------
    dict
        counts; decoded, rss: requests so far and resident bytes after each stream, without keys and values; slope, in bytes
        a request; limits: of each kv_memory the number of streams, the most bytes of keys and values, and the most resident
        memory beyond that before the stream.
    """
    cache, limits = models[0].target.cache, {limit: [0, 0, 0] for limit in LIMITS}
    for model in models:
        random_stream(model, tokens, LIMITS[-1], draw)
    counts, decoded, rss, before = Counter(), [], [], handles()
    gc.freeze()
    while counts["requests"] < count:
        cache.clear()
        let_go()
        start, limit = resident_bytes(), draw.choice(LIMITS)
        reset_peak()
        found = random_stream(draw.choice(models), tokens, limit, draw)
        peak = peak_resident_bytes() or start
        known = limits[limit]
        limits[limit] = [known[0] + 1, max(known[1], cache.nbytes()), max(known[2], peak - start)]
        counts += found
        decoded.append(counts["requests"])
        rss.append(start)
        on_stream(found["requests"])
    gc.unfreeze()
    return {"counts": dict(counts), "decoded": decoded, "rss": rss, "slope": fitted(decoded, rss), "before": before,
            "after": handles(),
            "limits": [{"kv_memory": limit, "streams": number, "keys_and_values": most, "resident": peak}
                       for limit, (number, most, peak) in limits.items()]}


def over_loads(make: Callable[[], Any], count: int, on_load: Callable[[], None] = lambda: None) -> dict:
    """Make and forget `count` models: rss after each, and the slope in bytes a load."""
    make()
    before, rss = handles(), np.zeros(count, np.int64)
    for number in range(count):
        make()
        let_go()
        rss[number] = resident_bytes()
        on_load()
    return {"rss": rss.tolist(), "slope": fitted(np.arange(count), rss), "before": before, "after": handles()}


def fitted(x: Sequence[float], rss: Sequence[int]) -> dict[str, float]:
    """scale.slope without the first readings."""
    skipped = int(WARM_SHARE * len(x))
    return slope(x[skipped:], rss[skipped:])


def main(
    requests: Annotated[int, typer.Option("--requests", min=1, help="Number of requests.")] = 10_000,
    loads: Annotated[int, typer.Option("--loads", min=1, help="Number of loads.")] = 1_000,
    seed: options.SamplingSeed = 0,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Measure whether memory grows over requests and loads."""
    draw, model = random.Random(seed), open_model(None, None)
    end = model.target.end_token
    tokens = [token for case in read_articles(None, model, None) for token in case.source if token != end]
    record = common_fields("memory-growth", model=model) | {"seed": seed, "loaded_bytes": resident_bytes()}
    with counting(requests + loads) as advance:
        models = [model.with_drafter(name) for name in DRAFTERS]
        record["requests"] = over_requests(models, tokens, requests, draw, lambda n: [advance() for _ in range(n)])
        del model, models

        def make() -> None:
            made = load(drafter=draw.choice(DRAFTERS))
            made.generate([random_source(tokens, end, draw)], max_new_tokens=4, draft_tokens=4)

        record["loads"] = over_loads(make, loads, advance)
    finish([record], out, tables(record), as_json, wide)


def tables(record: dict) -> list[Table]:
    found = record["requests"]
    slopes = []
    for name, number in (("requests", found["counts"]["requests"]), ("loads", len(record["loads"]["rss"]))):
        one = record[name]
        fit = {part: value / 1e3 for part, value in one["slope"].items()}
        slopes.append([name, f"{number:,}", f"{one['rss'][-1] / 1e6:.0f}",
                       f"{fit['slope']:+.2f} ({fit['low']:+.2f} to {fit['high']:+.2f})",
                       *(f"{one['before'][part]} to {one['after'][part]}" for part in ("files", "threads"))])
    ways = ", ".join(f"{name} {number:,}" for name, number in found["counts"].items() if name != "requests")
    return [
        Table("Memory over requests and loads", ("", "number", "resident MB", "kB each (95 %)", "files", "threads"), slopes,
              (), f"requests: {ways}"),
        Table("Peak of a stream", ("kv_memory MB", "streams", "keys and values MB", "resident MB"), [
            [f"{one['kv_memory'] / 1e6:.0f}", f"{one['streams']:,}", f"{one['keys_and_values'] / 1e6:.1f}",
             f"{one['resident'] / 1e6:.1f}"] for one in found["limits"]],
            (), "the most of any stream; resident: beyond that before the stream, logits and drafters' buffers included")]


if __name__ == "__main__":
    run_script(main)
