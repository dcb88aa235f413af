"""What a neural drafter reads in a round, and how long its draft is, from a state's tensors on a device.

    tokens [B, T + 1], lengths [B] int64, finished [B] bool, limits, widths [B] int64, temperature [B]     the state
    read, places [B, 2] int64      out of `begin`: the last two committed ids and their positions, -1: nothing to read there
    later        [K, B] int64      out of `begin`: the position of draft k where a further id follows it, else -1
    dense        [B] bool          out of `begin`: rows that are sampled
    drafted      [B, K] int64, counts [B] int64     `end`: the draft, cut after its end token; counts are written

The last two: what a drafter read stands up to the first id that was not committed. Its own last draft it has not read, so
that one id is new after a rejection, and two are after a draft that was accepted whole; to read one again changes nothing.
"""

from __future__ import annotations

from foredraft.kernels.core.backend import jit, power_of_2, sequences_per_program, tl
from foredraft.kernels.step.step_inputs_triton import drafts_allowed


@jit
def _drafter_inputs_kernel(tokens, lengths, finished, limits, widths, temperature, read, places, later, dense, B, T1, K,
                           ROWS: tl.constexpr, K_PAD: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = b < B
    length = tl.load(lengths + b, mask=inside, other=1)
    live = inside & (tl.load(finished + b, mask=inside, other=1) == 0)
    two = tl.arange(0, 2)[None, :]
    place = length[:, None] - 2 + two
    is_read = live[:, None] & (place >= 0)
    ids = tl.load(tokens + b[:, None] * T1 + place, mask=is_read, other=0)
    tl.store(read + b[:, None] * 2 + two, ids, mask=inside[:, None])
    tl.store(places + b[:, None] * 2 + two, tl.where(is_read, place, -1), mask=inside[:, None])
    k = tl.arange(0, K_PAD)[None, :]
    allowed = tl.minimum(drafts_allowed(b, inside, lengths, limits, finished, widths), K)
    tl.store(later + k * B + b[:, None], tl.where(k + 1 < allowed[:, None], length[:, None] + k, -1),
             mask=inside[:, None] & (k < K))
    tl.store(dense + b, tl.load(temperature + b, mask=inside, other=0.0) > 0, mask=inside)


@jit
def _draft_lengths_kernel(drafted, lengths, finished, limits, widths, counts, end_token, B, K, ROWS: tl.constexpr,
                          K_PAD: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = b < B
    k = tl.arange(0, K_PAD)[None, :]
    ids = tl.load(drafted + b[:, None] * K + k, mask=inside[:, None] & (k < K), other=-1)
    allowed = tl.minimum(drafts_allowed(b, inside, lengths, limits, finished, widths), K)
    ended = tl.min(tl.where((ids == end_token) & (k < K), k + 1, K).to(tl.int64), axis=1)
    tl.store(counts + b, tl.minimum(allowed, ended), mask=inside)


def drafter_inputs_triton(tokens, lengths, finished, limits, widths, temperature, read, places, later, dense) -> None:
    """One launch, no wait."""
    (B, T1), K = tokens.shape, later.shape[0]
    rows = sequences_per_program(B, K)
    _drafter_inputs_kernel[(-(-B // rows),)](tokens, lengths, finished, limits, widths, temperature, read, places, later,
                                             dense, B, T1, K, ROWS=rows, K_PAD=power_of_2(K), num_warps=1)


def draft_lengths_triton(drafted, lengths, finished, limits, widths, end_token, counts) -> None:
    """One launch, no wait."""
    B, K = drafted.shape
    rows = sequences_per_program(B, K)
    _draft_lengths_kernel[(-(-B // rows),)](drafted, lengths, finished, limits, widths, counts, end_token, B, K, ROWS=rows,
                                            K_PAD=power_of_2(K), num_warps=1)
