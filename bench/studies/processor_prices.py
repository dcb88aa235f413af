"""The cost of each generation argument: microseconds a step more than without it.

    python -m foredraft.bench.studies.processor_prices

Runs are interleaved. Every argument but top_k and top_p is set so that it changes no token, so that all runs have the same
steps; the table says whether the tokens were the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median

from foredraft.bench.harness.cases import describe
from foredraft.bench.harness.interleave import orders, wait_until_idle
from foredraft.bench.harness.record import common_fields
from foredraft.bench.report.tables import Table, number
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, read_articles, run_script

# An n-gram size longer than any output here, and a bound below which no kept probability lies.
LONG, TINY = 400, 1e-30


def harmless(vocabulary: int, unused: int) -> dict[str, dict]:
    """Arguments by name, none of which changes a greedy output. unused: a token that no output has."""
    return {
        "repetition_penalty": {"repetition_penalty": 1 + 1e-7},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 1 + 1e-7},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": LONG},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": LONG},
        "bad_words_ids, 100 of them": {"bad_words_ids": [[unused, token] for token in range(100)]},
        "sequence_bias, 100 of them": {"sequence_bias": [([unused, token], 1.0) for token in range(100)]},
        "suppress_tokens": {"suppress_tokens": [unused]},
        "min_new_tokens": {"min_new_tokens": 1},
        "remove_invalid_values": {"remove_invalid_values": True},
        "logits_processor": {"logits_processor": [lambda ids, scores: scores]},
        "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda index, ids: range(vocabulary)},
        "logprobs=5": {"logprobs": 5},
        "stopping_criteria": {"stopping_criteria": [lambda ids, scores: False]},
    }


FILTERS = {"min_p": {"min_p": TINY}, "typical_p": {"typical_p": 1 - 1e-12}, "epsilon_cutoff": {"epsilon_cutoff": TINY},
           "eta_cutoff": {"eta_cutoff": TINY}, "top_k": {"top_k": 1000}, "top_p": {"top_p": 0.9}}


def measure(runs: dict[str, Callable], repeats: int, on_step: Callable[[], None]) -> list[dict]:
    """Seconds and steps of each run, and the microseconds that its argument adds to a step."""
    found = {name: run() for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for order in islice(orders(list(runs), 0), repeats):
        for name in order:
            wait_until_idle()
            began = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - began)
        on_step()
    base = median(taken["none"])
    return [{"name": name, "steps": out.stats.steps, "same": out.token_ids == found["none"].token_ids,
             "seconds": median(taken[name]), "us_a_step": (median(taken[name]) - base) / out.stats.steps * 1e6,
             "step_us": base / found["none"].stats.steps * 1e6} for name, out in found.items()]


def main(
    target: options.Target = None,
    drafter: options.Drafter = "lookup",
    data: options.Data = None,
    limit: options.Limit = 8,
    max_new_tokens: options.MaxNewTokens = 64,
    draft_tokens: options.MaxDraftTokens = 5,
    repeats: options.Repeats = 7,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
) -> None:
    """Measure the cost of each generation argument."""
    model = open_model(target, drafter)
    found = read_articles(data, model, limit)
    sources, vocabulary = [case.source for case in found], model.target.config.vocab_size

    def of(arguments: dict, K: int, sampled: dict | None = None) -> Callable:
        return lambda: model.generate(sources, max_new_tokens=max_new_tokens, draft_tokens=K, batch_size=1,
                                      **arguments | (sampled or {}))

    parts = {
        f"greedy, K = {K}": {"none": of({}, K)} | {
            name: of(arguments, K) for name, arguments in harmless(vocabulary, vocabulary - 1).items()}
        for K in (0, draft_tokens)}
    sampled = {"do_sample": True, "seed": 1}
    parts["sampled, K = 0"] = {"none": of({}, 0, sampled)} | {
        name: of(arguments, 0, sampled) for name, arguments in FILTERS.items()}
    with counting(repeats * len(parts)) as advance:
        measured = {part: measure(runs, repeats, advance) for part, runs in parts.items()}
    row = common_fields("processor-prices", model=model, data=describe(data, found)) | {
        "max_new_tokens": max_new_tokens, "draft_tokens": draft_tokens, "repeats": repeats, "parts": measured}
    finish([row], out, _tables(row), as_json)


def _tables(row: dict) -> Iterator[Table]:
    for part, rows in row["parts"].items():
        yield Table(f"{part}: {rows[0]['step_us']:,.0f} us a step without", ("argument", "us more a step", "same tokens"), [
            [one["name"], number(one["us_a_step"], 0), "yes" if one["same"] else "no"] for one in rows])


if __name__ == "__main__":
    run_script(main)
