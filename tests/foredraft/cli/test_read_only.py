"""Outputs in a place that cannot be written: one line that names the place, exit code 2, nothing half written."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import sys

import pytest

from foredraft import embedded
from foredraft.cli import main as cli

# the capabilities of Linux to write and to read every file
EVERY_FILE = 0b110


@pytest.fixture
def folder(tmp_path):
    """A read-only folder with a read-only file; root, too, obeys the modes of files."""
    path = tmp_path / "read-only"
    path.mkdir()
    (path / "file.jsonl").write_text("")
    (path / "file.jsonl").chmod(0o444)
    path.chmod(0o555)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    is_root = sys.platform == "linux" and os.geteuid() == 0
    if is_root:
        libc = ctypes.CDLL(None)
        assert libc.capget(header, sets) == 0
        effective = sets[0]
        sets[0] = effective & ~EVERY_FILE
        assert libc.capset(header, sets) == 0
    yield path
    if is_root:
        sets[0] = effective
        libc.capset(header, sets)
    assert [one.name for one in path.iterdir()] == ["file.jsonl"]
    path.chmod(0o755)


# OUT, PAIRS and TINY are replaced
COMMANDS = [
    ["summarize", "--input", "PAIRS", "--target", "TINY", "--output", "OUT/new.jsonl"],
    ["summarize", "--input", "PAIRS", "--target", "TINY", "--output", "OUT/file.jsonl"],
    ["pseudo", "--data", "PAIRS", "--out", "OUT/new"], ["pseudo", "--data", "PAIRS", "--out", "OUT"],
    ["train", "--drafter", "lstm", "--data", "PAIRS", "--validation", "PAIRS", "--out", "OUT/new"],
    ["train", "--drafter", "ngram", "--data", "PAIRS", "--out", "OUT/new.ngram"],
    ["convert", str(embedded.TARGET), "--dtype", "float32", "--out", "OUT/new"],
    ["ngram", "count", "PAIRS", "--tokenizer", str(embedded.TARGET), "--out", "OUT/new.counts"],
    ["ngram", "export", str(embedded.NGRAM), "--arpa", "OUT/new.arpa"],
    ["report", "--out", "OUT/new"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join([*words[:2], words[-1]]))
def test_a_folder_or_file_that_cannot_be_written(words, folder, command, tiny_model_path, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    names = {"OUT": str(folder), "PAIRS": str(pairs), "TINY": str(tiny_model_path)}
    pairs.write_text(json.dumps({"article": "w3 w4", "highlights": "w3"}) + "\n")
    code, out, err = command(*(re.sub("OUT|PAIRS|TINY", lambda found: names[found[0]], word) for word in words))
    assert code == 2 and out == "" and "Traceback" not in err and str(folder) in err.splitlines()[-1], err


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.EMFILE])
def test_other_errors_of_the_system_are_one_line(number, command, monkeypatch):
    def fail():
        raise OSError(number, os.strerror(number), "a file")

    monkeypatch.setattr(cli, "app", fail)
    code, _, err = command("ngram")
    assert code == 2 and "a file" in err and os.strerror(number) in err and len(err.splitlines()) == 1


def test_a_name_that_is_too_long(command, fake_load, tmp_path):
    for words in (["summarize", "x" * 300], ["summarize", "--input", tmp_path / "x", "--output", "x" * 300],
                  ["ngram", "info", "x" * 300]):
        code, out, err = command(*words)
        assert code == 2 and out == "" and "Traceback" not in err and len(err.splitlines()) == 1, err
