"""The records of a folder by kind: the source of pages, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foredraft.bench.harness.cases import SAMPLE_TEXTS
from foredraft.errors import UserError

BASELINE = "baseline"
# lines of a comparison have no kind; `eval` is of `foredraft eval`, `matrix` also states how the drafter was trained
RUN, DRAFTERS = "run", ("eval", "matrix")
# the task of larger_targets by default, and of its first records, which do not name it
SUMMARIES = "summaries"


@dataclass(frozen=True)
class Collection:
    """The newest record of each measurement.

    `runs`: comparisons by machine, temperature, batch size and K, on real articles only. `methods`: of methods_comparison,
    by machine, temperature and batch size. `larger`: of larger_targets, by task, size, the largest first, and the same
    settings.
    `drafters`: of `foredraft eval` and `foredraft matrix`, by drafter, method and seed. `steps`: by geometry. `theory`,
    `scale`, `throughput`, `regression`: of the commands and studies of that name. `beams`: of beam_speed, by geometry.
    `spec_bench`: of the suite. `all`: every record that states its command.
    """

    runs: list[list[dict]] = field(default_factory=list)
    methods: list[list[dict]] = field(default_factory=list)
    larger: dict[str, list[list[dict]]] = field(default_factory=dict)
    drafters: list[dict] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)
    theory: list[dict] = field(default_factory=list)
    scale: list[dict] = field(default_factory=list)
    throughput: list[dict] = field(default_factory=list)
    beams: list[dict] = field(default_factory=list)
    spec_bench: list[dict] = field(default_factory=list)
    regression: list[dict] = field(default_factory=list)
    all: list[dict] = field(default_factory=list)


def collect(path: Path) -> Collection:
    """Read a record file, or all .jsonl files of a folder. UserError: no file, or a line that is not a JSON object."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds no .jsonl record; run foredraft bench run --data FILE.jsonl first")
    rows = [row for file in files for row in read_objects(file)]
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        if "command" in row and "machine" in row:
            kinds.setdefault(row.get("kind", RUN), []).append(row)

    def newest(kind: str, key: Callable[[dict], tuple]) -> list[dict]:
        return list(latest(kinds.get(kind, ()), lambda row: (machine_name(row), *key(row))).values())

    evaluated = latest([row for kind in DRAFTERS for row in kinds.get(kind, ())],
                       lambda row: (machine_name(row), row["target"]["hash"], row["data"]["name"], *trained(row)))
    return Collection(
        latest_groups(kinds.get(RUN, ()), "temperature", "batch_size", "draft_tokens"),
        latest_groups(kinds.get("methods", ()), "temperature", "batch_size"),
        _by_task(kinds.get("larger-target", ())),
        list(evaluated.values()),
        newest("steps", lambda row: (row["geometry"], row["source_tokens"])),
        newest("theory", lambda row: (row["target"]["hash"], row["drafter"]["name"])),
        newest("scale", lambda row: (row["target"]["hash"],)),
        newest("throughput", lambda row: (row["target"]["hash"], row["drafter"], row["data"]["name"])),
        newest("beam-speed", lambda row: (row["target"]["hash"], row["geometry"])),
        newest("spec-bench", lambda row: (row["target"]["hash"], row["data"]["name"], row["draft_tokens"])),
        newest("regression", lambda row: ()),
        [row for kind in kinds.values() for row in kind])


def _by_task(rows: Sequence[dict]) -> dict[str, list[list[dict]]]:
    tasks: dict[str, list[dict]] = {}
    for row in rows:
        tasks.setdefault(row.get("task", SUMMARIES), []).append(row)
    return {task: sorted(latest_groups(found, "geometry", "temperature", "batch_size", "draft_tokens"),
                         key=lambda group: -group[0]["target"]["parameters"]) for task, found in tasks.items()}


def read_objects(path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object; restore it or delete the line")
        rows.append(row)
    return rows


def machine_name(row: dict) -> str:
    """The machine of a record: its GPU, or processor and threads."""
    machine = row["machine"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return machine.get("gpu") or f"{machine['cpu']}, {threads}"


def trained(row: dict) -> tuple[str, str | None, int]:
    """(drafter, training method or None, seed) of a record of `foredraft eval` or `foredraft matrix`."""
    training = row.get("training") or {}
    return training.get("drafter", row["drafter"]["kind"]), training.get("method"), training.get("seed", 0)


def latest(rows: Sequence[dict], key: Callable[[dict], tuple]) -> dict[tuple, dict]:
    """The newest record of each key, keys in order of their first record."""
    found: dict[tuple, dict] = {}
    for row in rows:
        if key(row) not in found or row["time"] >= found[key(row)]["time"]:
            found[key(row)] = row
    return found


def latest_groups(rows: Sequence[dict], *setting: str) -> list[list[dict]]:
    """The newest comparison of each machine and setting on real articles, sorted by them."""
    newest: dict[tuple, list[dict]] = {}
    for row in rows:
        key = (machine_name(row), *(row[name] for name in setting))
        if row["data"]["name"] == SAMPLE_TEXTS:
            continue
        known = newest.get(key)
        if known is None or row["time"] > known[0]["time"]:
            newest[key] = [row]
        elif row["time"] == known[0]["time"]:
            known.append(row)
    return [newest[key] for key in sorted(newest)]


def untrained(rows: Sequence[dict]) -> dict[str, dict]:
    """Records of untrained drafters and of checkpoints without training information, by name."""
    return {row["drafter"].get("path") or row["drafter"]["kind"]: row for row in rows if trained(row)[1] is None}


def by_method(rows: Sequence[dict]) -> dict[str, dict[str, list[dict]]]:
    """Records by drafter and training method (BASELINE first), one for each seed; untrained ones are left out."""
    found: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        drafter, method, _ = trained(row)
        if method is not None:
            found.setdefault(drafter, {}).setdefault(method, []).append(row)
    return {drafter: dict(sorted(methods.items(), key=lambda item: (item[0] != BASELINE, item[0])))
            for drafter, methods in sorted(found.items())}


def side_by_side(methods: dict[str, list[dict]], *names: str) -> list[list[dict]]:
    """Records of those of the methods that exist, restricted to the seeds that all have, so that means are comparable."""
    known = [methods[name] for name in names if name in methods]
    shared = set.intersection(*({trained(row)[2] for row in rows} for rows in known)) if known else set()
    return [[row for row in rows if trained(row)[2] in shared] for rows in known]


def figures_at(row: dict, temperature: float) -> dict | None:
    return next((figures for figures in row["figures"] if figures["temperature"] == temperature), None)


def alpha(figures: dict) -> float | None:
    return figures["alpha"]["value"]


def tokens_per_step(figures: dict) -> float | None:
    """Tokens per step at the K with the highest measured speed-up."""
    best = fastest(figures)
    return best["acceptance"]["tokens_per_step"] if best else None


def speed_up(figures: dict) -> float | None:
    """The highest decode speed-up over its K."""
    best = fastest(figures)
    return best["speed_up"]["median"] if best else None


def fastest(figures: dict) -> dict | None:
    """The K with the highest measured speed-up; None if no K has plain decoding's tokens."""
    known = [one for one in figures["rows"] if "speed_up" in one]
    return max(known, key=lambda one: one["speed_up"]["median"], default=None)


def values(rows: Sequence[dict], temperature: float, value: Callable[[dict], float | None]) -> list[float]:
    """A value of the figures at a temperature, of each seed that has it."""
    found = [figures_at(row, temperature) for row in rows]
    return [number for figures in found if figures is not None and (number := value(figures)) is not None]


def mean(rows: Sequence[dict], temperature: float, value: Callable[[dict], float | None]) -> float | None:
    """The mean of `values`; None without any."""
    found = values(rows, temperature, value)
    return sum(found) / len(found) if found else None


def best_distilled(methods: dict[str, list[dict]], temperature: float,
                   value: Callable[[dict], float | None] = alpha) -> str | None:
    """The method, other than the baseline, of the highest mean value; None without any."""
    means = {name: found for name, rows in methods.items()
             if name != BASELINE and (found := mean(rows, temperature, value)) is not None}
    return max(means, key=lambda name: means[name], default=None)
