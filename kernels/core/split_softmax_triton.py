"""Softmax sampling from logits that are split over programs and read once (split softmax).

A program reads one split of the vocabulary of a row of logits. It stores the split's maximum, its argmax, and the sums of
SUB weights each, a weight being e^((logit - maximum) / temperature). The last program to arrive, by an atomic ticket,
combines the splits: it finds the block of SUB tokens that holds the sample by inverse CDF, and reads those logits again.
Nothing of size V is written. Splits depend on V alone, so a sample does not depend on the batch.

Weights are float32, sums of SUB weights are added in float64; `uniform` is float64 in (0, 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, power_of_2, tl

# Tokens whose weights are summed together; tokens of a split.
SUB, SPLIT = 256, 4096


class Scratch(NamedTuple):
    """Buffers that the programs of a launch share; allocated once. `tickets` holds zeros between launches."""

    maxima: Tensor  # [B, R, splits] float32
    argmaxes: Tensor  # [B, R, splits] int32
    sums: Tensor  # [B, R, splits * subs] float32
    tickets: Tensor  # [B] int32


def split_sizes(V: int) -> dict[str, int]:
    """The kernels' constants, from V alone: SUB tokens a sum, SUBS sums a split, SPLITS splits."""
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
    """The first index of each row where `hit`; if rounding leaves none, the last index that has weight, or 0."""
    first = tl.min(tl.where(hit & has_weight, index, NONE), axis=1)
    last = tl.max(tl.where(has_weight, index, 0), axis=1)
    return tl.where(first < NONE, first, last)


@jit
def apply_filter(x, token, floor, tie):
    """Set logits that top-k or top-p removes to -inf; floor and tie as top_k_top_p_triton.py finds them."""
    return tl.where((x > floor) | ((x == floor) & (token <= tie)), x, float("-inf"))


@jit
def split_softmax(logits, row, read, rate, split, floors, ties, maxima, argmaxes, sums, V, SUB: tl.constexpr,
                  SUBS: tl.constexpr, SPLITS: tl.constexpr, FILTERED: tl.constexpr):
    """Reduce one split of the rows [N] of logits that are `read`; rate [N] is 1 / temperature."""
    token = (split * (SUBS * SUB) + tl.arange(0, SUBS)[:, None] * SUB + tl.arange(0, SUB)[None, :])[None, :, :]
    x = tl.load(logits + row[:, None, None] * V + token, mask=read[:, None, None] & (token < V), other=float("-inf"))
    x = x.to(tl.float32)
    if FILTERED:
        floor = tl.load(floors + row, mask=read, other=0.0)
        tie = tl.load(ties + row, mask=read, other=0)
        x = apply_filter(x, token, floor[:, None, None], tie[:, None, None])
    best = tl.max(tl.max(x, axis=2), axis=1)
    top = tl.min(tl.min(tl.where(x == best[:, None, None], token, V - 1), axis=2), axis=1)
    # all logits of the split may be -inf, and -inf - -inf is NaN
    level = tl.where(best == float("-inf"), 0.0, best)
    weights = tl.exp((x - level[:, None, None]) * rate[:, None, None])
    tl.store(maxima + row * SPLITS + split, best, mask=read)
    tl.store(argmaxes + row * SPLITS + split, top, mask=read)
    at = row[:, None] * (SPLITS * SUBS) + split * SUBS + tl.arange(0, SUBS)[None, :]
    tl.store(sums + at, tl.sum(weights, axis=2), mask=read[:, None])


@jit
def combine_splits(logits, row, read, rate, uniform, floor, tie, maxima, argmaxes, sums, V, SUB: tl.constexpr,
                   SUBS: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr, SUMS_PAD: tl.constexpr,
                   FILTERED: tl.constexpr):
    """For rows [N]: the largest logit, its lowest token, the sum of weights (1 where not `read`), the sampled token."""
    # other programs wrote these values: bypass this multiprocessor's L1 cache
    s = tl.arange(0, SPLITS_PAD)[None, :]
    known = read[:, None] & (s < SPLITS)
    largest = tl.load(maxima + row[:, None] * SPLITS + s, mask=known, other=float("-inf"), cache_modifier=".cg")
    best = tl.max(largest, axis=1)
    where = tl.load(argmaxes + row[:, None] * SPLITS + s, mask=known, other=0, cache_modifier=".cg")
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
    token = (chosen * SUB)[:, None] + i
    x = tl.load(logits + row[:, None] * V + token, mask=read[:, None] & (token < V), other=float("-inf")).to(tl.float32)
    if FILTERED:
        x = apply_filter(x, token, floor[:, None], tie[:, None])
    weights = tl.exp((x - best[:, None]) * rate[:, None])
    reached = tl.cumsum(weights, axis=1)
    drawn = chosen * SUB + first_hit(reached > (threshold - before).to(tl.float32)[:, None], weights > 0, i, SUB)
    return best, top, total, drawn
