"""The README's tables and pictures come from records; a README that no longer follows from them fails here."""

from __future__ import annotations

import json
from pathlib import Path

import bench_rows
import pytest

from foredraft.bench.report import collection
from foredraft.bench.report import generated_sections as readme
from foredraft.bench.report import markdown_tables as tables
from foredraft.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[3]


def test_the_readme_follows_from_the_committed_records():
    results = CHECKOUT / "bench" / "results"
    stale = readme.stale(CHECKOUT / "README.md", collection.collect(results), results)
    assert stale == [], "run `foredraft report --readme` and commit what it wrote"


@pytest.fixture
def found(tmp_path):
    file = tmp_path / "records" / "all.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in bench_rows.every_kind()))
    return collection.collect(file)


def test_the_tables(found):
    text = tables.runs_table(found.runs)
    assert "| 0 | 1 | 5 | lookup | 2,000 (1,800-2,200) | 2.00x (1.60-2.40) |" in text
    assert "`hf-assisted` is absent at T=0 B=1, T=0 B=8" in text and "Acme 7, 2 threads" in text
    more = bench_rows.run_rows(1.0, data=bench_rows.DATA | {"articles": 28, "source_tokens": {"min": 6, "max": 10}})
    assert tables.runs_table([*found.runs, more]).startswith("28-30 articles of test.jsonl.gz (5-10 source tokens)")
    text = tables.drafters_table(found.drafters)
    # alpha is the mean of both seeds
    assert "| cnn | 0 | on_policy_GKD | 0.305 → 0.455 |" in text
    assert "foredraft eval cnn baseline" in text and "lookup" not in text
    assert tables.drafters_table([]) == ""


def test_update_then_nothing_is_stale_until_a_record_changes(found, tmp_path):
    pytest.importorskip("matplotlib")
    page, pictures = tmp_path / "README.md", tmp_path / "records"
    page.write_text("top\n<!-- table: begin -->\nold\n<!-- table: end -->\nmid\n"
                    "<!-- drafters: begin -->\n<!-- drafters: end -->\n"
                    "<!-- scale: begin -->\n<!-- scale: end -->\n<!-- spec-bench: begin -->\n<!-- spec-bench: end -->\n"
                    "<!-- regression: begin -->\n<!-- regression: end -->\n"
                    "<!-- methods: begin -->\n<!-- methods: end -->\nend\n")
    assert readme.stale(page, found, pictures) == [
        "table", "drafters", "methods", "scale", "spec-bench", "regression", "speeds.png", "drafters.png", "methods.png"]
    readme.update(page, found, pictures)
    assert readme.stale(page, found, pictures) == []
    text = page.read_text()
    assert text.startswith("top\n<!-- table: begin -->\n30 articles") and text.endswith("<!-- methods: end -->\nend\n")
    assert "old" not in text and "(records/speeds.png)" in text
    found.runs[0][1]["tokens_per_second"]["median"] += 100
    assert readme.stale(page, found, pictures) == ["table", "speeds.png"]
    page.write_text(text.replace("mid", "other words"))
    assert readme.stale(page, found, pictures) == ["table", "speeds.png"]


def test_the_smaller_blocks(found):
    shown = readme.blocks(found, "records")
    assert "| articles | 1 | 64 | 4,096 |" in shown["scale"] and "| MB | 30.00 | 0.47 | 0.01 |" in shown["scale"]
    assert "over 24 articles: +12 bytes an article (95 % interval -90 to +99)" in shown["scale"]
    assert "| lookup | 2.50 | 900 ± 12 | 1.90x ± 0.04 | 30.1 / 11.2 / 28.3 | 0 of 30 |" in shown["spec-bench"]
    # other tokens, no speed-up
    assert "| hf-greedy | 2.50 | 900 ± 12 | - |" in shown["spec-bench"] and "`hf-assisted` is absent" in shown["spec-bench"]
    assert "raised 0 alarms (2 timed again, changes 0.97 to 1.10); slowed 1.5 times, 1 missed" in shown["regression"]
    assert all("```\nforedraft bench" in shown[name] for name in ("scale", "spec-bench", "regression"))


def test_a_block_without_a_record_says_so(found, tmp_path):
    for rows in (found.scale, found.spec_bench, found.regression):
        rows.clear()
    assert [readme.blocks(found, "records")[name] for name in ("scale", "spec-bench", "regression")] == [""] * 3
    found.methods.clear()
    assert "Not measured yet" in readme.blocks(found, "records")["methods"]
    assert "methods" not in readme.picture_rows(found)


def test_markers_are_needed(found, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("no markers")
    with pytest.raises(UserError, match="README.md: needs the lines"):
        readme.stale(page, found, tmp_path)
