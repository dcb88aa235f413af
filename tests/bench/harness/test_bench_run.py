from __future__ import annotations

import io
import json
import types

import pytest
from rich.console import Console

from foredraft.bench.harness import bench_run as compare
from foredraft.bench.harness import methods, record
from foredraft.bench.harness.cases import Case, describe
from foredraft.bench.harness.settings import Settings
from foredraft.bench.report import runs_table as report
from foredraft.engine.protocols import Capabilities
from foredraft.errors import UserError

CASES = [Case(str(i), (*range(3, 8 + i), 1), 0, None) for i in range(4)]


@pytest.fixture
def run(monkeypatch, fake_model):
    """run(names, **settings): lines of a comparison on the fake model, with a method "wrong"."""
    monkeypatch.setitem(methods.METHODS, "wrong", methods._foredraft("wrong"))
    monkeypatch.setattr(compare, "alpha_tv", lambda *arguments: 0.5)
    monkeypatch.setattr(record.machine, "read_bandwidth", lambda device: 1.0)

    def rows(names, **options):
        settings = Settings(repeats=2, **options)
        common = compare.common_fields(fake_model, settings, describe(None, CASES))
        return compare.compare(fake_model, CASES, settings, names, common)

    return rows


def test_lines_fit_the_schema(run):
    rows = run(["lookup", "ngram", "hf-assisted"])
    for row in rows:
        record.check(row)
        json.dumps(row, allow_nan=False)
    plain, lookup, ngram, assisted = rows
    assert plain["method"] == "plain" and plain["differ"] == 0
    assert lookup["differ"] == 0 and lookup["speed_up"]["median"] > 0
    assert lookup["acceptance"]["rate"] == 0.5 and lookup["acceptance"]["at"] == [0.5, 0.5]
    assert lookup["acceptance"]["alpha_tv"] == 0.5
    assert ngram["absent"] == "no table" and "--assistant" in assisted["absent"]


def test_rouge_of_every_method(fake_model):
    scores = compare.Rouge(fake_model.tokenizer, ["w1 w2 w3", "w4"])
    same, other = scores([[4, 5, 6, 1], [7, 1]]), scores([[4, 5, 6, 1], [8, 1]])
    assert same["rouge1"] == same["rougeLsum"] == 100 and other["rouge1"] == 50
    assert len(scores.known) == 2 and compare.Rouge(fake_model.tokenizer, ["w1", None])([[4], [5]]) is None


def test_an_interrupted_comparison_says_how_many_passes_it_has(run, monkeypatch):
    whole = compare.measure.measure
    monkeypatch.setattr(compare.measure, "measure",
                        lambda *args, **named: {name: passes[:1] for name, passes in whole(*args, **named).items()})
    assert [row["repeats"] for row in run(["lookup"])] == [1, 1]


def test_no_speed_up_for_other_tokens(run):
    wrong = run(["wrong"])[1]
    assert wrong["differ"] == len(CASES)
    assert wrong["speed_up"] is None and wrong["speed_up_encoding"] is None
    assert wrong["tokens_per_second"]["median"] > 0


@pytest.mark.parametrize("lossless", [False, True])
def test_other_random_numbers_are_not_compared_and_a_speed_up_needs_the_same_distribution(run, monkeypatch, lossless):
    def factory(model, settings, argument):
        built = methods._foredraft("lookup")(model, settings, argument)
        return methods.Method(built.run, comparable=False, lossless=lossless, model=built.model)

    monkeypatch.setitem(methods.METHODS, "noisy", factory)
    noisy = run(["noisy"], temperature=1.0)[1]
    assert noisy["differ"] is None and (noisy["speed_up"] is not None) == lossless


def test_sampled_drafts_are_not_comparable():
    dense, points = (types.SimpleNamespace(drafter=types.SimpleNamespace(capabilities=Capabilities(point_masses=one)))
                     for one in (False, True))
    sampled = Settings(temperature=1.0)
    assert not methods.drafting_method(dense, sampled, 2).comparable
    for model, settings, K in ((points, sampled, 2), (dense, sampled, 0), (dense, Settings(), 2)):
        assert methods.drafting_method(model, settings, K).comparable


def test_transformers_speculates_alone(run):
    rows = run(["hf-prompt-lookup"], batch_size=2)
    assert "batch size 1" in rows[1]["absent"]


def test_an_unknown_method(run):
    with pytest.raises(UserError, match="no method named 'fastest'; choose from plain, lookup"):
        run(["fastest"])


def test_tables(run):
    rows = run(["lookup", "wrong", "ngram"])
    console = Console(file=io.StringIO(), width=100)
    for one in report.tables(rows):
        console.print(one, markup=False) if isinstance(one, str) else one.show(console)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 100
    assert "ngram is absent: no table" in shown and "4 of 4" in shown
    table = report.runs_table([rows])
    lines = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("|")}
    assert len({line.count("|") for line in lines.values()}) == 1
    assert "x (" in lines["lookup"] and "x (" not in lines["wrong"]
    assert "`ngram` is absent" in table


def test_the_floor_of_a_pass(tiny_model_path, monkeypatch):
    import foredraft
    from foredraft.bench.harness import measure
    from foredraft.bench.harness.throughput import floor

    monkeypatch.setattr(compare, "product_rate", lambda config, rows: 1e9)
    model = foredraft.load(tiny_model_path, drafter=None)
    sources, settings = [[5, 6, 7, 8, 1], [9, 10, 1]], Settings(batch_size=2, max_new_tokens=6, repeats=1, warm_up=0)
    samples = measure.measure({"plain": methods.build("plain", model, settings)}, sources, settings, end_token=1)["plain"]
    found = compare.least(model.target, sources, samples, 2.0)
    assert found == floor(model.target, sources, samples[0][0].outputs, samples[0][0].stats, 1e9, 2.0)
    assert found["total"] > found["encode"] > 0
    assert compare.least(object(), sources, samples, 2.0) is None
