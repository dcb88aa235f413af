from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import foredraft

pytestmark = pytest.mark.usefixtures("no_hub")


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def fake_load(monkeypatch, fake_model):
    """foredraft.load gives the fake model; the list of its calls."""
    calls = []

    def load(target=None, **options):
        calls.append((target, options))
        return fake_model

    monkeypatch.setattr(foredraft, "load", load, raising=False)
    return calls


@pytest.fixture
def article(tmp_path):
    file = tmp_path / "article.txt"
    file.write_text("w1 w2 w3 w4 w5\n")
    return file


def one_line_error(result) -> str:
    """The error of a command that must fail as a user error; nothing on stdout, no traceback."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("foredraft: "), err
    return lines[0]


def test_version(command):
    assert command("--version") == (0, f"foredraft {foredraft.__version__}\n", "")


def test_every_command_is_there(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in ("summarize", "bench", "demo", "train", "train-target", "family", "pseudo", "matrix"):
        assert name in out


def test_summaries_in_order(command, fake_load, article, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("w7 w8")
    code, out, _ = command("summarize", article, other, "--drafter", "none", "--target", "somewhere")
    assert code == 0
    assert out.splitlines() == [f"== {article}", "w1 w2 w3 w4 w5", f"== {other}", "w7 w8"]
    assert fake_load == [("somewhere", {"drafter": None, "device": "cpu", "dtype": "float32", "weights": None})]


def test_standard_input(command, fake_load):
    assert command("summarize", stdin=b"w1 w2")[:2] == (0, "w1 w2\n")
    assert command("summarize", "-", stdin=b"w1 w2")[:2] == (0, "w1 w2\n")


def test_json_is_the_last_line(command, fake_load, article):
    code, out, err = command("summarize", article, "--json", "--stats")
    text, last = out.splitlines()
    result = json.loads(last)
    assert code == 0 and text == "w1 w2 w3 w4 w5"
    assert result["summaries"][0]["summary"] == text
    assert result["summaries"][0]["proposers"][:3] == ["lookup", "lookup", "target"]
    assert len(result["summaries"][0]["token_ids"]) == result["stats"]["emitted"] == 6
    assert "6 tokens in 6 rounds" in err


@pytest.mark.parametrize(("content", "message"), [
    (b"  \n", "the text is empty"),
    (b"caf\xe9 au lait", "not UTF-8 at byte 3"),
])
def test_unreadable_texts(command, fake_load, tmp_path, content, message):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    error = one_line_error(command("summarize", file))
    assert str(file) in error and message in error


def test_missing_texts(command, fake_load, tmp_path):
    assert "gone.txt: No such file" in one_line_error(command("summarize", tmp_path / "gone.txt"))
    assert "Is a directory" in one_line_error(command("summarize", tmp_path))
    assert "-: the text is empty" in one_line_error(command("summarize"))


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--draft-tokens", "-1", "draft_tokens is -1"),
    ("--draft-tokens", "1000", "draft_tokens is 1000"),
    ("--temperature", "-0.5", "temperature is -0.5"),
    ("--temperature", "nan", "temperature is nan"),
    ("--top-p", "0", "top_p is 0"),
    ("--max-new-tokens", "0", "max_new_tokens is 0"),
])
def test_values_out_of_range(command, fake_load, article, option, value, message):
    assert message in one_line_error(command("summarize", article, option, value))


def test_no_such_device(command, article, tiny_checkpoints, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    target = tiny_checkpoints["v1.0"]
    assert "no CUDA device" in one_line_error(command("summarize", article, "--target", target, "--device", "cuda"))
    assert "'abacus'" in one_line_error(command("summarize", article, "--target", target, "--device", "abacus"))


def test_no_such_drafter(command, article, tiny_checkpoints):
    target = tiny_checkpoints["v1.0"]
    assert "drafter 'psychic'" in one_line_error(
        command("summarize", article, "--target", target, "--drafter", "psychic"))


def test_no_checkpoint(command, article, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in one_line_error(command("summarize", article, "--target", empty))


def test_no_tokenizer(command, article, tiny_checkpoints):
    error = one_line_error(command("summarize", article, "--target", tiny_checkpoints["v1.0"], "--drafter", "none"))
    assert "tokenizer.json" in error


def test_bench_run_records_and_ends_in_json(command, fake_load, tmp_path, monkeypatch):
    from foredraft.bench.harness import bench_run as compare
    from foredraft.bench.harness import record

    monkeypatch.setattr(compare.machine, "read_bandwidth", lambda device: 1.0)
    monkeypatch.setattr(compare, "alpha_tv", lambda *arguments: 0.5)
    data = tmp_path / "articles.jsonl"
    data.write_text('{"article": "w1 w2 w3", "highlights": "w1"}\n' * 3)
    code, out, err = command("bench", "run", "--data", data, "--methods", "lookup,ngram", "--out", tmp_path / "results")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert [row["method"] for row in result["rows"]] == ["plain", "lookup", "ngram"]
    assert record.read(result["record"]) == result["rows"]
    assert result["rows"][0]["command"].startswith("foredraft bench run --data")
    options = ("--data", data, "--methods", "lookup", "--suite", "spec-bench")
    code, out, err = command("bench", "run", *options, "--draft-tokens", "3,5", "--spec-bench", tmp_path / "answers",
                             "--out", tmp_path / "more")
    assert code == 0, err
    file = json.loads(out.splitlines()[-1])["record"]
    found = [json.loads(line) for line in Path(file).read_text().splitlines()]
    assert [(row["kind"], row["draft_tokens"]) for row in found] == [("spec-bench", 3), ("spec-bench", 5)]
    plain, lookup = found[0]["rows"]
    assert plain["rouge"]["rouge1"] > 0 and plain["footprint"] is None
    assert plain["spec_bench"]["mean_accepted_tokens"] == 1 and lookup["spec_bench"]["speed_up"] > 0
    answers = tmp_path / "answers"
    assert len(list((answers / "K3").rglob("*.jsonl"))) == len(list((answers / "K5").rglob("*.jsonl"))) == 6
    assert "Spec-Bench's way" in out


def test_an_interrupted_bench_keeps_what_it_has(command, fake_load, tmp_path, monkeypatch):
    from foredraft.bench.harness import bench_run as compare
    from foredraft.bench.harness import record

    monkeypatch.setattr(compare.machine, "read_bandwidth", lambda device: 1.0)
    monkeypatch.setattr(compare, "alpha_tv", lambda *arguments: 0.5)
    whole = compare.measure.measure
    monkeypatch.setattr(compare.measure, "measure",
                        lambda *args, **named: {name: one[:1] for name, one in whole(*args, **named).items()})
    code, _, err = command("bench", "run", "--limit", 2, "--methods", "plain", "--batch-sizes", "1,2", "--out", tmp_path)
    assert code == 1 and "holds what was complete" in err
    (file,) = tmp_path.glob("*.jsonl")
    assert [(row["repeats"], row["batch_size"]) for row in record.read(file)] == [(1, 1)]
    # inside the first pass: the article that all methods have decoded
    monkeypatch.setattr(compare.measure, "measure",
                        lambda *args, **named: {name: [one[0][:1]] for name, one in whole(*args, **named).items()})
    code, _, err = command("bench", "run", "--suite", "spec-bench", "--limit", 2, "--methods", "lookup", "--repeats", 1,
                           "--spec-bench", tmp_path / "answers", "--out", tmp_path / "first")
    assert code == 1 and "holds what was complete" in err
    (file,) = (tmp_path / "first").glob("*.jsonl")
    row = json.loads(file.read_text())
    assert row["data"]["articles"] == 1 and [one["data"]["articles"] for one in row["rows"]] == [1, 1]



@pytest.mark.parametrize(("arguments", "message"), [
    (["--methods", "magic"], "no method called 'magic'"),
    (["--batch-size", "0"], "--batch-sizes is '0'"),
    (["--draft-tokens", "-1"], "--draft-tokens is '-1'"),
    (["--suite", "fast"], "no suite called 'fast'"),
    (["--spec-bench", "x", "--batch-sizes", "2"], "--spec-bench: its answers are greedy"),
    (["--data", "gone.jsonl"], "gone.jsonl"),
])
def test_bench_errors(command, fake_load, tmp_path, arguments, message):
    assert message in one_line_error(command("bench", "run", "--out", tmp_path, *arguments))
    assert not list(tmp_path.iterdir())


def test_colours_cover_the_text(word_tokenizer):
    from foredraft.cli import coloured_text as show

    ids = [4, 5, 6, 7, 1]
    text = show.coloured(ids, ["lookup", "lookup", "target", "ngram", "target"], word_tokenizer)
    assert text.plain == word_tokenizer.decode(ids) == "w1 w2 w3 w4"
    assert [(span.start, span.end) for span in text.spans] == [(0, 5), (8, 11)]
    meaning = show.legend([["target", "lookup"]]).plain
    assert "lookup" in meaning and "ngram" not in meaning


def test_streaming_on_a_terminal(fake_model):
    from rich.console import Console

    from foredraft.cli import coloured_text as show

    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with show.Stream(console, fake_model.tokenizer) as stream:
        stream.finish(fake_model.generate(["w1 w2"], streamer=stream))
    assert "w1" in console.file.getvalue() and stream.ids == [4, 5, 1]


def test_many_texts_on_a_terminal(fake_model):
    from rich.console import Console

    from foredraft.cli import coloured_text as show

    console = Console(file=io.StringIO(), width=60)
    show.summaries(console, ["one", "two"], fake_model.generate(["w1 w2", "w3"]), fake_model.tokenizer)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines == ["== one", "w1 w2", "== two", "w3", "the target's own tokens   drafted by lookup"]
