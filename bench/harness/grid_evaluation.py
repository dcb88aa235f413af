"""Evaluation of a drafter grid: the runs of one drafter, interleaved with plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from foredraft.bench.harness import cases, evaluate
from foredraft.bench.harness.settings import Settings


def evaluate_runs(model, checkpoints: Sequence[Path], test: Path, articles: int, validation: Path, tuning: int,
                  draft_tokens: Sequence[int], temperatures: Sequence[float],
                  say: Callable[[str], None] = print) -> list[dict]:
    """A record for each checkpoint, with figures on `articles` of `test` at each temperature.

    The K of each is the fastest of `draft_tokens` on `tuning` articles of `validation`; with tuning = 0 every K is measured
    on the test articles. `model` is the target with any drafter.
    """
    models, kinds = {}, {}
    for checkpoint in checkpoints:
        spec, kinds[checkpoint.name] = evaluate.drafter_spec(checkpoint, None)
        models[checkpoint.name] = model.with_drafter(spec)

    def read(data: Path, limit: int) -> list[cases.Case]:
        return cases.load_cases(data, model.tokenizer, limit=limit, max_source=model.source_limit)

    found, heldout = read(test, articles), read(validation, tuning) if tuning else []
    sources = [case.source for case in found]
    figures: dict[str, list[dict]] = {name: [] for name in models}
    for temperature in temperatures:
        settings = Settings(temperature=temperature, repeats=1)
        chosen = {name: list(draft_tokens) for name in models}
        if tuning:
            best = evaluate.fastest(models, [case.source for case in heldout], settings, draft_tokens)
            chosen = {name: [K] for name, K in best.items()}
            say(f"T={temperature:g}: K of {best}")
        for name, one in evaluate.evaluate(models, sources, settings, chosen).items():
            figures[name].append(one)
    common = evaluate.common_fields(model, cases.describe(test, found), settings)
    tuned = {"data": cases.describe(validation, heldout), "draft_tokens": list(draft_tokens)} if tuning else None
    return [common | {"drafter": {"kind": kinds[name], "path": name}, "draft_tokens_chosen_on": tuned, "figures": one}
            for name, one in figures.items()]
