"""Argmax chains of an n-gram table on a device: the table as the flat hash of ngram_native/device_table.py.

    keys [2^bits] int64, best [2^bits] int32, best_probability [2^bits] float32     the hash; seed, root_*, strict as there
    tokens [B, T + 1], lengths [B] int64, finished [B] bool, limits, widths [B] int64     the state
    proposed [B, K], proposed_lengths [B] int64     out: the draft, 0 past its end

One program a row. For each id all suffixes and all slots of their probes are read at once, so that an id costs two
latencies of memory. The stopping rule is ngram_native/stopping.py's.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from foredraft.kernels.core.backend import jit, power_of_2, tl
from foredraft.kernels.step.step_inputs_triton import drafts_allowed


class Hash(NamedTuple):
    """A table on a device; `order`: its N, V its vocabulary."""

    keys: Tensor
    best: Tensor
    best_probability: Tensor
    seed: int
    root_best: int
    root_probability: float
    V: int
    bits: int
    probes: int
    order: int
    strict: bool

    def tensors(self) -> tuple:
        """What a kernel takes of it, in its order, and then `constants`."""
        return self[:7]

    def constants(self) -> dict[str, int]:
        suffixes = max(self.order - 1, 1)
        return {"BITS": self.bits, "SUFFIXES": suffixes, "SUFFIXES_PAD": power_of_2(suffixes), "PROBES": self.probes,
                "PROBES_PAD": power_of_2(self.probes), "STRICT": self.strict and self.order > 1}


@jit
def likeliest(keys, best, best_probability, seed, root_best, root_probability, V, text, length, is_asked, BITS: tl.constexpr,
              SUFFIXES: tl.constexpr, SUFFIXES_PAD: tl.constexpr, PROBES: tl.constexpr, PROBES_PAD: tl.constexpr,
              STRICT: tl.constexpr):
    """The likeliest id after a text of `length` ids and its probability float64; text [SUFFIXES_PAD]: the newest first."""
    s, way = tl.arange(0, SUFFIXES_PAD), tl.arange(0, PROBES_PAD)[None, :]
    value = seed.to(tl.uint64)
    hashes = tl.zeros((SUFFIXES_PAD,), tl.uint64)
    for i in tl.static_range(SUFFIXES):
        token = tl.sum(tl.where(s == i, text, 0), axis=0)
        value = (value ^ (token + 1).to(tl.uint64)) * 0x9E3779B97F4A7C15
        value = value ^ (value >> 32)
        hashes = tl.where(s == i, value, hashes)
    hashes = tl.where(hashes == 0, 1, hashes)
    known = tl.minimum(length, SUFFIXES)
    asked = s < tl.where(is_asked, known, 0)
    slots = ((hashes >> (64 - BITS)).to(tl.int64)[:, None] + way) & ((1 << BITS) - 1)
    found = tl.load(keys + slots, mask=asked[:, None] & (way < PROBES), other=0).to(tl.uint64, bitcast=True)
    empty = tl.min(tl.where(found == 0, way, PROBES_PAD), axis=1)
    hit = tl.min(tl.where(found == hashes[:, None], way, PROBES_PAD), axis=1)
    # suffixes of contexts are contexts: the longest is the one before the first that is missing
    longest = tl.min(tl.where(asked & (hit < empty), SUFFIXES_PAD, s), axis=0) - 1
    is_known = is_asked & (longest >= 0)
    otherwise, likely_otherwise = root_best, root_probability
    if STRICT:
        is_known = is_known & (longest == known - 1)
        otherwise, likely_otherwise = known * 0, 1.0 / V.to(tl.float64)
    slot = tl.sum(tl.where(s == longest, (hashes >> (64 - BITS)).to(tl.int64) + hit, 0), axis=0) & ((1 << BITS) - 1)
    word = tl.load(best + slot, mask=is_known, other=0).to(tl.int64)
    likely = tl.load(best_probability + slot, mask=is_known, other=0.0).to(tl.float64)
    return tl.where(is_known, word, otherwise), tl.where(is_known, likely, likely_otherwise)


@jit
def _ngram_lookup_kernel(keys, best, best_probability, seed, root_best, root_probability, V, tokens, lengths, finished,
                         limits, widths, proposed, proposed_lengths, end_token, T1, BITS: tl.constexpr,
                         SUFFIXES: tl.constexpr, SUFFIXES_PAD: tl.constexpr, PROBES: tl.constexpr, PROBES_PAD: tl.constexpr,
                         STRICT: tl.constexpr, COST: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    allowed = tl.minimum(drafts_allowed(row, row >= 0, lengths, limits, finished, widths), K)
    length = tl.load(lengths + row)
    s, k = tl.arange(0, SUFFIXES_PAD), tl.arange(0, K_PAD)
    # the text's last ids, the newest first
    text = tl.load(tokens + row * T1 + length - 1 - s, mask=s < tl.minimum(length, SUFFIXES), other=0)
    reach, expected = tl.full((), 1.0, tl.float64), tl.full((), 1.0, tl.float64)
    chain = tl.zeros((K_PAD,), tl.int64)
    count = length * 0
    growing = allowed > 0
    for step in range(K):
        word, likely = likeliest(keys, best, best_probability, seed, root_best, root_probability, V, text, length + step,
                                 growing, BITS, SUFFIXES, SUFFIXES_PAD, PROBES, PROBES_PAD, STRICT)
        reach *= likely
        # a further id must promise more tokens a pass than the draft has without it (ngram_native/stopping.py)
        growing = growing & (count < allowed) & (reach * (1 + COST * step) > COST * expected)
        expected += tl.where(growing, reach, 0.0)
        chain = tl.where(k == tl.where(growing, step, -1), word, chain)
        count += growing.to(tl.int64)
        growing = growing & (word != end_token)
        older = tl.sum(tl.where(s[:, None] == s[None, :] + 1, text[None, :], 0), axis=1)
        text = tl.where(s == 0, word, older)
    tl.store(proposed + row * K + k, chain, mask=k < K)
    tl.store(proposed_lengths + row, count)


def ngram_lookup_triton(table: Hash, tokens, lengths, finished, limits, widths, end_token, cost, proposed,
                        proposed_lengths) -> None:
    """One launch, no wait."""
    B, K = proposed.shape
    _ngram_lookup_kernel[(B,)](
        *table.tensors(), tokens, lengths, finished, limits, widths, proposed, proposed_lengths, end_token, tokens.shape[1],
        **table.constants(), COST=cost, K=K, K_PAD=power_of_2(max(K, 1)), num_warps=1)
