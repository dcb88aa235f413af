"""The newest record of everything, and nothing of the sample texts."""

from __future__ import annotations

import json

import bench_rows
import pytest

from foredraft.bench.harness.cases import SAMPLE_TEXTS
from foredraft.bench.report import collection


def test_the_newest_of_everything(tmp_path):
    old, new = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    rows = [*bench_rows.run_rows(time=new, speed=2.0), *bench_rows.run_rows(time=old), *bench_rows.run_rows(1.0, time=old),
            *bench_rows.run_rows(time="2027", data=bench_rows.DATA | {"name": SAMPLE_TEXTS}),
            bench_rows.drafter_row(alpha=0.5, time=new), bench_rows.drafter_row(alpha=0.4, time=old),
            bench_rows.drafter_row(seed=1, time=old), bench_rows.steps_row(), {"shape": "of another file"},
            *bench_rows.methods_rows(1.0, time=new), *bench_rows.methods_rows(1.0, time=old), *bench_rows.methods_rows(0.0),
            *bench_rows.larger_rows(), *bench_rows.larger_rows(batch_size=8), *bench_rows.larger_rows("flan-t5-xl"),
            *[row | {"task": "corrections"} for row in bench_rows.larger_rows()]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = collection.collect(tmp_path)
    assert [(run[0]["temperature"], run[0]["time"], len(run)) for run in found.runs] == [(0.0, new, 4), (1.0, old, 4)]
    assert [(row["training"]["seed"], row["figures"][0]["alpha"]["value"]) for row in found.drafters] == [(0, 0.5), (1, 0.4)]
    assert [(rows[0]["temperature"], rows[0]["time"], len(rows)) for rows in found.methods] == [(0.0, old, 7), (1.0, new, 7)]
    assert {task: [(rows[0]["geometry"], rows[0]["batch_size"], len(rows)) for rows in groups]
            for task, groups in found.larger.items()} == {
        "summaries": [("flan-t5-xl", 1, 4), ("flan-t5-base", 1, 4), ("flan-t5-base", 8, 4)],
        "corrections": [("flan-t5-base", 1, 4)]}
    assert len(found.steps) == 1 and len(found.all) == len(rows) - 1


def test_alpha_is_a_mean_over_seeds_and_the_best_method_is_no_baseline():
    rows = [bench_rows.drafter_row(method=method, seed=seed, alpha=alpha) for method, seed, alpha in (
        ("baseline", 0, 0.9), ("Seq_KD", 0, 0.2), ("Seq_KD", 1, 0.6), ("MiniLLM", 0, 0.5))]
    methods = collection.by_method([*rows, bench_rows.drafter_row("lookup", None)])["lstm"]
    assert list(methods) == ["baseline", "MiniLLM", "Seq_KD"]
    assert collection.mean(methods["Seq_KD"], 0.0, collection.alpha) == pytest.approx(0.4)
    assert collection.best_distilled(methods, 0.0) == "MiniLLM"
    assert collection.best_distilled({"baseline": methods["baseline"]}, 0.0) is None
    assert collection.mean(methods["Seq_KD"], 0.7, collection.alpha) is None


def test_only_seeds_of_both_sides_are_compared():
    rows = [bench_rows.drafter_row(method=method, seed=seed) for method, seed in (
        ("baseline", 0), ("baseline", 1), ("baseline", 2), ("Seq_KD", 1), ("Seq_KD", 3))]
    methods = collection.by_method(rows)["lstm"]
    pair = collection.side_by_side(methods, "baseline", "Seq_KD")
    assert [[collection.trained(row)[2] for row in side] for side in pair] == [[1], [1]]
    assert len(collection.side_by_side(methods, "baseline", "MiniLLM")[0]) == 3


def test_the_fastest_K_speaks_for_a_run():
    row = bench_rows.drafter_row(Ks=(1, 2, 5))
    figures = row["figures"][0]
    figures["rows"][1]["speed_up"]["median"] = 9.0
    assert collection.fastest(figures)["draft_tokens"] == 2 and collection.speed_up(figures) == 9.0
    assert collection.tokens_per_step(figures) == figures["rows"][1]["acceptance"]["tokens_per_step"]
    for one in figures["rows"]:
        del one["speed_up"]
    assert collection.speed_up(figures) is None and collection.best_distilled({"a": [row]}, 0.0, collection.speed_up) is None
