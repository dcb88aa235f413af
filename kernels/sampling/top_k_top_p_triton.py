"""top-k and top-p in Triton: the filter of each row of logits as one threshold.

    logits          [B, R, V] float32 or bfloat16
    draft_lengths, finished, temperature, top_k, top_p [B]    as in verify/accept.py
    floors          [B, R] float32    out: logits above the floor are kept, and at the floor tokens up to the tie;
    ties            [B, R] int32      out: -inf and V - 1 where nothing is filtered

The rules are those of top_k_top_p.py. A program takes one row, reads it once and keeps it in registers. There it finds the
k-th largest logit by bisection over the ordered bits of the logits, with counts, and the nucleus by bisection over the bits
of the weights of the tokens that top-k kept, with sums. Weights rise with logits, so tokens of the nucleus's last weight are
an interval of logits; the row, read once more, gives the interval, and a bisection by logit and token its last kept one.

A logit's order is its bits as an int32 that sorts as the logit does, as the keys of a radix sort are.

A vocabulary beyond HELD does not fit: each step of a bisection reads the row again. Greedy rows, rows that are not read and
rows without top-k and top-p end at once.
"""

from __future__ import annotations

from foredraft.kernels.core.backend_triton import constexpr, jit, power_of_2, sequences_per_program, tl

# the most tokens that a program keeps in registers, and how many it reads at a time if there are more
HELD, TILE = 32768, 4096
# the order of -inf; the bits of 1.0, the largest weight
_LOWEST, _ONE = constexpr(-2139095041), constexpr(0x3F800000)


@jit
def _ordered(x):
    """The order of a float32, int32; that of -0.0 is that of 0.0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@jit
def _floats(order):
    """The inverse of _ordered."""
    return tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)


@jit
def _read(logits, row, active, first, V, TILE: tl.constexpr):
    """The orders of the next TILE logits of each row; past the vocabulary's end that of -inf."""
    token = first + tl.arange(0, TILE)[None, :]
    x = tl.load(logits + row[:, None] * V + token, mask=active[:, None] & (token < V), other=float("-inf"),
                cache_modifier=".cg")
    return _ordered(x.to(tl.float32))


@jit
def _weights(order, least, top, rate):
    """e^((logit - top) / temperature); 0 below `least`."""
    return tl.where(order >= least[:, None], tl.exp((_floats(order) - top[:, None]) * rate[:, None]), 0.0)


@jit
def _reached(values, bound, BY_MASS: tl.constexpr):
    """What each order or weight of a row adds to _amount: 1 or the weight if it is >= bound, else 0."""
    if BY_MASS:
        found = tl.where(values.to(tl.int32, bitcast=True) >= bound[:, None], values, 0.0)
    else:
        found = (values >= bound[:, None]).to(tl.float32)
    return found


@jit
def _amount(held, logits, row, active, bound, least, top, rate, V, BY_MASS: tl.constexpr, TILE: tl.constexpr,
            HOLDS: tl.constexpr):
    """The number of a row's orders that are >= bound; BY_MASS: the sum of the weights whose bits are >= bound.

    HOLDS: `held` are the row's orders, or its weights BY_MASS; otherwise the row is read."""
    if HOLDS:
        found = _reached(held, bound, BY_MASS)
    else:
        found = tl.zeros((row.shape[0], TILE), tl.float32)
        for first in range(0, V, TILE):
            order = _read(logits, row, active, first, V, TILE)
            found += _reached(_weights(order, least, top, rate) if BY_MASS else order, bound, BY_MASS)
    # sum after the loop: triton 3.6 fails on sums inside a loop that are used more than once
    return tl.sum(found, axis=1).to(tl.float64)


@jit
def _bisect(held, logits, row, active, low, high, wanted, least, top, rate, V, BY_MASS: tl.constexpr, TILE: tl.constexpr,
            HOLDS: tl.constexpr):
    """The highest bound in low..high whose amount is at least `wanted`; `low` if there is none."""
    low, high = tl.where(active, low, 0).to(tl.int64), tl.where(active, high, 0).to(tl.int64)
    while tl.max(high - low, axis=0) > 0:
        middle = (low + high + 1) >> 1
        enough = _amount(held, logits, row, active, middle.to(tl.int32), least, top, rate, V, BY_MASS, TILE, HOLDS) >= wanted
        low, high = tl.where(enough, middle, low), tl.where(enough, high, tl.maximum(middle - 1, low))
    return low.to(tl.int32)


@jit
def _interval(logits, row, active, level, least, top, rate, V, TILE: tl.constexpr):
    """Of the tokens of a row whose weight's bits are `level`: lowest and highest order, first and last token."""
    lowest = tl.full((row.shape[0], TILE), 0x7FFFFFFF, tl.int32)
    highest, first, last = -lowest, lowest, lowest * 0
    for start in range(0, V, TILE):
        token = start + tl.arange(0, TILE)[None, :]
        order = _read(logits, row, active, start, V, TILE)
        weights = _weights(order, least, top, rate)
        equal = active[:, None] & (weights.to(tl.int32, bitcast=True) == level[:, None])
        lowest = tl.where(equal, tl.minimum(lowest, order), lowest)
        highest = tl.where(equal, tl.maximum(highest, order), highest)
        first = tl.where(equal, tl.minimum(first, token), first)
        last = tl.where(equal, tl.maximum(last, token), last)
    return tl.min(lowest, axis=1), tl.max(highest, axis=1), tl.min(first, axis=1), tl.max(last, axis=1)


@jit
def _last_kept(logits, row, active, lowest, highest, first, last, kept, V, TILE: tl.constexpr):
    """The order and the token of the kept-th of an interval's tokens: the highest order first, then the lowest token.

    Bisects pairs of an order and a token. A single token, as almost always, takes no step.
    """
    span = tl.where(active, last - first + 1, 1).to(tl.int64)
    pairs = tl.where(active, (highest.to(tl.int64) - lowest + 1) * span, 1)
    low, high = pairs * 0, pairs - 1
    while tl.max(high - low, axis=0) > 0:
        middle = (low + high + 1) >> 1
        least, tie = (lowest + middle // span)[:, None], (last - middle % span)[:, None]
        found = tl.zeros((row.shape[0], TILE), tl.float32)
        for start in range(0, V, TILE):
            token = start + tl.arange(0, TILE)[None, :]
            order = _read(logits, row, active, start, V, TILE)
            reached = (order > least) | ((order == least) & (token <= tie))
            found += ((order <= highest[:, None]) & reached).to(tl.float32)
        enough = tl.sum(found, axis=1) >= kept
        low, high = tl.where(enough, middle, low), tl.where(enough, high, tl.maximum(middle - 1, low))
    return lowest + (low // span).to(tl.int32), last - (low % span).to(tl.int32)


@jit(do_not_specialize=["B"])
def _top_k_top_p_kernel(logits, draft_lengths, finished, temperature, top_k, top_p, floors, ties, B, V, R: tl.constexpr,
                        ROWS: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, HOLDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < B * R
    b, r = row // R, row % R
    k, p = tl.load(top_k + b, mask=inside, other=0), tl.load(top_p + b, mask=inside, other=1.0)
    t = tl.load(temperature + b, mask=inside, other=0.0)
    live = inside & (tl.load(finished + b, mask=inside, other=1) == 0) & (t > 0)
    live = live & (r <= tl.load(draft_lengths + b, mask=inside, other=-1))
    by_k, by_p = live & (k > 0) & (k < V), live & (p < 1.0)
    active = by_k | by_p
    tl.store(floors + row, float("-inf"), mask=inside)
    tl.store(ties + row, V - 1, mask=inside)
    if tl.max(active.to(tl.int32), axis=0) > 0:
        rate = 1.0 / tl.where(t > 0, t, 1.0)
        none = tl.zeros((ROWS,), tl.int32)
        if HOLDS:
            held = _read(logits, row, active, 0, V, SIZE)
            highest = tl.max(held, axis=1)
        else:
            held = none
            largest = tl.full((ROWS, SIZE), _LOWEST, tl.int32)
            for first in range(0, V, SIZE):
                largest = tl.maximum(largest, _read(logits, row, active, first, V, SIZE))
            highest = tl.max(largest, axis=1)
        top = _floats(highest)
        least = none + _LOWEST
        if tl.max(by_k.to(tl.int32), axis=0) > 0:
            found = _bisect(held, logits, row, by_k, least, highest, k.to(tl.float64), least, top, rate, V, False, SIZE,
                            HOLDS)
            least = tl.where(by_k, found, least)
        floor, tie = least, none + (V - 1)
        if tl.max(by_p.to(tl.int32), axis=0) > 0:
            weights = none
            if HOLDS:
                weights = _weights(held, least, top, rate)
            total = _amount(weights, logits, row, by_p, none, least, top, rate, V, True, SIZE, HOLDS)
            wanted = p.to(tl.float64) * total
            level = _bisect(weights, logits, row, by_p, none, none + _ONE, wanted, least, top, rate, V, True, SIZE, HOLDS)
            above = _amount(weights, logits, row, by_p, level + 1, least, top, rate, V, True, SIZE, HOLDS)
            # tokens of this weight are kept, the likeliest first, while the mass before them is below `wanted`
            one = level.to(tl.float32, bitcast=True).to(tl.float64)
            kept = tl.maximum(tl.ceil((wanted - above) / tl.where(by_p & (one > 0), one, 1.0)), 1.0)
            lowest, most, first, last = _interval(logits, row, by_p, level, least, top, rate, V, TILE)
            order, token = _last_kept(logits, row, by_p, lowest, most, first, last, kept, V, TILE)
            floor, tie = tl.where(by_p, order, floor), tl.where(by_p, token, tie)
        tl.store(floors + row, _floats(floor), mask=active)
        tl.store(ties + row, tie, mask=active)


def top_k_top_p_triton(logits, draft_lengths, finished, temperature, top_k, top_p, floors, ties) -> None:
    """One launch, without synchronisation."""
    B, R, V = logits.shape
    size = power_of_2(V)
    holds, tile = size <= HELD, min(TILE, size)
    size = size if holds else tile
    rows = sequences_per_program(B * R, size)
    _top_k_top_p_kernel[(-(-(B * R) // rows),)](
        logits, draft_lengths, finished, temperature, top_k, top_p, floors, ties, B, V, R=R, ROWS=rows, SIZE=size, TILE=tile,
        HOLDS=holds, num_warps=16 if holds else 8)
