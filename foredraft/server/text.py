"""The text of an output while it grows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# what a decoder shows for bytes that are no whole character yet
INCOMPLETE = "\ufffd"


class TextStream:
    """Turns tokens into pieces of text that, joined, are the text of all tokens.

    A piece is decoded together with some tokens before it, because a token alone would lose the space before it; part of a
    character is held back.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        # tokens[first:read] have been given as text; those from `read` on have not
        self._first = self._read = 0
        self._known = ""

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def push(self, token: int) -> str:
        """The text that a token adds; "" where it adds none yet."""
        self.tokens.append(token)
        text = self._decode(self.tokens[self._first:])
        if len(text) <= len(self._known) or text.endswith(INCOMPLETE):
            return ""
        piece = text[len(self._known):]
        # the next piece is decoded after the tokens of this one
        self._first, self._read = self._read, len(self.tokens)
        self._known = self._decode(self.tokens[self._first:])
        if not self._known:
            self._first, self._known = 0, self._decode(self.tokens)
        return piece

    def peek(self, tokens: Sequence[int]) -> str:
        """The text that these tokens would add."""
        return self._decode([*self.tokens[self._first:], *tokens])[len(self._known):]

    def flush(self) -> str:
        """The rest, incomplete characters included."""
        rest = self._decode(self.tokens[self._first:])[len(self._known):]
        self._known += rest
        return rest


class StopCutter:
    """Ends a text before the first stop string in it; holds back what may be the beginning of one."""

    def __init__(self, stops: Iterable[str]):
        self.stops = tuple(stops)
        self.is_ended = False
        self._held = ""

    def push(self, piece: str) -> str:
        """The part of the text so far that may be shown and was not."""
        if self.is_ended:
            return ""
        text = self._held + piece
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.is_ended, self._held = True, ""
            return text[: min(ends)]
        keep = self._unsure(text)
        self._held = text[len(text) - keep:]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return "" if self.is_ended else held

    def _unsure(self, text: str) -> int:
        """How many characters at the end may begin a stop string."""
        longest = max(map(len, self.stops), default=0) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stops):
                return size
        return 0
