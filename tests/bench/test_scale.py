from __future__ import annotations

import json

import numpy as np
import pytest

from foredraft.bench import scale


def test_the_slope_of_a_leak_and_of_none():
    draw = np.random.default_rng(0)
    x = np.arange(0, 1000, 8)
    steps = np.repeat(draw.standard_normal(-(-len(x) // 5)), 5)[: len(x)] * 1e5
    leak, none = scale.slope(x, 5e8 + 4096 * x + steps), scale.slope(x, 5e8 + steps)
    assert leak["low"] < 4096 < leak["high"] and leak["low"] > 0
    assert none["low"] < 0 < none["high"]
    assert scale.slope([1, 2, 3], [5, 5, 5]) == {"slope": 0, "low": 0, "high": 0}


def test_sources_of_exactly_a_length():
    found = scale._stretched([[5, 6, 1], [7, 8, 9, 1]], 4, 3, 1)
    assert found == [[5, 6, 7, 1], [8, 9, 5, 1], [6, 7, 8, 1]]


def test_a_point_is_the_median_a_call():
    calls = []
    points = scale.curve([2, 4], lambda size: calls.append(size) or size, 3)
    assert calls == [2, 2, 2, 4, 4, 4] and [point["size"] for point in points] == [2, 4]
    assert all(0 <= point["least_ms"] <= point["ms_per_article"] for point in points)


def test_the_command_and_its_charts(command, tiny_model_path, tmp_path):
    from foredraft.bench import charts

    data = tmp_path / "two.jsonl"
    data.write_text("".join(json.dumps({"article": f"w5 w6 w{i} w5", "highlights": "w5"}) + "\n" for i in (7, 9)))
    code, out, err = command(
        "bench", "scale", "--target", tiny_model_path, "--data", data, "--articles", "1,3", "--source", "4,8", "--output",
        "2,4", "--memory", 8, "--batch-size", 2, "--max-new-tokens", 3, "--repeats", 1, "--out", tmp_path)
    assert code == 0, err
    row = json.loads(out.splitlines()[-1])["row"]
    assert {name: [point["size"] for point in points] for name, points in row["curves"].items()} == {
        "articles": [1, 3], "source": [4, 8], "output": [2, 4]}
    assert row["memory"]["articles"] == [2, 4, 6, 8] and len(row["memory"]["rss"]) == 4
    pytest.importorskip("matplotlib")
    assert [chart.name for chart in charts.scale(row)] == ["scale-articles", "scale-source", "scale-output", "memory"]
