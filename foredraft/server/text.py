"""Incremental detokenisation, and stop strings in a growing text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# the decoder's replacement for the bytes of an incomplete character
INCOMPLETE = "\ufffd"


class TextStream:
    """Turns tokens into pieces of text, one token at a time. The joined pieces are the text of all tokens.

    A token is decoded together with some tokens before it, because a token that is decoded alone loses its leading space.
    An incomplete character is delayed until it is complete.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        # tokens[_first:_read] are returned already, with the text _context; tokens[_read:] are not
        self._first = self._read = 0
        self._context = ""

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def push(self, token: int) -> str:
        """The text that a token adds; "" where it adds none yet."""
        self.tokens.append(token)
        text = self._decode(self.tokens[self._first:])
        if len(text) <= len(self._context) or text.endswith(INCOMPLETE):
            return ""
        piece = text[len(self._context):]
        # the next piece is decoded after the tokens of this one
        self._first, self._read = self._read, len(self.tokens)
        self._context = self._decode(self.tokens[self._first:])
        # without a text before it, the next piece would lose its leading space
        if not self._context:
            self._first, self._context = 0, self._decode(self.tokens)
        return piece

    def peek(self, tokens: Sequence[int]) -> str:
        """The text that these tokens would add."""
        return self._decode([*self.tokens[self._first:], *tokens])[len(self._context):]

    def flush(self) -> str:
        """The rest, incomplete characters included."""
        rest = self._decode(self.tokens[self._first:])[len(self._context):]
        self._context += rest
        return rest


class StopCutter:
    """Ends a growing text before its first stop string. Characters that may begin a stop string are delayed."""

    def __init__(self, stops: Iterable[str]):
        self.stops = tuple(stops)
        self.is_ended = False
        self._delayed = ""

    def push(self, piece: str) -> str:
        """Append a piece; returns the text that is certain and was not returned before."""
        if self.is_ended:
            return ""
        text = self._delayed + piece
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.is_ended, self._delayed = True, ""
            return text[: min(ends)]
        certain = len(text) - self._uncertain(text)
        self._delayed = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """The delayed characters, at the end of the text."""
        delayed, self._delayed = self._delayed, ""
        return "" if self.is_ended else delayed

    def _uncertain(self, text: str) -> int:
        """The number of characters at the end that may begin a stop string."""
        longest = max(map(len, self.stops), default=0) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stops):
                return size
        return 0
