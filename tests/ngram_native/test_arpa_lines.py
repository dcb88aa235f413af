"""ARPA text as other programs write it, and files with contradictory or impossible values."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.errors import UserError
from foredraft.ngram_native.arpa import arpa_words, read_arpa
from foredraft.ngram_native.query import distribution

WORDS = arpa_words(6, {"the": 3, "bridge": 4, "closed": 5})
PLAIN = """\\data\\
ngram 1=6
ngram 2=3

\\1-grams:
-99\t<s>\t-0.3
-1.1\t</s>
-2\t<unk>
-0.7\tthe\t-0.2
-0.9\tbridge\t0.1
-0.8\tclosed

\\2-grams:
-0.3\tthe bridge
-0.5\t<s> the
-99\tbridge the

\\end\\
"""


def read(text: str | bytes, tmp_path):
    path = tmp_path / "t.arpa"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_arpa(path, WORDS)


VARIANTS = {
    "SRILM pads its counts": lambda t: t.replace("ngram 1=6", "ngram  1=        6").replace("ngram 2=3", "ngram 2 = 3"),
    "SRILM begins with a blank line": lambda t: "\n" + t,
    "IRSTLM names its format first": lambda t: "iARPA\n\n" + t,
    "comments before the data": lambda t: "# made by hand\nngram 1=99\n\\notes\\\n" + t + "text after the end\n",
    "line ends of Windows": lambda t: t.replace("\n", "\r\n"),
    "a byte order mark": lambda t: "\ufeff" + t,
    "spaces in place of tabs": lambda t: t.replace("\t", " "),
    "tabs in place of spaces": lambda t: t.replace("the bridge", "the\tbridge").replace("\t<s> the", " \t <s>\tthe\t"),
    "no blank lines": lambda t: t.replace("\n\n", "\n"),
    "blank lines between n-grams": lambda t: t.replace("-0.7", "\n \n-0.7"),
    "KenLM gives the start a probability of 1": lambda t: t.replace("-99\t<s>", "0\t<s>"),
    "longest n-grams with a back-off": lambda t: t.replace("the bridge\n", "the bridge\t0\n"),
    "OpenGrm writes back-offs of 0 as -99": lambda t: t.replace("</s>", "</s>\t-99"),
    "another spelling of the unknown word": lambda t: t.replace("<unk>", "<UNK>"),
    "no unknown word": lambda t: t.replace("-2\t<unk>\n", "").replace("1=6", "1=5"),
    "exponents": lambda t: t.replace("-0.7\t", "-7E-1\t"),
    "an empty order": lambda t: t.replace("2=3\n", "2=3\nngram 3=0\n").replace("\\end", "\\3-grams:\n\n\\end"),
    "an empty order without its section": lambda t: t.replace("2=3\n", "2=3\nngram 3=0\n"),
    "the n-grams in another order": lambda t: t.replace("-0.3\tthe bridge\n", "").replace(
        "<s> the\n", "<s> the\n-0.3\tthe bridge\n"),
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_other_programs_files_have_the_same_distributions(change, tmp_path):
    expected = {(): [0, 10**-1.1, 0.01, 10**-0.7, 10**-0.9, 10**-0.8],
                (3,): [0, 10**-1.3, 10**-2.2, 10**-0.9, 10**-0.3, 10**-1.0],
                (0,): [0, 10**-1.4, 10**-2.3, 10**-0.5, 10**-1.2, 10**-1.1],
                (4,): [0, 10**-1.0, 10**-1.9, 0, 10**-0.8, 10**-0.7]}
    text = change(PLAIN)
    assert text != PLAIN
    table = read(text, tmp_path)
    assert table.order == 2 and table.best[3] == 4
    for context, probabilities in expected.items():
        if "unk>" not in text.lower():
            probabilities = [*probabilities[:2], 0, *probabilities[3:]]
        np.testing.assert_allclose(distribution(table, np.array(context, np.int64)), probabilities, rtol=1e-5)


def test_unigrams_alone(tmp_path):
    text = PLAIN[: PLAIN.index("\\2-grams")].replace("ngram 2=3\n", "") + "\\end\\\n"
    table = read(text, tmp_path)
    assert table.order == 1 and distribution(table, np.array([3]))[4] == pytest.approx(10**-0.9, rel=1e-5)


INVALID = {
    "not a number": (("-0.3\tthe bridge", "nan\tthe bridge"), "line 14: the log10 probability is 'nan'"),
    "minus infinity": (("-0.3\tthe bridge", "-inf\tthe bridge"), "line 14: .*write -99"),
    "infinity": (("-0.3\tthe bridge", "Infinity\tthe bridge"), "line 14: "),
    "a number too large for a float": (("-0.3\tthe bridge", "-1e999\tthe bridge"), "line 14: "),
    "a positive log": (("-0.3\tthe bridge", "0.3\tthe bridge"), "line 14: .*above 0"),
    "a back-off that is no number": (("the\t-0.2", "the\tnan"), "line 9: the back-off is 'nan'"),
    "an infinite back-off": (("the\t-0.2", "the\tinf"), "line 9: the back-off"),
    "a back-off that overflows": (("the\t-0.2", "the\t400"), "line 9: the log10 back-off 400 is above"),
    "an n-gram twice": (("-0.5\t<s> the", "-0.5\tthe bridge"), "line 15: 'the bridge' occurs twice"),
    "a word twice": (("-0.8\tclosed", "-0.8\tthe"), "line 11: 'the' occurs twice"),
    "two numbers of n-grams": (("ngram 2=3", "ngram 1=7"), "line 3: the number of 1-grams is 7 here and 6 before"),
    "a number that is none": (("ngram 2=3", "ngram 2=many"), "line 3: .*no count of n-grams"),
    "an endless number of n-grams": (("ngram 2=3", "ngram 2=" + "9" * 5000), "line 3: .*no count of n-grams"),
    "fewer n-grams than counted": (("-0.5\t<s> the\n", ""), "truncated"),
    "more n-grams than counted": (("ngram 2=3", "ngram 2=2"), "truncated"),
    "an order that the header lacks": (("ngram 2=3\n", ""), "truncated"),
    "an unknown section": (("\\2-grams:", "\\interpolations:"), "line 13: "),
    "an endless word": (("the bridge", "the " + "x" * 100_000), "line 14: 'x+\\.\\.\\.' is not in the vocabulary"),
    "no end mark": (("\\end\\", ""), "no end mark after line 18"),
    "quantised by IRSTLM": (("\\data\\", "qARPA 2\n\\data\\"), "quantised"),
    "no data mark": (("\\data\\", "data"), "not an ARPA file"),
    "bytes": ((PLAIN, "\x00\x1f\x8b" * 1000), "not an ARPA file"),
}


@pytest.mark.parametrize(("change", "match"), INVALID.values(), ids=INVALID)
def test_the_line_of_an_impossible_value_is_named(change, match, tmp_path):
    assert change[0] in PLAIN
    with pytest.raises(UserError, match=match) as caught:
        read(PLAIN.replace(*change), tmp_path)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "t.arpa")) and "\n" not in message and len(message) < len(str(tmp_path)) + 200
