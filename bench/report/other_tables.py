"""Tables of the smaller records: Spec-Bench, scaling, the regression alarm, the cost model."""

from __future__ import annotations

from collections.abc import Sequence

from foredraft.bench.report.collection import machine_name
from foredraft.bench.report.tables import Table, command_block, gate, interval, number, ran, rouge, wrapped

SPEC_BENCH_HEADS = ("method", "mean accepted tokens", "tok/s", "speed-up", "ROUGE-1/2/Lsum", "outputs that differ")
AXES = {"articles": "articles", "source": "source tokens", "output": "output tokens"}


def spec_bench_setting(row: dict) -> str:
    data, where = row["data"], machine_name(row)
    return f"{data['articles']} articles of {data['name']}, K={row['draft_tokens']}, {row['repeats']} runs, {where}"


def spec_bench_lines(row: dict) -> list[list[str]]:
    """A line (SPEC_BENCH_HEADS) for each method that ran."""
    return [[one["method"], number(found["mean_accepted_tokens"]),
             f"{found['tokens_per_second']:,.0f} ± {found['tokens_per_second_deviation']:,.0f}",
             f"{found['speed_up']:.2f}x ± {found['speed_up_deviation']:.2f}" if not one["differ"] else "-",
             rouge(one), gate(one)] for one in ran(row["rows"]) for found in [one["spec_bench"]]]


def spec_bench_table(rows: Sequence[dict]) -> str:
    """Markdown; empty without a record."""
    parts = []
    for row in rows:
        caption = wrapped(
            f"As Spec-Bench computes them: {spec_bench_setting(row)}. Means over articles of each article's speed, encoding "
            "included, ± the standard deviation over the runs.")
        missing = "".join(f"\n`{one['method']}` is absent: {one['absent']}.\n" for one in row["rows"] if one["absent"])
        table = Table("", SPEC_BENCH_HEADS, spec_bench_lines(row)).markdown()
        parts.append(f"{caption}\n\n{table}{missing}{command_block([row])}")
    return "\n".join(parts)


def scale_table(rows: Sequence[dict]) -> str:
    """Markdown: time and memory an article by size, and the slope of memory; empty without a record."""
    return "\n".join(map(_scale_table, rows))


def _scale_table(row: dict) -> str:
    text = [wrapped(
        f"Time and memory an article, drafter {row['drafter']['name']}, batch size {row['batch_size']}, the target "
        f"`{row['target']['hash']}`, {machine_name(row)}. Memory is the peak over the loaded model.") + "\n"]
    for axis, name in AXES.items():
        if points := row["curves"][axis]:
            text.append(Table("", (name, *(f"{point['size']:,}" for point in points)), (
                ["ms", *(f"{point['ms_per_article']:.1f}" for point in points)],
                ["MB", *(_megabytes(point["bytes_per_article"]) for point in points)])).markdown())
    if memory := row["memory"]:
        text.append("Resident memory over {n:,} articles: {slope:+.0f} bytes an article (95 % interval {low:+.0f} to "
                    "{high:+.0f}).\n".format(n=memory["articles"][-1], **memory["slope"]))
    return "\n".join(text) + command_block([row])


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f}"


def regression_text(rows: Sequence[dict]) -> str:
    """Markdown: how often the regression alarm was wrong, in a sentence for each record; empty without any."""
    return "\n".join(wrapped(
        f"{row['runs']} unchanged runs of {len(row['cases'])} cases raised {len(row['false_alarms'])} alarms "
        f"({row['timed_again']} timed again, changes {row['unchanged']['least']:.2f} to {row['unchanged']['most']:.2f}). "
        f"Slowed {row['slow']:g} times, {len(row['missed'])} were missed ({row['seeded']['least']:.2f} to "
        f"{row['seeded']['most']:.2f}; the alarm is at {row['limit']:.2f}). "
        f"{machine_name(row)}.") + "\n" + command_block([row]) for row in rows)


def theory_table(name: str, figures: dict) -> Table:
    """Predicted and measured speed-up by K, from figures of bench.studies.theory."""
    kept = "" if figures["kept"] is None else f", which gives {figures['kept']:.0%} of the best"
    lines = [[str(one["draft_tokens"]), number(one["c"], 3), number(one["v"]),
              number(one["acceptance"]["tokens_per_step"] if one["acceptance"] else 1.0), number(one["predicted"]),
              number(one["accounted"]), interval(one["speed_up"]) if "speed_up" in one else "other tokens"]
             for one in figures["rows"]]
    return Table(f"{name} at T={figures['temperature']:g}: alpha {figures['alpha']['value']:.3f}; the model picks "
                 f"K={figures['picked']}, the clock K={figures['best']}{kept}",
                 ("K", "c", "v(K+1)", "tokens/step", "predicted", "accounted", "measured (95 %)"), lines,
                 caption="accounted: measured tokens per step over the measured cost of a step")
