"""Paths of any name, and outputs that cannot be written: one line, exit code 2, nothing half written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

NAMES = ["two words", "n\u00e4me-\u65e5\u672c", "quote'\"", os.fsdecode(b"not-utf8-\xff"), "-dash", "[glob]*?"]


@pytest.fixture(params=NAMES, ids=range(len(NAMES)))
def folder(request, tmp_path):
    path = tmp_path / request.param
    try:
        path.mkdir()
    except OSError:
        pytest.skip("the file system has no such names")
    return path


def test_strange_names_and_links(folder, command, fake_load):
    source, link = folder / f"{folder.name}.txt", folder / "link"
    source.write_text("w3 w4\n")
    link.symlink_to(source)
    for path in (source, link):
        code, out, err = command("summarize", path)
        assert (code, out) == (0, "w3 w4\n"), err
    assert "No such file" in one_line(command("summarize", folder / "none"))
    # the heading of a text is its name
    code, out, err = command("summarize", source, link)
    assert code == 0 and folder.name in out, err


def test_tables_under_strange_names_and_links(folder, command, word_tokenizer, tmp_path):
    word_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (folder / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    data, counts, link = folder / "data.jsonl", folder / "c.counts", folder / "link.counts"
    data.write_text(json.dumps({"highlights": "w3 w4 w5"}) + "\n")
    link.symlink_to(counts)
    if "\udcff" in folder.name:
        # the libraries that read tokenizers and weights take paths in UTF-8 alone
        assert "surrogates not allowed" in one_line(
            command("ngram", "count", data, "--tokenizer", folder, "--out", link))
    assert command("ngram", "count", data, "--tokenizer", tmp_path, "--out", link)[0] == 0
    assert link.is_symlink() and counts.is_file()
    assert command("ngram", "fit", link, "--out", folder / "t.ngram")[0] == 0
    code, out, _ = command("ngram", "info", folder / "t.ngram", "--json")
    assert code == 0 and json.loads(out)["order"] == 4
    assert sorted(path.name for path in folder.iterdir()) == ["c.counts", "data.jsonl", "link.counts", "t.ngram",
                                                              "tokenizer.json"]


def one_line(result) -> str:
    code, out, err = result
    lines = [line for line in err.splitlines() if not line.startswith("counting")]
    assert code == 2 and out == "" and "Traceback" not in err and len(lines) == 1, err
    return lines[0]


# a file where a folder is to be written: FILE and PAIRS are replaced
INTO_A_FILE = [
    ["pseudo", "--data", "PAIRS", "--out", "FILE"], ["pseudo", "--data", "PAIRS", "--out", "FILE/in"],
    ["train", "--drafter", "lstm", "--data", "PAIRS", "--validation", "PAIRS", "--out", "FILE"],
    ["train", "--drafter", "ngram", "--data", "PAIRS", "--out", "FILE"],
    ["train", "--drafter", "ngram", "--data", "PAIRS", "--out", "FILE/table.ngram"],
    ["train-target", "--data", "PAIRS", "--tokenizer", "PAIRS", "--out", "FILE"],
    ["matrix", "--data", "PAIRS", "--out", "FILE"], ["convert", "assets/target", "--out", "FILE"],
    ["ngram", "count", "PAIRS", "--tokenizer", "PAIRS", "--out", "FILE"],
    ["summarize", "--input", "PAIRS", "--output", "FILE/in.jsonl"], ["report", "--out", "FILE"],
    ["bench", "run", "--out", "FILE/in.jsonl", "--methods", "plain"],
]


@pytest.mark.parametrize("words", INTO_A_FILE, ids=lambda words: " ".join(words[:2]))
def test_a_file_where_a_folder_or_another_file_is_to_be_written(words, command, tmp_path, monkeypatch):
    monkeypatch.delenv("FOREDRAFT_DATA", raising=False)
    file, pairs = tmp_path / "file", tmp_path / "pairs.jsonl"
    file.write_text("the user's own")
    pairs.write_text(json.dumps({"article": "w3 w4", "highlights": "w3"}) + "\n")
    given = [word.replace("FILE", str(file)).replace("PAIRS", str(pairs)) for word in words]
    error = one_line(command(*given))
    assert "file" in error and file.read_text() == "the user's own"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pairs.jsonl"]


# a size of 0 and a device that is not there
REFUSED = [
    ["train", "--drafter", "lstm", "--size", "hidden_size=0"], ["train", "--drafter", "lstm", "--size", "layers="],
    ["train", "--drafter", "lstm", "--steps", "0"], ["train", "--drafter", "lstm", "--batch-size", "0"],
    ["train", "--drafter", "lstm", "--device", "cuda"], ["train", "--drafter", "lstm", "--lr", "nan"],
    ["train", "--drafter", "ngram", "--ngram-n", "0"], ["train", "--drafter", "ngram", "--vocab-size", "0"],
    ["train", "--drafter", "ngram", "--max-size", "0"], ["train", "--drafter", "ngram", "--max-size", "nan"],
    ["pseudo", "--shard-size", "0"], ["pseudo", "--batch-size", "0"], ["pseudo", "--device", "cuda"],
    ["pseudo", "--max-new-tokens", "0"], ["pseudo", "--workers", "0"], ["pseudo", "--temperature", "nan"],
    ["pseudo", "--max-source", "0"], ["pseudo", "--limit", "0"],
]


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: " ".join(words[-2:]))
def test_sizes_of_0_and_absent_devices_are_refused(words, command, tmp_path):
    import torch

    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"article": "w3 w4", "highlights": "w3"}) + "\n")
    more = ["--validation", pairs] if "lstm" in words else []
    code, out, err = command(*words, "--data", pairs, *more, "--out", tmp_path / "out")
    assert code == 2 and out == "" and "Traceback" not in err and err.strip(), err
    assert words[-2].strip("-").replace("-", "_") in err.replace("-", "_"), err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_output_device(command, fake_load, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"article": "w3"}\n')
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"highlights": "w3"}) + "\n")
    error = one_line(command("ngram", "merge", tmp_path / "in.jsonl", "--out", "/dev/full"))
    assert "/dev/full" in error or "in.jsonl" in error
