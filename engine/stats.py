"""Counts and seconds of decoding."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import zip_longest

from foredraft.engine.state import DecodeState


@dataclass
class DecodeStats:
    """Sums over requests. The start token is not counted.

    Attributes
    ----------
    requests : int
    steps : int
        Steps of running sequences: one for each sequence that ran in a step.
    covered : int
        Steps with at least one drafted token.
    drafted, tested, accepted, emitted : int
        Tokens. Testing stops at the first rejection.
    tested_at, accepted_at : list of int
        By position in the draft.
    seconds : dict
        "encode", "draft", "verify" (target passes), "other" (verification, commit, host) and "total". Captured CUDA graphs
        count as "other".
    passes, slots : int
        Passes of the target, and sequences of the batch in them, running or idle; of a whole stream only.
    lossy : str
        Names a lossy decoding policy (state.lossy); "" is lossless.
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
        """covered / steps."""
        return self.covered / self.steps if self.steps else 0.0

    @property
    def tokens_per_step(self) -> float:
        return self.emitted / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Emitted tokens per second, without the seconds of encoding."""
        decoding = self.seconds.get("total", 0.0) - self.seconds.get("encode", 0.0)
        return self.emitted / decoding if decoding > 0 else 0.0

    @property
    def slot_utilisation(self) -> float:
        """steps / slots: the share of the batch that was running."""
        return self.steps / self.slots if self.slots else 0.0

    @classmethod
    def of(cls, state: DecodeState, sequence: int) -> DecodeStats:
        """The counts of one sequence's request."""
        tested_at, accepted_at = state.tested_at[sequence].tolist(), state.accepted_at[sequence].tolist()
        return cls(
            requests=1, steps=int(state.num_steps[sequence]), covered=int(state.covered[sequence]),
            drafted=int(state.drafted[sequence]), tested=sum(tested_at), accepted=sum(accepted_at),
            emitted=int(state.lengths[sequence]) - 1, tested_at=tested_at, accepted_at=accepted_at, lossy=state.lossy)

    def merge(self, other: DecodeStats) -> None:
        """Add the counts of other requests."""
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
        """Set the wall seconds of a whole call; "other" is what no part accounts for."""
        parts = {part: self.seconds.get(part, 0.0) for part in ("encode", "draft", "verify")}
        self.seconds = {**parts, "total": total, "other": total - sum(parts.values())}

    def as_dict(self) -> dict:
        """Counts, seconds and rates, for JSON."""
        rates = ("acceptance_rate", "draft_acceptance_rate", "coverage", "tokens_per_step", "tokens_per_second",
                 "slot_utilisation")
        return asdict(self) | {name: getattr(self, name) for name in rates}
