"""The record of `foredraft bench steps` as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def show(row: dict, console: Console) -> None:
    """Print steps by rows, a step's parts, the encoder, and the other engines."""
    machine = row["machine"]
    what = f"{row['geometry']}, {row['source_tokens']} source tokens, {machine['cpu']}, {machine['threads']} threads"
    counts = list(next(iter(row["weights"].values()))["v"])
    table = Table(title=f"{what}: milliseconds a step, by rows", title_justify="left")
    for name in ("weights", "floor", "over floor", *counts, "memory / weights"):
        table.add_column(name, justify="right")
    for stored, figures in row["weights"].items():
        cells = [f"{figures['step_ms'][n]['median']:.2f} (v {figures['v'][n]:.2f})" for n in counts]
        table.add_row(stored, f"{figures['floor_ms']:.2f}", f"{figures['over_floor']:.2f}x", *cells,
                      f"{figures['loaded_bytes'] / figures['weight_bytes']:.2f}" if figures["loaded_bytes"] else "-")
    console.print(table)

    table = Table(title="where a step's time goes, milliseconds (the number is the rows)", title_justify="left")
    names = [name for name in next(iter(row["weights"].values()))["parts_ms"] if name != "encode"]
    for name in ("weights", *names, "encoder", "GFLOP/s", "share of its floor"):
        table.add_column(name, justify="right")
    for stored, figures in row["weights"].items():
        encoder = figures["encoder"]
        table.add_row(stored, *(f"{figures['parts_ms'][name]:.2f}" for name in names), f"{encoder['ms']:.0f}",
                      f"{encoder['gflop_s']:.0f}", f"{encoder['share_of_floor']:.0%}")
    console.print(table)

    if not row["peers"]:
        return
    table = Table(title="plain decoding, milliseconds a token", title_justify="left")
    for name in ("engine", "ms", "p20-p80", "foredraft-fp32 is faster by", "tokens that differ"):
        table.add_column(name, justify="right")
    for name, figures in row["peers"].items():
        if "absent" in figures:
            continue
        ms = figures["ms"]
        table.add_row(name, f"{ms['median']:.2f}", f"{ms['p20']:.2f}-{ms['p80']:.2f}",
                      f"{figures['over_first']:.2f}x", str(figures["differ"]))
    console.print(table)
    for name, figures in row["peers"].items():
        if "absent" in figures:
            console.print(f"{name} is absent: {figures['absent']}", markup=False, highlight=False)
