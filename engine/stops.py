"""Stop strings: the host reads the text between rounds and cuts a row at the id that completes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from foredraft.engine.state import DecodeState


class StopStrings:
    """Cuts rows of a state, so that a row ends as it would if it were checked after every single id."""

    def __init__(self, strings: Sequence[str], decode: Callable[[list[int]], str]):
        self.strings, self.decode = tuple(strings), decode
        self.checked: dict[int, int] = {}

    def cut(self, state: DecodeState) -> None:
        for row in range(state.rows):
            length = int(state.lengths[row])
            seen = self.checked.get(row, 1)
            if length == seen:
                continue
            ids = state.tokens[row, 1:length].tolist()
            if self._stops(ids):
                for end in range(seen, length):
                    if self._stops(ids[:end]):
                        state.truncate(row, end + 1)
                        length = end + 1
                        break
            self.checked[row] = length

    def _stops(self, ids: list[int]) -> bool:
        text = self.decode(ids)
        return any(string in text for string in self.strings)
