"""Greedy n-gram drafts on a GPU, from an n-gram table as the flat hash of ngram_native/device_table.py.

    table    Hash: keys [2^bits] int64, best [2^bits] int32, best_probability [2^bits] float32, and the table's constants
    tokens [B, T + 1], lengths [B] int64, finished [B] bool, limits, budgets [B] int64     the decode state
    proposed [B, K], proposed_lengths [B] int64     out: the draft, 0 past its end

One program a sequence. For each token the program probes all context lengths at once, so a token costs two memory
latencies. Drafts stop as in ngram_native/stopping.py.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, power_of_2, tl
from foredraft.kernels.step.step_inputs_triton import drafts_allowed


class Hash(NamedTuple):
    """An n-gram table on a GPU: `order` is its N, `V` its vocabulary size."""

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
        """Leading arguments of a kernel; `constants` are the other ones."""
        return self[:7]

    def constants(self) -> dict[str, int]:
        suffixes = max(self.order - 1, 1)
        return {"BITS": self.bits, "SUFFIXES": suffixes, "SUFFIXES_PAD": power_of_2(suffixes), "PROBES": self.probes,
                "PROBES_PAD": power_of_2(self.probes), "STRICT": self.strict and self.order > 1}


@jit
def is_worth_drafting(reach, count, expected, cost):
    """Whether a token raises the tokens per pass; as ngram_native/stopping.py, float64 except `count`."""
    return reach * (1 + cost * count) > cost * expected


@jit
def most_likely_token(keys, best, best_probability, seed, root_best, root_probability, V, text, length, is_active,
                      BITS: tl.constexpr, SUFFIXES: tl.constexpr, SUFFIXES_PAD: tl.constexpr, PROBES: tl.constexpr,
                      PROBES_PAD: tl.constexpr, STRICT: tl.constexpr):
    """The most likely token after `length` tokens, and its probability (float64); text [SUFFIXES_PAD]: last token first."""
    s, probe = tl.arange(0, SUFFIXES_PAD), tl.arange(0, PROBES_PAD)[None, :]
    value = seed.to(tl.uint64)
    hashes = tl.zeros((SUFFIXES_PAD,), tl.uint64)
    for i in tl.static_range(SUFFIXES):
        token = tl.sum(tl.where(s == i, text, 0), axis=0)
        value = (value ^ (token + 1).to(tl.uint64)) * 0x9E3779B97F4A7C15
        value = value ^ (value >> 32)
        hashes = tl.where(s == i, value, hashes)
    hashes = tl.where(hashes == 0, 1, hashes)
    known = tl.minimum(length, SUFFIXES)
    is_probed = s < tl.where(is_active, known, 0)
    slots = ((hashes >> (64 - BITS)).to(tl.int64)[:, None] + probe) & ((1 << BITS) - 1)
    found = tl.load(keys + slots, mask=is_probed[:, None] & (probe < PROBES), other=0).to(tl.uint64, bitcast=True)
    empty = tl.min(tl.where(found == 0, probe, PROBES_PAD), axis=1)
    hit = tl.min(tl.where(found == hashes[:, None], probe, PROBES_PAD), axis=1)
    # suffixes of stored contexts are stored: the longest stored one comes before the first missing one
    longest = tl.min(tl.where(is_probed & (hit < empty), SUFFIXES_PAD, s), axis=0) - 1
    is_known = is_active & (longest >= 0)
    default, default_likely = root_best, root_probability
    if STRICT:
        is_known = is_known & (longest == known - 1)
        default, default_likely = known * 0, 1.0 / V.to(tl.float64)
    slot = tl.sum(tl.where(s == longest, (hashes >> (64 - BITS)).to(tl.int64) + hit, 0), axis=0) & ((1 << BITS) - 1)
    word = tl.load(best + slot, mask=is_known, other=0).to(tl.int64)
    likely = tl.load(best_probability + slot, mask=is_known, other=0.0).to(tl.float64)
    return tl.where(is_known, word, default), tl.where(is_known, likely, default_likely)


@jit(do_not_specialize=["T1"])
def _ngram_lookup_kernel(keys, best, best_probability, seed, root_best, root_probability, V, tokens, lengths, finished,
                         limits, budgets, proposed, proposed_lengths, end_token, T1, BITS: tl.constexpr,
                         SUFFIXES: tl.constexpr, SUFFIXES_PAD: tl.constexpr, PROBES: tl.constexpr, PROBES_PAD: tl.constexpr,
                         STRICT: tl.constexpr, COST: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    allowed = tl.minimum(drafts_allowed(b, b >= 0, lengths, limits, finished, budgets), K)
    length = tl.load(lengths + b)
    s, k = tl.arange(0, SUFFIXES_PAD), tl.arange(0, K_PAD)
    # the last tokens, the newest first
    text = tl.load(tokens + b * T1 + length - 1 - s, mask=s < tl.minimum(length, SUFFIXES), other=0)
    reach, expected = tl.full((), 1.0, tl.float64), tl.full((), 1.0, tl.float64)
    draft = tl.zeros((K_PAD,), tl.int64)
    count = length * 0
    growing = allowed > 0
    for step in range(K):
        word, likely = most_likely_token(keys, best, best_probability, seed, root_best, root_probability, V, text,
                                         length + step, growing, BITS, SUFFIXES, SUFFIXES_PAD, PROBES, PROBES_PAD, STRICT)
        reach *= likely
        growing = growing & (count < allowed) & is_worth_drafting(reach, step, expected, COST)
        expected += tl.where(growing, reach, 0.0)
        draft = tl.where(k == tl.where(growing, step, -1), word, draft)
        count += growing.to(tl.int64)
        growing = growing & (word != end_token)
        older = tl.sum(tl.where(s[:, None] == s[None, :] + 1, text[None, :], 0), axis=1)
        text = tl.where(s == 0, word, older)
    tl.store(proposed + b * K + k, draft, mask=k < K)
    tl.store(proposed_lengths + b, count)


def ngram_lookup_triton(table: Hash, tokens, lengths, finished, limits, budgets, end_token, cost, proposed,
                        proposed_lengths) -> None:
    """One launch, without synchronisation."""
    B, K = proposed.shape
    _ngram_lookup_kernel[(B,)](
        *table.tensors(), tokens, lengths, finished, limits, budgets, proposed, proposed_lengths, end_token, tokens.shape[1],
        **table.constants(), COST=cost, K=K, K_PAD=power_of_2(max(K, 1)), num_warps=1)
