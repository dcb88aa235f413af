"""The outputs of a prompt: by a beam search, or by samples of which the best may be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from foredraft.engine.runtime.requests import Result
from foredraft.server import translate
from foredraft.server.engine import Engine
from foredraft.server.errors import ApiError


@dataclass(frozen=True)
class Outputs:
    """How the outputs of each prompt are made.

    Parameters
    ----------
    count : int
        Outputs that the client receives.
    samples : int
        Sequences that are decoded, each a ticket; of more than `count` the best are kept.
    num_beams : int
        Above 1 one beam search gives all outputs.
    has_logprobs : bool
        Whether the client asked for log-probabilities.
    """

    count: int
    samples: int
    num_beams: int
    has_logprobs: bool

    @property
    def are_ranked(self) -> bool:
        return self.samples > self.count

    @property
    def of_ticket(self) -> int:
        """The outputs of each ticket."""
        return self.count if self.num_beams > 1 else 1

    def choose(self, results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
        """The outputs that were decoded, and those that the client receives: of each prompt the best first."""
        decoded = [output for result in results for output in outputs_of(result)]
        if not self.are_ranked:
            return decoded, decoded
        kept: list[Result] = []
        for first in range(0, len(decoded), self.samples):
            kept += sorted(decoded[first : first + self.samples], key=mean_logprob, reverse=True)[: self.count]
        return decoded, kept if self.has_logprobs else [replace(one, logprobs=None) for one in kept]


def outputs_of(result: Result) -> list[Result]:
    """A result for each hypothesis of a beam search; the result itself without one."""
    return [result] if result.hypotheses is None else [
        replace(result, finish_reason=one.finish_reason, text=one.text, token_ids=one.token_ids,
                proposers=[0] * len(one.token_ids), stats=replace(result.stats, emitted=len(one.token_ids)))
        for one in result.hypotheses]


def mean_logprob(result: Result) -> float:
    """The log-probability per token, by which OpenAI's and TGI's `best_of` compares outputs."""
    return sum(entry.logprob for entry in result.logprobs) / max(len(result.logprobs), 1)


def plan(engine: Engine, settings: dict[str, Any], n: int | None, best_of: int | None, is_streamed: bool) -> Outputs:
    """Choose how the outputs are made, and set num_beams, num_return_sequences and, to rank samples, logprobs.

    Outputs that are not sampled come from a beam search with as many beams as there are candidates. ApiError 400: the
    fields contradict each other, or ask for more beams than the server has.
    """
    returned = settings.pop("num_return_sequences", None)
    if n is not None and returned is not None and n != returned:
        raise _wrong("num_return_sequences", f"n is {n} and num_return_sequences is {returned}; give one of them")
    n = n or returned or 1
    candidates = best_of or n
    if candidates < n:
        raise _wrong("best_of", f"best_of is {best_of}, less than n, {n}; raise it or lower n")
    if candidates > n and is_streamed:
        raise _wrong("best_of", "best_of above n cannot be streamed, because the best is known at the end only; leave out "
                                "stream or best_of")
    if candidates > n and settings.get("num_beams", 1) > 1:
        raise _wrong("best_of", "best_of and num_beams are given; give one of them")
    beams = _beams(engine, settings, candidates, "best_of" if candidates > n else "n")
    has_logprobs = settings.get("logprobs") is not None
    if beams > 1 and has_logprobs:
        raise _wrong("logprobs", "log-probabilities and details of tokens do not go with beam search; leave them out, or "
                                 "set num_beams and n to 1")
    found = Outputs(n, 1 if beams > 1 else candidates, beams, has_logprobs)
    settings |= {"num_beams": beams, "num_return_sequences": found.of_ticket}
    if found.are_ranked:
        settings.setdefault("logprobs", 0)
    return found


def _beams(engine: Engine, settings: dict[str, Any], candidates: int, name: str) -> int:
    """The number of beams; 1 is no beam search. `name` is the field that asks for `candidates`."""
    params = translate.merged(engine, settings | {"num_return_sequences": 1, "logprobs": None})
    beams, is_given, limit = params.num_beams, "num_beams" in settings, engine.most_beams
    if not is_given and settings.get("do_sample"):
        beams = 1
    elif not is_given and not params.do_sample:
        beams = max(beams, candidates)
    if beams > limit and is_given:
        raise _wrong("num_beams", f"num_beams is {beams}, the server's limit is {limit}; give less")
    if beams > limit:
        raise _wrong(name, f"{name} is {candidates} without sampling, which is a beam search with {beams} beams; the "
                           f"server's limit is {limit}: give less, or a temperature above 0")
    if candidates > beams > 1:
        raise _wrong(name, f"{name} is {candidates}, more than num_beams, {beams}; give less, or more beams")
    if candidates > beams and not params.do_sample:
        raise _wrong(name, f"{name} is {candidates} in greedy decoding, whose outputs are all the same; leave out "
                           "num_beams, or give a temperature above 0")
    return beams


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, param, "invalid_value")
