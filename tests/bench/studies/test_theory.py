from __future__ import annotations

import json

import bench_rows
import pytest

from foredraft.bench.studies import theory
from foredraft.bench.studies.theory import accounted, with_picks


def figures(*speeds: tuple[int, float, float]) -> dict:
    """(K, predicted, measured) of each row."""
    rows = bench_rows.drafter_row(Ks=tuple(K for K, *_ in speeds))["figures"][0]["rows"]
    for row, (_, guessed, measured) in zip(rows, speeds, strict=True):
        row |= {"predicted": guessed, "speed_up": bench_rows.interval(measured)}
    return {"temperature": 0.0, "rows": rows}


def test_the_model_picks_by_prediction_and_the_clock_by_speed():
    found = with_picks(figures((1, 1.2, 1.3), (2, 1.5, 1.4), (4, 1.4, 1.6)))
    assert (found["picked"], found["best"]) == (2, 4) and found["kept"] == pytest.approx(1.4 / 1.6)
    assert [row["draft_tokens"] for row in found["rows"]] == [0, 1, 2, 4]


def test_drafting_nothing_may_be_best():
    found = with_picks(figures((1, 0.9, 0.8), (3, 0.7, 0.9)))
    assert (found["picked"], found["best"], found["kept"]) == (0, 0, 1.0)
    plain = found["rows"][0]
    assert plain["predicted"] == plain["accounted"] == plain["speed_up"]["median"] == plain["v"] == 1


def test_accounted_counts_what_was_drafted():
    row = {"c": 0.1, "v": 1.2, "acceptance": {"steps": 50, "drafted": 100, "tokens_per_step": 2.1}}
    assert accounted(row) == pytest.approx(2.1 / (0.1 * 2 + 1.2))
    assert accounted(row | {"c": None}) is None


def test_a_K_without_a_speed_up_is_never_the_best():
    found = figures((1, 1.2, 1.3), (2, 1.5, 9.0))
    del found["rows"][1]["speed_up"]
    assert with_picks(found)["best"] == 1 and with_picks(found)["kept"] is None


def test_the_script(script, tiny_model_path, tmp_path):
    data = tmp_path / "two.jsonl"
    data.write_text("".join(json.dumps({"article": f"w5 w6 w{i} w5 w6", "highlights": "w5"}) + "\n" for i in (7, 9)))
    code, out, err = script(theory, "--target", tiny_model_path, "--data", data, "--most", 2, "--repeats", 1,
                             "--temperature", "0", "--max-new-tokens", 6, "--out", tmp_path, "--json")
    assert code == 0, err
    row = json.loads(out.splitlines()[-1])["rows"][0]
    assert [one["draft_tokens"] for one in row["figures"][0]["rows"]] == [0, 1, 2]
    assert row["figures"][0]["picked"] in (0, 1, 2) and row["drafter"]["name"] == "lookup"
