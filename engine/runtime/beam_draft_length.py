"""How many tokens the beams of a batch draft: the K with the most steps a second, by the costs and savings measured so far.

A pass with K drafted tokens for every beam is enough for 1 + p + ... + p^K steps of a search on average. p is the share of
steps after which the next step was drafted for every beam; it falls with the number of beams. The pass takes a + b rows
seconds; rows are the query positions that it reads. a, b, and p for each number of beams follow the latest passes.
The outcome of the search does not depend on K.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Weight of a pass after each later one: the estimates follow about the last 1 / (1 - DECAY) = 50 passes.
DECAY = 0.98
# While drafts are off, every 64th pass drafts one token, to notice a text that has become predictable. If such a pass costs
# less than twice a plain one, this loses less than 1.6 %.
PROBE_EVERY = 64
# Of the first 6 passes every second one drafts 4 tokens, so that the costs with and without drafts are known.
FIRST, FIRST_DRAFT = 6, 4


class BeamDraftLength:
    """The estimates of one model. Without measurements p is 0.5."""

    def __init__(self):
        # by number of beams: drafted positions that were tested, and those that saved a pass
        self._outcomes: dict[int, tuple[float, float]] = {}
        self.passes = self.since_probe = 0
        # sums over passes of 1, rows, seconds, rows^2, rows * seconds
        self._sums = [0.0] * 5

    def choose(self, most: int, beams: Sequence[int]) -> int:
        """K for a pass, at most `most`; `beams` are the numbers of beams of the searches that draft."""
        self.passes += 1
        if most == 0 or not beams:
            return 0
        if self.passes <= FIRST:
            return min(most, FIRST_DRAFT) if self.passes % 2 else 0
        fixed, each = self._costs()
        shares = [saved / tested for tested, saved in map(self._outcome, beams)]
        best, chosen, steps = 0.0, 0, 0.0
        for K in range(most + 1):
            steps += sum(p**K for p in shares)
            rate = steps / (fixed + each * sum(beams) * (K + 1))
            if rate > best:
                best, chosen = rate, K
        self.since_probe = 0 if chosen else self.since_probe + 1
        if self.since_probe >= PROBE_EVERY:
            self.since_probe = 0
            return 1
        return chosen

    def learn(self, rows: int, seconds: float, outcomes: Iterable[tuple[int, int, int]]) -> None:
        """A pass read `rows` query positions. outcomes: of each search the number of beams, and how many of its drafted
        positions were tested and saved a pass.
        """
        self._sums = [DECAY * total + new for total, new in zip(
            self._sums, (1.0, rows, seconds, rows * rows, rows * seconds), strict=True)]
        for beams, *counts in outcomes:
            if counts[0]:
                before = self._outcome(beams)
                self._outcomes[beams] = (DECAY * before[0] + counts[0], DECAY * before[1] + counts[1])

    def _outcome(self, beams: int) -> tuple[float, float]:
        return self._outcomes.get(beams, (2.0, 1.0))

    def _costs(self) -> tuple[float, float]:
        """a and b, in seconds, by least squares; neither is below 0."""
        count, rows, seconds, squares, products = self._sums
        spread = squares - rows * rows / count
        each = max(0.0, (products - rows * seconds / count) / spread) if spread > 1e-9 else 0.0
        fixed = (seconds - each * rows) / count
        return (max(fixed, 0.0), each) if each or fixed > 0 else (1.0, 0.0)
