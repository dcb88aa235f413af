"""Stop strings: after each step the host reads the text and truncates it at the token that completes a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foredraft.engine.state import DecodeState


class StopStrings:
    """Truncates one request's sequence where checking the text after every single token would have ended it."""

    def __init__(self, strings: Sequence[str], decode: Callable[[list[int]], str]):
        self.strings, self.decode, self.checked = tuple(strings), decode, 1

    def truncate(self, state: DecodeState, sequence: int) -> bool:
        """Check the tokens of the last step; True where the sequence was truncated."""
        length, seen = int(state.lengths[sequence]), self.checked
        self.checked = length
        if length == seen:
            return False
        tokens = state.tokens[sequence, 1:length].tolist()
        if self._stops(tokens):
            for end in range(seen, length):
                if self._stops(tokens[:end]):
                    state.truncate(sequence, end + 1)
                    self.checked = end + 1
                    return True
        return False

    def ends(self, tokens: list[int]) -> bool:
        """Whether an output, the start token included, ends here."""
        return self._stops(tokens[1:])

    def _stops(self, tokens: list[int]) -> bool:
        text = self.decode(tokens)
        return any(string in text for string in self.strings)
