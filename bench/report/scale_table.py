"""The table of `foredraft bench scale`: time and memory an article by size."""

from __future__ import annotations

from collections.abc import Sequence

from foredraft.bench.report.collection import place

AXES = {"articles": "articles", "source": "source tokens", "output": "output tokens"}


def scale_table(rows: Sequence[dict]) -> str:
    """Markdown: time and memory an article by size, and the slope of memory; empty without a record."""
    return "\n".join(map(_scale_table, rows))


def _scale_table(row: dict) -> str:
    lines = [f"Time and memory an article, drafter {row['drafter']['name']}, {row['batch_size']} decoded together, the "
             f"target `{row['target']['hash']}`, {place(row)}; memory is the peak over the loaded model:"]
    for axis, name in AXES.items():
        if points := row["curves"][axis]:
            lines += ["", f"| {name} | " + " | ".join(f"{point['size']:,}" for point in points) + " |",
                      "|---|" + "---:|" * len(points),
                      "| ms | " + " | ".join(f"{point['ms_per_article']:.1f}" for point in points) + " |",
                      "| MB | " + " | ".join(_megabytes(point["bytes_per_article"]) for point in points) + " |"]
    if memory := row["memory"]:
        lines += ["", "Resident memory over {n:,} articles: {slope:+.0f} bytes an article (95 % interval {low:+.0f} to "
                      "{high:+.0f}).".format(n=memory["articles"][-1], **memory["slope"])]
    return "\n".join(lines) + f"\n\n```\n{row['command']}\n```\n"


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f}"
