"""Theory beside measurement: what alpha, c and v(K+1) promise for every K, what came, and the K that one would pick."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foredraft.bench.harness.evaluate import evaluate
from foredraft.bench.harness.settings import Settings

# K = 0 is plain decoding itself: the measure of all others.
_ONE = {"median": 1.0, "p20": 1.0, "p80": 1.0, "low": 1.0, "high": 1.0}
_PLAIN = {"draft_tokens": 0, "acceptance": None, "c": None, "v": 1.0, "predicted": 1.0, "accounted": 1.0, "differing": 0,
          "speed_up": _ONE}


def theory(model, sources: Sequence[Sequence[int]], settings: Settings, draft_tokens: Sequence[int],
           on_batch: Callable[[], None] = lambda: None) -> dict:
    """bench.evaluate's figures for every K, 0 among them, and what follows from them.

    A row also has `accounted`: its measured tokens a round over the cost of a round in plain steps. Where it meets the
    measured speed-up and `predicted` does not, it is the distribution of independent acceptance that fails, not the costs. `picked`:
    the K of the highest prediction; `best`: of the highest measured speed-up; `kept`: the share of the best speed-up that
    the pick gives.
    """
    one = "drafter"
    return verified(evaluate({one: model}, sources, settings, {one: [K for K in draft_tokens if K]}, on_batch)[one])


def verified(figures: dict) -> dict:
    """The figures of bench.evaluate with accounted, picked, best and kept."""
    rows = [_PLAIN, *(row | {"accounted": accounted(row)} for row in figures["rows"])]
    guessed = {row["draft_tokens"]: row["predicted"] for row in rows if row["predicted"] is not None}
    measured = {row["draft_tokens"]: row["speed_up"]["median"] for row in rows if "speed_up" in row}
    picked, best = max(guessed, key=guessed.__getitem__), max(measured, key=measured.__getitem__)
    kept = measured[picked] / measured[best] if picked in measured else None
    return figures | {"rows": rows, "picked": picked, "best": best, "kept": kept}


def accounted(row: dict) -> float | None:
    """Tokens a round over its cost in plain steps: c for every id that was really drafted, and v."""
    found = row["acceptance"]
    if row["c"] is None or not found["rounds"]:
        return None
    return found["tokens_per_step"] / (row["c"] * found["drafted"] / found["rounds"] + row["v"])
