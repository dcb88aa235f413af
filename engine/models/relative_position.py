"""T5's buckets of relative positions (Raffel et al. 2020, section 2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_bucket(distance: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """Bucket relative positions: one bucket for each small distance, logarithmic ones beyond.

    Parameters
    ----------
    distance : Tensor int64, any shape
        Key position - query position.
    buckets, max_distance : int
        Distances of `max_distance` and more share the last bucket.
    bidirectional : bool
        Half of the buckets are for keys after the query, as in the encoder; else such keys count as distance 0.

    Returns
    -------
    Tensor int64, of the same shape
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = -distance.clamp(max=0)
    exact = buckets // 2
    # in float32 and truncated, as the trained models were: another rounding moves a boundary by one position
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
                   * (buckets - exact)).long()
    return offset + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))
