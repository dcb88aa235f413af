"""The table file: round trip, and files that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foredraft.errors import UserError
from foredraft.ngram_native.count import count
from foredraft.ngram_native.files import ALIGNMENT, verify
from foredraft.ngram_native.query import distribution
from foredraft.ngram_native.smooth import fit
from foredraft.ngram_native.table import KIND, Table, codebook, encode, vocabulary_fingerprint

ARRAYS = ("unigrams", "ids", "probabilities", "first_child", "backoffs", "best", "best_probability")


@pytest.fixture
def table() -> Table:
    tokens = np.random.default_rng(0).integers(0, 50, 3000)
    counts = count(tokens, np.array([0, 1500, 3000]), 3, 50)
    counts.tokenizer = "abc"
    return fit(counts)


@pytest.fixture
def path(table, tmp_path):
    table.save(tmp_path / "folder" / "some.ngram")
    return tmp_path / "folder" / "some.ngram"


@pytest.mark.parametrize("order", [1, 2, 5])
def test_round_trip(order, tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50, 3000)
    table = fit(count(tokens, np.array([0, 3000]), order, 50))
    table.save(tmp_path / "t.ngram")
    verify(tmp_path / "t.ngram", KIND)
    opened = Table.open(tmp_path / "t.ngram")
    for name in ("vocab_size", "order", "sizes", "smoothing", "discounts", "tokenizer", "nbytes"):
        assert getattr(opened, name) == getattr(table, name)
    for name in ARRAYS:
        stored, made = getattr(opened, name), getattr(table, name)
        assert stored.dtype == made.dtype and stored.ctypes.data % ALIGNMENT == 0
        np.testing.assert_array_equal(stored, made)


def test_saving_replaces_the_file_and_leaves_no_other(table, path):
    table.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["some.ngram"]
    assert Table.open(path).tokenizer == "abc"


def assert_refused(path, match: str) -> None:
    """A one-line UserError that names the file."""
    with pytest.raises(UserError, match=match) as caught:
        Table.open(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [9, 40, 100, -1])
def test_truncated(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(path, "truncated")


def test_another_format(path):
    path.write_bytes(b"PK\x03\x04" + path.read_bytes()[4:])
    assert_refused(path, "not an n-gram table")
    path.write_bytes(b"")
    assert_refused(path, "not an n-gram table")


def test_a_newer_version(path):
    data = bytearray(path.read_bytes())
    data[len(KIND.magic)] = 3
    path.write_bytes(data)
    assert_refused(path, "version 3")


def test_damaged_header(path):
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    assert_refused(path, "header is damaged")


def test_missing(tmp_path):
    assert_refused(tmp_path / "none.ngram", "no such")


def test_verify_finds_a_damaged_array(path):
    data = bytearray(path.read_bytes())
    data[-70] ^= 1
    path.write_bytes(data)
    Table.open(path)
    with pytest.raises(UserError, match="'best_probability' is damaged"):
        verify(path, KIND)


def test_version_1_opens():
    """A file that the code of version 1 wrote, with the distributions that it returned."""
    folder = Path(__file__).parent
    known = json.loads((folder / "version1.json").read_text())
    table = Table.open(folder / "version1.ngram")
    assert verify(folder / "version1.ngram", KIND) > 0 and table.tokenizer == "abc" and table.best.tolist() == known["best"]
    for context, expected in zip(known["contexts"], known["distributions"], strict=True):
        np.testing.assert_allclose(distribution(table, np.array(context, np.int64)), expected, atol=3e-7)


def test_codes_are_accurate_and_0_and_1_are_exact():
    values = np.concatenate([[0.0, 1.0], np.exp(-np.random.default_rng(0).uniform(0, 25, 1000))])
    decoded = codebook()[encode(values)]
    assert decoded[0] == 0 and decoded[1] == 1
    np.testing.assert_allclose(decoded[1:], values[1:], rtol=4.1e-4)
    assert (decoded <= values * (1 + 1e-6)).all()


def test_the_fingerprint_depends_on_the_vocabulary_alone():
    assert vocabulary_fingerprint({"a": 0, "b": 1}) == vocabulary_fingerprint({"b": 1, "a": 0})
    assert vocabulary_fingerprint({"a": 0, "b": 1}) != vocabulary_fingerprint({"a": 1, "b": 0})
