"""Made-up records of every kind, in the schemas that the commands write."""

from __future__ import annotations

MACHINE = {"cpu": "Acme 7", "cores": 2, "threads": 2, "gpu": None, "system": "Linux", "python": "3", "torch": "2",
           "read_gb_s": 30.0}
TARGET = {"model": "m", "hash": "abc", "dtype": "float32", "weights": "bf16", "parameters": 2_000_000, "threads": 2}
DATA = {"name": "test.jsonl.gz", "articles": 30, "source_tokens": {"min": 5, "median": 7.0, "max": 9}, "articles_cut": 0,
        "tokens_cut": 0}
METHODS = ("baseline", "Seq_KD", "on_policy_GKD")


def spread(value: float) -> dict:
    return {"median": value, "p20": value * 0.9, "p80": value * 1.1}


def interval(value: float) -> dict:
    return spread(value) | {"low": value * 0.8, "high": value * 1.2}


def acceptance(alpha: float, K: int) -> dict:
    return {"steps": 100, "drafted": 100 * K, "tested": 60 * K, "accepted": 40 * K, "rate": alpha, "per_drafted": alpha / 2,
            "tokens_per_step": 1 + alpha * K / 2, "coverage": 0.9, "at": [alpha - 0.03 * position for position in range(K)]}


def run_rows(temperature: float = 0.0, batch_size: int = 1, time: str = "2026-01-01T00:00:00+00:00", speed: float = 1000.0,
             data: dict = DATA) -> list[dict]:
    """A comparison: plain, a drafter, another engine whose tokens differ, one that is absent."""
    common = {"schema": 2, "time": time, "foredraft": "0", "command": f"foredraft bench run --at {time}", "machine": MACHINE,
              "target": TARGET, "device": "cpu", "data": data, "batch_size": batch_size, "max_new_tokens": 64,
              "draft_tokens": 5, "temperature": temperature, "seed": 0, "repeats": 3}
    rows = []
    for method, times, ours in (("plain", 1.0, True), ("lookup", 2.0, True), ("hf-greedy", 0.2, False)):
        phases = {"encode": 0.3, "draft": 0.1, "verify": 1.0, "other": 0.1} if ours else {
            "encode": 0.3, "draft": None, "verify": None, "other": None}
        drafts = acceptance(0.8, 5) | {"alpha_tv": 0.7} if method == "lookup" else acceptance(0, 0) | {"drafted": 0}
        rows.append(common | {
            "method": method, "absent": None, "differ": 0 if ours else 3, "tokens": 900,
            "seconds": {"total": 1.5} | phases,
            "tokens_per_second": spread(speed * times), "tokens_per_second_encoding": spread(speed * times),
            "speed_up": interval(times) if ours else None, "speed_up_encoding": interval(times) if ours else None,
            "acceptance": drafts if ours else None,
            "floor": {"encode": 0.2, "decode_flops": 0.1, "decode_bytes": 0.8, "total": 1.0} if ours else None})
    return [*rows, common | {"method": "hf-assisted", "absent": "no assistant"}]


def drafter_row(drafter: str = "lstm", method: str | None = "baseline", seed: int = 0, alpha: float = 0.4,
                time: str = "2026-01-01T00:00:00+00:00", Ks: tuple[int, ...] = (1, 2, 3, 5)) -> dict:
    """A row of `foredraft eval`, or with a method of `foredraft matrix`."""
    figures = [{
        "temperature": temperature, "plain_step_ms": 1.0,
        "alpha": {"value": alpha - 0.1 * temperature, "low": alpha - 0.12, "high": alpha + 0.02, "prefixes": 900},
        "rows": [{"draft_tokens": K, "acceptance": acceptance(alpha, K), "c": 0.1, "v": 1 + 0.05 * K,
                  "predicted": 1 + alpha - 0.05 * K, "differing": 0, "speed_up": interval(1.1 + alpha - 0.05 * K),
                  "speed_up_whole": interval(1.1), "tokens_per_second": spread(900.0)} for K in Ks],
    } for temperature in (0.0, 1.0)]
    row = {"kind": "eval", "time": time, "foredraft": "0", "command": f"foredraft eval {drafter} {method}",
           "machine": MACHINE, "target": TARGET, "drafter": {"kind": drafter, "path": drafter}, "data": DATA,
           "batch_size": 1, "max_new_tokens": 64, "seed": 0, "repeats": 1, "figures": figures}
    if method is None:
        return row
    return row | {"kind": "matrix", "training": {"drafter": drafter, "method": method, "seed": seed}}


def drafter_rows() -> list[dict]:
    return [drafter_row(drafter, method, seed, 0.3 + 0.08 * number + 0.15 * METHODS.index(method) / 2 + 0.01 * seed)
            for number, drafter in enumerate(("cnn", "lstm", "ngram", "t5shallow", "t5small")) for method in METHODS
            for seed in (0, 1)]


def steps_row() -> dict:
    one = {"loaded_bytes": 9, "weight_bytes": 8, "read_gb_s": 30.0, "bytes": {"layers": 1}, "floor_ms": 10.0,
           "step_ms": {str(n): spread(11.0 + n) for n in range(1, 7)}, "over_floor": 1.2,
           "v": {str(n): 1 + 0.02 * n for n in range(1, 7)},
           "parts_ms": {f"{part} 1": value for part, value in (("matrices", 8.0), ("cross-attention", 1.0),
                                                              ("head and argmax", 2.0))},
           "encoder": {"gflop": 9.0, "gflop_s": 400.0, "ms": 280.0, "share_of_floor": 0.8}}
    # a command without a space for long, as lists and paths are
    return {"kind": "steps", "time": "2026-01-01T00:00:00+00:00", "command": f"foredraft bench steps {'a,' * 99}",
            "machine": MACHINE,
            "geometry": "flan-t5-base", "source_tokens": 512, "weights": {"fp32": one, "int8": one}, "peers": {}}


def theory_row() -> dict:
    from foredraft.bench.studies.theory import with_picks

    row = drafter_row("lookup", None, Ks=(1, 2, 3))
    return row | {"kind": "theory", "drafter": {"name": "lookup", "kind": "lookup"},
                  "figures": [with_picks(figures) for figures in row["figures"]]}


def throughput_row() -> dict:
    rows = [{"engine": engine, "batch_size": size, "differ": differ, "articles_per_second": spread(speed * size**0.5)}
            for engine, speed, differ in (("scheduled", 9.0, 0), ("transformers", 2.0, 0), ("ctranslate2", 4.0, 3))
            for size in (1, 8)]
    return {"kind": "throughput", "time": "2026-01-01T00:00:00+00:00", "command": "foredraft bench throughput",
            "machine": MACHINE, "target": TARGET, "data": DATA, "geometry": None, "drafter": "none", "rows": rows}


def scale_row() -> dict:
    def points(*sizes: int) -> list[dict]:
        return [{"size": size, "ms_per_article": 20 + size / 8, "least_ms": 20.0, "rss": 500_000_000,
                 "bytes_per_article": 3e7 / size} for size in sizes]

    return {"kind": "scale", "time": "2026-01-01T00:00:00+00:00",
            "command": "python -m foredraft.bench.studies.scale --data test.jsonl.gz",
            "machine": MACHINE, "target": TARGET, "data": DATA, "batch_size": 8, "draft_tokens": 5,
            "drafter": {"name": "lookup"}, "loaded_bytes": 400_000_000, "complete": True,
            "curves": {"articles": points(1, 64, 4096), "output": points(16, 512), "source": points(64, 2048)},
            "memory": {"articles": [8, 16, 24], "rss": [5e8, 5.1e8, 5.1e8],
                       "slope": {"slope": 12.0, "low": -90, "high": 99}}}


def regression_row() -> dict:
    return {"kind": "regression", "time": "2026-01-01T00:00:00+00:00",
            "command": "python -m foredraft.bench.studies.regression_proof",
            "machine": MACHINE, "runs": 3, "slow": 1.5, "limit": 1.22, "timed_again": 2, "false_alarms": [],
            "missed": ["bench/a"],
            "cases": [{"case": "bench/a", "unchanged": [0.97, 1.02, 1.1], "seeded": 1.2},
                      {"case": "bench/b", "unchanged": [0.99, 1.0, 1.01], "seeded": 1.51}],
            "unchanged": {"least": 0.97, "most": 1.1}, "seeded": {"least": 1.2, "most": 1.51}}


def spec_bench_row() -> dict:
    found = {"mean_accepted_tokens": 2.5, "tokens_per_second": 900.0, "tokens_per_second_deviation": 12.0,
                "speed_up": 1.9,
            "speed_up_deviation": 0.04}
    rows = [row | {"rouge": {"rouge1": 30.1, "rouge2": 11.2, "rougeLsum": 28.3},
                   "spec_bench": None if row["absent"] else found} for row in run_rows()]
    return {name: rows[0][name] for name in ("time", "machine", "target", "data", "draft_tokens", "repeats")} | {
        "kind": "spec-bench", "command": "foredraft bench run --suite spec-bench", "rows": rows}


def methods_rows(temperature: float = 0.0, batch_size: int = 1, time: str = "2026-01-01T00:00:00+00:00") -> list[dict]:
    """A setting of methods_comparison: plain, drafters at their K and adaptive, other tokens, auto, one absent."""
    common = {"kind": "methods", "time": time, "foredraft": "0",
              "command": f"python -m foredraft.bench.studies.methods_comparison --at {time}",
              "machine": MACHINE, "target": TARGET, "data": DATA, "tuned_on": 8, "max_new_tokens": 64, "repeats": 3,
              "seed": 0, "temperature": temperature, "batch_size": batch_size}
    rows = []
    for drafter, K, times, other in (("plain", 0, 1.0, 0), ("lookup", 5, 2.0, 0), ("lookup", "auto", 2.1, 0),
                                     ("runs/lstm", 3, 1.5, 0), ("runs/lstm", "auto", 9.0, 2), ("auto", "auto", 2.2, 0)):
        simulated = {"geometry": "flan-t5-xl", "machine": "h200", "step": {"source": 512}, "draft_tokens": 8,
                "tokens_per_step": 3.0, "plain_us": 900.0, "draft_us": 10.0, "pass_us": 950.0, "tokens_per_second": 3000.0,
                "speed_up": 1.3 + times}
        rows.append(common | {
            "drafter": drafter, "draft_tokens": K, "verification": "token", "absent": None, "differ": other, "tokens": 900,
            "seconds": {"total": 1.5, "encode": 0.3, "draft": 0.1, "verify": 1.0, "other": 0.1},
            "tokens_per_second": spread(1000 * times), "tokens_per_second_encoding": spread(900 * times),
            "speed_up": None if other else interval(times), "speed_up_encoding": None if other else interval(times),
            "acceptance": acceptance(0.8, 5), "trace": {"steps": 100, "emitted": 300},
            "of_best": interval(times / 2.1) | {"way": "lookup, K=auto"},
            "simulated": simulated if K in (3, 5) else None})
    return [*rows, common | {"drafter": "tree:x", "draft_tokens": None, "verification": None, "absent": "no such thing"}]


def larger_rows(geometry: str = "flan-t5-base", temperature: float = 0.0, batch_size: int = 1) -> list[dict]:
    """A size and setting of larger_targets: the methods of run_rows."""
    common = {"kind": "larger-target", "geometry": geometry, "behaves_like": "abcdef", "encoder": "int8",
              "command": f"python -m foredraft.bench.studies.larger_targets --geometry {geometry}"}
    parameters = {"flan-t5-xl": 3_000_000_000}.get(geometry, 250_000_000)
    common["target"], costs = TARGET | {"parameters": parameters}, {"c": 0.01, "v": 1.2, "predicted": 2.5}
    return [row | common | {"costs": costs if row["method"] == "lookup" else None}
            for row in run_rows(temperature, batch_size)]


def every_kind() -> list[dict]:
    return [row for temperature in (0.0, 1.0) for size in (1, 8) for row in run_rows(temperature, size)] + [
        *drafter_rows(), drafter_row("lookup", None), steps_row(), theory_row(), throughput_row(),
        scale_row(), regression_row(), spec_bench_row(),
        *larger_rows(), *larger_rows("flan-t5-xl", 1.0),
        *(row for temperature in (0.0, 1.0) for size in (1, 8) for row in methods_rows(temperature, size))]
