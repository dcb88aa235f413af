"""Tables of `foredraft bench run`: on the terminal, in docs/benchmarks.md, and the summary in README.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from foredraft.bench.harness.methods import REFERENCE
from foredraft.bench.report.collection import machine_name
from foredraft.bench.report.tables import (
    Column,
    Table,
    absences,
    accepted,
    command_block,
    gate,
    interval,
    number,
    ran,
    rate,
    rouge,
    times,
    wrapped,
)

COLUMNS: tuple[Column, ...] = (
    ("tok/s", rate("tokens_per_second")),
    ("speed-up", times("speed_up")),
    ("tok/s with encoding", rate("tokens_per_second_encoding")),
    ("with encoding", times("speed_up_encoding")),
    ("tokens/step", accepted("tokens_per_step")),
    ("accepted/tested", accepted("rate")),
    ("accepted/drafted", accepted("per_drafted")),
    ("alpha", accepted("alpha_tv")),
    ("coverage", accepted("coverage")),
    ("ROUGE-1/2/Lsum", rouge),
    ("outputs that differ", gate),
)
# left out on the terminal without --wide
WIDE = ("tok/s with encoding", "with encoding", "accepted/drafted", "coverage", "ROUGE-1/2/Lsum")
DOCUMENTED: tuple[Column, ...] = (
    ("tok/s", lambda row: f"{row['tokens_per_second']['median']:,.0f}"),
    *((name, cell) for name, cell in COLUMNS
      if name in ("speed-up", "with encoding", "tokens/step", "accepted/tested", "alpha")),
    ("differ", gate),
)
FOOTPRINT = ("load, s", "first token, ms", "peak, MB")
PHASES = ("total", "encode", "draft", "verify", "other")
CAPTION = (
    "tok/s: median (20th to 80th percentile) over the passes. speed-up: over plain decoding, with its 95 % bootstrap "
    "interval over batches; given only where every token equals plain decoding's. tokens/step: mean acceptance length, the "
    "target's own token included. alpha: E[sum min(p, q)] over every prefix of the target's output."
)
# The peers of the summary: a method's name in the records, and what people call it.
PEERS = {"hf-greedy": "transformers", "ctranslate2": "CTranslate2"}
# The number of beams in the summary.
BEAMS = 4


def setting(run: Sequence[dict]) -> str:
    """Temperature, batch size and draft length of a run."""
    row = run[0]
    return f"T={row['temperature']:g} B={row['batch_size']} K={row['draft_tokens']}"


def title(row: dict) -> str:
    """What a run measured, from any of its records."""
    target, data, lengths = row["target"], row["data"], row["data"]["source_tokens"]
    return (
        f"{target['model']} ({target['parameters'] / 1e6:.1f}M, {target['weights']}, {target['hash'][:12]}) on "
        f"{data['articles']} articles of {data['name']}, {lengths['min']}-{lengths['max']} source tokens; "
        f"B={row['batch_size']}, K={row['draft_tokens']}, T={row['temperature']:g}, up to {row['max_new_tokens']} new "
        f"tokens, "
        f"{row['repeats']} passes; {row['machine']['gpu'] or row['machine']['cpu']}, {target['threads']} threads, "
        f"{row['machine']['read_gb_s']} GB/s"
    )


def footprint(row: dict) -> list[str]:
    """The cells of FOOTPRINT."""
    found = row.get("footprint")
    if not found:
        return ["-", "-", "-"]
    peak = f"{found['peak_bytes'] / 1e6:,.0f}" if found["peak_bytes"] else "-"
    return [number(found["load_seconds"], 1), number(found["first_token_ms"], 1), peak]


def lines(run: Sequence[dict], columns: Sequence[Column] = COLUMNS) -> list[list[str]]:
    """A line for each method that ran: its name and a cell for each column."""
    return [[row["method"], *(cell(row) for _, cell in columns)] for row in ran(run)]


def heads(columns: Sequence[Column] = COLUMNS) -> tuple[str, ...]:
    return ("method", *(name for name, _ in columns))


def tables(rows: Sequence[dict]) -> Iterator[Table | str]:
    """For the terminal: the run's table, seconds by phase and acceptance by position, and why a method is absent."""
    yield Table(title(rows[0]), heads(), lines(rows), WIDE, CAPTION)
    parts = []
    for row in ran(rows):
        positions = (row["acceptance"] or {}).get("at", [])
        shares = " ".join(map(number, positions)) if any(positions) else "-"
        parts.append([row["method"], *(number(row["seconds"][part], 3) for part in PHASES), *footprint(row), shares])
    yield Table("seconds of one pass", ("method", *PHASES, *FOOTPRINT, "accepted/tested by position"), parts,
                () if any(row.get("footprint") for row in rows) else FOOTPRINT)
    for row in rows:
        if row["absent"] is not None:
            yield f"{row['method']} is absent: {row['absent']}"


def runs_table(runs: Sequence[Sequence[dict]]) -> str:
    """Markdown: a caption for each machine and target, then a table for each setting."""
    groups: dict[tuple, list[Sequence[dict]]] = {}
    for run in runs:
        row = run[0]
        groups.setdefault((machine_name(row), row["target"]["hash"], row["data"]["name"]), []).append(run)
    return "\n".join(_group(group) for group in groups.values())


def _group(runs: Sequence[Sequence[dict]]) -> str:
    text = [described(runs)]
    for run in runs:
        text.append(f"\n**{setting(run)}**\n\n" + Table("", heads(DOCUMENTED), lines(run, DOCUMENTED)).markdown())
    missing = absences(runs, lambda row: row["method"], setting)
    return "".join(text) + "".join(f"\n{wrapped(line)}\n" for line in missing) + command_block(run[0] for run in runs)


def described(runs: Sequence[Sequence[dict]], more: str = "") -> str:
    """A paragraph: articles, target, machine and what the columns mean, and `more`."""
    row = runs[0][0]
    target, articles = row["target"], span([run[0]["data"]["articles"] for run in runs])
    sizes = [run[0]["data"]["source_tokens"][end] for run in runs for end in ("min", "max")]
    return wrapped(
        f"{articles} articles of {row['data']['name']} ({span(sizes)} source tokens), the target `{target['hash']}` "
        f"({target['parameters'] / 1e6:.1f}M, {target['weights']}), up to {row['max_new_tokens']} new tokens, "
        f"{row['repeats']} passes, {machine_name(row)}. T=0 is greedy. Speed-ups are over `plain` of the same run, with 95 "
        f"% intervals.{more}") + "\n"


def span(numbers: Sequence[int]) -> str:
    """The least and the most of the numbers."""
    return "-".join(str(number) for number in sorted({min(numbers), max(numbers)}))


def summary_table(runs: Sequence[Sequence[dict]], beams: Sequence[dict] = ()) -> str:
    """Markdown for README.md: a line for each temperature and batch size of the machine of the newest run.

    beams: records of beam_speed; that of the same machine and target gives one more line.
    """
    if not runs:
        return ""
    newest = max(runs, key=lambda run: run[0]["time"])[0]
    same = [run for run in runs if (machine_name(run[0]), run[0]["target"]["hash"], run[0]["draft_tokens"]) == (
        machine_name(newest), newest["target"]["hash"], newest["draft_tokens"])]
    shown = []
    for run in same:
        methods = {row["method"]: row for row in ran(run)}
        speeds = {name: f"{row['tokens_per_second']['median']:,.0f}" for name, row in methods.items()}
        best = best_drafter(run)
        cells = ["-", "-"] if best is None else [f"`{best['method']}`: {speeds[best['method']]}", interval(best["speed_up"])]
        shown.append([f"{run[0]['temperature']:g}", str(run[0]["batch_size"]), speeds[REFERENCE], *cells,
                      *(speeds.get(peer, "-") for peer in PEERS)])
    more = ""
    for row in beams:
        if (machine_name(row), row["target"]["hash"]) == (machine_name(newest), newest["target"]["hash"]):
            shown.append(_beam_line(row))
            more = (f" {BEAMS} beams: {row['data']['articles']} articles, {row['max_new_tokens']} tokens, {row['repeats']} "
                    "passes.")
    table = Table("", ("temperature", "batch", "plain", "best drafter", "speed-up", *PEERS.values()), shown)
    return f"{table.markdown()}\n{described(same, more)}"


def _beam_line(row: dict) -> list[str]:
    """The cells of a record of beam_speed."""
    seconds = {one["name"]: one["step_ms"] / 1e3 for one in row["methods"]}
    # without drafts: their gain is within the noise
    plain, *peers = (seconds.get(f"{peer}{BEAMS} beams") for peer in ("", *(f"{name}, " for name in PEERS.values())))
    return [f"0, {BEAMS} beams", "1", f"{1 / plain:,.0f}", "-", "-",
            *("-" if peer is None else f"{1 / peer:,.0f}" for peer in peers)]


def best_drafter(run: Sequence[dict]) -> dict | None:
    """The record of the highest speed-up among methods that draft."""
    known = [row for row in ran(run) if row["speed_up"] and (row["acceptance"] or {}).get("drafted")]
    return max(known, key=lambda row: row["speed_up"]["median"], default=None)
