"""The table of `foredraft eval`."""

from __future__ import annotations

from foredraft.cli.eval import show_table


def test_the_table_fits_100_columns(capsys):
    result = {
        "draft_tokens": 64, "acceptance": {"rate": 0.123, "per_drafted": 0.123, "tokens_per_step": 10.25, "coverage": 1.0,
                                           "at": [0.5, None]},
        "c": 0.123, "v": 1.234, "predicted": 12.34, "speed_up": {"median": 12.34}, "differing": 100, "lossy": "big-little"}
    figures = {"temperature": 0.75, "alpha": {"value": 0.123, "low": 0.1, "high": 0.2}, "rows": [result]}
    record = {"drafter": {"kind": "lookup+ngram"}, "target": {"model": "flan-t5-base", "hash": "0" * 64},
              "data": {"articles": 1000, "name": "validation"}, "batch_size": 16, "figures": [figures]}
    show_table(record)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100 and "12.34x" in shown and "differ" in shown and "coverage" not in shown
    show_table(record, wide=True)
    assert "coverage" in capsys.readouterr().out
