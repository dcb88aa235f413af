"""What a decode cost and gained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch

from foredraft.engine.state import DecodeState


@dataclass
class DecodeStats:
    """Sums over rows; the start token is never counted, nothing past an end of text is.

    steps: (row, round) pairs in which a row was running. drafted, tested, accepted: ids; tested stops at the first
    rejection. emitted: ids. tested_at and accepted_at [K] are per place in the draft.
    covered: steps with at least one draft. seconds: encode, draft, verify (target passes), other (verdict, commit,
    host), total. Rounds captured on a device are not told apart: all of them count as other.
    """

    requests: int = 0
    steps: int = 0
    covered: int = 0
    drafted: int = 0
    tested: int = 0
    accepted: int = 0
    emitted: int = 0
    tested_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def acceptance_rate(self) -> float:
        """accepted / tested."""
        return self.accepted / self.tested if self.tested else 0.0

    @property
    def draft_acceptance_rate(self) -> float:
        """accepted / drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def coverage(self) -> float:
        """Share of steps with at least one drafted id."""
        return self.covered / self.steps if self.steps else 0.0

    @property
    def tokens_per_step(self) -> float:
        return self.emitted / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Emitted ids per second of decoding, encoding left out."""
        decoding = self.seconds.get("total", 0.0) - self.seconds.get("encode", 0.0)
        return self.emitted / decoding if decoding > 0 else 0.0

    def add(self, state: DecodeState, seconds: dict[str, float]) -> None:
        """Add a finished batch."""
        self.requests += state.rows
        self.steps += int(state.rounds.sum())
        self.covered += int(state.covered.sum())
        self.drafted += int(state.drafted.sum())
        self.emitted += int(state.lengths.sum()) - state.rows
        for name, tensor in (("tested_at", state.tested_at), ("accepted_at", state.accepted_at)):
            old = torch.tensor(getattr(self, name) or [0] * tensor.shape[1], dtype=torch.int64)
            setattr(self, name, (old + tensor.sum(0).cpu()).tolist())
        self.tested, self.accepted = sum(self.tested_at), sum(self.accepted_at)
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def as_dict(self) -> dict:
        """Counts, seconds and rates, ready for JSON."""
        rates = ("acceptance_rate", "draft_acceptance_rate", "coverage", "tokens_per_step", "tokens_per_second")
        return asdict(self) | {name: getattr(self, name) for name in rates}
