"""Which drafter to use when: tables of the records that bench.studies.methods_comparison writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foredraft.bench.harness.methods import REFERENCE
from foredraft.bench.report.collection import machine_name
from foredraft.bench.report.tables import Table, absences, command_block, gate, interval, ran, rate, times, wrapped
from foredraft.engine.params import AUTO

HEADS = ("drafter", "tok/s", "speed-up", "over the best other", "tokens/step", "drafted/step", "outputs that differ",
         "simulated K", "simulated tokens/step", "simulated speed-up")
WIDE = ("tok/s", "drafted/step", "simulated K", "simulated tokens/step")


def name_of(row: dict) -> str:
    """A configuration's name: drafter, draft length, verification."""
    if row["drafter"] in (REFERENCE, AUTO):
        return row["drafter"]
    return f"{row['drafter']}, K={row['draft_tokens']}" + (", block" if row["verification"] == "block" else "")


def lines(rows: Sequence[dict]) -> list[list[str]]:
    """A line (HEADS) for each configuration of a setting that ran."""
    found = []
    for row in ran(rows):
        plain, drafts, made = row["drafter"] == REFERENCE, row["acceptance"], row["simulated"] or {}
        simulated = [str(made["draft_tokens"]), f"{made['tokens_per_step']:.2f}", f"{made['speed_up']:.2f}x"] if (
            "speed_up" in made) else ["-"] * 3
        name = name_of(row)
        found.append([
            name, rate("tokens_per_second")(row), times("speed_up")(row | {"method": name}), interval(row["of_best"]),
            "-" if plain else f"{drafts['tokens_per_step']:.2f}",
            "-" if plain else f"{drafts['drafted'] / drafts['steps']:.2f}", gate(row), *simulated])
    return found


def best(rows: Sequence[dict]) -> dict:
    """The fastest configuration of a setting whose tokens or distribution equal plain decoding's; AUTO is left out."""
    known = [row for row in ran(rows) if row["drafter"] != AUTO and row["speed_up"]]
    return max(known, key=lambda row: row["tokens_per_second"]["median"])


def fastest_by_drafter(rows: Sequence[dict]) -> dict[tuple[float, int], dict[str, dict]]:
    """By temperature and batch size: each drafter's fastest configuration, with the drafter's simulation. Plain decoding and
    configurations whose tokens differ are left out."""
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
    """Markdown: the fastest drafter of each setting, then all drafters' speed-ups, tokens per step and simulated speed-ups;
    empty without records."""
    if not settings:
        return ""
    row = settings[0][0]
    target, data = row["target"], row["data"]
    text = [wrapped(
        f"{data['articles']} articles of {data['name']}, the target `{target['hash']}` ({target['parameters'] / 1e6:.1f}M, "
        f"{target['weights']}), up to {row['max_new_tokens']} new tokens, {row['repeats']} passes, {machine_name(row)}. "
        f"Each K was "
        f"chosen on {row['tuned_on']} other articles. `auto` is compared with the drafter that was fastest "
        "on the other half of these articles. In brackets: 95 % intervals.") + "\n", _fastest(settings)]
    text += ["Speed-up over plain decoding, and the K that was chosen:\n", _grid(settings, _speed_up_cell),
             "Tokens per step at that K:\n",
             _grid(settings, lambda row: "-" if row["speed_up"] is None else f"{row['acceptance']['tokens_per_step']:.2f}")]
    made = next((row["simulated"] for rows in settings for row in ran(rows) if "machine" in (row["simulated"] or {})), None)
    if made is not None:
        text += [wrapped(
            f"SIMULATED speed-up of a {made['geometry']} target on one {made['machine']}: tokens per step as measured here, "
            "at the K that is best there; the costs of a step counted from bytes and launches "
            f"({made['step']['source']} source tokens). Neither the model nor the GPU was available. A cascade is charged "
            "for all of its drafters in every step.") + "\n", _grid(settings, _simulated_cell, simulated=True)]
    text += [f"{wrapped(line)}\n" for line in absences(settings, spec, setting)]
    return "\n".join(text) + command_block(rows[0] for rows in settings)


def _fastest(settings: Sequence[Sequence[dict]]) -> str:
    shown = []
    for rows in settings:
        first, plain = best(rows), best(rows)["drafter"] == REFERENCE
        auto = next((row for row in ran(rows) if row["drafter"] == AUTO), None)
        cells = ["-", "-"] if auto is None else [
            interval(auto["speed_up"]) if auto["speed_up"] else "other tokens", interval(auto["of_best"])]
        shown.append([f"{first['temperature']:g}", str(first["batch_size"]), f"`{_name(first)}`",
                      "1" if plain else interval(first["speed_up"]),
                      "-" if plain else f"{first['acceptance']['tokens_per_step']:.2f}", *cells])
    return Table("", ("T", "B", "fastest drafter", "speed-up", "tokens/step", "`auto`", "`auto` over the best other"),
                 shown).markdown()


def _grid(settings: Sequence[Sequence[dict]], cell: Callable[[dict], str], simulated: bool = False) -> str:
    """Markdown: a line for each drafter and way of choosing its length, a column for each setting."""
    kinds = dict.fromkeys(_kind(row) for rows in settings for row in ran(rows) if row["drafter"] != REFERENCE and (
        not simulated or "speed_up" in (row["simulated"] or {})))
    shown = [[f"`{drafter}`", length, *(
        next((cell(row) for row in ran(rows) if _kind(row) == (drafter, length)), "-") for rows in settings)]
        for drafter, length in kinds]
    return Table("", ("drafter", "draft length", *map(setting, settings)), shown).markdown()


def setting(rows: Sequence[dict]) -> str:
    return f"T={rows[0]['temperature']:g} B={rows[0]['batch_size']}"


def spec(row: dict) -> str:
    """The drafter as it was named; of a path, the last name."""
    kind, colon, rest = row["drafter"].partition(":")
    parts = [part.rstrip("/").rpartition("/")[2] for part in (rest if colon else kind).split(",")]
    return (kind + colon if colon else "") + ",".join(parts)


def _name(row: dict) -> str:
    return name_of(row | {"drafter": spec(row)})


def _kind(row: dict) -> tuple[str, str]:
    """Drafter and draft length: the best K of each setting, or adaptive; and how drafts are verified."""
    length = "auto" if row["draft_tokens"] == AUTO else "best K"
    return spec(row), length + (", block" if row["verification"] == "block" else "")


def _speed_up_cell(row: dict) -> str:
    if row["speed_up"] is None:
        return "other tokens"
    return f"{row['speed_up']['median']:.2f}x" + ("" if row["draft_tokens"] == AUTO else f", K={row['draft_tokens']}")


def _simulated_cell(row: dict) -> str:
    made = row["simulated"] or {}
    return f"{made['speed_up']:.2f}x, K={made['draft_tokens']}" if "speed_up" in made else "-"
