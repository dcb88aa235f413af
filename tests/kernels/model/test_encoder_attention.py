"""Encoder self-attention against the reference and against torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foredraft.kernels.model.encoder_attention import ENCODER_ATTENTION

SHAPES = [(1, 1, 2), (7, 2, 5), (33, 3, 16), (65, 2, 24)]


def case(S, H, D):
    draw = torch.Generator().manual_seed(S)
    return torch.randn(S, 3 * H * D, generator=draw), torch.randn(H, 2 * S - 1, generator=draw)


@pytest.mark.parametrize("backend", list(ENCODER_ATTENTION))
@pytest.mark.parametrize("S, H, D", SHAPES)
def test_it_equals_torch(S, H, D, backend):
    mixed, bias = case(S, H, D)
    q, k, v = mixed.double().view(S, 3, H, D).permute(1, 2, 0, 3)
    matrix = torch.stack([torch.stack([row[S - 1 - i : 2 * S - 1 - i] for i in range(S)]) for row in bias.double()])
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=matrix, scale=1.0).transpose(0, 1).reshape(S, H * D)
    out = np.full((S, H * D), np.nan, np.float32)
    ENCODER_ATTENTION[backend](mixed.numpy(), bias.numpy(), out)
    np.testing.assert_allclose(out, expected.numpy(), atol=5e-6)
