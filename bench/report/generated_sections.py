"""Tables and pictures of README.md and docs/, generated from records, and the check that they still match them.

A block lies between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->` of README.md or of one page in docs/.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from foredraft.atomic_write import write_atomic
from foredraft.bench.report import charts, charts_drafters
from foredraft.bench.report.charts import Chart
from foredraft.bench.report.collection import SUMMARIES, Collection
from foredraft.bench.report.drafters_table import drafters_table
from foredraft.bench.report.larger_table import larger_table
from foredraft.bench.report.larger_table import summary as larger_summary
from foredraft.bench.report.methods_table import methods_table
from foredraft.bench.report.other_tables import regression_text, scale_table, spec_bench_table
from foredraft.bench.report.runs_table import runs_table, summary_table
from foredraft.errors import UserError

DIGEST = "Records"
IMAGES = "docs/images"
# The text of a block without a record.
NOTHING = {"methods": "Not measured yet: `python -m foredraft.bench.studies.methods_comparison --data test.jsonl.gz`.\n"}

# The block that a picture follows, the stem of its file, and its text.
PICTURES = {"runs": ("speeds", "Decoding speed by method"), "drafters": ("drafters", "alpha of trained drafters"),
            "methods": ("methods", "Speed-up by drafter")}


def blocks(found: Collection) -> dict[str, str]:
    """The text of each block, without its picture."""
    summaries = found.larger.get(SUMMARIES, [])
    shown = {"larger-summary": larger_summary(summaries), "larger": larger_table(summaries),
             "corrections": larger_table(found.larger.get("corrections", [])),
             "summary": summary_table(found.runs, found.beams), "runs": runs_table(found.runs),
             "drafters": drafters_table(found.drafters),
             "methods": methods_table(found.methods), "scale": scale_table(found.scale),
             "spec-bench": spec_bench_table(found.spec_bench), "regression": regression_text(found.regression)}
    return {name: text or NOTHING.get(name, "") for name, text in shown.items()}


def picture_rows(found: Collection) -> dict[str, Sequence[dict]]:
    """The records behind each picture, by the stem of its file; for the speeds the run at T=0 and B=1, if there is one."""
    first = [run for run in found.runs if run[0]["temperature"] == 0 and run[0]["batch_size"] == 1] or found.runs
    rows = {"speeds": first[0] if first else [], "drafters": [row for row in found.drafters if row.get("training")],
            "methods": [row for setting in found.methods for row in setting]}
    return {name: shown for name, shown in rows.items() if shown}


def regenerated(root: Path, found: Collection) -> dict[Path, str]:
    """The pages of the checkout at `root`, with their blocks generated anew.

    Raises
    ------
    UserError
        A block's markers are missing, or are in more than one page.
    """
    paths = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    pages = {path: path.read_text(encoding="utf-8") for path in paths if path.is_file()}
    for name, text in blocks(found).items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        marked = [path for path, page in pages.items() for _ in range(page.count(begin))]
        before, _, rest = pages[marked[0]].partition(begin) if len(marked) == 1 else ("", "", "")
        _, closed, after = rest.partition(end)
        if not closed:
            raise UserError(f"{root}: README.md or one page in docs/ needs the lines {begin.strip()} and {end.strip()} once "
                            "each, where the generated text goes")
        pages[marked[0]] = f"{before}{begin}{_pictured(root, marked[0], name, text)}{end}{after}"
    return pages


def update(root: Path, found: Collection) -> None:
    """Write the blocks and pictures of the checkout at `root`."""
    pages = regenerated(root, found)
    for name, rows in picture_rows(found).items():
        charts.save_png(_draw(name, rows), root / IMAGES / f"{name}.png", {DIGEST: digest(rows)})
    for path, text in pages.items():
        write_atomic(path, text)


def digest(rows: Sequence[dict]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:32]


def _draw(name: str, rows: Sequence[dict]) -> Chart:
    if name == "methods":
        return charts_drafters.by_setting(rows)
    return charts.speeds(rows) if name == "speeds" else charts_drafters.alphas(rows, 0.0)


def _pictured(root: Path, page: Path, name: str, text: str) -> str:
    """The block's text with its picture, named from the page's folder."""
    if name not in PICTURES or text in ("", NOTHING.get(name)):
        return text
    stem, what = PICTURES[name]
    return f"{text}\n![{what}]({Path(os.path.relpath(root / IMAGES / stem, page.parent)).as_posix()}.png)\n"
