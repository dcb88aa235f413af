"""The README's tables and pictures, generated from records, and the check that they still are what the records say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from foredraft.atomic_write import write_atomic
from foredraft.bench.regression import compare_runs as regression
from foredraft.bench.report import charts, charts_drafters, charts_methods
from foredraft.bench.report import markdown_tables as tables
from foredraft.bench.report import methods_table as tables_methods
from foredraft.bench.report.charts import Chart
from foredraft.bench.report.collection import Collection
from foredraft.bench.report.scale_table import scale_table
from foredraft.bench.report.spec_bench_table import spec_bench_table
from foredraft.errors import UserError

DIGEST = "Records"
# What a block says before there is a record.
NOTHING = {"methods": "Not measured yet: `foredraft bench methods --data test.jsonl.gz`.\n"}

# The block that a picture ends, its file's stem and what it shows.
PICTURES = {"table": ("speeds", "Decoding speed by method"), "drafters": ("drafters", "alpha of trained drafters"),
            "methods": ("methods", "Ways of drafting")}


def blocks(found: Collection, pictures: str) -> dict[str, str]:
    """What goes between the README's markers, by their name. `pictures`: their folder as the page names it."""
    shown = {"table": tables.runs_table(found.runs), "drafters": tables.drafters_table(found.drafters),
             "methods": tables_methods.methods_table(found.methods), "scale": scale_table(found.scale),
             "spec-bench": spec_bench_table(found.spec_bench),
             "regression": regression.said(found.regression)}

    def pictured(name: str, text: str) -> str:
        if not text or name not in PICTURES:
            return text
        stem, what = PICTURES[name]
        return f"{text}\n![{what}]({pictures}/{stem}.png)\n"

    return {name: pictured(name, text) or NOTHING.get(name, "") for name, text in shown.items()}


def picture_rows(found: Collection) -> dict[str, Sequence[dict]]:
    """The rows behind each picture, by its file's stem; greedy at batch size 1 for the speeds, if there is such a run."""
    first = [run for run in found.runs if run[0]["temperature"] == 0 and run[0]["batch_size"] == 1] or found.runs
    rows = {"speeds": first[0] if first else [], "drafters": [row for row in found.drafters if row.get("training")],
            "methods": [row for setting in found.methods for row in setting]}
    return {name: shown for name, shown in rows.items() if shown}


def update(readme: Path, found: Collection, pictures: Path) -> None:
    """Write the README's blocks, and the pictures into their folder. UserError: markers are missing."""
    page = _read(readme)
    for name, text in blocks(found, _named(readme, pictures)).items():
        before, _, after = _parts(readme, page, name)
        page = f"{before}{text}{after}"
    for name, rows in picture_rows(found).items():
        charts.save_png(_draw(name, rows), pictures / f"{name}.png", {DIGEST: digest(rows)})
    write_atomic(readme, page)


def stale(readme: Path, found: Collection, pictures: Path) -> list[str]:
    """What no longer follows from the records: names of blocks and pictures."""
    page = _read(readme)
    wrong = [name for name, text in blocks(found, _named(readme, pictures)).items() if _parts(readme, page, name)[1] != text]
    for name, rows in picture_rows(found).items():
        path = pictures / f"{name}.png"
        if not path.is_file() or digest(rows).encode() not in path.read_bytes():
            wrong.append(path.name)
    return wrong


def digest(rows: Sequence[dict]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:32]


def _draw(name: str, rows: Sequence[dict]) -> Chart:
    if name == "methods":
        return charts_methods.speed_ups(rows)
    return charts.speeds(rows) if name == "speeds" else charts_drafters.alphas(rows, 0.0)


def _named(readme: Path, pictures: Path) -> str:
    return pictures.resolve().relative_to(readme.resolve().parent).as_posix()


def _read(readme: Path) -> str:
    return readme.read_text(encoding="utf-8")


def _parts(readme: Path, page: str, name: str) -> tuple[str, str, str]:
    """The page up to and with the opening marker, what lies between, and the rest."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        raise UserError(f"{readme}: needs the lines {begin.strip()} and {end} once each, where generated text goes")
    start, stop = page.index(begin) + len(begin), page.index(end)
    return page[:start], page[start:stop], page[stop:]
