"""Admits a sequence's source to a drafter when the drafter first drafts.

To read a source, a trained drafter takes as long as one or two steps of a small target; many requests never need it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from foredraft.engine.protocols import Drafter


class LazyAdmission:
    """Keeps what `admit` is given until `admit_pending`; `release` skips sequences that `drafter` never received."""

    def __init__(self, drafter: Drafter):
        self.drafter = drafter
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}
        self._admitted: set[int] = set()

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        for sequence, *source in zip(sequences, sources, encoded, strict=True):
            self._pending[sequence] = tuple(source)

    def admit_pending(self) -> Drafter:
        """Admit all pending sequences to the drafter, in one call, and return it."""
        if self._pending:
            # together, so that the drafter allocates once, for the largest index
            sources, encoded = zip(*self._pending.values(), strict=True)
            self.drafter.admit(list(self._pending), sources, encoded)
            self._admitted.update(self._pending)
            self._pending.clear()
        return self.drafter

    def release(self, sequences: Sequence[int]) -> None:
        if known := [sequence for sequence in sequences if sequence in self._admitted]:
            self.drafter.release(known)
            self._admitted.difference_update(known)
        for sequence in sequences:
            self._pending.pop(sequence, None)
