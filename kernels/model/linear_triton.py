"""Linear layers of the decoder on a GPU, fused with the norm before them and the operation after them.

    x        [M, C] float32            residual stream of M = B R rows
    y        [M, C]                    x * weight of the next norm, in the type of the weights (bf16 or float32)
    squares  [M, ceil(C/16)] float32   partial sums of x^2
    norm(x)  = y / sqrt(sum(squares) / C + epsilon); the kernels divide their outputs instead of y

    qkv      weight [3HD, C] -> q [M, H, D], and k, v [B, H, T, D] in slots positions[b, 0] + r (positions [B, R]; -1: none)
    project  weight [N, C] -> out [M, N] = norm(x) @ weight.T
    gate     weight [F or 2F, C] -> out [M, F], the activation (activation.py) of norm(x) @ weight.T
    add      inputs [M, K], weight [C, K], norm [C] -> x += inputs @ weight.T in place, with its y and squares

A program computes 16 outputs of 16 rows, or 32 outputs of 32 or 64 rows (`tile`); a gated output takes two. It sums over K
in four interleaved ways, each in order, and adds these at the end. The order depends neither on the tile nor on the number
of rows nor on the batch, so 1 row and K + 1 rows give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, power_of_2, tl
from foredraft.kernels.core.pdl_triton import pdl_wait
from foredraft.kernels.model.activation import activate_reference

# Rows and outputs of the smallest program: a tensor core's smallest tile, so that the step of one request fills the GPU.
# `squares` has a sum for each WIDTH columns, whatever the tile.
HEIGHT, WIDTH = 16, 16
# A program reads WAYS * STEP columns at a time, in WAYS independent sums that hide each other's latency.
WAYS, STEP = 4, 64


@jit
def matmul_tile(x, weight, rows, is_row, outputs, is_output, K: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr,
                STEP: tl.constexpr):
    """[rows, N] float32 = x[rows] @ weight[outputs].T over K columns, x rounded to the type of the weight.

    The three-dimensional product gives each way a warp of its own and keeps to one tensor core instruction for every tile.
    """
    way, step = tl.arange(0, WAYS), tl.arange(0, STEP)
    sums = tl.zeros((WAYS, rows.shape[0], N), tl.float32)
    for start in range(0, K, WAYS * STEP):
        k = start + way[:, None] * STEP + step[None, :]
        a = tl.load(x + rows[None, :, None] * K + k[:, None, :], mask=is_row[None, :, None] & (k < K)[:, None, :], other=0.0)
        w = tl.load(weight + outputs[None, None, :] * K + k[:, :, None],
                    mask=is_output[None, None, :] & (k < K)[:, :, None], other=0.0)
        sums = tl.dot(a.to(w.dtype), w, sums, input_precision="ieee")
    return tl.sum(sums, 0)


@jit
def norm_scale(squares, rows, is_row, epsilon, C: tl.constexpr, TILES: tl.constexpr, TILES_UP: tl.constexpr):
    """[rows] float32: norm(x) / y of each row."""
    tile = tl.arange(0, TILES_UP)
    mask = is_row[:, None] & (tile < TILES)[None, :]
    parts = tl.load(squares + rows[:, None] * TILES + tile[None, :], mask=mask, other=0.0)
    return 1.0 / tl.sqrt(tl.sum(parts, 1) / C + epsilon)


@jit
def sums_of_16(values, ROWS: tl.constexpr, N: tl.constexpr):
    """[ROWS, N / 16]: sums of 16 columns each, in halves: an order that no layout changes."""
    halves = tl.permute(tl.reshape(values, (ROWS, N // 16, 2, 8)), (0, 1, 3, 2))
    left, right = tl.split(halves)
    left, right = tl.split(tl.reshape(left + right, (ROWS, N // 16, 4, 2)))
    left, right = tl.split(tl.reshape(left + right, (ROWS, N // 16, 2, 2)))
    left, right = tl.split(left + right)
    return left + right


@jit(do_not_specialize=["positions", "M", "T", "R"])
def _qkv_kernel(y, squares, weight, positions, q, k, v, M, T, epsilon, R, H: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
                TILES: tl.constexpr, TILES_UP: tl.constexpr, HEIGHT: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr,
                STEP: tl.constexpr, PDL: tl.constexpr = False):
    pdl_wait(PDL)
    rows = tl.program_id(0).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    is_row = rows < M
    pieces: tl.constexpr = (D + N - 1) // N
    part, head = tl.program_id(1) // (H * pieces), tl.program_id(1) // pieces % H
    d = tl.program_id(1) % pieces * N + tl.arange(0, N)
    outputs = ((part * H + head) * D + d).to(tl.int64)
    sums = matmul_tile(y, weight, rows, is_row, outputs, d < D, C, N, WAYS, STEP)
    sums = sums * norm_scale(squares, rows, is_row, epsilon, C, TILES, TILES_UP)[:, None]
    if part == 0:
        tl.store(q + (rows[:, None] * H + head) * D + d[None, :], sums.to(q.dtype.element_ty),
                 mask=is_row[:, None] & (d < D)[None, :])
    else:
        b = rows // R
        base = tl.load(positions + b * R, mask=is_row, other=-1)
        is_read = is_row & (tl.load(positions + rows, mask=is_row, other=-1) >= 0)
        at = ((b * H + head) * T + base + rows % R)[:, None] * D + d[None, :]
        mask = is_read[:, None] & (d < D)[None, :]
        # one store: triton 3.6 fails where two branches inside a branch store one value
        cache = v
        if part == 1:
            cache = k
        tl.store(cache + at, sums.to(k.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["M"])
def _project_kernel(y, squares, weight, out, M, epsilon, N_ALL: tl.constexpr, C: tl.constexpr, TILES: tl.constexpr,
                    TILES_UP: tl.constexpr, HEIGHT: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr, STEP: tl.constexpr,
                    PDL: tl.constexpr = False):
    pdl_wait(PDL)
    rows = tl.program_id(0).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    is_row = rows < M
    outputs = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    sums = matmul_tile(y, weight, rows, is_row, outputs, outputs < N_ALL, C, N, WAYS, STEP)
    sums = sums * norm_scale(squares, rows, is_row, epsilon, C, TILES, TILES_UP)[:, None]
    tl.store(out + rows[:, None] * N_ALL + outputs[None, :], sums.to(out.dtype.element_ty),
             mask=is_row[:, None] & (outputs < N_ALL)[None, :])


@jit(do_not_specialize=["M"])
def _gate_kernel(y, squares, weight, out, M, epsilon, F: tl.constexpr, C: tl.constexpr, ACTIVATION: tl.constexpr,
                 GATED: tl.constexpr, TILES: tl.constexpr, TILES_UP: tl.constexpr, HEIGHT: tl.constexpr, N: tl.constexpr,
                 WAYS: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr = False):
    pdl_wait(PDL)
    rows = tl.program_id(0).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    is_row = rows < M
    # the two products of an output are neighbours: one pass over the rows, and the same thread holds both
    each: tl.constexpr = 2 if GATED else 1
    n = tl.arange(0, N)
    outputs = tl.program_id(1).to(tl.int64) * (N // each) + n // each
    a = matmul_tile(y, weight, rows, is_row, outputs + n % each * F, outputs < F, C, N, WAYS, STEP)
    a *= norm_scale(squares, rows, is_row, epsilon, C, TILES, TILES_UP)[:, None]
    if GATED:
        a, factor = tl.split(tl.reshape(a, (HEIGHT, N // 2, 2)))
    if ACTIVATION == 0:
        a = tl.maximum(a, 0.0)
    elif ACTIVATION == 1:
        # (1 + tanh u) / 2 is the logistic function of 2u
        a = a * tl.sigmoid(1.5957691216057308 * (a + 0.044715 * a * a * a))
    elif ACTIVATION == 2:
        a = 0.5 * a * (1.0 + tl.erf(a * 0.7071067811865476))
    else:
        a = a * tl.sigmoid(a)
    if GATED:
        a = a * factor
    outputs = tl.program_id(1).to(tl.int64) * (N // each) + tl.arange(0, N // each)
    tl.store(out + rows[:, None] * F + outputs[None, :], a.to(out.dtype.element_ty),
             mask=is_row[:, None] & (outputs < F)[None, :])


@jit(do_not_specialize=["M"])
def _add_kernel(inputs, weight, norm, x, y, squares, M, C: tl.constexpr, K: tl.constexpr, TILES: tl.constexpr,
                HEIGHT: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr = False):
    pdl_wait(PDL)
    rows = tl.program_id(0).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    is_row = rows < M
    outputs = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    mask = is_row[:, None] & (outputs < C)[None, :]
    at = rows[:, None] * C + outputs[None, :]
    before = tl.load(x + at, mask=mask, other=0.0)
    scale = tl.load(norm + outputs, mask=outputs < C, other=0.0)
    after = before + matmul_tile(inputs, weight, rows, is_row, outputs, outputs < C, K, N, WAYS, STEP)
    tl.store(x + at, after, mask=mask)
    tl.store(y + at, (after * scale[None, :]).to(y.dtype.element_ty), mask=mask)
    part = tl.program_id(1) * (N // 16) + tl.arange(0, N // 16)
    tl.store(squares + rows[:, None] * TILES + part[None, :], sums_of_16(tl.where(mask, after * after, 0.0), HEIGHT, N),
             mask=is_row[:, None] & (part < TILES)[None, :])


def tile(rows: int, is_narrow: bool = True) -> tuple[int, int]:
    """Rows and outputs of a program of bf16 weights (`is_narrow`) or float32 ones, for a pass of that many rows.

    Each tile of rows reads the weights and each of outputs the rows, so more than 16 rows take larger ones. float32 takes
    too many registers for that, and AMD's matrix instruction, with its order of sums, depends on the tile.
    """
    if rows <= HEIGHT or not is_narrow or torch.version.hip is not None:
        return HEIGHT, WIDTH
    return (32 if rows <= 32 else 64), 32


def tiling(weight: Tensor) -> dict[str, int]:
    """Options of a launch: enough stages to hide memory latency, within a multiprocessor's shared memory.

    float32 is multiplied in registers, as tensor cores do not compute it exactly; they hold half the columns.
    """
    narrow = weight.dtype == torch.bfloat16
    return {"WAYS": WAYS, "STEP": STEP if narrow else STEP // 2, "num_warps": WAYS, "num_stages": 4 if narrow else 2}


def tiling_of(weight: Tensor, rows: int) -> dict[str, int]:
    """`tiling` with the `tile` of a pass."""
    height, width = tile(rows, weight.dtype == torch.bfloat16)
    # two programs of 64 rows share a multiprocessor
    return tiling(weight) | {"HEIGHT": height, "N": width} | ({"num_stages": 3} if height > 32 else {})


def _norm_sizes(squares: Tensor) -> dict[str, int]:
    # from 32 on, the layout of a row does not depend on the number of rows
    return {"TILES": squares.shape[1], "TILES_UP": max(32, power_of_2(squares.shape[1]))}


def grid_of(rows: int, outputs: int, options: dict[str, int]) -> tuple[int, int]:
    """The grid. Row tiles come first, so that they share the weight in the L2 cache."""
    return -(-rows // options["HEIGHT"]), -(-outputs // options["N"])


def qkv_triton(y: Tensor, squares: Tensor, weight: Tensor, epsilon: float, positions: Tensor, q: Tensor, k: Tensor,
               v: Tensor, **launch) -> None:
    M, H, D = q.shape
    options = tiling_of(weight, M)
    rows, pieces = grid_of(M, D, options)
    _qkv_kernel[(rows, 3 * H * pieces)](y, squares, weight, positions, q, k, v, M, k.shape[2], epsilon, positions.shape[1],
                                        H=H, D=D, C=y.shape[1], **_norm_sizes(squares), **options, **launch)


def project_triton(y: Tensor, squares: Tensor, weight: Tensor, epsilon: float, out: Tensor, **launch) -> None:
    M, N = out.shape
    options = tiling_of(weight, M)
    _project_kernel[grid_of(M, N, options)](y, squares, weight, out, M, epsilon, N_ALL=N, C=y.shape[1],
                                            **_norm_sizes(squares), **options, **launch)


def gate_triton(y: Tensor, squares: Tensor, weight: Tensor, epsilon: float, activation: int, gated: bool,
                out: Tensor, **launch) -> None:
    M, F = out.shape
    options = tiling_of(weight, M)
    # a program of 16 rows has 16 gated outputs too
    if gated and options["N"] == WIDTH:
        options |= {"N": 2 * WIDTH, "num_stages": options["num_stages"] - 1}
    _gate_kernel[grid_of(M, len(weight), options)](y, squares, weight, out, M, epsilon, F=F, C=y.shape[1],
                                                   ACTIVATION=activation, GATED=gated, **_norm_sizes(squares), **options,
                                                   **launch)


def add_triton(inputs: Tensor, weight: Tensor, norm: Tensor, x: Tensor, y: Tensor, squares: Tensor, **launch) -> None:
    M, C = x.shape
    options = tiling_of(weight, M)
    _add_kernel[grid_of(M, C, options)](inputs, weight, norm, x, y, squares, M, C=C, K=weight.shape[1],
                                        TILES=squares.shape[1], **options, **launch)


def _normed(y: Tensor, squares: Tensor, epsilon: float) -> Tensor:
    return y.double() / (squares.double().sum(1, keepdim=True) / y.shape[1] + epsilon).sqrt()


def qkv_reference(y, squares, weight, epsilon, positions, q, k, v) -> None:
    M, H, D = q.shape
    R = positions.shape[1]
    mixed = (_normed(y, squares, epsilon) @ weight.double().T).view(M, 3, H, D)
    q[:] = mixed[:, 0]
    for m in range(M):
        b, r = m // R, m % R
        if positions[b, r] >= 0:
            k[b, :, positions[b, 0] + r] = mixed[m, 1].to(k.dtype)
            v[b, :, positions[b, 0] + r] = mixed[m, 2].to(v.dtype)


def project_reference(y, squares, weight, epsilon, out) -> None:
    out[:] = _normed(y, squares, epsilon) @ weight.double().T


def gate_reference(y, squares, weight, epsilon, activation, gated, out) -> None:
    active = torch.empty(out.shape, dtype=torch.float64)
    activate_reference((_normed(y, squares, epsilon) @ weight.double().T).numpy(), active.numpy(), activation, gated)
    out[:] = active


def add_reference(inputs, weight, norm, x, y, squares) -> None:
    x += (inputs.double() @ weight.double().T).float()
    y[:] = x * norm
    for tile in range(squares.shape[1]):
        squares[:, tile] = x[:, tile * WIDTH : (tile + 1) * WIDTH].square().sum(1)


QKV = {"reference": qkv_reference, "triton": qkv_triton}
PROJECT = {"reference": project_reference, "triton": project_triton}
GATE = {"reference": gate_reference, "triton": gate_triton}
ADD = {"reference": add_reference, "triton": add_triton}
