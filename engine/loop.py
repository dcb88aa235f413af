"""The decode loop. Read this file first: `step` is what every scheduler, captured CUDA graph, staged draft and bench runs.

One step decodes a batch of B sequences:

    1. draft     a drafter proposes up to K tokens for each sequence;
    2. decode    the target reads R = K + 1 query positions in one pass: the last committed token and the drafts;
    3. verify    the longest run of drafts is accepted that leaves the target's distribution unchanged, and the target adds
                 one token of its own (verify.py);
    4. commit    the state appends the accepted tokens, cut at the end token and at the sequence's limit (state.py).

Invariant: the target's caches hold positions [0, length - 1) of a sequence. The last committed token is read next, and a
position is written again when it is read again, so rejected drafts need no clean-up. K = 0 is plain decoding.

After a step the host looks at the state (`decode`): the drafter learns from what was accepted, a stop string may truncate a
sequence, a streamer receives the new tokens, and finished sequences leave. The schedulers in runtime/ do the same for
requests that come and go: continuous_batches.py on the CPU, cuda_graphs.py, where `step` is captured once, on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable

from foredraft.engine.protocols import Drafter, Target
from foredraft.engine.state import DecodeState
from foredraft.engine.verify import verify


def step(state: DecodeState, target: Target, drafter: Drafter) -> None:
    """Decode one step of every unfinished sequence; on CUDA the host never waits for the device here.

    Parameters
    ----------
    state : DecodeState
        The batch; updated in place.
    target : Target
        The model whose distribution the output follows. All sequences were admitted to it before.
    drafter : Drafter
        Proposes the drafts. All sequences were admitted to it before.
    """
    draft = drafter.draft(state)  # tokens [B, K], lengths [B]
    if state.pipeline is not None and state.pipeline.is_active:
        state.pipeline.force(state, draft)  # tokens that a constraint leaves no choice of
    tokens, positions, parents = state.inputs(draft)  # [B, R]; position -1: not read
    hidden = target.decode(tokens, positions, parents)  # [B, R, C]
    verification = verify(state, draft, hidden, target)  # tokens [B, R], counts [B]
    if verification.path is not None:
        target.keep(verification.path)  # a tree's accepted path becomes contiguous in the cache
    state.commit(draft, verification, hidden)


def decode(state: DecodeState, target: Target, drafter: Drafter,
           after_step: Callable[[DecodeState], None] | None = None) -> None:
    """Decode a batch until every sequence has finished. `after_step` sees the state after each step and may truncate it."""
    while not bool(state.finished.all()):
        step(state, target, drafter)
        drafter.end_step()
        if after_step is not None:
            after_step(state)
