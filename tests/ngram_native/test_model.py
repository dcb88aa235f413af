"""NgramModel and FastLLM's text format."""

from __future__ import annotations

import ast

import numpy as np
import pytest

import foredraft
from foredraft.errors import UserError
from foredraft.ngram_native.count import count, count_reference
from foredraft.ngram_native.model import NgramModel
from foredraft.ngram_native.smooth import probability_reference

V = 10
DATA = [[0, 3, 4, 5, 1], [0, 3, 4, 4, 1], [0, 7, 3, 4, 5, 5, 1], [3]]


def test_laplace_equals_fastllm():
    """(count + A) / (total + A V) after n - 1 tokens; a shorter context uses a lower order; an unseen context is uniform."""
    model = NgramModel(3, 0.5, vocab_size=V).fit(DATA)
    assert model.probability([3, 4], 5) == pytest.approx((2 + 0.5) / (3 + 0.5 * V))
    assert model.probability([9, 9, 3, 4], 5) == pytest.approx((2 + 0.5) / (3 + 0.5 * V))
    assert model.probability([4], 5) == pytest.approx((2 + 0.5) / (4 + 0.5 * V))
    assert model.probability([], 3) == pytest.approx((4 + 0.5) / (18 + 0.5 * V))
    np.testing.assert_allclose(model.probabilities([8, 3]), 1 / V)
    assert model.probabilities([3, 4]).sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(np.exp(model([3, 4])), model.probabilities([3, 4]), rtol=1e-6)


@pytest.mark.parametrize("smoothing", ["kneser-ney", "absolute", "stupid-backoff", 2.0])
def test_fit_adds_counts_and_equals_the_reference(smoothing):
    model = NgramModel(2, smoothing, vocab_size=V).fit(DATA[:2])
    model.fit([{"input_ids": np.array([tokens])} for tokens in DATA[2:]])
    counts = count_reference(DATA, 2)
    for token in range(V):
        exact = probability_reference(counts, 2, V, model.smoothing, (4,), token, added=model.added)
        assert model.probability([0, 4], token) == pytest.approx(exact, abs=1e-6)


def test_fastllm_can_read_the_text_format(tmp_path):
    """Parsed as FastLLM's loader does: n-grams with counts, then totals that include A V."""
    NgramModel(2, 0.5, vocab_size=V).fit(DATA).save(tmp_path / "m")
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == ["1.ckpt", "2.ckpt"]
    lines = (tmp_path / "m" / "2.ckpt").read_text().splitlines()
    middle = lines.index("<sep>")
    grams = {(ast.literal_eval(c), int(w)): float(n) for c, w, n in (line.split("\t") for line in lines[:middle])}
    totals = {ast.literal_eval(c): float(n) for c, n in (line.split("\t") for line in lines[middle + 1 :])}
    assert grams[(3,), 4] == 3.0 and totals[(3,)] == 3.0 + 0.5 * V and len(grams) == 9
    first = (tmp_path / "m" / "1.ckpt").read_text().splitlines()
    assert first[0] == "<sep>" and dict(line.split("\t") for line in first[1:])["3"] == str(4.0 + 0.5 * V)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_resume_restores_the_counts(n, tmp_path):
    model = NgramModel(n, 0.5, vocab_size=V).fit(DATA)
    for name in ("folder", "c.counts", "t.ngram"):
        model.save(tmp_path / name)
        resumed = NgramModel(n, 0.5, resume=tmp_path / name, vocab_size=V)
        np.testing.assert_array_equal(resumed.probabilities([3, 4]), model.probabilities([3, 4]))
    resumed = NgramModel(n, 0.5, resume=tmp_path / "folder", vocab_size=V)
    counts = count(np.concatenate(DATA), np.cumsum([0, *map(len, DATA)]), n, V)
    np.testing.assert_array_equal(resumed.counts.words, counts.words)
    np.testing.assert_array_equal(resumed.counts.counts, counts.counts)
    resumed.fit([[0, 9, 1]])
    assert resumed.counts.tokens == counts.tokens + 3


def test_invalid_folders_are_named(tmp_path):
    folder = tmp_path / "m"
    NgramModel(2, 1.0, vocab_size=V).fit(DATA).save(folder)
    with pytest.raises(UserError, match="3.ckpt: no such file"):
        NgramModel(3, 1.0, resume=folder, vocab_size=V)
    with pytest.raises(UserError, match="1.ckpt, line 2: .*smoothing parameter"):
        NgramModel(2, 0.33, resume=folder, vocab_size=V)
    text = (folder / "2.ckpt").read_text()
    (folder / "2.ckpt").write_text(text.replace("(3,)\t4", "(3,)\t44"))
    with pytest.raises(UserError, match=r"2.ckpt, line \d+: not a 2-gram"):
        NgramModel(2, 1.0, resume=folder, vocab_size=V)
    (folder / "2.ckpt").write_text(text.replace("(3,)\t4\t3.0", "(3,)\t4\t99.0"))
    with pytest.raises(UserError, match="do not belong together"):
        NgramModel(2, 1.0, resume=folder, vocab_size=V)
    (folder / "2.ckpt").write_text(text[:20])
    with pytest.raises(UserError, match="truncated"):
        NgramModel(2, 1.0, resume=folder, vocab_size=V)


def test_invalid_arguments_are_named(tmp_path):
    with pytest.raises(UserError, match="smoothing is 'witten-bell'"):
        NgramModel(2, "witten-bell")
    with pytest.raises(UserError, match="n is 9"):
        NgramModel(9)
    with pytest.raises(UserError, match="no counts yet"):
        NgramModel(2, vocab_size=V).probabilities([])
    with pytest.raises(UserError, match="vocab_size"):
        NgramModel(2, vocab_size=V).fit([[V]])
    NgramModel(2, vocab_size=V).fit(DATA).save(tmp_path / "t.ngram")
    table = NgramModel(2, resume=tmp_path / "t.ngram")
    with pytest.raises(UserError, match="no counts to add to"):
        table.fit(DATA)
    with pytest.raises(UserError, match="of order 2, not 3"):
        NgramModel(3, resume=tmp_path / "t.ngram")
    assert foredraft.NgramModel is NgramModel
