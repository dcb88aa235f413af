"""`foredraft bench run` as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foredraft.bench.report.collection import read_objects


def test_bench_run_records_and_ends_in_json(command, fake_load, tmp_path, monkeypatch):
    from foredraft.bench.harness import bench_run as compare
    from foredraft.bench.harness import record

    monkeypatch.setattr(record.machine, "read_bandwidth", lambda device: 1.0)
    monkeypatch.setattr(compare, "alpha_tv", lambda *arguments: 0.5)
    data = tmp_path / "articles.jsonl"
    data.write_text('{"article": "w1 w2 w3", "highlights": "w1"}\n' * 3)
    code, out, err = command("bench", "run", "--data", data, "--methods", "lookup,ngram", "--out", tmp_path / "results",
                             "--json")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert [row["method"] for row in result["rows"]] == ["plain", "lookup", "ngram"]
    assert read_objects(Path(result["record"])) == result["rows"]
    assert result["rows"][0]["command"].startswith("foredraft bench run --data")
    options = ("--data", data, "--methods", "lookup", "--suite", "spec-bench")
    code, out, err = command("bench", "run", *options, "--draft-tokens", "3,5", "--spec-bench", tmp_path / "answers",
                             "--out", tmp_path / "more", "--json")
    assert code == 0, err
    file = json.loads(out.splitlines()[-1])["record"]
    found = [json.loads(line) for line in Path(file).read_text().splitlines()]
    assert [(row["kind"], row["draft_tokens"]) for row in found] == [("spec-bench", 3), ("spec-bench", 5)]
    plain, lookup = found[0]["rows"]
    assert plain["rouge"]["rouge1"] > 0 and plain["footprint"] is None
    assert plain["spec_bench"]["mean_accepted_tokens"] == 1 and lookup["spec_bench"]["speed_up"] > 0
    answers = tmp_path / "answers"
    assert len(list((answers / "K3").rglob("*.jsonl"))) == len(list((answers / "K5").rglob("*.jsonl"))) == 6
    assert "Spec-Bench, lookup: " in out


def test_an_interrupted_bench_keeps_what_it_has(command, fake_load, tmp_path, monkeypatch):
    from foredraft.bench.harness import bench_run as compare
    from foredraft.bench.harness import record

    monkeypatch.setattr(record.machine, "read_bandwidth", lambda device: 1.0)
    monkeypatch.setattr(compare, "alpha_tv", lambda *arguments: 0.5)
    whole = compare.measure.measure
    monkeypatch.setattr(compare.measure, "measure",
                        lambda *args, **named: {name: one[:1] for name, one in whole(*args, **named).items()})
    code, _, err = command("bench", "run", "--limit", 2, "--methods", "plain", "--batch-sizes", "1,2", "--out", tmp_path)
    assert code == 130 and "holds what was complete" in err
    (file,) = tmp_path.glob("*.jsonl")
    assert [(row["repeats"], row["batch_size"]) for row in read_objects(file)] == [(1, 1)]
    # inside the first pass: the article that all methods have decoded
    monkeypatch.setattr(compare.measure, "measure",
                        lambda *args, **named: {name: [one[0][:1]] for name, one in whole(*args, **named).items()})
    code, _, err = command("bench", "run", "--suite", "spec-bench", "--limit", 2, "--methods", "lookup", "--repeats", 1,
                           "--spec-bench", tmp_path / "answers", "--out", tmp_path / "first")
    assert code == 130 and "holds what was complete" in err
    (file,) = (tmp_path / "first").glob("*.jsonl")
    row = json.loads(file.read_text())
    assert row["data"]["articles"] == 1 and [one["data"]["articles"] for one in row["rows"]] == [1, 1]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--methods", "magic"], "no method named 'magic'"),
    (["--batch-size", "0"], "--batch-sizes is '0'"),
    (["--draft-tokens", "-1"], "--draft-tokens is '-1'"),
    (["--suite", "fast"], "no suite named 'fast'"),
    (["--spec-bench", "x", "--batch-sizes", "2"], "--spec-bench: Spec-Bench decodes greedily"),
    (["--data", "gone.jsonl"], "gone.jsonl"),
])
def test_bench_errors(command, fake_load, tmp_path, arguments, message):
    code, out, err = command("bench", "run", "--out", tmp_path, *arguments)
    assert code == 2 and out == "" and message in err
    assert not list(tmp_path.iterdir())
