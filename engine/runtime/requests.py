"""A request on its way through the engine: Request, as a program writes it; Job, checked; Result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from foredraft.engine.params import SamplingParams
from foredraft.engine.sampling.stop_strings import StopStrings
from foredraft.engine.state import DecodeState
from foredraft.engine.stats import DecodeStats
from foredraft.errors import UserError


@dataclass(frozen=True)
class Request:
    """One input of a stream, with settings of its own.

    Parameters
    ----------
    input : str or sequence of int
        A text, or its tokens as the model expects them (T5: `</s>` last).
    id : hashable or None
        Identifies the result, and names the request in errors and warnings; unique among the unfinished requests.
    max_new_tokens, draft_tokens, do_sample, temperature, top_k, top_p, stop_strings
        As in SamplingParams; None takes the stream's. max_new_tokens and draft_tokens may not exceed the stream's. Where the
        stream's draft_tokens is "auto", a number is the longest draft.
    seed : int or None
        Int64; the output then does not depend on the request's position in the stream.
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
    """The outcome of one request.

    Attributes
    ----------
    index : int
        The request's position in its stream, from 0.
    finish_reason : str
        "stop" (the end token or a stop string), "length", "cancelled" (the tokens so far are kept) or "error".
    text : str or None
        None without a tokenizer.
    token_ids, proposers : list of int
        As in Output.
    stats : DecodeStats
        Of this request, without seconds.
    error : UserError or None
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
    """A checked request: source [S] int64, its K and its seed. `listener` receives new tokens, the start token first."""

    index: int
    id: Any
    source: Tensor
    params: SamplingParams
    draft_tokens: int
    seed: int
    warnings: list[str]
    stops: StopStrings | None = None
    listener: Callable[[Tensor], None] | None = None
    sent: int = 0
    was_truncated: bool = False

    @property
    def limit(self) -> int:
        """The length at which the sequence ends, the start token included."""
        return self.params.max_new_tokens + 1

    @property
    def distribution(self) -> dict[str, float]:
        """temperature, top_k and top_p as in DecodeState: temperature 0 is greedy."""
        p = self.params
        return {"temperature": p.temperature if p.do_sample else 0.0, "top_k": p.top_k, "top_p": p.top_p}

    @property
    def is_watched(self) -> bool:
        """Whether the host looks at the sequence after every step."""
        return self.stops is not None or self.listener is not None

    def observe(self, state: DecodeState, sequence: int) -> None:
        """After a step: truncate at a stop string, and pass new tokens to the listener."""
        if self.stops is not None:
            self.was_truncated |= self.stops.truncate(state, sequence)
        if self.listener is not None:
            length = int(state.lengths[sequence])
            self.listener(state.tokens[sequence, self.sent : length].cpu().clone())
            self.sent = length

    def result(self, state: DecodeState, sequence: int, reason: str | None = None) -> Result:
        """What its sequence of the state holds."""
        length = int(state.lengths[sequence])
        tokens = state.tokens[sequence, 1:length].tolist()
        if reason is None:
            reason = "stop" if self.was_truncated or tokens[-1] == state.end_token else "length"
        return Result(self.index, self.id, reason, None, tokens, state.proposer[sequence, 1:length].tolist(),
                      DecodeStats.of(state, sequence), self.warnings)
