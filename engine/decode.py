"""The decode loop: the file to read first.

A drafter proposes up to K tokens a row, the target reads K + 1 positions in one pass, the judge keeps the longest run
that leaves the target's distribution unchanged, and the state commits it. K = 0 is plain decoding through the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, device

from foredraft.engine.judge import judge
from foredraft.engine.state import DecodeState, Draft


class Target(Protocol):
    """The model whose distribution is kept. Ids and positions are int64; hidden and logits float32."""

    start_token: int
    end_token: int
    device: device  # where its tensors and a state's lie

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor]) -> list[Tensor]: ...  # encoder outputs, n of [S_i, C]
    def release(self, rows: Sequence[int]) -> None: ...
    def decode(self, tokens: Tensor, positions: Tensor, parents: Tensor | None = None) -> Tensor: ...  # [B, R, C]
    def logits(self, hidden: Tensor) -> Tensor: ...  # [B, R, V]
    def choose(self, hidden: Tensor) -> Tensor: ...  # [B, R], the argmax; logits are never written
    def keep(self, path: Tensor) -> None: ...  # trees only: moves the accepted path's cache rows together


class Drafter(Protocol):
    """Proposes tokens. `encoded` is the TARGET's encoder output: read it, or ignore it."""

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None: ...
    def release(self, rows: Sequence[int]) -> None: ...
    def draft(self, state: DecodeState) -> Draft: ...  # first reads the committed tokens it has not seen


def step(state: DecodeState, target: Target, drafter: Drafter) -> None:
    """One round. The plain loop, a captured graph and a scheduler all call this; it never waits for the device."""
    draft = drafter.draft(state)
    hidden = target.decode(*state.inputs(draft))
    verdict = judge(state, draft, hidden, target)
    if verdict.path is not None:
        target.keep(verdict.path)
    state.commit(draft, verdict, hidden)


def decode(state: DecodeState, target: Target, drafter: Drafter,
           after_round: Callable[[DecodeState], None] | None = None) -> None:
    """Run rounds until every row has finished; `after_round` is the host's look between rounds (streams, stop strings)."""
    while not bool(state.finished.all()):
        step(state, target, drafter)
        if after_round is not None:
            after_round(state)
