"""foredraft summarize --input --output, on a tiny target."""

import gzip
import json
import re
from pathlib import Path

import pytest

import foredraft
from foredraft.cli import generate_file
from foredraft.cli.journal import Journal
from foredraft.errors import UserError

N = 17


@pytest.fixture(scope="module")
def model(tiny_model_path):
    model = foredraft.load(tiny_model_path, drafter="lookup")
    model.target.end_token = -1
    return model


@pytest.fixture
def summarize(command, model, monkeypatch, tmp_path):
    """summarize(*options): exit code, stdout, stderr of a run from articles.jsonl to out.jsonl."""
    monkeypatch.setattr(foredraft, "load", lambda *_args, **_options: model, raising=False)

    def run(*options, source="articles.jsonl"):
        return command("summarize", "--input", tmp_path / source, "--output", tmp_path / "out.jsonl",
                       "--max-new-tokens", "7", "--batch-size", "3", *options)

    return run


def texts():
    return [" ".join(f"w{3 + (5 * i + j) % 90}" for j in range(3 + 5 * (i % 4))) for i in range(N)]


@pytest.fixture
def articles(tmp_path):
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps({"id": f"a{i}", "article": text}) + "\n" for i, text in enumerate(texts())))
    return path


def written(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def expected(model, **options):
    out = model.generate(texts(), max_new_tokens=7, **options)
    return [{"id": f"a{i}", "index": i, "summary": text, "tokens": len(tokens)}
            for i, (text, tokens) in enumerate(zip(out.texts, out.token_ids, strict=True))]


def test_each_article_once_in_order_or_as_they_end(summarize, articles, model, tmp_path):
    code, out, err = summarize("--in-order", "--json", "--stats")
    assert code == 0 and written(tmp_path) == expected(model)
    last = json.loads(out)
    assert (last["articles"], last["failed"], last["stats"]["emitted"]) == (N, 0, 7 * N)
    assert "17 texts done" in err and "tokens a second" in err
    # articles done, time left, rates, acceptance
    assert re.search(r"17/17 \[\d\d:\d\d<\d\d:\d\d, .*, [\d,]+ tokens/s, \d+% of drafts accepted\]", err)
    (tmp_path / "out.jsonl").unlink()
    with gzip.open(tmp_path / "articles.jsonl.gz", "wb") as file:
        file.write(articles.read_bytes())
    assert summarize(source="articles.jsonl.gz")[0] == 0
    assert sorted(written(tmp_path), key=lambda line: line["index"]) == expected(model)


def test_an_interrupted_run_resumes_without_loss_or_repeat(summarize, articles, model, tmp_path, monkeypatch):
    sampling = ("--temperature", "0.8", "--seed", "4")
    assert summarize(*sampling)[0] == 0
    truth = sorted(written(tmp_path), key=lambda line: line["index"])
    (tmp_path / "out.jsonl").unlink()
    append, times = Journal.append, []

    def stopping(journal, line):
        if len(times) == 5:
            raise KeyboardInterrupt
        times.append(line)
        append(journal, line)

    monkeypatch.setattr(Journal, "append", stopping)
    code, _, err = summarize(*sampling)
    assert code == 130 and "interrupted; run the same command again" in err and len(written(tmp_path)) == 5
    monkeypatch.setattr(Journal, "append", append)
    with open(tmp_path / "out.jsonl", "a") as file:
        file.write('{"id": "a16", "index": 16, "summ')
    code, _, err = summarize(*sampling)
    assert code == 0 and "12 texts done, 5 were done before" in err
    assert sorted(written(tmp_path), key=lambda line: line["index"]) == truth
    before = (tmp_path / "out.jsonl").read_bytes()
    assert summarize(*sampling)[0] == 0 and (tmp_path / "out.jsonl").read_bytes() == before


def test_bad_articles_are_named_and_the_others_go_on(summarize, model, tmp_path):
    lines = [b'{"id": "ok", "article": "w5 w9"}', b'{"id": "long", "article": "' + b"w5 " * 30 + b'"}', b"",
             b'{"id": "empty", "article": "  "}', b'{"id": "none"}', b'{"article": "w7', b'{"article": "caf\xe9"}', b"[3]",
             b'{"article": "w8"}']
    (tmp_path / "articles.jsonl").write_bytes(b"\n".join(lines))
    code, _, err = summarize("--strict", "--max-source", "20")
    assert code == 1
    for line, name, why in ((2, "long", "line 2 has 31 tokens, the limit is 20"), (4, "empty", "no text under 'article'"),
                            (5, "none", "no text under 'article'"), (6, 5, "not JSON"), (7, 6, "not JSON"),
                            (8, 7, "not a JSON object")):
        assert f"articles.jsonl, line {line}, id {name}: {why}" in err
    assert "2 texts done, 0 were done before, 6 failed" in err
    assert sorted((line["id"], line["index"]) for line in written(tmp_path) if line["id"] != "ok") == [(8, 8)]
    code, _, err = summarize("--max-source", "20")
    assert code == 1 and "1 texts done, 2 were done before, 5 failed, 1 were cut" in err


def test_a_bad_record_costs_one_record_and_resuming_goes_past_it(summarize, model, tmp_path):
    bad = [b'{"id": "a", "article": "half \\ud83d of a pair"}', b'{"id": NaN, "article": "w5"}',
           b'{"id": 1e400, "article": "w5"}', b'{"id": "\\ud83d", "article": "w5"}', b"[" * 100_000,
           b'{"id": ' + b"[" * 500 + b"]" * 500 + b', "article": "w5"}']
    lines = [b'{"id": "first", "article": "w5 w9"}', *bad, b'{"id": "last", "article": "w7 w9"}']
    (tmp_path / "articles.jsonl").write_bytes(b"\n".join(lines))
    for done_before in (0, 3):
        code, _, err = summarize("--in-order")
        assert code == 1 and "Traceback" not in err
        assert f"{3 - done_before} texts done, {done_before} were done before, {len(bad) - 1} failed" in err
        assert "line 2, id a: line 2 has half of a surrogate pair" in err and "id is not finite" in err
    done = [line["id"] for line in written(tmp_path)]
    assert done[0] == "first" and done[-1] == "last"


def test_errors_of_a_bad_file_are_capped_with_a_count(summarize, model, tmp_path):
    (tmp_path / "articles.jsonl").write_bytes(b"{}\n" * 300 + b'{"id": "last", "article": "w7 w9"}\n')
    code, _, err = summarize()
    assert code == 1 and err.count("no text under") == 20 and "280 more lines failed" in err
    assert [line["id"] for line in written(tmp_path)] == ["last"]


def test_a_cut_archive_is_named_and_what_can_be_read_is_done(summarize, articles, tmp_path):
    whole = gzip.compress(articles.read_bytes(), mtime=0)
    (tmp_path / "articles.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    code, _, err = summarize(source="articles.jsonl.gz")
    assert code == 1 and "unreadable from here on" in err and len(written(tmp_path)) > 0


def test_a_full_disk_stops_cleanly(articles, model, tmp_path):
    with pytest.raises(UserError, match="/dev/full: no space left on device"):
        generate_file.generate_file(model, articles, Path("/dev/full"), key="summary", field="article", in_order=False,
                                    truncation=True, seed=None, progress=False, max_new_tokens=3)
    assert model.generate("w5", max_new_tokens=2).texts


def test_a_run_is_resumed_only_with_its_settings(summarize, articles, model, tmp_path):
    output, settings = tmp_path / "out.jsonl", tmp_path / "out.jsonl.settings.json"
    sampling = ("--temperature", "0.8", "--seed", "4", "--top-k", "20")
    assert summarize(*sampling)[0] == 0
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:6]))
    for others, was, now in (
            (("--temperature", "0.7", "--seed", "4", "--top-k", "20"), "with --temperature 0.8", "with --temperature 0.7"),
            ((), "with --temperature 0.8", "with --temperature 0"),
            ((*sampling[:4], "--top-k", "0"), "with --top-k 20", "without --top-k"),
            ((*sampling, "--top-p", "0.5"), "without --top-p", "with --top-p 0.5"),
            ((*sampling[:3], "5", *sampling[4:]), "with --seed 4", "with --seed 5"),
            ((*sampling[:2], *sampling[4:]), "with --seed 4", "without --seed"),
            ((*sampling, "--max-source", "9"), "without --max-source", "with --max-source 9"),
            ((*sampling, "--repetition-penalty", "1.5"), "without --repetition-penalty", "with --repetition-penalty 1.5"),
            ((*sampling, "--set", "min_p=0.25"), "without --set min_p", "with --set min_p 0.25"),
            ((*sampling, "--max-new-tokens", "6"), "with --max-new-tokens 7", "with --max-new-tokens 6")):
        code, _, err = summarize(*others)
        assert code == 2 and f"out.jsonl: was begun {was}, this run is {now}; use the earlier settings" in err
    assert len(written(tmp_path)) == 6
    # settings that decide no token may change: drafts of point masses, batch size, order
    assert summarize(*sampling, "--draft-tokens", "auto", "--batch-size", "2", "--in-order")[0] == 0
    assert sorted(output.read_text().splitlines(keepends=True)) == sorted(lines)
    settings.write_text("half a li")
    code, _, err = summarize(*sampling)
    assert code == 2 and "out.jsonl.settings.json: not the settings of an earlier run" in err
    settings.unlink()
    assert "taken to have this run's settings" in summarize(*sampling)[2] and settings.is_file()
    # a new output may have other settings
    output.unlink()
    assert summarize()[0] == 0 and json.loads(settings.read_text())["--temperature"] == 0
    assert list(tmp_path.glob(".out*")) == []


def test_settings_of_a_request_are_options(summarize, articles, model, tmp_path):
    inputs = [one["article"] for one in map(json.loads, (tmp_path / "articles.jsonl").read_text().splitlines())]
    for number, (options, settings) in enumerate((
            (("--repetition-penalty", "1.5", "--no-repeat-ngram-size", "2"),
             {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}),
            (("--choices", "w5 w6", "--choices", "w7"), {"choices": ["w5 w6", "w7"]}),
            (("--set", "stop_strings=w9", "--set", "bad-words-ids=[[5], [6, 7]]", "--num-beams", "2",
              "--length-penalty", "-1", "--early-stopping", "never"),
             {"stop_strings": "w9", "bad_words_ids": [[5], [6, 7]], "num_beams": 2, "length_penalty": -1.0,
              "early_stopping": "never"}))):
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        (tmp_path / "out.jsonl.settings.json").unlink(missing_ok=True)
        code, _, err = summarize("--set", "eos_token_id=1", *options, "--in-order")
        assert code == 0, (number, err)
        wanted = model.generate(inputs, max_new_tokens=7, eos_token_id=1, **settings).texts
        assert [line["summary"] for line in written(tmp_path)] == wanted


def test_settings_of_sampled_drafts(model):
    def of(drafter, **options):
        one = model.with_drafter(drafter)
        found = generate_file.settings_of(one, *generate_file.split_settings(**dict(do_sample=True, seed=1) | options))
        return {name for name, value in found.items() if value is not None}

    class Sampled:
        name, admit, release, draft = "sampled", print, print, print

    plain = of("lookup")
    assert of(None) == of(Sampled(), seed=None) | {"--seed"} == of(Sampled(), do_sample=False) | {"--seed"} == plain
    assert of(Sampled()) - plain == {"--drafter", "--draft-tokens", "--verification"}
    assert of(Sampled(), draft_tokens="auto") - of(Sampled()) == {"--batch-size"}


def test_another_task(command, articles, model, monkeypatch, tmp_path):
    """generate: another field, a prefix that is resumed only with itself, results under "output"."""
    monkeypatch.setattr(foredraft, "load", lambda *_args, **_options: model, raising=False)
    line = ["generate", "--input", tmp_path / "articles.jsonl", "--output", tmp_path / "out.jsonl", "--max-new-tokens", 7,
            "--field", "article", "--in-order"]
    assert command(*line, "--prefix", "w9 w9 ")[0] == 0
    truth = model.generate([f"w9 w9 {text}" for text in texts()], max_new_tokens=7)
    assert [line["output"] for line in written(tmp_path)] == truth.texts and set(written(tmp_path)[0]) == {
        "id", "index", "output", "tokens"}
    code, _, err = command(*line)
    assert code == 2 and "was begun with --prefix 'w9 w9 ', this run is without --prefix" in err


def test_refusals(summarize, articles, command, tmp_path):
    for options in (("--input", articles), ("--output", articles), (articles, "--input", articles, "--output", articles)):
        code, _, err = command("summarize", *options)
        assert code == 2 and "--input FILE.jsonl with --output" in err
    assert "gone.jsonl: no such file" in summarize(source="gone.jsonl")[2]
    (tmp_path / "out.jsonl").write_text('{"id": "other", "index": 2, "summary": ""}\n')
    code, _, err = summarize()
    assert code == 2 and "has id other for line 3 of" in err
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "out.jsonl").symlink_to(articles)
    assert "is an input of this command" in summarize()[2]
