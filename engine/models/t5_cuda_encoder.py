"""The T5 encoder on a device: torch's matrix products and attention. Raffel et al. 2020; v1.1 and FLAN: Shazeer 2020."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.engine.models.relative_position import relative_bucket
from foredraft.engine.models.t5_cuda_weights import T5WeightsCuda
from foredraft.kernels.model.activation import ACTIVATIONS

_NONLINEAR = {"relu": F.relu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu, "silu": F.silu}


class T5EncoderCuda:
    """Encodes a source by its own length, never padded. The residual stream is float32: T5's overflows half precision."""

    def __init__(self, weights: T5WeightsCuda):
        self.weights, self.config = weights, weights.config
        self._nonlinear = _NONLINEAR[ACTIVATIONS[self.config.activation]]

    def scratch_bytes(self, source: int) -> int:
        """Temporary bytes to encode S tokens: the bias of all heads in float32 and in the weights' type, its buckets, and a
        layer's activations."""
        w, c = self.weights, self.config
        width = 3 * c.num_heads * c.d_kv + 3 * c.d_ff + 4 * c.d_model
        return source * (source * (c.num_heads * (4 + w.dtype.itemsize) + 48) + 4 * width)

    def encode(self, source: Tensor) -> Tensor:
        """Encode the tokens of a source [S] int64 on the device to [S, C] float32."""
        w, c, S = self.weights, self.config, len(source)
        x = w.embedding[source].float()  # [S, C]
        position = torch.arange(S, device=x.device)
        bucket = relative_bucket(position - position[:, None], c.buckets, c.max_distance, bidirectional=True)
        bias = w.encoder_bias[0, bucket].permute(2, 0, 1)[None].to(w.dtype).contiguous()  # [1, H, S, S]
        for i in range(c.num_layers):
            qkv = F.linear(self._norm(x, w.encoder_norms[i, 0]), w.encoder_qkv[i]).view(S, 3, c.num_heads, c.d_kv)
            q, k, v = qkv.permute(1, 2, 0, 3)[:, None]  # each [1, H, S, D]
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
            x += F.linear(attended[0].transpose(0, 1).reshape(S, -1), w.encoder_out[i])
            inner = F.linear(self._norm(x, w.encoder_norms[i, 1]), w.encoder_ff_in[i])
            active = self._nonlinear(inner[:, : c.d_ff])
            x += F.linear(active * inner[:, c.d_ff :] if c.gated else active, w.encoder_ff_out[i])
        return self._norm(x, w.encoder_norm).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.config.epsilon).to(self.weights.dtype)
