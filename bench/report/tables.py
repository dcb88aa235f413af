"""Rows for people: a table on the terminal, a table in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from foredraft.bench.harness.methods import REFERENCE

Column = tuple[str, Callable[[dict], str]]


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def rate(field: str) -> Callable[[dict], str]:
    def cell(row: dict) -> str:
        return f"{row[field]['median']:,.0f} ({row[field]['p20']:,.0f}-{row[field]['p80']:,.0f})"

    return cell


def times(field: str) -> Callable[[dict], str]:
    def cell(row: dict) -> str:
        if row["method"] == REFERENCE:
            return "1"
        return "{median:.2f}x ({low:.2f}-{high:.2f})".format(**row[field]) if row[field] else "-"

    return cell


def accepted(field: str) -> Callable[[dict], str]:
    """A figure of the drafts; a dash for a method without any."""
    def cell(row: dict) -> str:
        found = row["acceptance"] or {}
        return number(found.get(field)) if found.get("drafted") else "-"

    return cell


def gate(row: dict) -> str:
    return "own noise" if row["differ"] is None else f"{row['differ']} of {row['data']['articles']}"


def rouge(row: dict) -> str:
    found = row.get("rouge")
    return " / ".join(number(found[kind], 1) for kind in ("rouge1", "rouge2", "rougeLsum")) if found else "-"


FOOTPRINT = ("load, s", "first token, ms", "peak, MB")


def footprint(row: dict) -> list[str]:
    """The cells of FOOTPRINT."""
    found = row.get("footprint")
    if not found:
        return ["-", "-", "-"]
    peak = f"{found['peak_bytes'] / 1e6:,.0f}" if found["peak_bytes"] else "-"
    return [number(found["load_seconds"], 1), number(found["first_token_ms"], 1), peak]


COLUMNS: tuple[Column, ...] = (
    ("tok/s", rate("tokens_per_second")),
    ("speed-up", times("speed_up")),
    ("tok/s with encoding", rate("tokens_per_second_encoding")),
    ("speed-up with it", times("speed_up_encoding")),
    ("tokens a round", accepted("tokens_per_step")),
    ("accepted / tested", accepted("rate")),
    ("accepted / drafted", accepted("per_drafted")),
    ("alpha", accepted("alpha_tv")),
    ("coverage", accepted("coverage")),
    ("ROUGE-1/2/Lsum", rouge),
    ("articles that differ", gate),
)


CAPTION = (
    "tok/s: median (20th-80th percentile) over the passes. speed-up: over plain (95 % interval over batches), none for "
    "a method whose tokens differ from plain decoding's. alpha: the drafter's share of the target's distribution over every "
    "prefix of the target's own output."
)


def title(row: dict) -> str:
    """What a run measured, from any of its rows."""
    target, data, lengths = row["target"], row["data"], row["data"]["source_tokens"]
    return (
        f"{target['model']} ({target['parameters'] / 1e6:.1f}M, {target['weights']}, {target['hash'][:12]}) on "
        f"{data['articles']} x {data['name']}, {lengths['min']}-{lengths['max']} source tokens; B={row['batch_size']}, "
        f"K={row['draft_tokens']}, T={row['temperature']:g}, up to {row['max_new_tokens']} new tokens, "
        f"{row['repeats']} passes; {row['machine']['gpu'] or row['machine']['cpu']}, {target['threads']} threads, "
        f"{row['machine']['read_gb_s']} GB/s"
    )


def show(rows: Sequence[dict], console: Console) -> None:
    """Print a run: its table, where the time went, acceptance by place, and why a method is absent."""
    ran = [row for row in rows if row["absent"] is None]
    table = Table(title=title(rows[0]), title_justify="left", caption=CAPTION, caption_justify="left")
    table.add_column("method", no_wrap=True)
    for name, _ in COLUMNS:
        table.add_column(name, justify="right")
    for row in ran:
        table.add_row(row["method"], *(cell(row) for _, cell in COLUMNS))
    console.print(table)

    parts = Table(title="seconds of one pass", title_justify="left")
    for name in ("method", "total", "encode", "draft", "verify", "other", *FOOTPRINT, "accepted/tested by place"):
        parts.add_column(name, justify="left" if name == "method" else "right", no_wrap=name == "method")
    for row in ran:
        places = (row["acceptance"] or {}).get("at", [])
        seconds = [number(row["seconds"][part], 3) for part in ("total", "encode", "draft", "verify", "other")]
        shares = " ".join(number(place) for place in places) if any(places) else "-"
        parts.add_row(row["method"], *seconds, *footprint(row), shares)
    console.print(parts)
    for row in rows:
        if row["absent"] is not None:
            console.print(f"{row['method']} is absent: {row['absent']}", markup=False, highlight=False)


def markdown(rows: Sequence[dict]) -> str:
    """The rows of one run as a Markdown table under its title; absent methods and their reasons below."""
    lines = [
        title(rows[0]), "",
        "| method | " + " | ".join(name for name, _ in COLUMNS) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    ran = [row for row in rows if row["absent"] is None]
    lines += [f"| {row['method']} | " + " | ".join(cell(row) for _, cell in COLUMNS) + " |" for row in ran]
    missing = [f"- {row['method']} is absent: {row['absent']}" for row in rows if row["absent"] is not None]
    return "\n".join(lines + ([""] + missing if missing else [])) + "\n"


def gain(rows: Sequence[dict]) -> str:
    """What a run showed, one clause a method: never a speed-up without equal tokens."""
    clauses = []
    for row in rows:
        if row["method"] == REFERENCE or row["absent"] is not None:
            continue
        if row["speed_up"] is None:
            clauses.append(f"{row['method']} gave other tokens than plain decoding ({gate(row)} articles)")
        else:
            clauses.append(f"{row['method']} gave the same tokens at {row['speed_up']['median']:.2f}x the speed")
    return "Against plain decoding: " + "; ".join(clauses) + "."
