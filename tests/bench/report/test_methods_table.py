"""Which drafter when: what the tables say of a setting."""

from __future__ import annotations

import bench_rows

from foredraft.bench.report import methods_table as tables_methods
from foredraft.engine.params import AUTO


def test_the_best_has_plain_decodings_tokens_and_is_not_auto():
    rows = bench_rows.methods_rows()
    assert tables_methods.best(rows)["tokens_per_second"]["median"] == 2100
    # plain decoding wins where every drafter loses
    for row in tables_methods.ran(rows):
        row["tokens_per_second"]["median"] = 100 if row["drafter"] != "plain" else 101
    assert tables_methods.best(rows)["drafter"] == "plain"


def test_the_tables():
    text = tables_methods.methods_table([bench_rows.methods_rows(), bench_rows.methods_rows(1.0, 8)])
    assert "| 0 | 1 | `lookup, K=auto` | 2.10x (1.68-2.52) | 3.00 | 2.20x (1.76-2.64) | 1.05x (0.84-1.26) |" in text
    assert "| `lookup` | best K | 3.30x, K=8 | 3.30x, K=8 |" in text and "SIMULATED" in text
    # a folder by its name; a K of its own for each setting
    assert "| `lstm` | best K | 1.50x, K=3 | 1.50x, K=3 |" in text and "| `lstm` | best K | 3.00 | 3.00 |" in text
    assert "| `lstm` | auto | other tokens |" in text
    assert "`tree:x` is absent at T=0 B=1, T=1 B=8: no such thing." in text
    assert text.count("methods_comparison --at") == 1
    assert tables_methods.methods_table([]) == ""


def test_each_drafter_once_with_its_fastest_configuration():
    found = tables_methods.fastest_by_drafter([*bench_rows.methods_rows(), *bench_rows.methods_rows(1.0)])
    assert list(found) == [(0.0, 1), (1.0, 1)]
    names = found[0.0, 1]
    assert set(names) == {"lookup", "lstm", AUTO}
    assert names["lookup"]["draft_tokens"] == AUTO and names["lookup"]["simulated"]["draft_tokens"] == 8
    assert names["lstm"]["draft_tokens"] == 3


def test_a_line_for_the_terminal_has_a_cell_for_every_head():
    lines = tables_methods.lines(bench_rows.methods_rows())
    assert {len(line) for line in lines} == {len(tables_methods.HEADS)} and len(lines) == 6
