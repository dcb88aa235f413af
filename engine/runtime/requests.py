"""What a program asks for, and what it gets back: Request, Result; and the Job in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from foredraft.engine.params import DecodeConfig
from foredraft.engine.sampling.stop_strings import StopStrings
from foredraft.engine.state import DecodeState
from foredraft.engine.stats import DecodeStats
from foredraft.errors import UserError


@dataclass(frozen=True)
class Request:
    """One text, or its ids as the model expects them (T5: `</s>` last). `id`: what its result shall be known by, hashable
    and unlike those of other requests in hand; errors and warnings name it.

    The rest are generate's arguments; None takes the stream's. max_new_tokens and draft_tokens may not exceed the stream's;
    with "auto" for the stream draft_tokens is the longest draft. seed: int64, this request's own, whatever its place in the
    stream.
    """

    input: str | Sequence[int]
    id: Any = None
    max_new_tokens: int | None = None
    draft_tokens: int | str | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop_strings: str | Sequence[str] | None = None


@dataclass
class Result:
    """index: the request's place in its stream, from 0. finish_reason: "stop" (the end token, or a stop string), "length",
    "cancelled" (token_ids hold what was there) or "error". token_ids, proposers, text as in generate's Output; stats of this
    request alone, without seconds.
    """

    index: int
    id: Any
    finish_reason: str
    text: str | None = None
    token_ids: list[int] = field(default_factory=list)
    proposers: list[int] = field(default_factory=list)
    stats: DecodeStats = field(default_factory=DecodeStats)
    warnings: list[str] = field(default_factory=list)
    error: UserError | None = None


@dataclass
class Job:
    """A request that was checked: source [S] int64, and how to decode it. `listener` is told of its ids as they come, the
    start token first."""

    index: int
    id: Any
    source: Tensor
    config: DecodeConfig
    draft_tokens: int
    seed: int
    warnings: list[str]
    stops: StopStrings | None = None
    listener: Callable[[Tensor], None] | None = None
    sent: int = 0
    was_cut: bool = False

    @property
    def limit(self) -> int:
        return self.config.max_new_tokens + 1

    @property
    def distribution(self) -> dict[str, float]:
        """temperature, top_k, top_p, as a state has them."""
        c = self.config
        return {"temperature": c.temperature if c.do_sample else 0.0, "top_k": c.top_k, "top_p": c.top_p}

    @property
    def is_watched(self) -> bool:
        """Whether the host has to look at its row after every round."""
        return self.stops is not None or self.listener is not None

    def look(self, state: DecodeState, row: int) -> None:
        """The host's look between rounds."""
        if self.stops is not None:
            self.was_cut |= self.stops.cut(state, row)
        if self.listener is not None:
            length = int(state.lengths[row])
            self.listener(state.tokens[row, self.sent : length].cpu().clone())
            self.sent = length

    def result(self, state: DecodeState, row: int, reason: str | None = None) -> Result:
        """What its row of a state holds."""
        length = int(state.lengths[row])
        ids = state.tokens[row, 1:length].tolist()
        if reason is None:
            reason = "stop" if self.was_cut or ids[-1] == state.end_token else "length"
        return Result(self.index, self.id, reason, None, ids, state.proposer[row, 1:length].tolist(),
                      DecodeStats.of(state, row), self.warnings)
