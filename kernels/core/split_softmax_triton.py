"""Draws by inverse CDF from logits that are read once, on a device: the parts that verification.py and sample.py share.

A program takes one split of the vocabulary of one row and leaves the split's largest logit, its argmax, and the sum of
every SUB ids' weights. Whoever arrives last, by an atomic ticket, combines them for all its rows at once: which SUB ids
hold the draw, then, reading those again, which of them. Nothing of size V is written; splits depend on V alone, so that a
draw does not depend on its batch.

    uniform float64 in (0, 1); weights are float32 against the split's largest logit, sums of SUB of them add up in float64
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foredraft.kernels.core.backend import jit, power_of_2, tl

# Ids whose weights are summed together, ids of one split.
SUB, SPLIT = 256, 4096


class Scratch(NamedTuple):
    """What programs of one launch tell each other: allocated once, zeros in tickets between launches."""

    maxima: Tensor  # [B, R, splits] float32
    tops: Tensor  # [B, R, splits] int32
    sums: Tensor  # [B, R, splits * subs] float32
    tickets: Tensor  # [B] int32


def split_sizes(V: int) -> dict[str, int]:
    """The kernels' constants, fixed by the vocabulary alone: SUB ids a sum, SUBS sums a split, SPLITS."""
    sub = min(SUB, power_of_2(V))
    subs = min(SPLIT // SUB, power_of_2(-(-V // sub)))
    splits = -(-V // (sub * subs))
    return {"SUB": sub, "SUBS": subs, "SPLITS": splits, "SPLITS_PAD": power_of_2(splits),
            "SUMS_PAD": power_of_2(splits * subs)}


def make_scratch(B: int, R: int, V: int, device: torch.device | str) -> Scratch:
    sizes = split_sizes(V)
    splits, subs = sizes["SPLITS"], sizes["SUBS"]
    return Scratch(
        torch.empty(B, R, splits, device=device), torch.empty(B, R, splits, dtype=torch.int32, device=device),
        torch.empty(B, R, splits * subs, device=device), torch.zeros(B, dtype=torch.int32, device=device))


@jit
def first_hit(hit, has_weight, index, NONE: tl.constexpr):
    """The first index of each row that is hit; where rounding leaves none, the last that has weight, or 0."""
    first = tl.min(tl.where(hit & has_weight, index, NONE), axis=1)
    last = tl.max(tl.where(has_weight, index, 0), axis=1)
    return tl.where(first < NONE, first, last)


@jit
def within(x, ids, floor, tie):
    """The distribution's cut (cut.py): logits outside it become -inf."""
    return tl.where((x > floor) | ((x == floor) & (ids <= tie)), x, float("-inf"))


@jit
def split_tile(logits, row, read, rate, split, floors, ties, maxima, tops, sums, V, SUB: tl.constexpr, SUBS: tl.constexpr,
               SPLITS: tl.constexpr, CUT: tl.constexpr):
    """One split of rows [N], those that are `read`, under 1 / temperature `rate`."""
    ids = (split * (SUBS * SUB) + tl.arange(0, SUBS)[:, None] * SUB + tl.arange(0, SUB)[None, :])[None, :, :]
    x = tl.load(logits + row[:, None, None] * V + ids, mask=read[:, None, None] & (ids < V), other=float("-inf"))
    x = x.to(tl.float32)
    if CUT:
        floor = tl.load(floors + row, mask=read, other=0.0)
        tie = tl.load(ties + row, mask=read, other=0)
        x = within(x, ids, floor[:, None, None], tie[:, None, None])
    best = tl.max(tl.max(x, axis=2), axis=1)
    top = tl.min(tl.min(tl.where(x == best[:, None, None], ids, V - 1), axis=2), axis=1)
    # a split without any distribution: -inf less -inf is no number
    level = tl.where(best == float("-inf"), 0.0, best)
    weights = tl.exp((x - level[:, None, None]) * rate[:, None, None])
    tl.store(maxima + row * SPLITS + split, best, mask=read)
    tl.store(tops + row * SPLITS + split, top, mask=read)
    place = row[:, None] * (SPLITS * SUBS) + split * SUBS + tl.arange(0, SUBS)[None, :]
    tl.store(sums + place, tl.sum(weights, axis=2), mask=read[:, None])


@jit
def combine_tile(logits, row, read, rate, uniform, floor, tie, maxima, tops, sums, V, SUB: tl.constexpr, SUBS: tl.constexpr,
                 SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr, SUMS_PAD: tl.constexpr, CUT: tl.constexpr):
    """Of rows [N]: the largest logit, its lowest id, the sum of weights (1 where not read), and the id drawn."""
    # other programs wrote what is read here: not out of this multiprocessor's own cache
    s = tl.arange(0, SPLITS_PAD)[None, :]
    known = read[:, None] & (s < SPLITS)
    largest = tl.load(maxima + row[:, None] * SPLITS + s, mask=known, other=float("-inf"), cache_modifier=".cg")
    best = tl.max(largest, axis=1)
    where = tl.load(tops + row[:, None] * SPLITS + s, mask=known, other=0, cache_modifier=".cg")
    top = tl.min(tl.where(known & (largest == best[:, None]), where, V - 1), axis=1)
    best = tl.where(best == float("-inf"), 0.0, best)

    m = tl.arange(0, SUMS_PAD)[None, :]
    known = read[:, None] & (m < SPLITS * SUBS)
    part = tl.load(sums + row[:, None] * (SPLITS * SUBS) + m, mask=known, other=0.0, cache_modifier=".cg")
    level = tl.load(maxima + row[:, None] * SPLITS + m // SUBS, mask=known, other=float("-inf"), cache_modifier=".cg")
    part = (part * tl.exp((level - best[:, None]) * rate[:, None])).to(tl.float64)
    total = tl.where(read, tl.sum(part, axis=1), 1.0)

    threshold = uniform * total
    chosen = first_hit(tl.cumsum(part, axis=1) > threshold[:, None], part > 0, m, SUMS_PAD)
    before = tl.sum(tl.where(m < chosen[:, None], part, 0.0), axis=1)
    i = tl.arange(0, SUB)[None, :]
    ids = (chosen * SUB)[:, None] + i
    x = tl.load(logits + row[:, None] * V + ids, mask=read[:, None] & (ids < V), other=float("-inf")).to(tl.float32)
    if CUT:
        x = within(x, ids, floor[:, None], tie[:, None])
    weights = tl.exp((x - best[:, None]) * rate[:, None])
    reached = tl.cumsum(weights, axis=1)
    drawn = chosen * SUB + first_hit(reached > (threshold - before).to(tl.float32)[:, None], weights > 0, i, SUB)
    return best, top, total, drawn
