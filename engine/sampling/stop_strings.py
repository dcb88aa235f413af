"""Stop strings: the host reads the text between rounds and cuts a row at the id that completes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foredraft.engine.state import DecodeState


class StopStrings:
    """Cuts one request's row, so that it ends as it would if it were checked after every single id."""

    def __init__(self, strings: Sequence[str], decode: Callable[[list[int]], str]):
        self.strings, self.decode, self.checked = tuple(strings), decode, 1

    def cut(self, state: DecodeState, row: int) -> bool:
        """Look at what the row's last round added; True where it was cut."""
        length, seen = int(state.lengths[row]), self.checked
        self.checked = length
        if length == seen:
            return False
        ids = state.tokens[row, 1:length].tolist()
        if self._stops(ids):
            for end in range(seen, length):
                if self._stops(ids[:end]):
                    state.truncate(row, end + 1)
                    self.checked = end + 1
                    return True
        return False

    def _stops(self, ids: list[int]) -> bool:
        text = self.decode(ids)
        return any(string in text for string in self.strings)
