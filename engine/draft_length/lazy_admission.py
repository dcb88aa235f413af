"""Admissions that wait: a drafter is shown a row's source when it is first asked, which for many rows is never.

What a trained drafter makes of a source costs as much as a round or two of a small target.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from foredraft.engine.protocols import Drafter


class Admissions:
    """In the place of a drafter's own `admit` and `release`; `drafter` itself drafts after `show`."""

    def __init__(self, drafter: Drafter):
        self.drafter = drafter
        self._waiting: dict[int, tuple[Tensor, Tensor]] = {}
        self._shown: set[int] = set()

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        for row, *source in zip(rows, sources, encoded, strict=True):
            self._waiting[row] = tuple(source)

    def show(self) -> Drafter:
        """The drafter, with every row admitted."""
        if self._waiting:
            # the highest row comes with the first: drafters make room for all rows at once
            sources, encoded = zip(*self._waiting.values(), strict=True)
            self.drafter.admit(list(self._waiting), sources, encoded)
            self._shown.update(self._waiting)
            self._waiting.clear()
        return self.drafter

    def release(self, rows: Sequence[int]) -> None:
        if known := [row for row in rows if row in self._shown]:
            self.drafter.release(known)
            self._shown.difference_update(known)
        for row in rows:
            self._waiting.pop(row, None)
