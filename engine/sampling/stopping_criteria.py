"""Stop rules that a program passes as functions, with transformers' interface, and the time limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from foredraft.engine.clock import now
from foredraft.engine.state import DecodeState
from foredraft.errors import UserError


class StoppingCriteria:
    """Truncates a sequence where checking it after every single token would have ended it.

    Parameters
    ----------
    criteria : sequence of callables
        Each maps input_ids [1, t] int64 and None, in place of scores, to whether the text ends there: a bool, or a bool
        tensor [1].
    """

    def __init__(self, criteria: Sequence[Callable[[torch.Tensor, None], torch.Tensor | bool]]):
        self.criteria, self.checked = tuple(criteria), 1

    def truncate(self, state: DecodeState, sequence: int) -> bool:
        """Check the tokens of the last step; True where the sequence was truncated. UserError: a function raised."""
        length, seen = int(state.lengths[sequence]), self.checked
        self.checked = length
        for end in range(seen + 1, length + 1):
            if self._ends(state.tokens[sequence : sequence + 1, :end].cpu().clone()):
                state.truncate(sequence, end)
                self.checked = end
                return True
        return False

    def ends(self, tokens: list[int]) -> bool:
        """Whether an output, the start token included, ends here. UserError: a function raised."""
        return self._ends(torch.tensor([tokens]))

    def _ends(self, tokens: torch.Tensor) -> bool:
        for criterion in self.criteria:
            try:
                if bool(torch.as_tensor(criterion(tokens, None)).all()):
                    return True
            except Exception as error:  # noqa: BLE001  a caller's function may raise anything
                name = getattr(criterion, "__name__", type(criterion).__name__)
                raise UserError(f"stopping_criteria {name} failed ({type(error).__name__}: {error})") from error
        return False


class MaxTime:
    """Ends a sequence after the first step that ends `seconds` or more after this rule was made."""

    def __init__(self, seconds: float):
        self.seconds, self.start = seconds, now()

    def ends(self, tokens: list[int]) -> bool:
        """Whether the time is up."""
        return now() - self.start >= self.seconds

    def truncate(self, state: DecodeState, sequence: int) -> bool:
        """End the sequence if the time is up; whether it was ended."""
        length = int(state.lengths[sequence])
        if length == 1 or now() - self.start < self.seconds or bool(state.finished[sequence]):
            return False
        state.truncate(sequence, length)
        return True
