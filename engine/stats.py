"""What a decode cost and gained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import zip_longest

from foredraft.engine.state import DecodeState


@dataclass
class DecodeStats:
    """Sums over rows; the start token is never counted, nothing past an end of text is.

    steps: (row, round) pairs in which a row was running. drafted, tested, accepted: ids; tested stops at the first
    rejection. emitted: ids. tested_at and accepted_at [K] are per place in the draft.
    covered: steps with at least one draft. seconds: encode, draft, verify (target passes), other (verification, commit,
    host), total. Rounds captured on a device are not told apart: all of them count as other. rounds: passes of the target;
    places: rows that were there in them, running or not. A single request of many has neither of the two. lossy: the policy
    under which what was emitted need not be the target's own (state.lossy); "" is lossless.
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
    passes: int = 0
    slots: int = 0
    lossy: str = ""

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

    @property
    def slot_utilisation(self) -> float:
        """Running rows over rows and rounds."""
        return self.steps / self.slots if self.slots else 0.0

    @classmethod
    def of(cls, state: DecodeState, row: int) -> DecodeStats:
        """The counts of a row's request."""
        tested_at, accepted_at = state.tested_at[row].tolist(), state.accepted_at[row].tolist()
        return cls(
            requests=1, steps=int(state.num_steps[row]), covered=int(state.covered[row]), drafted=int(state.drafted[row]),
            tested=sum(tested_at), accepted=sum(accepted_at), emitted=int(state.lengths[row]) - 1, tested_at=tested_at,
            accepted_at=accepted_at, lossy=state.lossy)

    def merge(self, other: DecodeStats) -> None:
        """Add what other requests cost and gained."""
        for name in ("requests", "steps", "covered", "drafted", "tested", "accepted", "emitted", "passes", "slots"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("tested_at", "accepted_at"):
            pairs = zip_longest(getattr(self, name), getattr(other, name), fillvalue=0)
            setattr(self, name, [sum(pair) for pair in pairs])
        self.lossy = self.lossy or other.lossy
        self.add_seconds(other.seconds)

    def add_seconds(self, seconds: dict[str, float]) -> None:
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def close_seconds(self, total: float) -> None:
        """Set the wall seconds of a whole call, and what no part of it accounts for."""
        parts = {part: self.seconds.get(part, 0.0) for part in ("encode", "draft", "verify")}
        self.seconds = {**parts, "total": total, "other": total - sum(parts.values())}

    def as_dict(self) -> dict:
        """Counts, seconds and rates, ready for JSON."""
        rates = ("acceptance_rate", "draft_acceptance_rate", "coverage", "tokens_per_step", "tokens_per_second",
                 "slot_utilisation")
        return asdict(self) | {name: getattr(self, name) for name in rates}
