"""A drafter's head over its draft vocabulary on a GPU: logits or argmax, with copy attention added.

    y          [B, C]            the drafter's outputs, scaled
    weight     [V, C]            the target's head, bf16 or float32; only rows of the draft vocabulary are read
    vocabulary DeviceVocabulary:
      common     [F] int64         tokens for every sequence
      own        [B, X] int64 of any stride over B, own_counts [B] int64: the distinct tokens of a sequence's source
      left_out   [B, F] int8       1 where a common token is also in `own`, which then handles it
    copy       None, or CopyScores: the logit of each own token is raised by
                 gain[b] * (sum over source positions s that hold it of exp(scores[b, s] - top[b])) / total[b]
    logits     [B, V] float32    out, at the draft vocabulary alone: the other columns must hold -inf already; or
    chosen     [B] int64         out, of any stride: the argmax, the lowest token on ties
    work float32, work_tokens int32    buffers of B (ceil(F/32) + ceil(X/32)) or more: the programs' maxima and their tokens
    arrived    [ceil(B/16)] or more int32    buffer: zeros, and zeros again afterwards

Tokens outside the draft vocabulary have draft probability 0; verification stays lossless. A program computes 32 logits as
model/linear_triton.py does: of 16 sequences, or of one sequence for its own tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, tl
from foredraft.kernels.model.linear_triton import matmul_tile
from foredraft.kernels.model.lm_head_triton import TOGETHER, WIDTH, head_tiling, largest_part

# Source positions that are compared together.
CHUNK = 64


class DeviceVocabulary(NamedTuple):
    """The draft vocabulary of B sequences; see above."""

    common: Tensor
    own: Tensor
    own_counts: Tensor
    left_out: Tensor


class CopyScores(NamedTuple):
    """source [B, S], lengths [B] int64; scores [B, S], top, total, gain [B] float32."""

    source: Tensor
    lengths: Tensor
    scores: Tensor
    top: Tensor
    total: Tensor
    gain: Tensor


@jit
def _copied(source, lengths, scores, top, total, gain, b, token, S, N: tl.constexpr, CHUNK: tl.constexpr):
    """[N]: what copy attention adds to the logits of sequence b's own tokens."""
    level = tl.load(top + b)
    shares = tl.zeros((N, CHUNK), tl.float32)
    for start in range(0, tl.load(lengths + b), CHUNK):
        s = start + tl.arange(0, CHUNK)
        inside = s < tl.load(lengths + b)
        found = tl.load(source + b * S + s, mask=inside, other=-1)
        weight = tl.exp(tl.load(scores + b * S + s, mask=inside, other=float("-inf")) - level)
        shares += tl.where(found[None, :] == token[:, None], weight[None, :], 0.0)
    return tl.sum(shares, 1) * (tl.load(gain + b) / tl.load(total + b))


@jit(do_not_specialize=["chosen", "B", "X", "S", "own_stride", "chosen_stride"])
def _vocabulary_kernel(y, weight, common, own, own_counts, left_out, source, source_lengths, scores, top, total, gain,
                       logits, chosen, work, work_tokens, arrived, B, F, X, S, own_stride, chosen_stride, V: tl.constexpr,
                       C: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr, STEP: tl.constexpr, TOGETHER: tl.constexpr,
                       CHUNK: tl.constexpr, ARGMAX: tl.constexpr, COPIES: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * 16
    rows = first + tl.arange(0, 16)
    is_row = rows < B
    common_parts, own_parts = tl.cdiv(F, N), tl.cdiv(X, N)
    parts = common_parts + own_parts
    here = tl.minimum(B - first, 16)
    part = tl.program_id(1)
    # the grid is for full tiles of 16 sequences; the last tile may have fewer
    if part < common_parts + here * own_parts:
        n = tl.arange(0, N)
        if part < common_parts:
            column = part * N + n
            token = tl.load(common + column, mask=column < F, other=0)
            is_left_out = tl.load(left_out + rows[:, None] * F + column[None, :],
                                  mask=is_row[:, None] & (column < F)[None, :], other=1)
            values = matmul_tile(y, weight, rows, is_row, token, column < F, C, N, WAYS, STEP)
            is_value = is_left_out == 0
            owner = is_row
        else:
            # own tokens of one sequence: the other rows of the tile stay empty
            b = first + (part - common_parts) // own_parts
            column = (part - common_parts) % own_parts * N + n
            is_own = column < tl.load(own_counts + b)
            token = tl.load(own + b * own_stride + column, mask=is_own, other=0)
            owner = rows == b
            values = matmul_tile(y, weight, rows, owner, token, is_own, C, N, WAYS, STEP)
            if COPIES:
                values += _copied(source, source_lengths, scores, top, total, gain, b, token, S, N, CHUNK)[None, :]
            is_value = owner[:, None] & is_own[None, :]
            part = common_parts + (part - common_parts) % own_parts
        if ARGMAX:
            values = tl.where(is_value, values, float("-inf"))
            best = tl.max(values, 1)
            best_token = tl.min(tl.where(is_value & (values == best[:, None]), token.to(tl.int32)[None, :], V - 1), 1)
            tl.store(work + rows * parts + part, best, mask=owner)
            tl.store(work_tokens + rows * parts + part, best_token, mask=owner)
            # all threads have stored before the program arrives
            tl.debug_barrier()
            if tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel") == common_parts + here * own_parts - 1:
                tl.debug_barrier()
                found = largest_part(work, work_tokens, rows, is_row, parts, V, TOGETHER)
                tl.store(chosen + rows * chosen_stride, found.to(tl.int64), mask=is_row)
                tl.store(arrived + tl.program_id(0), 0)
        else:
            tl.store(logits + rows[:, None] * V + token[None, :], values, mask=is_value)


def _launch(y, weight, vocabulary, copy, logits, chosen, work, work_tokens, arrived) -> None:
    (B, C), V, F, X = y.shape, weight.shape[0], len(vocabulary.common), vocabulary.own.shape[1]
    grid = (-(-B // 16), -(-F // WIDTH) + min(B, 16) * -(-X // WIDTH))
    copied = (None,) * 6 if copy is None else copy
    _vocabulary_kernel[grid](
        y, weight, *vocabulary, *copied, logits, chosen, work, work_tokens, arrived, B, F, X,
        0 if copy is None else copy.source.shape[1], vocabulary.own.stride(0), 0 if chosen is None else chosen.stride(0),
        V=V, C=C, N=WIDTH, TOGETHER=TOGETHER, CHUNK=CHUNK, ARGMAX=chosen is not None, COPIES=copy is not None,
        **head_tiling(weight))


def vocabulary_logits_triton(y: Tensor, weight: Tensor, vocabulary: DeviceVocabulary, copy: CopyScores | None,
                             logits: Tensor) -> None:
    """One launch, without synchronisation."""
    _launch(y, weight, vocabulary, copy, logits, None, None, None, None)


def vocabulary_choose_triton(y: Tensor, weight: Tensor, vocabulary: DeviceVocabulary, copy: CopyScores | None,
                             chosen: Tensor, work: Tensor, work_tokens: Tensor, arrived: Tensor) -> None:
    """One launch, without synchronisation."""
    _launch(y, weight, vocabulary, copy, None, chosen, work, work_tokens, arrived)


def vocabulary_logits_reference(y, weight, vocabulary, copy, logits) -> None:
    for b in range(len(y)):
        own = vocabulary.own[b, : vocabulary.own_counts[b]].tolist()
        for token in set(vocabulary.common.tolist()) | set(own):
            logits[b, token] = float(y[b].double() @ weight[token].double())
        if copy is not None:
            S = int(copy.lengths[b])
            shares = (copy.scores[b, :S].double() - copy.top[b]).exp() * copy.gain[b] / copy.total[b]
            for token, share in zip(copy.source[b, :S].tolist(), shares.tolist(), strict=True):
                logits[b, token] += share


def vocabulary_choose_reference(y, weight, vocabulary, copy, chosen, work=None, work_tokens=None, arrived=None) -> None:
    logits = torch.full((len(y), len(weight)), float("-inf"))
    vocabulary_logits_reference(y, weight, vocabulary, copy, logits)
    for b, row in enumerate(logits.tolist()):
        chosen[b] = row.index(max(row))


VOCABULARY_LOGITS = {"reference": vocabulary_logits_reference, "triton": vocabulary_logits_triton}
VOCABULARY_CHOOSE = {"reference": vocabulary_choose_reference, "triton": vocabulary_choose_triton}
