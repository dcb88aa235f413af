"""Many look-ups at once, over the n-grams in buckets (foredraft.ngram_native.device_table).

What a look-up costs is its ways to memory, one for every order, and the branches that a processor cannot foresee. Here the
buckets of the look-up AHEAD places on are asked for before the one at hand is answered (software prefetching: Chen,
Ailamaki, Gibbons and Mowry 2004, "Improving hash join performance through prefetching"), and a bucket, one cache line, is
compared whole. Answers are those of foredraft.ngram_native.query.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from foredraft.ngram_native.device_table import BUCKET, MARK, DeviceTable, mixed

RING = 16  # look-ups under way together; a power of two
AHEAD = 8
MISSED = np.uint64(0x3F80000000000000)  # probability 0, back-off 1


def probabilities(device: DeviceTable, contexts: np.ndarray, words: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """p(words[i] | contexts[i]) for a batch: contexts [n, L] int64, L up to N - 1, words [n] int64 -> [n] float64."""
    out = np.empty(len(words)) if out is None else out
    _batch_loop(*_packed(device), min(device.order - 1, contexts.shape[1]), contexts, words, out)
    return out


def score(device: DeviceTable, tokens: np.ndarray, starts: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """log p of every id after the first of its sequence, natural: [n] float64, 0 for the first ones (they are given).

    tokens [n] int64; sequence s is tokens[starts[s] : starts[s + 1]], and starts[0] is 0. An id's contexts are the n-grams
    that ended in the id before it, so that one bucket an order is read for each id.
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
        # (address, 0: to read, 3: keep in all caches, 1: data)
        fetch = get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]), "llvm.prefetch.p0i8")
        builder.call(fetch, [builder.inttoptr(args[0], byte), *(ir.Constant(i32, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@intrinsic
def _compare(typingctx, address, value):
    """(record, whether it is that of the hash `value`, whether the search ends here) for the bucket at an address.

    The record is the bucket's last one if none is. All three come without a branch: which n-grams are there is as good as
    random.
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
        place = builder.call(first, [builder.or_(builder.zext(equal, i32), ir.Constant(i32, 1 << (BUCKET - 1))), i1(1)])
        at = builder.add(builder.zext(place, i64), ir.Constant(i64, BUCKET))
        record = builder.load(builder.gep(base, [at]), align=8)
        found = builder.icmp_unsigned("!=", equal, ir.Constant(i4, 0))
        unmarked = builder.and_(builder.not_(record), ir.Constant(i64, MARK))
        # one test of both: as two it would be compiled to two branches
        ends = builder.icmp_unsigned("!=", builder.or_(builder.zext(equal, i64), unmarked), ir.Constant(i64, 0))
        return context.make_tuple(builder, signature.return_type, [record, found, ends])

    return types.Tuple((types.uint64, types.boolean, types.boolean))(types.uint64, types.uint64), codegen


@intrinsic
def _floats(typingctx, record):
    """(probability, back-off) of a record, without the mark."""

    def codegen(context, builder, signature, args):
        from llvmlite import ir

        i32, single, double = ir.IntType(32), ir.FloatType(), ir.DoubleType()
        low = builder.and_(builder.trunc(args[0], i32), ir.Constant(i32, MARK - 1))
        high = builder.trunc(builder.lshr(args[0], ir.Constant(ir.IntType(64), 32)), i32)
        halves = [builder.fpext(builder.bitcast(half, single), double) for half in (low, high)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(types.float64, 2)(types.uint64), codegen


@njit(cache=True, nogil=True)
def _bucket(grams, shift, value):
    """The address of a hash's bucket."""
    return grams + ((value >> shift) << np.uint64(6))


@njit(cache=True, nogil=True)
def _find(grams, mask, shift, value):
    """(probability, back-off, whether it is there) of the n-gram with this hash; 0 and 1 if it is not."""
    bucket = value >> shift
    record, found, ends = _compare(grams + (bucket << np.uint64(6)), value)
    while not ends:
        bucket = (bucket + np.uint64(1)) & mask
        record, found, ends = _compare(grams + (bucket << np.uint64(6)), value)
    probability, backoff = _floats(record if found else MISSED)
    return probability, backoff, found


@njit(cache=True, nogil=True)
def _score_loop(grams, mask, shift, singles, seed, strict, vocab_size, ranks, tokens, starts, out):
    """p of every id, 1 for first ones. ranks: N of anything, a tuple, so that the compiler knows N.

    An id before the sequence's first is -1, which no n-gram holds: what is looked up with it is not there, at no cost.
    backoffs [2, N]: of the n-grams that end in this id and in the one before it.
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
            value = mixed(seed, tokens[step])
            for j in range(1, order):
                value = mixed(value, tokens[np.uint64(step - j)] if j <= step - first else -1)
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


@njit(cache=True, nogil=True)
def _batch_loop(grams, mask, shift, singles, seed, strict, vocab_size, longest, contexts, words, out):
    """hashes [.., 0]: the n-gram that ends in the word, [.., 1]: its context, both by how many ids that has."""
    n, one, last, newest = len(words), np.uint64(1), np.uint64(RING - 1), contexts.shape[1]
    hashes = np.zeros((RING, longest + 1, 2), np.uint64)
    for step in range(n + AHEAD):
        if step < n:
            slot = np.uint64(step) & last
            gram, context = mixed(seed, words[step]), seed
            for j in range(1, longest + 1):
                token = contexts[step, newest - j]
                gram, context = mixed(gram, token), mixed(context, token)
                hashes[slot, j, 0], hashes[slot, j, 1] = max(gram, one), max(context, one)
                _prefetch(_bucket(grams, shift, max(gram, one)))
                if j > 1:
                    _prefetch(_bucket(grams, shift, max(context, one)))
        i = step - AHEAD
        if i >= 0:
            slot = np.uint64(i) & last
            likely, _ = _floats(singles[words[i]])
            for j in range(1, longest + 1):
                if j == 1:
                    _, backoff = _floats(singles[contexts[i, newest - 1]])
                else:
                    _, backoff, _ = _find(grams, mask, shift, hashes[slot, j, 1])
                own, _, found = _find(grams, mask, shift, hashes[slot, j, 0])
                backed = backoff * (1.0 / vocab_size if strict else likely)
                likely = own if found else backed
            out[i] = likely
