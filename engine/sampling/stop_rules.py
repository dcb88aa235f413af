"""The rules that end a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from foredraft.engine.params import SamplingParams
from foredraft.engine.sampling.stop_strings import StopStrings
from foredraft.engine.sampling.stopping_criteria import MaxTime, StoppingCriteria
from foredraft.engine.state import DecodeState


class StopRule(Protocol):
    """Ends a request. Both methods raise UserError if a function of the caller fails."""

    def truncate(self, state: DecodeState, sequence: int) -> bool:
        """Truncate a sequence at one of the tokens of its last step; whether it was truncated."""

    def ends(self, tokens: list[int]) -> bool:
        """For beam search: whether an output, the start token included, ends here."""


def make_stop_rules(params: SamplingParams, decode: Callable[[list[int]], str]) -> list[StopRule]:
    """The stop rules that the settings ask for; `decode` maps tokens to text, for stop strings."""
    rules: list[StopRule] = []
    if params.stop_strings:
        rules.append(StopStrings(params.stop_strings, decode))
    if params.stopping_criteria:
        rules.append(StoppingCriteria(params.stopping_criteria))
    if params.max_time is not None:
        rules.append(MaxTime(params.max_time))
    return rules
