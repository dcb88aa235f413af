"""How many tokens the beams of a batch draft: the K with the most steps a second, by the costs and savings measured so far.

A pass that drafts K tokens for every beam takes 1 + p + ... + p^K steps on average, where p is the share of steps after
which the next step was drafted for every beam. It takes a + b rows seconds; rows are the query positions that it reads.
p, a and b are estimated from the latest passes. The outcome of the search does not depend on K.
"""

from __future__ import annotations

# Weight of a pass after each later one: the estimates follow about the last 1 / (1 - DECAY) = 50 passes.
DECAY = 0.98
# While drafts are off, every 32nd pass drafts one token, to notice a text that has become predictable. If such a pass costs
# less than 1.5 times a plain one, this loses less than 2 %.
PROBE_EVERY = 32
# Of the first 6 passes every second one drafts 4 tokens, so that the costs with and without drafts are known.
FIRST, FIRST_DRAFT = 6, 4


class BeamDraftLength:
    """The estimates of one model. Without measurements p is 0.5."""

    def __init__(self):
        self.tested, self.saved = 2.0, 1.0
        self.passes = self.since_probe = 0
        # sums over passes of 1, rows, seconds, rows^2, rows * seconds
        self._sums = [0.0] * 5

    def choose(self, most: int, beams: int) -> int:
        """K for a pass of `beams` beams, at most `most`."""
        self.passes += 1
        if most == 0 or beams == 0:
            return 0
        if self.passes <= FIRST:
            return min(most, FIRST_DRAFT) if self.passes % 2 else 0
        fixed, each = self._costs()
        p = self.saved / self.tested
        best, chosen = 0.0, 0
        for K in range(most + 1):
            steps = sum(p**i for i in range(K + 1))
            rate = steps / (fixed + each * beams * (K + 1))
            if rate > best:
                best, chosen = rate, K
        self.since_probe = 0 if chosen else self.since_probe + 1
        if self.since_probe >= PROBE_EVERY:
            self.since_probe = 0
            return 1
        return chosen

    def learn(self, rows: int, seconds: float, tested: int, saved: int) -> None:
        """A pass read `rows` query positions; of `tested` drafted positions `saved` saved a pass."""
        self._sums = [DECAY * total + new for total, new in zip(
            self._sums, (1.0, rows, seconds, rows * rows, rows * seconds), strict=True)]
        if tested:
            self.tested, self.saved = DECAY * self.tested + tested, DECAY * self.saved + saved

    def _costs(self) -> tuple[float, float]:
        """a and b, in seconds, by least squares; neither is below 0."""
        count, rows, seconds, squares, products = self._sums
        spread = squares - rows * rows / count
        each = max(0.0, (products - rows * seconds / count) / spread) if spread > 1e-9 else 0.0
        fixed = (seconds - each * rows) / count
        return (max(fixed, 0.0), each) if each or fixed > 0 else (1.0, 0.0)
