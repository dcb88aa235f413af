"""Tables of `foredraft eval` and `foredraft matrix`: drafters before and after distillation."""

from __future__ import annotations

from collections.abc import Sequence

from foredraft.bench.report.collection import (
    BASELINE,
    alpha,
    best_distilled,
    by_method,
    figures_at,
    machine_name,
    mean,
    side_by_side,
    speed_up,
    tokens_per_step,
    trained,
)
from foredraft.bench.report.tables import Table, command_block, number, wrapped

HEADS = ("drafter", "method", "seed", "T", "alpha (95 %)", "K", "tokens/step", "accepted/tested", "c", "v(K+1)", "predicted",
         "measured")


def drafters_table(rows: Sequence[dict]) -> str:
    """Markdown: each drafter's baseline beside its best distilled twin; empty without records."""
    drafters = by_method(rows)
    if not drafters:
        return ""
    known = [row for methods in drafters.values() for found in methods.values() for row in found]
    first, seeds = known[0], {trained(row)[2] for row in known}
    said = "one seed" if len(seeds) == 1 else f"means over the seeds that both sides have (1 to {len(seeds)})"
    caption = wrapped(
        f"{first['data']['articles']} articles of {first['data']['name']}, the target `{first['target']['hash']}`, "
        f"{machine_name(first)}; {said}; of the distillation methods, the one with the highest alpha. A cell: baseline → "
        f"distilled.")
    lines = []
    for drafter, methods in drafters.items():
        for temperature in (figures["temperature"] for figures in first["figures"]):
            best = best_distilled(methods, temperature)
            pair = side_by_side(methods, BASELINE, *([best] if best else []))
            cells = [" → ".join(number(mean(found, temperature, value), digits) for found in pair)
                     for value, digits in ((alpha, 3), (tokens_per_step, 2), (speed_up, 2))]
            lines.append([drafter, f"{temperature:g}", best or "-", *cells])
    table = Table("", ("drafter", "T", "method", "alpha", "tokens/step", "decode speed-up"), lines)
    return f"{caption}\n\n{table.markdown()}{command_block(known)}"


def drafter_lines(rows: Sequence[dict], temperatures: Sequence[float]) -> list[list[str]]:
    """A line (HEADS) for each drafter, method, seed, temperature and K."""
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
                    *(number(value, digits) for value, digits in (
                        (found["tokens_per_step"], 2), (found["rate"], 3), (one["c"], 3), (one["v"], 3),
                        (one["predicted"], 2))),
                    f"{one['speed_up']['median']:.2f}x" if "speed_up" in one else f"{one['differing']} differ"])
    return lines
