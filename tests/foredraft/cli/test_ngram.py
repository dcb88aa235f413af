"""`foredraft ngram`: every command once, on a small tokenizer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from foredraft.cli.main import app
from foredraft.errors import UserError
from foredraft.ngram_native.counts_file import open_counts
from foredraft.ngram_native.query import distribution
from foredraft.ngram_native.table import Table

WORDS = ("<pad>", "</s>", "<unk>", *"abcdefgh")
TEXTS = ["a b c d", "a b c e", "b c d", "f a b c d"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name, texts in (("all", TEXTS), ("a", TEXTS[:2]), ("b", TEXTS[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"highlights": text}) + "\n" for text in texts))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["ngram", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def counted(name: str, *more: str) -> str:
    return run("count", f"{name}.jsonl", "--tokenizer", ".", "--order", "3", "--out", f"{name}.counts", *more)


def test_shards_and_updates_are_the_whole(folder):
    assert "24 tokens" in counted("all")
    counted("a")
    counted("b", "--memory", "1")
    run("merge", "b.counts", "a.counts", "--out", "merged.counts")
    run("count", "b.jsonl", "--tokenizer", ".", "--order", "3", "--update", "a.counts", "--out", "updated.counts")
    for name in ("merged", "updated"):
        assert (folder / f"{name}.counts").read_bytes() == (folder / "all.counts").read_bytes()


def test_parquet_and_ids_count_the_same(folder):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"highlights": TEXTS}), folder / "p.parquet")
    tokens = [WORDS.index(word) for text in TEXTS for word in [*text.split(), "</s>"]]
    np.save(folder / "i.npy", np.array(tokens, np.uint16))
    counted("all")
    for name in ("p.parquet", "i.npy"):
        run("count", name, "--tokenizer", ".", "--order", "3", "--out", "other.counts")
        assert (folder / "other.counts").read_bytes() == (folder / "all.counts").read_bytes()
    np.save(folder / "i.npy", np.array([500]))
    with pytest.raises(UserError, match="i.npy: .* 500"):
        run("count", "i.npy", "--tokenizer", ".", "--out", "other.counts")


def test_from_counts_to_every_format_and_back(folder):
    counted("all")
    assert "bytes an n-gram" in run("fit", "all.counts", "--out", "t.ngram", "--quantise")
    known = json.loads(run("info", "t.ngram", "--json"))
    assert (known["order"], known["smoothing"], known["quantised"], known["version"]) == (3, "kneser-ney", True, 2)
    assert "order: 3" in run("info", "all.counts")
    assert "all checksums match" in run("verify", "t.ngram", "all.counts")
    scored = json.loads(run("score", "t.ngram", "a.jsonl", "b.jsonl", "--tokenizer", ".", "--json"))
    assert (scored["texts"], scored["tokens"]) == (4, 20)
    expected = 0.0
    for text in TEXTS:
        tokens = [0, *map(WORDS.index, text.split()), 1]
        expected += sum(np.log(distribution(Table.open("t.ngram"), np.array(tokens[:i]))[tokens[i]])
                        for i in range(1, len(tokens)))
    assert scored["log_likelihood"] == pytest.approx(expected, rel=1e-5)
    run("export", "t.ngram", "--arpa", "t.arpa", "--device", "t.npz", "--tokenizer", ".")
    assert "a b c" in (folder / "t.arpa").read_text()
    run("import", "t.arpa", "--tokenizer", ".", "--out", "again.ngram")
    one, two = Table.open("t.ngram"), Table.open("again.ngram")
    assert one.tokenizer == two.tokenizer
    np.testing.assert_allclose(distribution(two, np.array([3, 4]))[1:], distribution(one, np.array([3, 4]))[1:], rtol=1e-5)
    with np.load("t.npz") as device:
        assert (device["keys"] != 0).sum() == len(one.best)
    run("export", "all.counts", "--text", "text")
    run("import", "text", "--tokenizer", ".", "--order", "3", "--out", "back.counts")
    np.testing.assert_array_equal(open_counts("back.counts").words, open_counts("all.counts").words)
    smaller = one.nbytes - 40
    run("prune", "t.ngram", "--max-size", str(smaller / 1e6), "--out", "small.ngram")
    assert Table.open("small.ngram").nbytes <= smaller
    assert distribution(Table.open("small.ngram"), np.array([3, 4])).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("arguments", "match"), [
    (["export", "x.counts"], "nothing to export"),
    (["info", "none.ngram"], "none.ngram: no such file"),
    (["import", "none.arpa", "--out", "x"], "--vocab-size or --tokenizer"),
    (["import", "none.arpa", "--out", "x", "--vocab-size", "9"], "no such ARPA"),
    (["fit", "none.counts", "--out", "x", "--smoothing", "none"], "smoothing is 'none'"),
    (["fit", "tokenizer.json", "--out", "x"], "not an n-gram counts file"),
])
def test_misuse_is_named(folder, arguments, match):
    with pytest.raises(UserError, match=match):
        run(*arguments)


@pytest.mark.slow
def test_ray_counts_the_same(folder):
    pytest.importorskip("ray.data")
    counted("all")
    run("count", "a.jsonl", "b.jsonl", "--tokenizer", ".", "--order", "3", "--ray", "--out", "ray.counts")
    assert (folder / "ray.counts").read_bytes() == (folder / "all.counts").read_bytes()
    assert sorted(path.suffix for path in folder.iterdir() if path.name.startswith((".", "ray"))) == [".counts"]
