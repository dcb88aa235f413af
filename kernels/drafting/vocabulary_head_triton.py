"""A drafter's head on a GPU over the ids that a row may draft: a list for all rows, and the ids of the row's own source.

    y          [B, C]            a drafter's outputs, scaled
    weight     [V, C]            the head, bf16 or float32: the target's own, of which only the listed rows are read
    common     [F] int64         ids that every row may draft
    own        [B, X] int64 of any stride over B, own_counts [B] int64     the different ids of a row's source; X = 0: none
    left_out   [B, F] int8       1 where a common id is among the row's own, and left to them
    logits     [B, V] float32    out, at listed ids alone: the others hold -inf from the start; or, without writing them,
    chosen     [B] int64         out, of any stride: the listed id with the largest logit, the lowest on ties
    work       float32, ids int32    B (ceil(F/32) + ceil(X/32)) or more of each: the parts' maxima
    arrived    [ceil(B/16)] or more int32    zeros, and zeros again afterwards

    pointer    None, or CopyScores (engine/drafters/neural/copy_module.py): copying raises the logit of each own id by
                   gain[b] sum over places s of the source that hold it of exp(scores[b, s] - top[b]) / total[b]

Ids outside the list have probability 0: a draft's distribution is lossless whatever it leaves out. The list of all ids, with X = 0,
is the whole head. A program makes 32 logits as fused_linear.py does, of 16 rows, or of one where the ids are its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foredraft.kernels.core.backend import jit, tl
from foredraft.kernels.model.linear_triton import weigh
from foredraft.kernels.model.lm_head_triton import TOGETHER, WIDTH, head_tiling, largest_part

# Source places that are compared together.
CHUNK = 64


class DeviceVocabulary(NamedTuple):
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
def _raised(source, lengths, scores, top, total, gain, b, ids, S, N: tl.constexpr, CHUNK: tl.constexpr):
    """[N]: what copying adds to the logits of row b's own ids."""
    level = tl.load(top + b)
    shares = tl.zeros((N, CHUNK), tl.float32)
    for start in range(0, tl.load(lengths + b), CHUNK):
        s = start + tl.arange(0, CHUNK)
        inside = s < tl.load(lengths + b)
        found = tl.load(source + b * S + s, mask=inside, other=-1)
        weight = tl.exp(tl.load(scores + b * S + s, mask=inside, other=float("-inf")) - level)
        shares += tl.where(found[None, :] == ids[:, None], weight[None, :], 0.0)
    return tl.sum(shares, 1) * (tl.load(gain + b) / tl.load(total + b))


@jit
def _vocabulary_kernel(y, weight, common, own, own_counts, left_out, source, source_lengths, scores, top, total, gain,
                       logits, chosen, work, work_ids, arrived, B, F, X, S, own_stride, chosen_stride, V: tl.constexpr,
                       C: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr, STEP: tl.constexpr, TOGETHER: tl.constexpr,
                       CHUNK: tl.constexpr, CHOOSES: tl.constexpr, POINTS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * 16
    rows = first + tl.arange(0, 16)
    is_row = rows < B
    shared, mine = tl.cdiv(F, N), tl.cdiv(X, N)
    parts = shared + mine
    here = tl.minimum(B - first, 16)
    part = tl.program_id(1)
    # programs of a full tile of rows; the last may have fewer
    if part < shared + here * mine:
        n = tl.arange(0, N)
        if part < shared:
            column = part * N + n
            ids = tl.load(common + column, mask=column < F, other=0)
            gone = tl.load(left_out + rows[:, None] * F + column[None, :], mask=is_row[:, None] & (column < F)[None, :],
                           other=1)
            values = weigh(y, weight, rows, is_row, ids, column < F, C, N, WAYS, STEP)
            is_value = gone == 0
            owner = is_row
        else:
            # one row's own ids: the tile's other rows stay empty
            b = first + (part - shared) // mine
            column = (part - shared) % mine * N + n
            is_own = column < tl.load(own_counts + b)
            ids = tl.load(own + b * own_stride + column, mask=is_own, other=0)
            owner = rows == b
            values = weigh(y, weight, rows, owner, ids, is_own, C, N, WAYS, STEP)
            if POINTS:
                values += _raised(source, source_lengths, scores, top, total, gain, b, ids, S, N, CHUNK)[None, :]
            is_value = owner[:, None] & is_own[None, :]
            part = shared + (part - shared) % mine
        if CHOOSES:
            values = tl.where(is_value, values, float("-inf"))
            best = tl.max(values, 1)
            best_id = tl.min(tl.where(is_value & (values == best[:, None]), ids.to(tl.int32)[None, :], V), 1)
            tl.store(work + rows * parts + part, best, mask=owner)
            tl.store(work_ids + rows * parts + part, best_id, mask=owner)
            # every thread's stores come before the arrival, and the last one's loads after it
            tl.debug_barrier()
            if tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel") == shared + here * mine - 1:
                tl.debug_barrier()
                found = largest_part(work, work_ids, rows, is_row, parts, V, TOGETHER)
                tl.store(chosen + rows * chosen_stride, found.to(tl.int64), mask=is_row)
                tl.store(arrived + tl.program_id(0), 0)
        else:
            tl.store(logits + rows[:, None] * V + ids[None, :], values, mask=is_value)


def _launch(y, weight, list, pointer, logits, chosen, work, ids, arrived) -> None:
    (B, C), V, F, X = y.shape, weight.shape[0], len(list.common), list.own.shape[1]
    grid = (-(-B // 16), -(-F // WIDTH) + min(B, 16) * -(-X // WIDTH))
    pointed = (None,) * 6 if pointer is None else pointer
    _vocabulary_kernel[grid](
        y, weight, *list, *pointed, logits, chosen, work, ids, arrived, B, F, X,
        0 if pointer is None else pointer.source.shape[1], list.own.stride(0), 0 if chosen is None else chosen.stride(0),
        V=V, C=C, N=WIDTH, TOGETHER=TOGETHER, CHUNK=CHUNK, CHOOSES=chosen is not None, POINTS=pointer is not None,
        **head_tiling(weight))


def vocabulary_logits_triton(y: Tensor, weight: Tensor, list: DeviceVocabulary, pointer: CopyScores | None,
                             logits: Tensor) -> None:
    """One launch, no wait."""
    _launch(y, weight, list, pointer, logits, None, None, None, None)


def vocabulary_choose_triton(y: Tensor, weight: Tensor, list: DeviceVocabulary, pointer: CopyScores | None, chosen: Tensor,
                             work: Tensor, ids: Tensor, arrived: Tensor) -> None:
    """One launch, no wait."""
    _launch(y, weight, list, pointer, None, chosen, work, ids, arrived)


def vocabulary_logits_reference(y, weight, list, pointer, logits) -> None:
    for b in range(len(y)):
        own = list.own[b, : list.own_counts[b]].tolist()
        for token in set(list.common.tolist()) | set(own):
            logits[b, token] = float(y[b].double() @ weight[token].double())
        if pointer is not None:
            S = int(pointer.lengths[b])
            shares = (pointer.scores[b, :S].double() - pointer.top[b]).exp() * pointer.gain[b] / pointer.total[b]
            for token, share in zip(pointer.source[b, :S].tolist(), shares.tolist(), strict=True):
                logits[b, token] += share


def vocabulary_choose_reference(y, weight, list, pointer, chosen, work=None, ids=None, arrived=None) -> None:
    logits = torch.full((len(y), len(weight)), float("-inf"))
    vocabulary_logits_reference(y, weight, list, pointer, logits)
    for b, row in enumerate(logits.tolist()):
        chosen[b] = row.index(max(row))


VOCABULARY_LOGITS = {"reference": vocabulary_logits_reference, "triton": vocabulary_logits_triton}
VOCABULARY_CHOOSE = {"reference": vocabulary_choose_reference, "triton": vocabulary_choose_triton}
