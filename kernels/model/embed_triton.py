"""The first and the last kernel of a decoder pass on a GPU: embedding, and final norm.

  embed
    tokens, positions  [B, R] int64       positions -1: not read, its row of x is zero; tokens of any stride over B
    parents            [B, R] int64       query position that each one follows, -1 for position 0; None without branches
    embedding          [V, C]             bf16 or float32
    visible            [B, R, R] int8     out: 1 where query position r may attend to position j: itself and its ancestors
    x, y, squares                         out, as in linear_triton.py; norm [C] float32: weight of the first norm

  final_norm
    hidden             [N, C] float32     out: norm(x), of all rows or of the last of every M/N rows; norm: the last weight
    y                  [N, C]             out: scale * hidden; scale float, C^-0.5 where the head is tied to the embedding
"""

from __future__ import annotations

from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, power_of_2, tl
from foredraft.kernels.core.pdl_triton import pdl_wait


@jit(do_not_specialize=["tokens", "positions", "parents", "tokens_stride"])
def _embed_kernel(tokens, positions, parents, embedding, norm, visible, x, y, squares, tokens_stride, R: tl.constexpr,
                  R_UP: tl.constexpr, C: tl.constexpr, C_UP: tl.constexpr, TILES: tl.constexpr, TILES_UP: tl.constexpr,
                  LINEAR: tl.constexpr, PDL: tl.constexpr = False):
    pdl_wait(PDL)
    m = tl.program_id(0).to(tl.int64)
    position, token = tl.load(positions + m), tl.load(tokens + m // R * tokens_stride + m % R)
    c = tl.arange(0, C_UP)
    # a position that is not read holds a valid token too (engine/state.py)
    values = tl.load(embedding + token * C + c, mask=c < C, other=0.0).to(tl.float32)
    values = tl.where(position >= 0, values, 0.0)
    tl.store(x + m * C + c, values, mask=c < C)
    tl.store(y + m * C + c, (values * tl.load(norm + c, mask=c < C, other=0.0)).to(y.dtype.element_ty), mask=c < C)
    tile = tl.arange(0, TILES_UP)
    tl.store(squares + m * TILES + tile, tl.where(tile == 0, tl.sum(values * values), 0.0), mask=tile < TILES)
    j = tl.arange(0, R_UP)
    r = m % R
    if LINEAR:
        seen = (j <= r).to(tl.int8)
    else:
        seen = (j == r).to(tl.int8)
        ancestor = r
        for _ in range(R - 1):
            # position 0 has no parent: it counts as its own ancestor
            ancestor = tl.maximum(tl.load(parents + m // R * R + ancestor), 0)
            seen = tl.where(j == ancestor, 1, seen).to(tl.int8)
    tl.store(visible + m * R + j, seen, mask=j < R)


@jit
def _final_norm_kernel(x, squares, norm, hidden, y, epsilon, scale, EVERY: tl.constexpr, C: tl.constexpr, C_UP: tl.constexpr,
                       TILES: tl.constexpr, TILES_UP: tl.constexpr, PDL: tl.constexpr = False):
    pdl_wait(PDL)
    m = tl.program_id(0).to(tl.int64)
    row = m * EVERY + (EVERY - 1)
    c, tile = tl.arange(0, C_UP), tl.arange(0, TILES_UP)
    total = tl.sum(tl.load(squares + row * TILES + tile, mask=tile < TILES, other=0.0))
    values = tl.load(x + row * C + c, mask=c < C, other=0.0) / tl.sqrt(total / C + epsilon)
    values = values * tl.load(norm + c, mask=c < C, other=0.0)
    tl.store(hidden + m * C + c, values, mask=c < C)
    tl.store(y + m * C + c, (values * scale).to(y.dtype.element_ty), mask=c < C)


def embed_triton(tokens: Tensor, positions: Tensor, parents: Tensor | None, embedding: Tensor, norm: Tensor, visible: Tensor,
                 x: Tensor, y: Tensor, squares: Tensor, **launch) -> None:
    (M, C), R = x.shape, tokens.shape[1]
    _embed_kernel[(M,)](tokens, positions, positions if parents is None else parents, embedding, norm, visible, x, y,
                        squares, tokens.stride(0), R=R, R_UP=power_of_2(R), C=C, C_UP=power_of_2(C), TILES=squares.shape[1],
                        TILES_UP=power_of_2(squares.shape[1]), LINEAR=parents is None, num_warps=4, **launch)


def final_norm_triton(x: Tensor, squares: Tensor, norm: Tensor, epsilon: float, scale: float, hidden: Tensor, y: Tensor,
                      **launch) -> None:
    (M, C), N = x.shape, hidden.shape[0]
    _final_norm_kernel[(N,)](x, squares, norm, hidden, y, epsilon, scale, EVERY=M // N, C=C, C_UP=power_of_2(C),
                             TILES=squares.shape[1], TILES_UP=power_of_2(squares.shape[1]), num_warps=4, **launch)


def embed_reference(tokens, positions, parents, embedding, norm, visible, x, y, squares) -> None:
    B, R = tokens.shape
    visible.zero_()
    squares.zero_()
    for b in range(B):
        for r in range(R):
            row = r
            while row >= 0:
                visible[b, r, row] = 1
                row = row - 1 if parents is None else int(parents[b, row])
            values = embedding[tokens[b, r]].float() * (positions[b, r] >= 0)
            x[b * R + r], y[b * R + r], squares[b * R + r, 0] = values, values * norm, values.square().sum()


def final_norm_reference(x, squares, norm, epsilon, scale, hidden, y) -> None:
    every = len(x) // len(hidden)
    x, squares = x[every - 1 :: every], squares[every - 1 :: every]
    hidden[:] = x.double() / (squares.double().sum(1, keepdim=True) / x.shape[1] + epsilon).sqrt() * norm
    y[:] = hidden * scale


EMBED = {"reference": embed_reference, "triton": embed_triton}
FINAL_NORM = {"reference": final_norm_reference, "triton": final_norm_triton}
