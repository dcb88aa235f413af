"""The terminal's table of `foredraft bench throughput`."""

from __future__ import annotations

from collections.abc import Iterator

from foredraft.bench.report.tables import Table, number

HEADS = ("engine", "B", "articles/s", "tokens/s", "p20-p80", "time over scheduled", "slots used", "tokens/step", "encode",
         "draft", "verify", "other", "of the floor", "differ")
WIDE = ("p20-p80", "encode", "draft", "verify", "other", "of the floor")


def tables(row: dict) -> Iterator[Table | str]:
    """The engines by batch size, with a rate only where the tokens equal plain decoding's; absent engines; memory."""
    data, lengths = row["data"], row["data"]["source_tokens"]
    yield Table(f"{data['articles']} articles of {data['name']}, {lengths['min']}-{lengths['max']} source tokens, "
                f"{row['geometry'] or row['target']['model']}, {row['machine']['threads']} threads", HEADS,
                [_line(one) for one in row["rows"]], WIDE)
    for name, reason in row["absent"].items():
        yield f"{name} is absent: {reason}"
    if row["memory"] is not None:
        grown, accounted = (row["memory"][name] / 1e6 for name in ("grown_bytes", "accounted_bytes"))
        yield (f"keys and values at B={row['memory']['batch_size']}: {accounted:,.1f} MB accounted, the process grew by "
               f"{grown:,.1f} MB")


def _line(one: dict) -> list[str]:
    seconds, rate, over = one["seconds"], one["tokens_per_second"], one["over_scheduled"]
    bound = "" if over["low"] is None else f" ({over['low']:.3f}-{over['high']:.3f})"
    rates = [number(one["articles_per_second"]["median"]), f"{rate['median']:,.0f}",
             f"{rate['p20']:,.0f}-{rate['p80']:,.0f}", f"{over['mean']:.3f}{bound}"]
    return [one["engine"], str(one["batch_size"]), *(rates if one["differ"] == 0 else ["-"] * 4),
            "-" if one["slot_utilisation"] is None else f"{one['slot_utilisation']:.0%}", number(one["tokens_per_step"]),
            *(f"{seconds[part] / seconds['total']:.0%}" if part in seconds else "-"
              for part in ("encode", "draft", "verify", "other")),
            "-" if one["floor"] is None else f"{one['floor']['total'] / seconds['total']:.0%}", str(one["differ"])]
