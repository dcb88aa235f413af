"""The table of Spec-Bench's figures."""

from __future__ import annotations

from collections.abc import Sequence

from foredraft.bench.report.collection import place
from foredraft.bench.report.tables import gate, number, rouge

HEADS = ("method", "tokens a round", "tok/s", "speed-up", "ROUGE-1/2/Lsum", "articles that differ")


def setting(row: dict) -> str:
    data = row["data"]
    return f"{data['articles']} articles of {data['name']}, K={row['draft_tokens']}, {row['repeats']} runs, {place(row)}"


def lines(row: dict) -> list[tuple[str, ...]]:
    """A line (HEADS) for each method that ran."""
    shown = []
    for one in row["rows"]:
        if one["absent"] is None:
            found = one["spec_bench"]
            shown.append((
                one["method"], number(found["mean_accepted_tokens"]),
                f"{found['tokens_per_second']:,.0f} ± {found['tokens_per_second_deviation']:,.0f}",
                f"{found['speed_up']:.2f}x ± {found['speed_up_deviation']:.2f}" if not one["differ"] else "-",
                rouge(one), gate(one)))
    return shown


def spec_bench_table(rows: Sequence[dict]) -> str:
    """Markdown; empty without a record."""
    parts = []
    for row in rows:
        shown = [f"Spec-Bench's way: {setting(row)}; means over articles of each one's own speed, encoding included, "
                 "± the deviation over the runs:", "", "| " + " | ".join(HEADS) + " |",
                 "|---|" + "---:|" * (len(HEADS) - 1)]
        shown += ["| " + " | ".join(line) + " |" for line in lines(row)]
        shown += [""] + [f"`{one['method']}` is absent: {one['absent']}." for one in row["rows"] if one["absent"]]
        parts.append("\n".join(shown) + f"\n\n```\n{row['command']}\n```\n")
    return "\n".join(parts)
