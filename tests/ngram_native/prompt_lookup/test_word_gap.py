"""Copies from behind a corrected word: the rule on words that are written out. The kernel is tested with the index."""

from __future__ import annotations

import pytest

from foredraft.ngram_native.prompt_lookup.word_gap import behind_word_reference

# a piece with a capital letter begins a word
PIECES = {piece: number for number, piece in enumerate(
    ["The", "Cat", "Sat", "On", "A", "Nay", "v", "Navy", "Pa", "ld", "a", ",", "Mat"])}
STARTS = [piece[0].isupper() for piece in PIECES]


@pytest.mark.parametrize(("source", "output", "rest"), [
    # one piece replaces two
    ("The Cat Nay v Sat On", "The Cat Navy", "Sat On"),
    # a word of several pieces is complete, or is not
    ("The Cat Nay v Sat On", "The Cat Pa ld a", "Sat On"),
    ("The Cat Nay v Sat On", "The Cat Pa", "Sat On"),
    # an inserted mark
    ("The Cat Sat On", "The Cat ,", "Sat On"),
    # two words have passed since, no match before, only one token before
    ("The Cat Nay v Sat On", "The Cat Navy A", ""),
    ("The Cat Nay v Sat On", "A Mat Navy", ""),
    ("The Cat Nay v Sat On", "Cat Navy", ""),
    # the corrected word is the last one
    ("The Cat Nay v", "The Cat Navy", ""),
    # of two places the earliest, after the longest match
    ("The Cat Sat On The Cat A Mat", "The Cat Navy", "On The Cat A Mat"),
    ("The Cat Sat On The Cat A Mat", "On The Cat Navy", "Mat"),
    ("", "The Cat Navy", ""),
    ("The Cat", "", ""),
])
def test_where_copying_goes_on(source, output, rest):
    source, output = ([PIECES[piece] for piece in text.split()] for text in (source, output))
    position = behind_word_reference(source, output, 4, STARTS)
    assert (source[position:] if position >= 0 else []) == [PIECES[piece] for piece in rest.split()]
