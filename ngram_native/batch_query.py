"""Batched look-ups in the hash buckets of foredraft.ngram_native.device_table.

A look-up is bound by the latency of its memory accesses, one for every order, and by unpredictable branches. So the buckets
of the look-up AHEAD positions on are prefetched before the present one is answered (Chen, Ailamaki, Gibbons and Mowry 2004,
"Improving hash join performance through prefetching"), and a bucket, one cache line, is compared with vector instructions.
Results equal those of foredraft.ngram_native.query.
"""

from __future__ import annotations

import numpy as np
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from foredraft.kernels.core.backend import njit
from foredraft.ngram_native.device_table import BUCKET, OVERFLOW, DeviceTable, mix

RING = 16  # slots for look-ups in flight; a power of two above AHEAD
AHEAD = 8  # prefetch distance in look-ups
MISSING = np.uint64(0x3F80000000000000)  # probability 0, back-off 1


def probabilities(device: DeviceTable, contexts: np.ndarray, tokens: np.ndarray,
                  out: np.ndarray | None = None) -> np.ndarray:
    """p(tokens[i] | contexts[i]) [n] float64, for contexts [n, L] and tokens [n] int64; written to `out` if it is given."""
    out = np.empty(len(tokens)) if out is None else out
    _batch_loop(*_packed(device), min(device.order - 1, contexts.shape[1]), contexts, tokens, out)
    return out


def score(device: DeviceTable, tokens: np.ndarray, starts: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Natural log-probabilities of sequences (see query.score).

    Parameters
    ----------
    device
        The model.
    tokens
        [n] int64, all sequences one after the other.
    starts
        [m + 1] int64: sequence s is tokens[starts[s] : starts[s + 1]]; starts[0] is 0.
    out
        [n] float64 to write to; allocated by default.

    Returns
    -------
    numpy.ndarray
        [n] float64, log p; 0 for the first token of a sequence.
    """
    out = np.empty(len(tokens)) if out is None else out
    _score_loop(*_packed(device), (0,) * device.order, np.asarray(tokens, np.int64), np.asarray(starts, np.int64), out)
    return np.log(out, out=out)


def _packed(device: DeviceTable) -> tuple:
    return (np.uint64(device.grams.ctypes.data), np.uint64(len(device.grams) - 1), np.uint64(64 - device.gram_bits),
            device.singles, np.uint64(device.seed), device.strict, device.vocab_size)


@intrinsic
def _prefetch(typingctx, address):
    def codegen(context, builder, signature, args):
        from llvmlite import ir

        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        # arguments: address, 0 (read), 3 (keep in all cache levels), 1 (data)
        fetch = get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]), "llvm.prefetch.p0i8")
        builder.call(fetch, [builder.inttoptr(args[0], byte), *(ir.Constant(i32, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@intrinsic
def _compare(typingctx, address, value):
    """(record, found, end) for the hash `value` in the bucket at an address, without branches.

    The record is the bucket's last one if the hash is not found. `end` is true if no further bucket has to be read.
    """

    def codegen(context, builder, signature, args):
        from llvmlite import ir

        i1, i4, i32, i64 = map(ir.IntType, (1, BUCKET, 32, 64))
        four = ir.VectorType(i64, BUCKET)
        base = builder.inttoptr(args[0], i64.as_pointer())
        keys = builder.load(builder.bitcast(base, four.as_pointer()), align=8)
        undefined = ir.Constant(four, ir.Undefined)
        spread = builder.shuffle_vector(
            builder.insert_element(undefined, args[1], ir.Constant(i32, 0)), undefined,
            ir.Constant(ir.VectorType(i32, BUCKET), [0] * BUCKET))
        equal = builder.bitcast(builder.icmp_unsigned("==", keys, spread), i4)
        first = get_or_insert_function(builder.module, ir.FunctionType(i32, [i32, i1]), "llvm.cttz.i32")
        entry = builder.call(first, [builder.or_(builder.zext(equal, i32), ir.Constant(i32, 1 << (BUCKET - 1))), i1(1)])
        at = builder.add(builder.zext(entry, i64), ir.Constant(i64, BUCKET))
        record = builder.load(builder.gep(base, [at]), align=8)
        found = builder.icmp_unsigned("!=", equal, ir.Constant(i4, 0))
        no_overflow = builder.and_(builder.not_(record), ir.Constant(i64, OVERFLOW))
        # one comparison, because two would be compiled to two branches
        ends = builder.icmp_unsigned("!=", builder.or_(builder.zext(equal, i64), no_overflow), ir.Constant(i64, 0))
        return context.make_tuple(builder, signature.return_type, [record, found, ends])

    return types.Tuple((types.uint64, types.boolean, types.boolean))(types.uint64, types.uint64), codegen


@intrinsic
def _floats(typingctx, record):
    """(probability, back-off) of a record, without the overflow bit."""

    def codegen(context, builder, signature, args):
        from llvmlite import ir

        i32, single, double = ir.IntType(32), ir.FloatType(), ir.DoubleType()
        low = builder.and_(builder.trunc(args[0], i32), ir.Constant(i32, OVERFLOW - 1))
        high = builder.trunc(builder.lshr(args[0], ir.Constant(ir.IntType(64), 32)), i32)
        halves = [builder.fpext(builder.bitcast(half, single), double) for half in (low, high)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(types.float64, 2)(types.uint64), codegen


@njit()
def _bucket(grams, shift, value):
    """The address of the bucket of a hash."""
    return grams + ((value >> shift) << np.uint64(6))


@njit()
def _find(grams, mask, shift, value):
    """(probability, back-off, found) of the n-gram with this hash; 0 and 1 if it is not stored."""
    bucket = value >> shift
    record, found, ends = _compare(grams + (bucket << np.uint64(6)), value)
    while not ends:
        bucket = (bucket + np.uint64(1)) & mask
        record, found, ends = _compare(grams + (bucket << np.uint64(6)), value)
    probability, backoff = _floats(record if found else MISSING)
    return probability, backoff, found


@njit()
def _score_loop(grams, mask, shift, singles, seed, strict, vocab_size, ranks, tokens, starts, out):
    """p of every token, 1 for the first of a sequence. `ranks` is a tuple of length N, so that N is a compile-time constant.

    A position before the sequence's first is token -1, which no n-gram contains, so n-grams with it are not found.
    backoffs [2, N] are those of the n-grams that end in this token and in the token before it.
    """
    n, one, last, order = len(tokens), np.uint64(1), np.uint64(RING - 1), len(ranks)
    hashes, known, backoffs = np.zeros((RING, len(ranks)), np.uint64), np.zeros(RING, np.int64), np.ones((2, len(ranks)))
    sequence, first, following = 0, 0, starts[0]
    for step in range(n + AHEAD):
        if step < n:
            while step == following:
                first, following = step, starts[sequence + 1]
                sequence += 1
            slot = np.uint64(step) & last
            known[slot] = step - first
            value = mix(seed, tokens[step])
            for j in range(1, order):
                value = mix(value, tokens[np.uint64(step - j)] if j <= step - first else -1)
                hashes[slot, np.uint64(j)] = max(value, one)
                _prefetch(_bucket(grams, shift, max(value, one)))
        position = step - AHEAD
        if position >= 0:
            slot, now = np.uint64(position) & last, np.uint64(position) & one
            likely, backoffs[now, 0] = _floats(singles[np.uint64(tokens[np.uint64(position)])])
            for j in range(1, order):
                own, backoff, found = _find(grams, mask, shift, hashes[slot, np.uint64(j)])
                lower = 1.0 / vocab_size if strict and j <= known[slot] else likely
                backed = backoffs[now ^ one, np.uint64(j - 1)] * lower
                backoffs[now, np.uint64(j)] = backoff
                likely = own if found else backed
            out[position] = likely if known[slot] else 1.0


@njit()
def _batch_loop(grams, mask, shift, singles, seed, strict, vocab_size, longest, contexts, tokens, out):
    """hashes [RING, context size, 2]: of the n-gram that ends in the token, and of its context."""
    n, one, last, newest = len(tokens), np.uint64(1), np.uint64(RING - 1), contexts.shape[1]
    hashes = np.zeros((RING, longest + 1, 2), np.uint64)
    for step in range(n + AHEAD):
        if step < n:
            slot = np.uint64(step) & last
            gram, context = mix(seed, tokens[step]), seed
            for j in range(1, longest + 1):
                token = contexts[step, newest - j]
                gram, context = mix(gram, token), mix(context, token)
                hashes[slot, j, 0], hashes[slot, j, 1] = max(gram, one), max(context, one)
                _prefetch(_bucket(grams, shift, max(gram, one)))
                if j > 1:
                    _prefetch(_bucket(grams, shift, max(context, one)))
        i = step - AHEAD
        if i >= 0:
            slot = np.uint64(i) & last
            likely, _ = _floats(singles[tokens[i]])
            for j in range(1, longest + 1):
                if j == 1:
                    _, backoff = _floats(singles[contexts[i, newest - 1]])
                else:
                    _, backoff, _ = _find(grams, mask, shift, hashes[slot, j, 1])
                own, _, found = _find(grams, mask, shift, hashes[slot, j, 0])
                backed = backoff * (1.0 / vocab_size if strict else likely)
                likely = own if found else backed
            out[i] = likely
