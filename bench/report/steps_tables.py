"""The terminal's tables of `foredraft bench steps`."""

from __future__ import annotations

from collections.abc import Iterator

from foredraft.bench.report.tables import Table, number


def tables(row: dict) -> Iterator[Table | str]:
    """Steps by query positions, the parts of a step, the encoder, and the other engines."""
    machine = row["machine"]
    what = f"{row['geometry']}, {row['source_tokens']} source tokens, {machine['cpu']}, {machine['threads']} threads"
    counts = list(next(iter(row["weights"].values()))["v"])
    heads = ("weights", "floor", "over floor", *counts, "memory / weights")
    yield Table(f"{what}: milliseconds a step by query positions (and v, relative to one)", heads, [
        [stored, number(figures["floor_ms"]), f"{figures['over_floor']:.2f}x",
         *(f"{figures['step_ms'][n]['median']:.2f} ({figures['v'][n]:.2f})" for n in counts),
         f"{figures['loaded_bytes'] / figures['weight_bytes']:.2f}" if figures["loaded_bytes"] else "-"]
        for stored, figures in row["weights"].items()], wide=(*counts[1:5], *counts[6:], "memory / weights"))
    names = [name for name in next(iter(row["weights"].values()))["parts_ms"] if name != "encode"]
    encoder = ("encoder", "GFLOP/s", "share of its floor")
    yield Table("parts of a step, milliseconds (with the number of query positions)", ("weights", *names, *encoder), [
        [stored, *(number(figures["parts_ms"][name]) for name in names), f"{figures['encoder']['ms']:.0f}",
         f"{figures['encoder']['gflop_s']:.0f}", f"{figures['encoder']['share_of_floor']:.0%}"]
        for stored, figures in row["weights"].items()], wide=[name for name in names if not name.endswith(" 1")])
    peers = {name: figures for name, figures in row["peers"].items() if "absent" not in figures}
    if peers:
        yield Table("plain decoding, milliseconds a token", (
            "engine", "ms", "p20-p80", "ms a text", f"{next(iter(peers))} is faster by", "tokens that differ"), [
            [name, number(figures["ms"]["median"]), f"{figures['ms']['p20']:.2f}-{figures['ms']['p80']:.2f}",
             number(figures.get("text_ms"), 0),
             f"{figures['over_first']:.2f}x", str(figures["differ"])] for name, figures in peers.items()])
    for name, figures in row["peers"].items():
        if "absent" in figures:
            yield f"{name} is absent: {figures['absent']}"
