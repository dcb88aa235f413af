"""Texts while they grow: pieces, joined, are the whole text; nothing of a stop string is shown."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from foredraft import embedded
from foredraft.server.text import StopCutter, TextStream


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(embedded.TARGET / "tokenizer.json"))


def streamed(tokenizer, tokens):
    stream = TextStream(tokenizer)
    return "".join(map(stream.push, tokens)) + stream.flush()


def test_pieces_are_the_text(tokenizer):
    draw = random.Random(5)
    size = tokenizer.get_vocab_size()
    for _ in range(300):
        # with special tokens, unknown ones and single spaces among them
        tokens = [draw.choice((draw.randrange(size), draw.randrange(30), 3, 0, 1, 2)) for _ in range(draw.randint(0, 40))]
        assert streamed(tokenizer, tokens) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_part_of_a_character_is_held_back():
    from tokenizers import decoders, models

    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)}
    bytewise = Tokenizer(models.WordLevel(pieces, unk_token="<0x00>"))
    bytewise.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    stream, text = TextStream(bytewise), "né € 😀!"
    pieces = [stream.push(byte) for byte in text.encode()]
    assert [piece for piece in pieces if piece] == list(text) and stream.flush() == ""
    stream.push("€".encode()[0])
    assert "\ufffd" in stream.flush()


def test_peek_leaves_no_trace(tokenizer):
    tokens = tokenizer.encode("the old bridge is open again", add_special_tokens=False).ids
    stream, joined = TextStream(tokenizer), ""
    for token in tokens[:3]:
        joined += stream.push(token)
    assert joined + stream.peek(tokens[3:]) == tokenizer.decode(tokens)
    assert joined + "".join(map(stream.push, tokens[3:])) == tokenizer.decode(tokens)


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.integers(0, 2**32))
def test_stop_strings(text, stops, seed):
    """However the text is cut into pieces, what is shown ends before the stop string that is complete first."""
    draw, cutter, shown, at = random.Random(seed), StopCutter(stops), "", 0
    while at < len(text):
        size = draw.randint(0, 4)
        shown += cutter.push(text[at : at + size])
        at += size
    shown += cutter.flush()
    ends = [found for stop in stops if (found := text.find(stop)) >= 0]
    assert cutter.is_ended == bool(ends)
    if not ends:
        assert shown == text
    else:
        # pieces may complete several stop strings at once; the text never holds one
        assert text.startswith(shown) and not any(stop in shown for stop in stops) and len(shown) >= min(ends)
