"""The tables of widened targets."""

from __future__ import annotations

import bench_rows

from foredraft.bench.report import larger_table


def test_a_table_for_each_size_and_setting():
    short = [row | {"max_new_tokens": 48, "repeats": 1} for row in bench_rows.larger_rows("flan-t5-xl", 1.0)]
    text = larger_table.larger_table([short, bench_rows.larger_rows()])
    assert "**flan-t5-base T=0 B=1 K=5**, 30 texts, up to 64 new tokens, passes: 3\n" in text
    assert "**flan-t5-xl T=1 B=1 K=5**, 30 texts, up to 48 new tokens, passes: 1\n" in text
    assert "30 texts, up to 48-64 new tokens, passes: 1-3" in " ".join(text.split())
    speed_up = "2.00x (1.60-2.40) | 2.00x (1.60-2.40)"
    assert text.count(f"| lookup | 2,000 (1,800-2,200) | {speed_up} | 3.00 | 0.70 | 0.010 | 1.20 | 2.50x | 0 of 30 |") == 2
    assert "`hf-assisted` is absent at flan-t5-xl T=1 B=1 K=5, flan-t5-base T=0 B=1 K=5: no assistant." in text
    assert "like the embedded target (`abcdef`)" in " ".join(text.split())
    corrections = [row | {"task": "corrections"} for row in bench_rows.larger_rows()]
    assert "like a small target that was trained for corrections (`abcdef`)" in " ".join(
        larger_table.larger_table([corrections]).split())
    assert larger_table.larger_table([]) == ""


def test_the_summary_names_the_fastest_drafter_beside_the_other_engines():
    rows = bench_rows.larger_rows()
    text = larger_table.summary([rows])
    assert "| flan-t5-base | 0 | 1 | 1000.0 | `lookup`: 2000.0 | 2.00x (1.60-2.40) | 200.0 | - |" in text
    # other tokens than plain decoding's: no drafter has a speed-up
    rows[1]["speed_up"] = None
    assert "| 1000.0 | - | - | 200.0 | - |" in larger_table.summary([rows])
    assert larger_table.summary([]) == ""
