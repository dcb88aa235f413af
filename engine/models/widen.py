"""A T5 in the sizes of a larger one: the weights of another model that computes the same function.

Width. The residual stream x [C] becomes s x P, where P [C, C'] is random with orthonormal rows and s = sqrt(C' / C). The
mean square of s x P is that of x, so an RMS norm with the same epsilon and weights of 1 turns it into s norm(x) P. The
original's norm weights g move into the matrices that read a norm's output. A weight matrix W [outputs, inputs] becomes:

    s W P              the embedding
    W diag(g) P / s    a matrix that reads a norm's output; so is the head, with the scale of the decoder's output in it
    s P^T W            a matrix that adds to the residual stream

Heads and units. Each head's queries and keys share a random rotation into D' dimensions, which keeps their products; so do
its values and the columns of its output projection. Heads and feed-forward units keep their function and get random places.

What is new is random where it is read and zero where it is written: new heads have zero columns in their output projection,
new units in `wo`, and new layers have both matrices zero. All else is dense.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from foredraft.engine.models.checkpoint import Tensors
from foredraft.engine.models.spec import ModelConfig, TensorParts, tensor_parts

# The matrices that read the output of a norm: the norms of their layer, and which of them.
_READING = {"encoder_qkv": ("encoder_norms", 0), "encoder_ff_in": ("encoder_norms", 1), "qkv": ("norms", 0),
            "cross_q": ("norms", 1), "cross_kv": ("encoder_norm", 0), "ff_in": ("norms", 2), "head": ("final_norm", 0)}
_NORMS = ("encoder_norms", "encoder_norm", "norms", "final_norm")
# Rows that are rotated at once, in float64.
_ROWS = 4096


class WidenedTensors(Tensors):
    """The tensors of the widened model, float32, each made when it is fetched.

    Parameters
    ----------
    original : Tensors
    config, widened : ModelConfig
        Of both models; no size of `widened` is smaller.
    seed : int
        Each random number depends on the seed and its tensor's name alone.
    """

    def __init__(self, original: Tensors, config: ModelConfig, widened: ModelConfig, seed: int):
        name, self.tied = original.tables(config)
        self.original, self.config, self.widened, self.seed = original, config, widened, seed
        self._parts = tensor_parts(config, self.tied, name)
        found = {name: (kind, layer, parts.shape) for kind, parts in self.parts.items()
                 for layer, names in enumerate(parts.names) for name in names}
        super().__init__(found, original.path)
        self.scale = math.sqrt(widened.d_model / config.d_model)
        self.rotation = self._orthonormal("residual stream", 1, config.d_model, widened.d_model)[0]

    @property
    def parts(self) -> dict[str, TensorParts]:
        """Every tensor by the engine's name."""
        return tensor_parts(self.widened, tied=False)

    def projection(self) -> dict[str, Tensor]:
        """The tensors of projection.py."""
        back = self.rotation.T.contiguous() / self.scale  # [C', C]
        found = {"encoder_output": (back * self._norm("encoder_norm", 0, 0)).float(),
                 "hidden": (back * self._norm("final_norm", 0, 0)).float()}
        tables = ("embedding",) if self.tied else ("embedding", "head")
        return found | {kind: self._matrix("", kind, 0) for kind in tables}

    def _fetch(self, name: str) -> Tensor:
        kind, layer, shape = self._found[name]
        if kind in _NORMS:
            return torch.ones(shape)
        matrix = self._matrix(name, kind, layer)
        if kind == "embedding":
            return self._rotated(matrix, self.scale)
        if kind == "head":
            return self._rotated(matrix, self._factor(kind, 0) * self.config.head_scale)
        if kind.endswith("_bias"):
            return self._bias(name, matrix, shape)
        if kind not in _READING:
            out = torch.zeros(shape[::-1])
            if matrix is not None:
                self._place(name, self._rotated(matrix.T, self.scale), out)
            return out.T.contiguous()
        C, D = self.widened.d_model, self.widened.d_kv
        # T5 does not scale attention scores, so its queries are small
        out = self._normal(name, *shape) * (C * D if name.endswith(".q.weight") else C) ** -0.5
        if matrix is not None:
            self._place(name, self._rotated(matrix, self._factor(kind, layer)), out)
        return out

    def _matrix(self, name: str, kind: str, layer: int) -> Tensor | None:
        """The original's tensor; None in a new layer. Embedding and head may have another name there."""
        parts = self._parts[kind]
        if layer >= len(parts.names):
            return None
        return self.original.read(name if parts.per_layer else parts.names[0][0], parts.shape)

    def _bias(self, name: str, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """[buckets, H']: the columns of the original's heads at their places."""
        out = self._normal(name, *shape)
        if bias is not None:
            out[:, self._head_order(name)] = bias.float()
        return out

    def _place(self, name: str, rows: Tensor, out: Tensor) -> None:
        """Write the inner dimensions of a sublayer, rows [HD or F, C'], to their places in `out` [H'D' or F', C']."""
        ours, its = self.config, self.widened
        module, part = name.removesuffix(".weight").rsplit(".", 1)
        if part not in ("q", "k", "v", "o"):
            out[self._order(module, ours.d_ff, its.d_ff)] = rows
            return
        H, C = ours.num_heads, its.d_model
        bases = self._orthonormal(f"{module} {'qk' if part in 'qk' else 'vo'}", H, ours.d_kv, its.d_kv)
        rotated = bases.mT @ rows.view(H, ours.d_kv, C).double()  # [H, D', C']
        out.view(its.num_heads, its.d_kv, C)[self._head_order(name)] = rotated.float()

    def _head_order(self, name: str) -> Tensor:
        """The places of the original's heads: one order for an encoder or decoder, whose layers share their bias."""
        return self._order(name.partition(".")[0], self.config.num_heads, self.widened.num_heads)

    def _rotated(self, rows: Tensor, factor: float | Tensor) -> Tensor:
        """rows [N, C] times `factor` (a number or [C]) and P: [N, C'] float32."""
        out = torch.empty(len(rows), self.widened.d_model)
        for start in range(0, len(rows), _ROWS):
            out[start : start + _ROWS] = (rows[start : start + _ROWS].double() * factor) @ self.rotation
        return out

    def _factor(self, kind: str, layer: int) -> Tensor:
        """diag(g) / s of a reading matrix."""
        norms, index = _READING[kind]
        return self._norm(norms, layer if self._parts[norms].per_layer else 0, index) / self.scale

    def _norm(self, norms: str, layer: int, index: int) -> Tensor:
        parts = self._parts[norms]
        return self.original.read(parts.names[layer][index], parts.shape).double()

    def _generator(self, key: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed} {key}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))

    def _normal(self, key: str, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator(key))

    def _orthonormal(self, key: str, count: int, rows: int, columns: int) -> Tensor:
        """[count, rows, columns] float64 with random orthonormal rows."""
        return torch.linalg.qr(self._normal(key, count, columns, rows).double()).Q.mT

    def _order(self, key: str, count: int, places: int) -> Tensor:
        """Distinct places [count] below `places`."""
        return torch.randperm(places, generator=self._generator(f"{key} order"))[:count]
