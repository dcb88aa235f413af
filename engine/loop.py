"""The decode loop: the file to read first.

A drafter proposes up to K tokens a row, the target reads K + 1 positions in one pass, the verification keeps the longest run
that leaves the target's distribution unchanged, and the state commits it. K = 0 is plain decoding through the same loop.
"""

from __future__ import annotations

from collections.abc import Callable

from foredraft.engine.protocols import Drafter, Target
from foredraft.engine.state import DecodeState
from foredraft.engine.verify import verify


def step(state: DecodeState, target: Target, drafter: Drafter) -> None:
    """One round. The plain loop, a captured graph and a scheduler all call this; it never waits for the device."""
    draft = drafter.draft(state)
    hidden = target.decode(*state.inputs(draft))
    verification = verify(state, draft, hidden, target)
    if verification.path is not None:
        target.keep(verification.path)
    state.commit(draft, verification, hidden)


def decode(state: DecodeState, target: Target, drafter: Drafter,
           after_step: Callable[[DecodeState], None] | None = None) -> None:
    """Run rounds until every row has finished; `after_step` is the host's look between rounds (streams, stop strings)."""
    while not bool(state.finished.all()):
        step(state, target, drafter)
        if after_step is not None:
            after_step(state)
