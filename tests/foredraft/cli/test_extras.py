"""A library that is not installed is one line that names the extra."""

from __future__ import annotations

import sys

import pytest

COMMANDS = (
    ("train", "--drafter", "lstm", "--data", "pairs.jsonl", "--out", "out"),
    ("train-target", "--data", "pairs.jsonl", "--tokenizer", "tokenizer.json", "--out", "out"),
    ("target-card", "--target", "target", "--data", "pairs.jsonl"),
    ("matrix", "--data", "data", "--out", "out"),
    ("family", "--data", "data", "--tokenizer", "tokenizer.json", "--work", "work", "--out", "out"),
)


@pytest.mark.parametrize("library", ["accelerate", "rouge_score"])
@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[0])
def test_training_without_a_library(command, monkeypatch, tmp_path, line, library):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("")
    monkeypatch.setitem(sys.modules, library, None)
    code, _, err = command(*line)
    assert code == 2 and err.count("\n") == 1 and library.replace("_", "-") in err and "foredraft[train]" in err
    assert not (tmp_path / "out").exists()
