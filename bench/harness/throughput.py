"""Throughput over many articles: the scheduler, fixed batches, and other engines, by batch size.

An engine decodes the whole list greedily at a batch size B and returns the tokens in the list's order. Engines and sizes are
interleaved list by list. Tokens are counted by one function for all, and compared with foredraft's plain decoding.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from foredraft.bench.harness import machine
from foredraft.bench.harness.interleave import orders, wait_until_idle
from foredraft.bench.harness.measure import spread, until_end
from foredraft.bench.harness.methods import Absent, Output, build
from foredraft.bench.harness.settings import Settings
from foredraft.bench.harness.steps import encoder_flops, product_rate, step_bytes
from foredraft.engine.stats import DecodeStats

# (sources, B) -> Output
Engine = Callable[[Sequence[Sequence[int]], int], Output]
REFERENCE = "scheduled"
# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom; the last one is used for more
T95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

# anonymous memory that decoding adds after a warm-up, and the cache's own account, in a process of its own
MEMORY = """
import json, sys
import foredraft
from foredraft.bench.harness.machine import anonymous_bytes
from foredraft.memory import trim_heap

path, batch_size, longest, sources = json.load(sys.stdin)
model = foredraft.load(path, drafter=None)
model.generate([max(sources, key=len)] * 2, max_new_tokens=longest, batch_size=2)
model.target.cache.clear()
trim_heap()
before = anonymous_bytes()
with model.stream(sources, max_new_tokens=longest, batch_size=batch_size, max_source=max(map(len, sources))) as results:
    for _ in results:
        pass
trim_heap()
print(json.dumps({"grown_bytes": anonymous_bytes() - before, "accounted_bytes": model.target.cache.used_bytes()}))
"""


def engines(model, drafter: str | None, draft_tokens: int | str, settings: Settings) -> dict[str, Callable[[], Engine]]:
    """Builders by name, which may raise Absent. `model` has no drafter; `draft_tokens` is a number or "auto"."""
    def drafting() -> object:
        if drafter is None:
            raise Absent("there is no --drafter")
        return model.with_drafter(drafter)

    return {
        REFERENCE: lambda: _scheduled(model, 0, settings),
        "scheduled+drafts": lambda: _scheduled(drafting(), draft_tokens, settings),
        "fixed": lambda: _in_batches(_scheduled(model, 0, settings)),
        "fixed+drafts": lambda: _in_batches(_scheduled(drafting(), draft_tokens, settings)),
        "transformers": lambda: _by_length(_transformers(model, settings)),
        "ctranslate2": lambda: _ctranslate2(model, settings),
    }


def _scheduled(model, draft_tokens: int | str, settings: Settings) -> Engine:
    def run(sources, batch_size: int) -> Output:
        out = model.generate(sources, max_new_tokens=settings.max_new_tokens, draft_tokens=draft_tokens,
                             batch_size=batch_size)
        return Output(out.token_ids, dict(out.stats.seconds), out.stats)

    return run


def _in_batches(engine: Engine) -> Engine:
    """Fixed batches: the next batch starts when all of the last one have ended."""
    def run(sources, batch_size: int) -> Output:
        ids, stats = [], DecodeStats()
        for start in range(0, len(sources), batch_size):
            out = engine(sources[start : start + batch_size], batch_size)
            ids += out.token_ids
            if out.stats is not None:
                stats.merge(out.stats)
        return Output(ids, dict(stats.seconds), stats if stats.requests else None)

    return run


def _by_length(engine: Engine) -> Engine:
    """Fixed batches of sources sorted by length, the longest first, for little padding."""
    def run(sources, batch_size: int) -> Output:
        order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
        out = _in_batches(engine)([sources[i] for i in order], batch_size)
        ids: list[list[int]] = [[] for _ in sources]
        for i, tokens in zip(order, out.token_ids, strict=True):
            ids[i] = tokens
        return Output(ids, out.seconds, out.stats)

    return run


def _transformers(model, settings: Settings) -> Engine:
    method = build("hf-greedy", model, settings)
    return lambda sources, batch_size: method.run(sources, 0)


def _ctranslate2(model, settings: Settings) -> Engine:
    """CTranslate2's own batching: the whole list in one call, sorted by length, in batches of at most B."""
    from foredraft.bench.harness.peers.ctranslate2_peer import Translator

    translator = Translator(model.path, "float32")
    return lambda sources, batch_size: Output(
        translator(sources, settings.max_new_tokens, max_batch_size=batch_size, batch_type="examples"), {})


def measure(model, drafter: str | None, draft_tokens: int | str, sources: Sequence[Sequence[int]],
            batch_sizes: Sequence[int], names: Sequence[str], settings: Settings,
            on_list: Callable[[], None] = lambda: None) -> dict:
    """{"rows": a dict for each engine and B, "absent": {name: reason}, "gflop_s": ..., "read_gb_s": ...}."""
    built, absent = {}, {}
    for name in dict.fromkeys((REFERENCE, *names)):
        try:
            built[name] = engines(model, drafter, draft_tokens, settings)[name]()
            # warm-up: compile, allocate, convert
            built[name](sources[:2], 2)
        except Absent as reason:
            absent[name] = str(reason)
            built.pop(name, None)
    taken: dict[tuple[str, int], list[tuple[float, Output]]] = {(name, B): [] for name in built for B in batch_sizes}
    # all engines at one size follow each other, because they are compared
    reads, rates, by_size, by_name = [], [], orders(batch_sizes, settings.seed), orders(list(built), settings.seed + 1)
    for _ in range(settings.repeats):
        reads.append(machine.read_bandwidth(times=2))
        rates.append(product_rate(model.target.config, max(map(len, sources))))
        for name, size in ((name, size) for size in next(by_size) for name in next(by_name)):
            wait_until_idle()
            start = time.perf_counter()
            out = built[name](sources, size)
            taken[name, size].append((time.perf_counter() - start, out))
            on_list()
    truth = _ids(taken[REFERENCE, batch_sizes[0]][0][1], model, settings)
    rate, read = float(np.median(rates)), float(np.median(reads))
    rows = []
    for (name, size), outs in taken.items():
        row = _row(name, size, outs, truth, model, sources, settings, rate, read)
        row["over_scheduled"] = over([wall for wall, _ in outs], [wall for wall, _ in taken[REFERENCE, size]])
        rows.append(row)
    return {"rows": rows, "absent": absent, "gflop_s": rate / 1e9, "read_gb_s": read}


def _ids(out: Output, model, settings: Settings) -> list[list[int]]:
    return [until_end(ids, model.target.end_token, settings.max_new_tokens) for ids in out.token_ids]


def _row(name: str, batch_size: int, outs: list[tuple[float, Output]], truth, model, sources, settings: Settings,
         rate: float, read: float) -> dict:
    ids = [_ids(out, model, settings) for _, out in outs]
    tokens = sum(map(len, ids[0]))
    seconds = [wall for wall, _ in outs]
    stats = [out.stats for _, out in outs if out.stats is not None]
    row = {
        "engine": name, "batch_size": batch_size, "articles": len(sources), "tokens": tokens,
        "differ": max(sum(a != b for a, b in zip(one, truth, strict=True)) for one in ids),
        "articles_per_second": spread([len(sources) / wall for wall in seconds]),
        "tokens_per_second": spread([tokens / wall for wall in seconds]),
        "seconds": {"total": float(np.median(seconds))}, "slot_utilisation": None, "tokens_per_step": None, "floor": None,
    }
    if stats:
        parts = {part: float(np.median([one.seconds[part] for one in stats])) for part in ("encode", "draft", "verify")}
        row["seconds"] |= parts | {"other": row["seconds"]["total"] - sum(parts.values())}
        row["slot_utilisation"], row["tokens_per_step"] = stats[0].slot_utilisation, stats[0].tokens_per_step
        row["floor"] = floor(model.target, sources, ids[0], stats[0], rate, read)
    return row


def over(ours: Sequence[float], plain: Sequence[float]) -> dict[str, float | None]:
    """Seconds of the engine over those of plain scheduled decoding at the same B: the geometric mean over the repeats, and
    its 95 % interval by Student's t (None for one repeat)."""
    logs = np.log(np.asarray(ours) / np.asarray(plain))
    mean, repeats = float(logs.mean()), len(logs)
    if repeats < 2:
        return {"mean": float(np.exp(mean)), "low": None, "high": None}
    reach = T95[min(repeats - 1, len(T95)) - 1] * float(logs.std(ddof=1)) / repeats**0.5
    return {"mean": float(np.exp(mean)), "low": float(np.exp(mean - reach)), "high": float(np.exp(mean + reach))}


def floor(target, sources, outputs, stats: DecodeStats, rate: float, read: float) -> dict[str, float]:
    """Least seconds of this work.

    Encoding by its FLOPs at `rate` FLOP/s. Decoding by the larger of the FLOPs of the emitted tokens and the bytes of the
    passes at `read` GB/s. Rejected drafts do not count.
    """
    c, inner = target.config, target.config.num_heads * target.config.d_kv
    matrices = c.num_decoder_layers * (6 * inner + (3 if c.gated else 2) * c.d_ff) * c.d_model + c.vocab_size * c.d_model
    encode = sum(encoder_flops(c, len(source)) + 4 * len(source) * c.d_model * inner * c.num_decoder_layers
                 for source in sources)
    decode = sum(2 * len(ids) * matrices + 4 * inner * c.num_decoder_layers * len(ids) * (len(source) + len(ids) / 2)
                 for source, ids in zip(sources, outputs, strict=True))
    volume = step_bytes(target, 0, 0)
    source = float(np.mean([len(source) for source in sources]))
    cached = step_bytes(target, round(source), round(float(np.mean([len(ids) for ids in outputs])) / 2))
    moved = stats.passes * (volume["layers"] + volume["head"]) + stats.steps * (cached["cross"] + cached["self"])
    seconds = {"encode": encode / rate, "decode_flops": decode / rate, "decode_bytes": moved / read / 1e9}
    total = seconds["encode"] + max(seconds["decode_flops"], seconds["decode_bytes"])
    return seconds | {"total": total}


def memory(path: Path, sources: Sequence[Sequence[int]], batch_size: int, max_new_tokens: int) -> dict | None:
    """Bytes by which a process grows over the articles, and the cache's own account; None where the system does not report
    memory."""
    import json

    if machine.anonymous_bytes() is None:
        return None
    given = json.dumps([str(path), batch_size, max_new_tokens, [list(source) for source in sources]])
    done = subprocess.run([sys.executable, "-c", MEMORY], input=given, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"batch_size": batch_size}
