from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import foredraft
from foredraft.bench.harness.alpha import interval
from foredraft.bench.harness.evaluate import drafter_spec, evaluate, predicted
from foredraft.bench.harness.settings import Settings
from foredraft.cli.main import app
from foredraft.engine.drafters.registry import model_class
from foredraft.errors import UserError

SOURCES = [[5, 6, 7, 8, 1], [9, 10, 11, 1], [20, 21, 1]]


@pytest.fixture(scope="module")
def same_as_target(tiny_model_path, tmp_path_factory):
    """A drafter that is the target's whole decoder: it is always right."""
    folder = tmp_path_factory.mktemp("shallow")
    model_class("t5shallow").from_target(tiny_model_path, layers=[0, 1, 2]).save(folder)
    return folder


def test_the_prediction_is_leviathans():
    # gamma 3, alpha 0.8, c 0.05: their theorem 3.8
    assert predicted(0.8, 3, 0.05, 1.0) == pytest.approx((1 - 0.8**4) / ((1 - 0.8) * (3 * 0.05 + 1)))
    assert predicted(1.0, 4, 0.0, 1.0) == 5
    assert predicted(0.8, 3, 0.05, 2.0) < predicted(0.8, 3, 0.05, 1.0)


def test_the_interval_holds_the_ratio_and_shrinks_with_more_articles():
    draw = np.random.default_rng(1)
    sums = np.stack((draw.binomial(40, 0.7, 400), np.full(400, 40)), 1).astype(float)
    low, high = interval(sums)
    assert low < sums[:, 0].sum() / sums[:, 1].sum() < high
    few = interval(sums[:20])
    assert few[1] - few[0] > 2 * (high - low)
    assert interval(np.array([[3.0, 4.0]])) == (0.75, 0.75)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_perfect_drafter_in_figures(tiny_model_path, same_as_target, temperature):
    model = foredraft.load(tiny_model_path, drafter=same_as_target)
    settings = Settings(temperature=temperature, max_new_tokens=9, repeats=1)
    found = evaluate({"same": model}, SOURCES, settings, {"same": [1, 3]})["same"]
    assert found["alpha"]["value"] == pytest.approx(1, abs=1e-4)
    assert found["alpha"]["prefixes"] > 0
    for row in found["rows"]:
        acceptance = row["acceptance"]
        assert acceptance["rate"] == 1 and acceptance["coverage"] > 0.5
        assert set(acceptance["at"]) <= {1.0, None}
        assert row["c"] > 0 and row["v"] > 0 and row["speed_up"]["median"] > 0
        assert row["predicted"] == pytest.approx(
            (row["draft_tokens"] + 1) / (row["draft_tokens"] * row["c"] + row["v"]), rel=1e-3)
        assert row["differing"] == (0 if temperature == 0 else None)


def test_the_kind_is_told_from_the_checkpoint(same_as_target, tmp_path):
    assert drafter_spec(same_as_target, None) == (str(same_as_target), "t5shallow")
    assert drafter_spec(None, "lookup") == ("lookup", "lookup")
    assert drafter_spec(None, "tree:2x1:lookup") == ("tree:2x1:lookup", "tree:2x1:lookup")
    table = tmp_path / "table.ngram"
    table.write_bytes(b"")
    assert drafter_spec(table, None) == (f"ngram:{table}", "ngram")
    (tmp_path / "skip.json").write_text("{}")
    assert drafter_spec(tmp_path / "skip.json", None) == (f"self:{tmp_path / 'skip.json'}", "self")
    for path, kind, message in (
        (same_as_target, "lstm", "is a drafter of kind t5shallow, not lstm"),
        (same_as_target, "gru", "--drafter gru is not known"),
        (tmp_path / "nothing", None, "no such checkpoint"),
        (tmp_path, None, "config.json is missing"),
        (None, None, "--ckpt-path PATH"),
        (None, "lstm", "--ckpt-path PATH"),
    ):
        with pytest.raises(UserError, match=message):
            drafter_spec(path, kind)


def test_the_command_ends_in_one_line_of_json(tiny_model_path, same_as_target, tmp_path):
    data = tmp_path / "two.jsonl"
    data.write_text("".join(json.dumps({"article": f"w5 w6 w{i} w8", "highlights": "w5"}) + "\n" for i in (7, 9)))
    out = tmp_path / "record.jsonl"
    result = CliRunner().invoke(app, [
        "eval", "--ckpt_path", str(same_as_target), "--target", str(tiny_model_path), "--data", str(data), "--limit", "2",
        "--draft-tokens", "2", "--gen_length", "6", "--batch_size", "2", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout.splitlines()[-1])
    assert row == json.loads(out.read_text())
    assert row["drafter"]["kind"] == "t5shallow" and row["data"]["articles"] == 2
    assert [figures["temperature"] for figures in row["figures"]] == [0, 1]


@pytest.mark.parametrize(("flag", "value"), [("--draft-tokens", "0"), ("--draft-tokens", "x"), ("--temperature", "-1")])
def test_numbers_that_are_none(same_as_target, flag, value):
    result = CliRunner().invoke(app, ["eval", "--ckpt_path", str(same_as_target), flag, value])
    assert isinstance(result.exception, UserError) and flag in str(result.exception)
