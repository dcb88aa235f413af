"""Big Little Decoder: lossy records say so and have no speed-up."""

import json

import pytest
import torch
from typer.testing import CliRunner

from foredraft.bench.studies import big_little
from foredraft.cli.main import app
from foredraft.engine.drafters.registry import model_class


@pytest.fixture
def drafter(tiny_model_path, tmp_path):
    torch.manual_seed(3)
    model_class("t5shallow").from_target(tiny_model_path, layers=[0, 2]).save(tmp_path / "drafter")
    return tmp_path / "drafter"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps({"article": f"w5 w6 w{i} w8", "highlights": f"w5 w{i}"}) + "\n" for i in (7, 9, 11)))
    return path


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), result.stdout


def test_the_script(script, tiny_model_path, drafter, data, tmp_path):
    code, shown, err = script(big_little, "--target", tiny_model_path, "--drafter", drafter, "--data", data, "--fallback",
                              "0,1", "--rollback", "0,50", "--repeats", 1, "--max-new-tokens", 12, "--out", tmp_path,
                              "--json")
    assert code == 0, err
    found = json.loads(shown.splitlines()[-1])
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == ["plain", "lossless", "0,0", "0,50", "1,0", "1,50"]
    assert shown.count("LOSSY ") >= 4
    for name, row in rows.items():
        assert row["kind"] == "big-little" and row["rouge"]["rouge1"] >= 0
        assert bool(row["lossy"]) == ("speed_up" not in row) == (name not in ("plain", "lossless"))
    assert rows["lossless"]["differ"] == rows["0,0"]["differ"] == rows["1,50"]["differ"] == 0
    assert rows["0,50"]["differ"] > 0 and rows["0,50"]["rate"] == 1
    assert rows["0,50"]["over_lossless"]["median"] > 0
    assert [json.loads(line) for line in open(found["record"])] == found["rows"]


def test_eval_names_it(tiny_model_path, drafter, data):
    found, shown = invoke("eval", "--ckpt_path", drafter, "--target", tiny_model_path, "--data", data, "--draft-tokens", "3",
                          "--temperature", "0", "--gen_length", 8, "--big-little", "0,50", "--json")
    (row,) = found["figures"][0]["rows"]
    assert row["lossy"] == "big-little fallback 0 rollback 50" and row["differing"] > 0
    assert "speed_up" not in row and row["predicted"] is None
    assert "LOSSY" in shown


def test_summarize_names_it(tiny_model_path, drafter, data, tmp_path):
    options = ("--target", tiny_model_path, "--drafter", drafter, "--max-new-tokens", 8, "--big-little", "0,50", "--stats",
               "--json")
    text = tmp_path / "text.txt"
    text.write_text("w5 w6 w7")
    runner = CliRunner()
    result = runner.invoke(app, ["summarize", str(text), *map(str, options)], catch_exceptions=False)
    assert json.loads(result.stdout.splitlines()[-1])["stats"]["lossy"].startswith("big-little")
    assert result.stderr.count("LOSSY") == 2
    out = tmp_path / "out.jsonl"
    result = runner.invoke(app, ["summarize", "--input", str(data), "--output", str(out), *map(str, options)],
                           catch_exceptions=False)
    assert all(json.loads(line)["lossy"] == "big-little fallback 0 rollback 50" for line in open(out))
    assert result.stderr.count("LOSSY") == 2
