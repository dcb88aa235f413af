"""Decoding methods on widened targets: tables of the records that bench.studies.larger_targets writes."""

from __future__ import annotations

from collections.abc import Sequence

from foredraft.bench.harness.methods import REFERENCE
from foredraft.bench.report.collection import SUMMARIES, machine_name
from foredraft.bench.report.runs_table import best_drafter, span
from foredraft.bench.report.tables import (
    Table,
    absences,
    accepted,
    command_block,
    gate,
    interval,
    number,
    ran,
    rate,
    times,
    wrapped,
)

HEADS = ("method", "tok/s", "speed-up", "with encoding", "tokens/step", "alpha", "c", "v", "predicted", "differ")
WIDE = ("with encoding",)
# the other engines of the summary, by method
PEERS = {"hf-greedy": "transformers float32", "ctranslate2-int8": "CTranslate2 int8"}


def lines(rows: Sequence[dict]) -> list[list[str]]:
    """A line (HEADS) for each method of a size and setting that ran."""
    found = []
    for row in ran(rows):
        costs = row["costs"] or {}
        predicted = costs.get("predicted")
        found.append([row["method"], rate("tokens_per_second")(row), times("speed_up")(row), times("speed_up_encoding")(row),
                      accepted("tokens_per_step")(row), accepted("alpha_tv")(row), number(costs.get("c"), 3),
                      number(costs.get("v")), "-" if predicted is None else f"{predicted:.2f}x", gate(row)])
    return found


def larger_table(runs: Sequence[Sequence[dict]]) -> str:
    """Markdown: a table for each size and setting; empty without records."""
    if not runs:
        return ""
    text = [_caption(runs) + "\n" + wrapped(
        "c is the cost of a drafted token, v that of a target pass with drafts, in units of a target pass of plain decoding "
        "(of a sequence's share of it in a batch). predicted = (1 - alpha^(K+1)) / (1 - alpha) / (v + c K). "
        "transformers runs in float32. `auto` chooses its draft lengths.") + "\n"]
    for rows in runs:
        text += [f"\n**{setting(rows)}**, {_size([rows])}\n", Table("", HEADS, lines(rows)).markdown()]
    text += [f"\n{wrapped(line)}\n" for line in absences(runs, lambda row: row["method"], setting)]
    return "\n".join(text) + command_block(rows[0] for rows in runs)


def setting(rows: Sequence[dict]) -> str:
    row = rows[0]
    return f"{row['geometry']} T={row['temperature']:g} B={row['batch_size']} K={row['draft_tokens']}"


def summary(runs: Sequence[Sequence[dict]]) -> str:
    """Markdown for README.md: a line for each size, temperature and batch size; empty without records."""
    if not runs:
        return ""
    shown = []
    for rows in runs:
        methods = {row["method"]: row for row in ran(rows)}
        speeds = {name: f"{row['tokens_per_second']['median']:.1f}" for name, row in methods.items()}
        best, first = best_drafter(rows), rows[0]
        cells = ["-", "-"] if best is None else [f"`{best['method']}`: {speeds[best['method']]}", interval(best["speed_up"])]
        shown.append([first["geometry"], f"{first['temperature']:g}", str(first["batch_size"]), speeds[REFERENCE], *cells,
                      *(speeds.get(peer, "-") for peer in PEERS)])
    heads = ("target of the size of", "temperature", "batch", "plain", "best drafter", "speed-up", *PEERS.values())
    return f"{Table('', heads, shown).markdown()}\n{_caption(runs)}"


def _caption(runs: Sequence[Sequence[dict]]) -> str:
    row = runs[0][0]
    task = row.get("task", SUMMARIES)
    original = "the embedded target" if task == SUMMARIES else f"a small target that was trained for {task}"
    return wrapped(
        f"Targets of FLAN-T5's sizes that behave like {original} (`{row['behaves_like']}`): "
        f"{row['target']['weights']} decoder, {row['encoder']} encoder, texts of {row['data']['name']}, "
        f"{machine_name(row)}; {_size(runs)}. The drafters are the small target's. An LSTM for a larger target costs more: "
        "speeds of `lstm`, and of `auto` at T=1, are upper estimates.") + "\n"


def _size(runs: Sequence[Sequence[dict]]) -> str:
    """How much was decoded: the least and the most of the runs."""
    texts, tokens, passes = (span([value(rows[0]) for rows in runs]) for value in (
        lambda row: row["data"]["articles"], lambda row: row["max_new_tokens"], lambda row: row["repeats"]))
    return f"{texts} texts, up to {tokens} new tokens, passes: {passes}"
