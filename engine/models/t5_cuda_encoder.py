"""The T5 encoder on a device: the library's matrix products and attention. Raffel et al. 2020; v1.1 / FLAN: Shazeer 2020."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.engine.models.relative_position import relative_bucket
from foredraft.engine.models.t5_cuda_weights import T5WeightsCuda
from foredraft.kernels.model.activation import ACTIVATIONS

_NONLINEAR = {"relu": F.relu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu, "silu": F.silu}


class T5EncoderCuda:
    """Reads a source by its own length, never padded; the residual stream stays in float32, where `wo` fits."""

    def __init__(self, weights: T5WeightsCuda):
        self.weights, self.config = weights, weights.config
        self._nonlinear = _NONLINEAR[ACTIVATIONS[self.config.activation]]

    def scratch_bytes(self, source: int) -> int:
        """What reading S ids takes for a while: the bias of all heads, in float32 and in the weights' type, its buckets, and
        a layer's activations."""
        w, c = self.weights, self.config
        wide = 3 * c.num_heads * c.d_kv + 3 * c.d_ff + 4 * c.d_model
        return source * (source * (c.num_heads * (4 + w.dtype.itemsize) + 48) + 4 * wide)

    def encode(self, source: Tensor) -> Tensor:
        """Ids [S] on the device to the output [S, C] float32."""
        w, c, S = self.weights, self.config, len(source)
        x = w.embedding[source].float()
        bucket = relative_bucket(torch.arange(S, device=x.device) - torch.arange(S, device=x.device)[:, None], c.buckets,
                                 c.max_distance, bidirectional=True)
        bias = w.enc_bias[bucket].permute(2, 0, 1)[None].to(w.dtype).contiguous()
        for i in range(c.num_layers):
            mixed = F.linear(self._norm(x, w.enc_norms[i, 0]), w.enc_qkv[i]).view(S, 3, c.num_heads, c.d_kv)
            q, k, v = mixed.permute(1, 2, 0, 3)[:, None]
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
            x += F.linear(seen[0].transpose(0, 1).reshape(S, -1), w.enc_out[i])
            inner = F.linear(self._norm(x, w.enc_norms[i, 1]), w.enc_ff_in[i])
            active = self._nonlinear(inner[:, : c.d_ff])
            x += F.linear(active * inner[:, c.d_ff :] if c.gated else active, w.enc_ff_out[i])
        return self._norm(x, w.enc_norm).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.config.epsilon).to(self.weights.dtype)
