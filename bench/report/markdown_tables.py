"""The README's tables, in Markdown, from records: comparisons, and drafters before and after distillation."""

from __future__ import annotations

from collections.abc import Sequence

from foredraft.bench.report.collection import (
    BASELINE,
    alpha,
    best_distilled,
    by_method,
    figures_at,
    mean,
    place,
    side_by_side,
    speed_up,
    tokens_per_step,
    trained,
)
from foredraft.bench.report.tables import accepted, gate, rate, times

RUN_COLUMNS = (
    ("tok/s", rate("tokens_per_second")),
    ("speed-up", times("speed_up")),
    ("with encoding", times("speed_up_encoding")),
    ("tokens a round", accepted("tokens_per_step")),
    ("accepted / tested", accepted("rate")),
    ("alpha", accepted("alpha_tv")),
    ("articles that differ", gate),
)


def runs_table(runs: Sequence[Sequence[dict]]) -> str:
    """A Markdown table for each machine and target, under a line that says what was measured where."""
    groups: dict[tuple, list[Sequence[dict]]] = {}
    for run in runs:
        row = run[0]
        groups.setdefault((place(row), row["target"]["hash"], row["data"]["name"]), []).append(run)
    return "\n".join(_runs_table(group) for group in groups.values())


def _runs_table(runs: Sequence[Sequence[dict]]) -> str:
    row = runs[0][0]
    target, articles = row["target"], _span([run[0]["data"]["articles"] for run in runs])
    sizes = [run[0]["data"]["source_tokens"][end] for run in runs for end in ("min", "max")]
    lines = [
        f"{articles} articles of {row['data']['name']} ({_span(sizes)} source tokens), the target `{target['hash']}` "
        f"({target['parameters'] / 1e6:.1f}M, {target['weights']}), up to {row['max_new_tokens']} new tokens, "
        f"{row['repeats']} passes, {place(row)}. T=0 is greedy; speed-ups are over `plain` of the same run.", "",
        "| T | B | K | method | " + " | ".join(name for name, _ in RUN_COLUMNS) + " |",
        "|---|---|---|---|" + "---:|" * len(RUN_COLUMNS),
    ]
    absent: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for row in run:
            if row["absent"] is None:
                cells = " | ".join(cell(row) for _, cell in RUN_COLUMNS)
                lines.append(f"| {row['temperature']:g} | {row['batch_size']} | {row['draft_tokens']} | {row['method']} | "
                             f"{cells} |")
            else:
                where = f"T={row['temperature']:g} B={row['batch_size']}"
                absent.setdefault((row["method"], row["absent"]), []).append(where)
    lines += [""] + [f"`{method}` is absent at {', '.join(where)}: {why}." for (method, why), where in absent.items()]
    commands = "\n".join(dict.fromkeys(run[0]["command"] for run in runs))
    return "\n".join(lines) + f"\n\n```\n{commands}\n```\n"


def _span(numbers: Sequence[int]) -> str:
    return "-".join(str(number) for number in sorted({min(numbers), max(numbers)}))


def drafters_table(rows: Sequence[dict]) -> str:
    """Each drafter's baseline beside its best distilled twin: alpha, tokens a round, decode speed-up; empty without any."""
    drafters = by_method(rows)
    if not drafters:
        return ""
    first = next(iter(next(iter(drafters.values())).values()))[0]
    seeds = {trained(row)[2] for methods in drafters.values() for found in methods.values() for row in found}
    said = "one seed" if len(seeds) == 1 else f"means over the seeds that both sides have, 1 to {len(seeds)}"
    lines = [
        f"{first['data']['articles']} articles of {first['data']['name']}, the target `{first['target']['hash']}`, "
        f"{place(first)}; {said}, the distilled method of the highest alpha. "
        "A cell: baseline → distilled.", "",
        "| drafter | T | method | alpha | tokens a round | decode speed-up |", "|---|---|---|---:|---:|---:|"]
    for drafter, methods in drafters.items():
        for temperature in (figures["temperature"] for figures in first["figures"]):
            best = best_distilled(methods, temperature)
            pair = side_by_side(methods, BASELINE, *([best] if best else []))
            cells = [" → ".join(_cell(mean(found, temperature, value), form) for found in pair)
                     for value, form in ((alpha, ".3f"), (tokens_per_step, ".2f"), (speed_up, ".2f"))]
            lines.append(f"| {drafter} | {temperature:g} | {best or '-'} | " + " | ".join(cells) + " |")
    commands = "\n".join(dict.fromkeys(row["command"] for methods in drafters.values() for found in methods.values()
                                       for row in found))
    return "\n".join(lines) + f"\n\n```\n{commands}\n```\n"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


DRAFTER_HEADS = ("drafter", "method", "seed", "T", "alpha (95 %)", "K", "tokens a round", "accepted / tested", "c", "v(K+1)",
                 "predicted", "measured")


def drafter_rows(rows: Sequence[dict], temperatures: Sequence[float]) -> list[list[str]]:
    """A line (DRAFTER_HEADS) for every drafter, method, seed, temperature and K."""
    lines = []
    for row in rows:
        drafter, method, seed = trained(row)
        for temperature in temperatures:
            if (figures := figures_at(row, temperature)) is None:
                continue
            known = figures["alpha"]
            for one in figures["rows"]:
                found = one["acceptance"]
                lines.append([
                    drafter, method or "-", str(seed), f"{temperature:g}",
                    f"{known['value']:.3f} ({known['low']:.3f}-{known['high']:.3f})", str(one["draft_tokens"]),
                    *("-" if value is None else f"{value:.{digits}f}" for value, digits in (
                        (found["tokens_per_step"], 2), (found["rate"], 3), (one["c"], 3), (one["v"], 3),
                        (one["predicted"], 2))),
                    f"{one['speed_up']['median']:.2f}x" if "speed_up" in one else f"{one['differing']} differ"])
    return lines
