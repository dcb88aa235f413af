"""Goals of the GPU path, and whether the records of a machine meet them: the last table of `foredraft bench gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

Rows = dict[str, list[dict]]


@dataclass(frozen=True)
class Goal:
    """`found(rows)` has to be at least `bound`, or at most if `at_most`; it is None if it was not measured."""

    name: str
    bound: float
    found: Callable[[Rows], float | None]
    at_most: bool = False


def _only(rows: Rows, section: str, **wanted) -> Iterator[dict]:
    return (row for row in rows.get(section, []) if all(row.get(name) == value for name, value in wanted.items()))


def _first(rows: Rows, section: str, value: str, **wanted) -> float | None:
    return next((row[value] for row in _only(rows, section, **wanted) if row.get(value) is not None), None)


def _failed(rows: Rows) -> float | None:
    found = [row["passed"] for section in rows.values() for row in section if row.get("passed") is not None]
    return found.count(False) if found else None


def _over_transformers(rows: Rows) -> float | None:
    ours = _first(rows, "steps", "us", geometry="flan-t5-xl", batch=1, reads=1)
    theirs = _first(rows, "peers", "us", geometry="flan-t5-xl", batch=1, engine="transformers static + compile")
    return theirs["median"] / ours["median"] if ours and theirs else None


def _overhead(rows: Rows) -> float | None:
    """The larger of plain steps' and of drafted steps' overhead."""
    found = {row["draft_tokens"]: row["overhead"] for row in _only(rows, "loop", geometry="flan-t5-xl", batch=1)}
    return max(found.values()) if len(found) > 1 else None


def _largest(values: Iterator[float]) -> float | None:
    return max(values, default=None)


GOALS = (
    Goal("checks that failed", 0, _failed, at_most=True),
    Goal("XL, plain step, B=1: share of the copy bandwidth", 0.75,
         lambda rows: _first(rows, "steps", "share", geometry="flan-t5-xl", batch=1, reads=1)),
    Goal("XL, plain step, B=1: times faster than transformers static + compile", 2.0, _over_transformers),
    Goal("verification in a graph, B<=8: us, the slowest", 10,
         lambda rows: _largest(row["ours_us"] for row in rows.get("verification", []) if row.get("batch", 9) <= 8),
         at_most=True),
    Goal("verification, B=128: times the time of its bytes, the slowest", 3,
         lambda rows: _largest(row["over_floor"] for row in _only(rows, "verification", batch=128) if "over_floor" in row),
         at_most=True),
    Goal("XL, B=1: overhead of a step over its passes, plain or with drafts, the larger", 0.05, _overhead, at_most=True),
    Goal("XL, B=1, with drafts: tokens/s, MODELLED from measured passes and real acceptance", 3_000,
         lambda rows: _first(rows, "model", "measured_tokens_per_second", batch=1)),
    Goal("XL, B=32, with drafts: tokens/s, MODELLED from measured passes and real acceptance", 15_000,
         lambda rows: _first(rows, "model", "measured_tokens_per_second", batch=32)),
)


def goals_met(rows: Rows) -> list[dict]:
    """Each goal with the measured number, and whether it is met (None: not measured)."""
    out = []
    for goal in GOALS:
        found = goal.found(rows)
        met = None if found is None else found <= goal.bound if goal.at_most else found >= goal.bound
        out.append({"goal": goal.name, "bound": goal.bound, "at_most": goal.at_most, "found": found, "met": met})
    return out
