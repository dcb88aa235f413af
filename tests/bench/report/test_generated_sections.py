"""The tables and pictures of README.md and docs/ match the committed records."""

from __future__ import annotations

import json
from pathlib import Path

import bench_rows
import pytest

from foredraft.bench.report import collection, drafters_table, generated_sections, runs_table
from foredraft.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[3]


def stale(root, found):
    """Names of the pages and pictures that do not match the records."""
    wrong = [path.name for path, text in generated_sections.regenerated(root, found).items() if path.read_text() != text]
    for name, rows in generated_sections.picture_rows(found).items():
        file = root / generated_sections.IMAGES / f"{name}.png"
        if not file.is_file() or generated_sections.digest(rows).encode() not in file.read_bytes():
            wrong.append(file.name)
    return wrong


def test_the_pages_match_the_committed_records():
    found = collection.collect(CHECKOUT / "bench" / "results")
    assert stale(CHECKOUT, found) == [], "run `foredraft report --docs` and commit what it wrote"


@pytest.fixture
def found(tmp_path):
    file = tmp_path / "records" / "all.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in bench_rows.every_kind()))
    return collection.collect(file)


def test_the_tables(found):
    text = runs_table.runs_table(found.runs)
    assert "**T=0 B=1 K=5**" in text and "| lookup | 2,000 | 2.00x (1.60-2.40) |" in text
    assert "`hf-assisted` is absent at T=0 B=1 K=5, T=0 B=8 K=5" in text and "Acme 7, 2 threads" in text
    more = bench_rows.run_rows(1.0, data=bench_rows.DATA | {"articles": 28, "source_tokens": {"min": 6, "max": 10}})
    assert runs_table.runs_table([*found.runs, more]).startswith("28-30 articles of test.jsonl.gz (5-10 source tokens)")
    text = drafters_table.drafters_table(found.drafters)
    # alpha is the mean of both seeds
    assert "| cnn | 0 | on_policy_GKD | 0.305 → 0.455 |" in text
    assert "foredraft eval cnn baseline" in text and "lookup" not in text
    assert drafters_table.drafters_table([]) == ""


def test_the_summary_has_a_line_for_each_setting(found):
    text = runs_table.summary_table(found.runs)
    assert [line.split(" | ")[:5] for line in text.splitlines()[2:6]] == [
        [f"| {T}", B, "1,000", "`lookup`: 2,000", "2.00x (1.60-2.40)"] for T in "01" for B in "18"]
    beams = found.runs[0][0] | {"max_new_tokens": 60, "methods": [
        {"name": "4 beams", "step_ms": 2.0}, {"name": "4 beams, drafts", "step_ms": 1.6},
        {"name": "transformers, 4 beams", "step_ms": 20.0}]}
    text = runs_table.summary_table(found.runs, [beams, beams | {"target": beams["target"] | {"hash": "other"}}])
    assert text.count("beams |") == 1 and "| 0, 4 beams | 1 | 500 | - | - | 50 | - |" in text
    # no drafter gave plain decoding's tokens, and a peer did not run
    for row in found.runs[0]:
        row["speed_up"] = None
    found.runs[0][2]["absent"] = "no transformers"
    assert "| 0 | 1 | 1,000 | - | - | - | - |" in runs_table.summary_table(found.runs)
    assert runs_table.summary_table([]) == ""


def test_long_commands_continue_on_the_next_line():
    from foredraft.bench.report.tables import WIDTH, command_block

    command = "foredraft bench run " + "--methods plain " * 20
    text = command_block([{"command": command}, {"command": command}])
    assert max(map(len, text.splitlines())) <= WIDTH and text.count("foredraft bench run") == 1
    assert text.replace(" \\\n   ", "").strip("\n`") == command.strip()


PAGES = {
    "README.md": "top\n<!-- summary: begin -->\nold\n<!-- summary: end -->\nend\n",
    "docs/benchmarks.md": "".join(f"<!-- {name}: begin -->\nold\n<!-- {name}: end -->\nmid\n" for name in (
        "larger-summary", "larger", "corrections", "runs", "drafters", "methods", "scale", "spec-bench", "regression")),
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in PAGES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_update_then_nothing_is_stale_until_a_record_changes(found, checkout):
    pytest.importorskip("matplotlib")
    assert stale(checkout, found) == ["README.md", "benchmarks.md", "speeds.png", "drafters.png", "methods.png"]
    generated_sections.update(checkout, found)
    assert stale(checkout, found) == []
    readme, page = (checkout / name for name in PAGES)
    text = page.read_text()
    assert readme.read_text().startswith("top\n<!-- summary: begin -->\n| temperature") and "old" not in text
    assert "(images/speeds.png)" in text and text.endswith("<!-- regression: end -->\nmid\n")
    found.runs[0][1]["tokens_per_second"]["median"] += 100
    assert stale(checkout, found) == ["README.md", "benchmarks.md", "speeds.png"]
    page.write_text(text.replace("mid", "other words"))
    assert stale(checkout, found) == ["README.md", "benchmarks.md", "speeds.png"]


def test_a_block_may_be_in_any_page_but_in_one(found, checkout):
    page = checkout / "docs" / "benchmarks.md"
    (checkout / "docs" / "other.md").write_text(page.read_text())
    page.unlink()
    assert "other.md" in stale(checkout, found)
    page.write_text("<!-- scale: begin -->\n<!-- scale: end -->\n")
    with pytest.raises(UserError, match="<!-- scale: begin --> and <!-- scale: end --> once each"):
        stale(checkout, found)


def test_the_smaller_blocks(found):
    shown = generated_sections.blocks(found)
    assert "| articles | 1 | 64 | 4,096 |" in shown["scale"] and "| MB | 30.00 | 0.47 | 0.01 |" in shown["scale"]
    assert "over 24 articles: +12 bytes an article (95 % interval -90 to +99)" in shown["scale"]
    assert "| lookup | 2.50 | 900 ± 12 | 1.90x ± 0.04 | 30.1 / 11.2 / 28.3 | 0 of 30 |" in shown["spec-bench"]
    # other tokens, no speed-up
    assert "| hf-greedy | 2.50 | 900 ± 12 | - |" in shown["spec-bench"] and "`hf-assisted` is absent" in shown["spec-bench"]
    assert "raised 0 alarms (2 timed again, changes 0.97 to 1.10)" in shown["regression"].replace("\n", " ")
    assert all(f"```\n{command}" in shown[name] for name, command in (
        ("scale", "python -m foredraft.bench.studies.scale"), ("spec-bench", "foredraft bench run"),
        ("regression", "python -m foredraft.bench.studies.regression_proof")))


def test_a_block_without_a_record(found):
    for rows in (found.scale, found.spec_bench, found.regression, found.methods):
        rows.clear()
    shown = generated_sections.blocks(found)
    assert [shown[name] for name in ("scale", "spec-bench", "regression")] == [""] * 3
    assert "methods" in generated_sections.NOTHING and shown["methods"] == generated_sections.NOTHING["methods"]
    assert "methods" not in generated_sections.picture_rows(found)


def test_markers_are_needed(found, tmp_path):
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(UserError, match="needs the lines"):
        stale(tmp_path, found)
