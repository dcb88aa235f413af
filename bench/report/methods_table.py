"""Which way of drafting to use when: tables of the rows that `foredraft bench methods` writes."""

from __future__ import annotations

from collections.abc import Sequence

from foredraft.bench.harness.methods import REFERENCE
from foredraft.bench.report.collection import place
from foredraft.bench.report.tables import gate, rate, times
from foredraft.bench.studies.methods_contest import name_of
from foredraft.engine.params import AUTO

HEADS = ("way", "tok/s", "over plain", "over the best other", "tokens a round", "drafted", "articles that differ",
         "simulated: K", "tokens a round", "over plain")


def ran(rows: Sequence[dict]) -> list[dict]:
    return [row for row in rows if row["absent"] is None]


def lines(rows: Sequence[dict]) -> list[list[str]]:
    """A line (HEADS) for every way of a setting that ran."""
    found = []
    for row in ran(rows):
        plain, drafts, made = row["drafter"] == REFERENCE, row["acceptance"], row["simulated"] or {}
        there = [str(made["draft_tokens"]), f"{made['tokens_per_step']:.2f}", f"{made['speed_up']:.2f}x"] if (
            "speed_up" in made) else ["-"] * 3
        name = name_of(row)
        found.append([
            name, rate("tokens_per_second")(row), times("speed_up")(row | {"method": name}),
            "-" if row["of_best"] is None else _interval(row["of_best"]),
            "-" if plain else f"{drafts['tokens_per_step']:.2f}",
            "-" if plain else f"{drafts['drafted'] / drafts['rounds']:.2f}", gate(row), *there])
    return found


def best(rows: Sequence[dict]) -> dict:
    """The fastest way of a setting whose tokens are plain decoding's or of its distribution; AUTO is none of them."""
    known = [row for row in ran(rows) if row["drafter"] != AUTO and row["speed_up"]]
    return max(known, key=lambda row: row["tokens_per_second"]["median"])


def best_simulated(rows: Sequence[dict]) -> dict | None:
    known = [row for row in ran(rows) if row["simulated"] and "speed_up" in row["simulated"]]
    return max(known, key=lambda row: row["simulated"]["speed_up"], default=None)


def fastest_by_drafter(rows: Sequence[dict]) -> dict[tuple[float, int], dict[str, dict]]:
    """By temperature and batch size: each drafter's fastest way by its name, with the drafter's simulation; plain decoding
    and ways of other tokens are left out."""
    settings: dict[tuple[float, int], dict[str, dict]] = {}
    for row in ran(rows):
        if row["drafter"] == REFERENCE or not row["speed_up"]:
            continue
        found = settings.setdefault((row["temperature"], row["batch_size"]), {})
        known = found.get(spec(row))
        pair = [row] if known is None else [row, known]
        fastest = max(pair, key=lambda one: one["speed_up"]["median"])
        found[spec(row)] = fastest | {"simulated": next((one["simulated"] for one in pair if one["simulated"]), None)}
    return settings


def methods_table(settings: Sequence[Sequence[dict]]) -> str:
    """What to use at each setting, then every way at all of them, in Markdown; empty without records."""
    if not settings:
        return ""
    row = settings[0][0]
    target, data = row["target"], row["data"]
    text = [
        f"{data['articles']} articles of {data['name']}, the target `{target['hash']}` ({target['parameters'] / 1e6:.1f}M, "
        f"{target['weights']}), up to {row['max_new_tokens']} new tokens, {row['repeats']} passes, {place(row)}; each K was "
        f"chosen on {row['tuned_on']} other articles, the best other way on the other half of these. In brackets: 95 % "
        "intervals.", "",
        "| T | B | use | speed-up | tokens a round | `auto` | `auto` over the best other | on a GPU, simulated |",
        "|---|---|---|---:|---:|---:|---:|---|"]
    for rows in settings:
        first, there = best(rows), best_simulated(rows)
        auto = next((row for row in ran(rows) if row["drafter"] == AUTO), None)
        cells = ["-", "-"] if auto is None else [_interval(auto["speed_up"]) if auto["speed_up"] else "other tokens",
                                                 _interval(auto["of_best"]) if auto["of_best"] else "-"]
        simulated = "-" if there is None else (f"`{spec(there)}`, K={there['simulated']['draft_tokens']}: "
                                               f"{there['simulated']['speed_up']:.2f}x")
        plain = first["drafter"] == REFERENCE
        text.append(f"| {first['temperature']:g} | {first['batch_size']} | `{_name(first)}` | "
                    f"{'1' if plain else _interval(first['speed_up'])} | "
                    f"{'-' if plain else format(first['acceptance']['tokens_per_step'], '.2f')} | {' | '.join(cells)} | "
                    f"{simulated} |")
    made = next((row["simulated"] for rows in settings for row in ran(rows) if "machine" in (row["simulated"] or {})), None)
    if made is not None:
        text += ["", "Simulated: the tokens a round that were measured, at the K that is best there, with the costs of a "
                 f"{made['geometry']} target on one {made['machine']} counted from bytes and launches "
                 f"({made['round']['source']} source tokens); neither was at hand. A cascade is charged for all of its "
                 "drafters in every round."]
    names = [setting(rows) for rows in settings]
    text += ["", "Speed-up over plain decoding, tokens a round in brackets, and after the arrow the simulated speed-up:", "",
             f"| drafter | draft_tokens | {' | '.join(names)} |", "|---|---|" + "---:|" * len(names)]
    kinds = dict.fromkeys(_kind(row) for rows in settings for row in ran(rows) if row["drafter"] != REFERENCE)
    for kind in kinds:
        cells = [next((_cell(row) for row in ran(rows) if _kind(row) == kind), "-") for rows in settings]
        text.append(f"| `{kind[0]}` | {kind[1]} | {' | '.join(cells)} |")
    missing: dict[tuple[str, str], list[str]] = {}
    for rows in settings:
        for row in rows:
            if row["absent"] is not None:
                missing.setdefault((spec(row), row["absent"]), []).append(setting(rows))
    text += [""] + [f"`{spec}` is absent at {', '.join(where)}: {why}." for (spec, why), where in missing.items()]
    commands = "\n".join(dict.fromkeys(rows[0]["command"] for rows in settings))
    return "\n".join(text) + f"\n\n```\n{commands}\n```\n"


def setting(rows: Sequence[dict]) -> str:
    return f"T={rows[0]['temperature']:g} B={rows[0]['batch_size']}"


def spec(row: dict) -> str:
    """The drafter as it was named, without the folders before a path's last name."""
    kind, colon, rest = row["drafter"].partition(":")
    parts = [part.rstrip("/").rpartition("/")[2] for part in (rest if colon else kind).split(",")]
    return (kind + colon if colon else "") + ",".join(parts)


def _name(row: dict) -> str:
    return name_of(row | {"drafter": spec(row)})


def _kind(row: dict) -> tuple[str, str]:
    """Drafter, and how long it drafts: by a K of each setting's own, or adaptively; how it is verified."""
    length = "auto" if row["draft_tokens"] == AUTO else "best K"
    return spec(row), length + (", block" if row["verification"] == "block" else "")


def _cell(row: dict) -> str:
    said = "other tokens" if row["speed_up"] is None else f"{row['speed_up']['median']:.2f}x"
    length = "" if row["draft_tokens"] == AUTO else f", K={row['draft_tokens']}"
    text = f"{said} ({row['acceptance']['tokens_per_step']:.2f}{length})"
    made = row["simulated"] or {}
    return text + (f" → {made['speed_up']:.2f}x" if "speed_up" in made else "")


def _interval(found: dict) -> str:
    return "{median:.2f}x ({low:.2f}-{high:.2f})".format(**found)
