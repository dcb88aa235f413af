"""Buckets of relative positions against transformers'."""

import pytest
import torch

from foredraft.engine.models.relative_position import relative_bucket


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, far", [(32, 128), (8, 16)])
def test_buckets_equal_transformers(bidirectional, buckets, far):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-3000, 3001)
    theirs = T5Attention._relative_position_bucket(distance, bidirectional, buckets, far)
    assert torch.equal(relative_bucket(distance, buckets, far, bidirectional), theirs)
