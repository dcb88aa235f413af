"""A request on its way through the engine: Request, as a program writes it; Job, checked; Result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from foredraft.engine.arguments import SamplingSettings
from foredraft.engine.params import SamplingParams
from foredraft.engine.sampling.processor import Processor
from foredraft.engine.sampling.recorder import Recorder, TokenLogprob
from foredraft.engine.sampling.stop_rules import StopRule
from foredraft.engine.sampling.stopping_criteria import MaxTime
from foredraft.engine.state import DecodeState
from foredraft.engine.stats import DecodeStats
from foredraft.errors import UserError


@dataclass(frozen=True)
class Progress:
    """What a step added to the output of a request.

    Attributes
    ----------
    token_ids, proposers : list of int
        As in Output; empty when the request starts.
    rejected : list of int
        The drafted tokens of the step that were not accepted; empty for trees.
    logprobs : list of TokenLogprob or None
        Of `token_ids`, as in Result.
    """

    token_ids: list[int]
    proposers: list[int]
    rejected: list[int]
    logprobs: list[TokenLogprob] | None = None


class Request:
    """One input of a stream, with settings of its own.

    Parameters
    ----------
    input : str or sequence of int
        A text, or its tokens as the model expects them (T5: `</s>` last).
    id : hashable or None
        Identifies the result, and names the request in errors and warnings; unique among the unfinished requests.
    on_progress : callable or None
        Receives a Progress when the request starts and after each of its steps, on the thread that reads the stream, which
        waits for it. CPU only.
    **settings
        Fields of SamplingParams. The stream's settings replace None and what is left out. max_new_tokens, draft_tokens and
        num_beams may not exceed the stream's. If the stream's draft_tokens is "auto", a number is the longest draft. `seed`
        is any int64; with it the output does not depend on the request's position in the stream.
    """

    def __init__(self, input: str | Sequence[int], id: Any = None, on_progress: Callable[[Progress], object] | None = None,
                 **settings: Unpack[SamplingSettings]):
        self.input, self.id, self.on_progress = input, id, on_progress
        self.settings = {name: value for name, value in settings.items() if value is not None}

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"Request({self.input!r}, id={self.id!r}{settings})"


@dataclass
class Hypothesis:
    """An output of beam search.

    Attributes
    ----------
    token_ids : list of int
    score : float
        The sum of its tokens' log-probabilities, after processors, divided by length^length_penalty.
    beams : list of int
        The beam that it continued at each step; beams are numbered in the order of their scores.
    finish_reason : str
        As in Result.
    text : str or None
    """

    token_ids: list[int]
    score: float
    beams: list[int]
    finish_reason: str = "stop"
    text: str | None = None


@dataclass
class Result:
    """The outcome of one request.

    Attributes
    ----------
    index : int
        The request's position in its stream, from 0.
    finish_reason : str
        "stop" (an end token, a stop string or a stopping criterion), "length", "time", "cancelled" (the tokens so far are
        kept) or "error".
    text : str or None
        None without a tokenizer.
    token_ids, proposers : list of int
        As in Output.
    stats : DecodeStats
        Of this request, without seconds; `stats.acceptance_rate` is its acceptance.
    logprobs : list of TokenLogprob or None
    scores, logits : ndarray [n, V] float32 or None
        What SamplingParams.logprobs, output_scores and output_logits ask for, of n tokens. Of beam search [n, num_beams, V],
        of the running beams at n steps.
    hypotheses : list of Hypothesis or None
        The num_return_sequences best of a beam search, best first; token_ids and text are those of the first.
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
    logprobs: list[TokenLogprob] | None = None
    scores: np.ndarray | None = None
    logits: np.ndarray | None = None
    hypotheses: list[Hypothesis] | None = None


@dataclass
class Job:
    """A checked request.

    Attributes
    ----------
    source : Tensor [S] int64
    params : SamplingParams
    draft_tokens : int
        K.
    seed : int
    end_tokens, start_token : tuple of int, int
        None: the model's.
    processors : sequence of Processor
    stop_rules : sequence of StopRule
    listener : callable or None
        Receives new tokens, the start token first.
    on_progress : callable or None
        As in Request; not together with `listener`.
    sent : int
        Tokens reported so far, the start token included.
    stopped_by : StopRule or None
    error : UserError or None
        A function of the caller failed; the request ends.
    """

    index: int
    id: Any
    source: Tensor
    params: SamplingParams
    draft_tokens: int
    seed: int
    warnings: list[str]
    end_tokens: tuple[int, ...] | None = None
    start_token: int | None = None
    processors: Sequence[Processor] = ()
    stop_rules: Sequence[StopRule] = ()
    listener: Callable[[Tensor], None] | None = None
    on_progress: Callable[[Progress], object] | None = None
    sent: int = 0
    stopped_by: StopRule | None = None
    error: UserError | None = None

    def __post_init__(self):
        p = self.params
        is_recorded = p.logprobs is not None or p.output_scores or p.output_logits
        self.recorder = Recorder(p.logprobs, p.output_scores, p.output_logits) if is_recorded else None

    @property
    def name(self) -> str:
        """What messages call the request."""
        return f"input {self.index + 1}" if self.id is None else str(self.id)

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
        """Whether `observe` is called after every step."""
        return bool(self.stop_rules) or self.listener is not None or self.on_progress is not None

    def observe(self, state: DecodeState, sequence: int) -> None:
        """At the start and after a step: truncate where a rule ends the sequence, and report the new tokens."""
        for rule in self.stop_rules:
            try:
                if rule.truncate(state, sequence):
                    self.stopped_by = rule
            except UserError as error:
                self.error = UserError(f"{self.name}: {error}")
        if self.listener is not None:
            length = int(state.lengths[sequence])
            self.listener(state.tokens[sequence, self.sent : length].cpu().clone())
            self.sent = length
        elif self.on_progress is not None:
            try:
                self.on_progress(self._progress(state, sequence))
            except Exception as error:
                self.error = UserError(f"{self.name}: on_progress failed with {type(error).__name__}: {error}")

    def _progress(self, state: DecodeState, sequence: int) -> Progress:
        first, length = max(self.sent, 1), int(state.lengths[sequence])
        self.sent = length
        tokens = state.tokens[sequence, first:length].tolist()
        logprobs = None if self.params.logprobs is None else self.recorder.logprobs[first - 1 : length - 1]
        rejected: list[int] = []
        if tokens and (draft := state.last_draft) is not None and draft.parents is None:
            drafted = draft.tokens[sequence, : int(draft.lengths[sequence])].tolist()
            for position, (token, emitted) in enumerate(zip(drafted, tokens, strict=False)):
                if token != emitted:
                    rejected = drafted[position:]
                    break
        return Progress(tokens, state.proposer[sequence, first:length].tolist(), rejected, logprobs)

    def result(self, state: DecodeState, sequence: int, reason: str | None = None) -> Result:
        """The result, read from the request's sequence of the state."""
        length = int(state.lengths[sequence])
        tokens = state.tokens[sequence, 1:length].tolist()
        if reason is None:
            reason = ("error" if self.error else "time" if isinstance(self.stopped_by, MaxTime)
                      else "stop" if self.stopped_by or (tokens and tokens[-1] in state.end_tokens[sequence]) else "length")
        result = Result(self.index, self.id, reason, None, tokens, state.proposer[sequence, 1:length].tolist(),
                        DecodeStats.of(state, sequence), self.warnings, self.error)
        if self.recorder is not None:
            kept = self.recorder
            kept.truncate(len(tokens))
            result.logprobs = None if self.params.logprobs is None else kept.logprobs
            result.scores = np.array(kept.scores) if self.params.output_scores else None
            result.logits = np.array(kept.logits) if self.params.output_logits else None
        return result

    def beam_result(self, hypotheses: list[Hypothesis], passes: int, scores: np.ndarray | None, logits: np.ndarray | None,
                    end_tokens: list[int], reason: str | None = None) -> Result:
        """The result of a beam search that took `passes` passes; arrays as in Result."""
        for one in hypotheses:
            is_full = len(one.token_ids) == self.params.max_new_tokens and one.token_ids[-1] not in end_tokens
            one.finish_reason = reason or ("error" if self.error else "length" if is_full else "stop")
        best = hypotheses[0]
        stats = DecodeStats(requests=1, steps=passes, emitted=len(best.token_ids))
        return Result(self.index, self.id, best.finish_reason, None, best.token_ids, [0] * len(best.token_ids), stats,
                      self.warnings, self.error, scores=scores, logits=logits, hypotheses=hypotheses)
