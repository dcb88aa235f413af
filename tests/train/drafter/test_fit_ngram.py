"""Fitting a table to files, and the command."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from foredraft.engine.drafters.ngram import NgramDrafter
from foredraft.errors import UserError
from foredraft.ngram_native import query, smooth
from foredraft.ngram_native.files import verify
from foredraft.ngram_native.table import KIND, Table, vocabulary_fingerprint
from foredraft.train.drafter import fit_ngram as ngram
from foredraft.train.drafter.fit_ngram import fit_ngram

WORDS = ("<pad>", "</s>", "<unk>", *"abcdefgh")
TEXTS = ["a b c d", "a b c e", "b c d", "f a b c d"]


@pytest.fixture
def folder(tmp_path):
    """A tokenizer of single letters and two files, one of them compressed and with a blank line."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    lines = [json.dumps({"highlights": text, "short": "h"}) + "\n" for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(lines[:2]))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(lines[2] + "\n" + lines[3])
    return tmp_path


def fitted(folder, **options):
    paths = options.pop("paths", [folder / "a.jsonl", folder / "b.jsonl.gz"])
    return fit_ngram(paths, folder / "t.ngram", folder, progress=False, **options)


def test_the_table_drafts_its_training_text(folder):
    done = fitted(folder, order=3)
    assert (done.texts, done.tokens) == (4, 16 + 2 * 4)
    verify(folder / "t.ngram", KIND)
    table = Table.open(folder / "t.ngram")
    assert table.vocab_size == 128 and table.order == 3
    assert table.tokenizer == vocabulary_fingerprint({word: i for i, word in enumerate(WORDS)})
    a, b, c, d = (WORDS.index(letter) for letter in "abcd")
    # a b c d </s> follows the start token, and the draft ends with </s>
    assert query.draft_reference(table, [0], 9, 1, 0.0) == [a, b, c, d, 1]
    assert NgramDrafter.open(folder / "t.ngram", vocab_size=128).table.sizes == table.sizes


def test_own_summaries_are_counted_by_their_tokens(folder):
    """Not by tokenising their text again; empty and truncated summaries are counted too."""
    (folder / "own").mkdir()
    records = [("a b", [3, 4, 1]), ("", [1]), ("c c", [5, 5])]
    (folder / "own" / "pseudo-00000.jsonl").write_text("".join(
        json.dumps({"id": str(i), "sample": 0, "highlights": text, "source_ids": [1], "target_ids": tokens}) + "\n"
        for i, (text, tokens) in enumerate(records)))
    found = [one.tolist() for batch in ngram.sequences(folder / "own", "highlights", None) for one in batch]
    assert found == [[0, 3, 4, 1], [0, 1], [0, 5, 5]]
    assert fitted(folder, paths=[folder / "own"]).tokens == 9


def test_sorted_runs_yield_the_same_table(folder, monkeypatch):
    fitted(folder)
    expected = (folder / "t.ngram").read_bytes()
    monkeypatch.setattr(ngram, "BATCH", 1)
    counter = ngram.count_texts([folder / "a.jsonl", folder / "b.jsonl.gz"], folder, memory=500, progress=False)
    smooth.fit(counter.finish()).save(folder / "t.ngram")
    assert len(counter._runs) > 1
    assert (folder / "t.ngram").read_bytes() == expected


def test_options_reach_the_table(folder):
    (folder / "config.json").write_text(json.dumps({"vocab_size": 40}))
    table = fitted(folder, order=2, smoothing="absolute", discount=0.3, min_count=3).table
    assert (table.vocab_size, table.smoothing, table.discounts[1]) == (40, "absolute", (0.3, 0.3, 0.3))
    # a b, b c, c d and d </s> occur three times or more
    assert table.sizes == (40, 4)
    assert fitted(folder, vocab_size=50, field="short").table.vocab_size == 50


@pytest.mark.parametrize(("options", "match"), [
    (dict(order=9), "order is 9"),
    (dict(smoothing="good-turing"), "smoothing is 'good-turing'"),
    (dict(smoothing="laplace", added=0), "added is 0"),
    (dict(smoothing="stupid-backoff", factor=2), "factor is 2"),
    (dict(discount=1.0), "discount is 1.0"),
    (dict(paths=[]), "no data"),
    (dict(paths=["none.jsonl"]), "none.jsonl: no such file"),
    (dict(field="summary"), "line 1: no text under 'summary'"),
    (dict(vocab_size=5), "has 11 tokens, the target only 5"),
])
def test_invalid_arguments_are_named(folder, options, match):
    with pytest.raises(UserError, match=match) as caught:
        fitted(folder, **options)
    assert "\n" not in str(caught.value)
    assert not (folder / "t.ngram").exists()


def test_invalid_files_are_named(folder):
    (folder / "a.jsonl").write_text('{"highlights": "a"}\n{"highlights": \n')
    with pytest.raises(UserError, match=r"a.jsonl, line 2: not JSON"):
        fitted(folder)
    (folder / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no texts"):
        fitted(folder, paths=[folder / "a.jsonl"])
    (folder / "b.jsonl.gz").write_bytes((folder / "b.jsonl.gz").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"b.jsonl.gz, after line \d: unreadable"):
        fitted(folder, paths=[folder / "b.jsonl.gz"])
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        fitted(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no such tokenizer"):
        fitted(folder)


def command(folder, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-m", "foredraft", "train", *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True)


def test_the_command(folder):
    done = command(folder, "--drafter", "ngram", "--exp_name", "try", "--ngram_n", "3", "--data", "a.jsonl",
                   "--pseudo_dataset_path", "b.jsonl.gz", "--tokenizer", "tokenizer.json", "--max-size", "1", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["texts"], figures["tokens"]) == (4, 24) and "counting" in done.stderr
    assert Table.open(folder / "runs" / "try" / "table.ngram").order == 3
    distribution = query.distribution(Table.open(folder / "runs" / "try" / "table.ngram"), np.array([0]))
    assert distribution.sum() == pytest.approx(1, abs=1e-6)
    refused = command(folder, "--drafter", "gru", "--tokenizer", "tokenizer.json")
    assert refused.returncode == 2 and "gru is not known" in refused.stderr
