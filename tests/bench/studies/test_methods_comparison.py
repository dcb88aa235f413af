"""The comparison of drafters at one setting, on a tiny model: configurations, tokens, absences, and the script."""

from __future__ import annotations

import json

import pytest

import foredraft
from foredraft.bench.harness.measure import Sample
from foredraft.bench.harness.settings import Settings
from foredraft.bench.studies import methods_comparison
from foredraft.bench.studies.methods_comparison import Configuration

SOURCES = [[5, 6, 7, 5, 6, 7, 5, 6, 1], [9, 8, 1]]


@pytest.fixture
def lstm(tiny_model_path, tmp_path):
    from foredraft.engine.drafters.registry import model_class

    model_class("lstm").from_target(tiny_model_path, hidden_size=16).save(tmp_path)
    return str(tmp_path)


def rows_of(path, drafters, temperature, widths=(1, 2), **options):
    settings = Settings(temperature=temperature, max_new_tokens=10, repeats=1, warm_up=1, **options)
    model = foredraft.load(path, drafter=None)
    return methods_comparison.compare(model, drafters, SOURCES, SOURCES[:1], settings, {"run": "x"}, widths)


@pytest.mark.full
def test_the_configurations_of_a_setting(tiny_model_path, lstm):
    rows = rows_of(tiny_model_path, ["lookup", lstm, "tree:2x1:lookup", "auto", "gru"], 1.0)
    configurations = [(row["drafter"], row["draft_tokens"] == "auto", row["verification"]) for row in rows]
    assert configurations == [("plain", False, "token"), ("lookup", False, "token"), ("lookup", True, "token"),
                    (lstm, False, "token"), (lstm, False, "block"), (lstm, True, "token"), (lstm, True, "block"),
                    ("tree:2x1:lookup", False, "token"), ("auto", True, "token"), ("gru", False, None)]
    assert {row["run"] for row in rows} == {"x"} and "is not known" in rows[-1]["absent"]
    by_configuration = dict(zip(configurations, rows, strict=True))
    # copies keep plain decoding's tokens; sampled drafts use other random numbers
    assert by_configuration["lookup", True, "token"]["differ"] == 0 and by_configuration[lstm, True,
                                                                                         "block"]["differ"] is None
    best = by_configuration["auto", True, "token"]["of_best"]
    assert best["low"] <= best["median"] <= best["high"] and best["way"] != "auto"
    for row in rows[:-1]:
        assert row["trace"]["emitted"] == row["tokens"] and (row["simulated"] is not None) == (
            row["draft_tokens"] not in (0, "auto") and row["verification"] == "token")
    assert by_configuration[lstm, False, "token"]["simulated"]["draft_tokens"] in (1, 2)


def test_a_rival_is_chosen_on_other_batches_than_those_it_is_timed_on():
    """Two rivals are each fast on half of the batches; chosen where it is timed, either would look twice as fast."""
    def samples(*seconds):
        return [[Sample([[5] * 10], one, {"encode": 0.0}, None) for one in seconds]] * 2

    even, odd, steady = Configuration("even", 1), Configuration("odd", 1), Configuration("steady", 1)
    chosen, names = methods_comparison.fastest({even: samples(1, 4, 1, 4), odd: samples(4, 1, 4, 1), steady: samples(3, 3, 3,
                                                                                                                     3)})
    assert names == "odd, K=1 or even, K=1" and [[one.seconds for one in taken] for taken in chosen] == [[4, 4, 4, 4]] * 2
    chosen, names = methods_comparison.fastest({even: samples(1, 4, 1, 4), steady: samples(0.5, 2, 0.5, 2)})
    assert names == "steady, K=1" and [one.seconds for one in chosen[0]] == [0.5, 2, 0.5, 2]
    assert methods_comparison.fastest({even: samples(1), steady: samples(2)})[1] == "even, K=1"


@pytest.mark.full
def test_greedy_drafts_are_verified_one_way(tiny_model_path, lstm):
    rows = rows_of(tiny_model_path, [lstm], 0.0, batch_size=2)
    assert [row["verification"] for row in rows] == ["token"] * 3 and {row["differ"] for row in rows} == {0}


def test_a_configuration_with_other_tokens_is_never_the_best(tiny_model_path, monkeypatch):
    from foredraft.engine.drafters.lookup import LookupDrafter

    draft = LookupDrafter.draft

    def broken(self, state, budget=None):
        # overwrites committed tokens, which no verification can repair
        state.tokens[:, 1] = 7
        return draft(self, state, budget)

    monkeypatch.setattr(LookupDrafter, "draft", broken)
    rows = rows_of(tiny_model_path, ["lookup", "auto"], 0.0)
    lookup = rows[1]
    assert lookup["differ"] and lookup["speed_up"] is None
    assert rows[-1]["of_best"]["way"] == "plain"


@pytest.mark.full
def test_the_script_stores_each_setting(script, tmp_path):
    code, out, _ = script(methods_comparison, "--only", "--drafter", "lookup", "--drafter", "auto", "--limit", 2,
                           "--tune", 1, "--widths", "2,3", "--repeats", 1, "--max-new-tokens", 8, "--batch-size", 2,
                           "--out", tmp_path, "--json")
    assert code == 0 and "over plain" in out
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [row["drafter"] for row in rows] == ["plain", "lookup", "lookup", "auto"] * 2
    assert len(next(tmp_path.glob("methods-*.jsonl")).read_text().splitlines()) == len(rows)
    code, _, err = script(methods_comparison, "--limit", 40)
    assert code == 2 and "there are 14 articles" in err
    assert "--only" in script(methods_comparison, "--only")[2]
