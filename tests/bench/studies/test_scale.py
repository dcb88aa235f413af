from __future__ import annotations

import json

import numpy as np
import pytest

from foredraft.bench.studies import scale
from foredraft.memory import peak_resident_bytes, resident_bytes


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
    points = []
    scale.curve([2, 4], lambda size: calls.append(size) or size, 3, points, before=lambda: calls.append("before"))
    assert calls == ["before", 2, 2, 2, "before", 4, 4, 4] and [point["size"] for point in points] == [2, 4]
    assert all(0 <= point["least_ms"] <= point["ms_per_article"] for point in points)


@pytest.mark.full
def test_the_script_and_its_charts(script, tiny_model_path, tmp_path):
    from foredraft.bench.report import charts

    data = tmp_path / "two.jsonl"
    data.write_text("".join(json.dumps({"article": f"w5 w6 w{i} w5", "highlights": "w5"}) + "\n" for i in (7, 9)))
    code, out, err = script(
        scale, "--target", tiny_model_path, "--data", data, "--articles", "1,3", "--source", "4,8", "--output",
        "2,4", "--memory", 8, "--batch-size", 2, "--max-new-tokens", 3, "--repeats", 1, "--out", tmp_path, "--json")
    assert code == 0, err
    row = json.loads(out.splitlines()[-1])["rows"][0]
    assert {name: [point["size"] for point in points] for name, points in row["curves"].items()} == {
        "articles": [1, 3], "source": [4, 8], "output": [2, 4]}
    assert row["memory"]["articles"] == [2, 4, 6, 8] and len(row["memory"]["rss"]) == 4
    pytest.importorskip("matplotlib")
    assert [chart.name for chart in charts.scale(row, 0)] == [
        "scale-0-articles", "scale-0-source", "scale-0-output", "memory-0"]


@pytest.mark.full
def test_sources_longer_than_the_checkpoints_limit_are_not_truncated(tiny_model_path, monkeypatch):
    import foredraft

    model, read = foredraft.load(tiny_model_path, drafter=None), []
    encode = model.target.encode
    monkeypatch.setattr(type(model), "source_limit", 5)
    monkeypatch.setattr(model.target, "encode", lambda source: read.append(len(source)) or encode(source))
    scale.scale(model, [[5, 6, 1]], articles=[1], source=[4, 9], output=[2], memory=0, batch_size=1, draft_tokens=0,
                max_new_tokens=2, repeats=1)
    # a warm-up, then by articles, output and source
    assert read == [3, 3, 3, 4, 9]


@pytest.mark.full
@pytest.mark.skipif(peak_resident_bytes() is None, reason="the system does not report peak memory")
def test_memory_an_article_is_the_peak_shared_among_them():
    held, points = [], []

    def hold(size: int) -> int:
        # larger than what malloc ever keeps for itself (32 MB)
        held.append(np.ones(size * 64_000_000, np.uint8))
        held.clear()
        return size

    scale.curve([4, 1], hold, 1, points, resident_bytes(), scale.let_go)
    # the second size does not include the first one's peak
    assert 48e6 < points[0]["bytes_per_article"] < 96e6 and points[1]["bytes_per_article"] < 128e6
    scale.curve([4], hold, 1, points)
    assert points[2]["bytes_per_article"] is None


@pytest.mark.full
def test_an_interrupted_measurement_keeps_its_points(script, tiny_model_path, tmp_path, monkeypatch):
    data = tmp_path / "two.jsonl"
    data.write_text(json.dumps({"article": "w5 w6 w5", "highlights": "w5"}) + "\n")
    monkeypatch.setattr(scale, "_stretched", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ("--target", tiny_model_path, "--data", data, "--source", "4", "--output", "2",
                 "--memory", 0, "--max-new-tokens", 3, "--out", tmp_path)
    code, _, err = script(scale, *arguments, "--articles", "1,2")
    assert code == 130 and "interrupted" in err
    (file,) = tmp_path.glob("scale-*.jsonl")
    row = json.loads(file.read_text())
    assert [len(points) for points in row["curves"].values()] == [2, 0, 0] and not row["complete"]
