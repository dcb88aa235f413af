"""ARPA text: round trip, and probabilities compared with KenLM's."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.errors import UserError
from foredraft.ngram_native.arpa import arpa_words, read_arpa, write_arpa
from foredraft.ngram_native.count import count
from foredraft.ngram_native.query import distribution, probability
from foredraft.ngram_native.smooth import fit

V = 12
WORDS = arpa_words(V)


def table(order: int = 3, **options):
    draw = np.random.default_rng(order)
    sequences = [[0, *np.minimum(draw.geometric(0.3, 8) + 2, V - 1).tolist(), 1] for _ in range(60)]
    return fit(count(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]), order, V), **options)


def contexts():
    draw = np.random.default_rng(5)
    return [draw.integers(0, V, size) for size in (0, 1, 2, 3, 4) for _ in range(8)]


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"smoothing": "stupid-backoff"}, {"min_count": 2, "quantise": True}])
def test_round_trip(order, options, tmp_path):
    made = table(order, **options)
    write_arpa(made, tmp_path / "t.arpa", WORDS)
    read = read_arpa(tmp_path / "t.arpa", WORDS, "abc")
    assert read.sizes == made.sizes and read.tokenizer == "abc"
    for context in contexts():
        expected = distribution(made, context)
        # ARPA gives the start token probability 0, because it is never predicted
        np.testing.assert_allclose(distribution(read, context)[1:], expected[1:], rtol=3e-6)


def test_probabilities_equal_kenlms(tmp_path):
    kenlm = pytest.importorskip("kenlm")
    made = table(4)
    write_arpa(made, tmp_path / "t.arpa", WORDS)
    model = kenlm.Model(str(tmp_path / "t.arpa"))
    for tokens in ([3, 4, 5, 3, 3], [11, 3], [4, 4, 4, 4, 4, 4], []):
        scores = [score for score, _, _ in model.full_scores(" ".join(WORDS[i] for i in tokens))]
        text = [0, *tokens, 1]
        ours = [np.log10(probability(made, np.array(text[:i]), text[i])) for i in range(1, len(text))]
        assert ours == pytest.approx(scores, abs=2e-5)


def test_missing_prefixes_and_suffixes_get_their_backed_off_probability(tmp_path):
    """A trigram without its bigrams, as SRILM's pruning leaves it."""
    (tmp_path / "s.arpa").write_text(
        "\\data\\\nngram 1=5\nngram 2=1\nngram 3=1\n\n\\1-grams:\n-99\t<s>\t-0.3\n-1\t</s>\n-0.5\t3\t-0.2\n-0.7\t4\t-0.1\n"
        "-0.9\t5\n\n\\2-grams:\n-0.2\t<s> 3\t-0.4\n\n\\3-grams:\n-0.05\t3 4 5\n\n\\end\\\n")
    read = read_arpa(tmp_path / "s.arpa", WORDS)
    known = {((3, 4), 5): -0.05, ((3,), 4): -0.2 - 0.7, ((4,), 5): -0.1 - 0.9, ((0,), 3): -0.2,
             ((0, 3), 4): -0.4 - 0.2 - 0.7, ((3, 4), 3): -0.1 - 0.5, ((), 4): -0.7}
    for (context, token), log in known.items():
        assert np.log10(probability(read, np.array(context, np.int64), token)) == pytest.approx(log, abs=1e-6)


def test_words_are_the_tokenizers():
    words = arpa_words(6, {"<pad>": 0, "</s>": 1, "<unk>": 2, "▁the": 3, "a b": 4})
    assert words == ["<s>", "</s>", "<unk>", "▁the", "4", "5"]


@pytest.mark.parametrize(("change", "match"), [
    (lambda text: text[: len(text) // 2], "truncated"),
    (lambda text: text.replace("\\2-grams:", "\\3-grams:"), "line .*out of order"),
    (lambda text: text.replace("\t3\t", "\tthree\t", 1), "'three' is not in the vocabulary"),
    (lambda text: text.replace("\\2-grams:\n", "\\2-grams:\n0.5\t3 4\n"), "above 0"),
    (lambda text: text.replace("\\2-grams:\n", "\\2-grams:\n-1\t3\n"), "line .*2 fields"),
    (lambda text: text.replace("\\2-grams:\n", "\\2-grams:\nx\t3 4\n"), "cannot be read"),
    (lambda text: "", "not an ARPA file"),
])
def test_invalid_files_are_named(change, match, tmp_path):
    path = tmp_path / "t.arpa"
    write_arpa(table(2), path, WORDS)
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=match) as caught:
        read_arpa(path, WORDS)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_laplace_table_is_refused(tmp_path):
    with pytest.raises(UserError, match="1/V"):
        write_arpa(table(2, smoothing="laplace"), tmp_path / "t.arpa", WORDS)
