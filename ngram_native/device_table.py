"""A table as open-addressing hash arrays for GPU kernels, with reference look-ups on the CPU.

Layout. One slot array of S = 2^bits entries contains every context of 1..N-1 tokens:

    keys              [S] int64     the context's hash as a bit pattern; 0 marks an empty slot
    best              [S] int32     the token with the largest probability after the context
    best_probability  [S] float32   its probability

A second array contains every n-gram of 2..N tokens in G = 2^gram_bits buckets, one cache line each:

    grams             [G, 8] int64  four hashes of n-grams (0: empty, filled from the first), then their four records:
                                    p(last token | the tokens before) in the low 32 bits and the back-off as a context in the
                                    high 32 bits, both float32. Bit 31 (a sign bit) of the last record marks a bucket that
                                    overflowed: a further n-gram is in the next bucket that had room
    singles           [V] int64     the records of single tokens

Hash of a context, from its NEWEST token back, so that one pass over the last tokens yields the hash of every suffix, the
shortest first (uint64, wrapping; `>>` shifts in zeros):

    h = seed
    for token in the context, the last one first:
        h = (h ^ (token + 1)) * 0x9E3779B97F4A7C15     as int64: -7046029254386353131
        h = h ^ (h >> 32)
    if h == 0: h = 1

Look-up of a context: slot = h >> (64 - bits); while keys[slot] is neither h nor 0: slot = (slot + 1) mod S. No context is
more than `probes` - 1 slots from its first slot, so a kernel may unroll a loop of `probes`. At most half of the slots are
used. Look-up of an n-gram: bucket = h >> (64 - gram_bits); while h is not in the bucket and the bucket is marked: bucket =
(bucket + 1) mod G; at most `gram_probes` buckets. The seed is chosen so that all hashes of a table differ. An n-gram that is
not stored is mistaken for one that is with probability below 4 (probes + gram_probes) / 2^64.

A draft. Look up the suffixes of min(N - 1, length) tokens down to 1 and take the LONGEST that is stored. (A suffix of a
stored context is stored, so going up from 1 token to the first one missing finds the same.) Append its `best`, multiply the
reach by `best_probability`, and continue by the rule of foredraft.ngram_native.stopping. In a `strict` table only the
context of exactly min(N - 1, length) tokens is looked up; if it is missing, token 0 with probability 1 / V follows.

A probability p(w | context): for size = min(N - 1, length) down to 1, if the last `size` tokens and w are an n-gram, its
probability times the back-offs so far; else multiply by the back-off of those tokens if they are a context. At size 0: the
unigram. (`strict` tables: after the first size, the back-off so far times 1 / V.)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from foredraft.atomic_write import open_atomic
from foredraft.kernels.core.backend import njit
from foredraft.ngram_native.table import Table

MULTIPLIER = 0x9E3779B97F4A7C15
EMPTY = 0
SEED_STEP = 0x1D8E4E27C47D124F
BUCKET = 4  # n-grams in a bucket
OVERFLOW = 1 << 31


@dataclass(frozen=True)
class DeviceTable:
    """The arrays and constants of the module's docstring; arrays can be copied to a device unchanged."""

    order: int
    vocab_size: int
    seed: int
    bits: int
    probes: int
    root_best: int
    root_probability: float
    strict: bool
    gram_bits: int
    gram_probes: int
    keys: np.ndarray
    best: np.ndarray
    best_probability: np.ndarray
    grams: np.ndarray
    singles: np.ndarray


def hash_reference(context: list[int], seed: int) -> int:
    """The hash of a context as an unsigned integer."""
    value = seed
    for token in reversed(context):
        value = (value ^ (token + 1)) * MULTIPLIER % 2**64
        value ^= value >> 32
    return value or 1


def probe_reference(device: DeviceTable, context: list[int]) -> tuple[int, float] | None:
    """(best, best_probability) of exactly this context of 1..N-1 tokens, or None."""
    value = hash_reference(context, device.seed)
    slot = value >> (64 - device.bits)
    for _ in range(device.probes):
        key = int(device.keys[slot]) % 2**64
        if key == value:
            return int(device.best[slot]), float(device.best_probability[slot])
        if key == EMPTY:
            return None
        slot = (slot + 1) % len(device.keys)
    return None


def gram_reference(device: DeviceTable, tokens: list[int]) -> tuple[float, float] | None:
    """(probability, back-off) of exactly this n-gram of 1..N tokens, or None."""
    if len(tokens) == 1:
        return _pair(device.singles[tokens[0]])
    value = hash_reference(tokens, device.seed)
    bucket = value >> (64 - device.gram_bits)
    for _ in range(device.gram_probes):
        line = device.grams[bucket]
        for entry in range(BUCKET):
            if int(line[entry]) % 2**64 == value:
                return _pair(line[BUCKET + entry])
        if not int(line[-1]) & OVERFLOW:
            return None
        bucket = (bucket + 1) % len(device.grams)
    return None


def _pair(record: np.int64) -> tuple[float, float]:
    return tuple(np.array([int(record) & ~OVERFLOW]).view(np.float32).tolist())


def probability_reference(device: DeviceTable, context: list[int], token: int) -> float:
    """p(token | context), context of any length."""
    weight = 1.0
    for size in range(min(device.order - 1, len(context)), 0, -1):
        last = context[-size:]
        if (gram := gram_reference(device, [*last, token])) is not None:
            return weight * gram[0]
        if (gram := gram_reference(device, last)) is not None:
            weight *= gram[1]
        if device.strict:
            return weight / device.vocab_size
    return weight * gram_reference(device, [token])[0]


@njit()
def mix(value, token):
    """The hash of an n-gram with `token` put before its first token."""
    value = (value ^ np.uint64(token + 1)) * np.uint64(MULTIPLIER)
    return value ^ (value >> np.uint64(32))


def next_reference(device: DeviceTable, text: list[int]) -> tuple[int, float]:
    """The most probable token after `text` and its probability, by the longest context that is stored."""
    longest = min(device.order - 1, len(text))
    if device.strict and longest:
        return probe_reference(device, text[-longest:]) or (0, 1 / device.vocab_size)
    answer = device.root_best, device.root_probability
    for size in range(1, longest + 1):
        found = probe_reference(device, text[-size:])
        if found is None:
            break
        answer = found
    return answer


def export_device(table: Table) -> DeviceTable:
    """Convert a table."""
    contexts, nodes, V = len(table.best), sum(table.sizes), table.vocab_size
    parents = _parents(table)
    for attempt in range(1, 100):
        # a large seed: a small one could cancel against a small token
        seed = attempt * SEED_STEP % 2**63
        hashes = _hash_nodes(table.ids, parents, V, nodes, np.uint64(seed))
        if len(np.unique(hashes)) == nodes:
            break
    # at most half of the slots, and of the entries of buckets, are used
    bits = max(int(2 * contexts - 1).bit_length(), 1)
    keys, slots = np.zeros(1 << bits, np.uint64), np.zeros(contexts, np.int64)
    probes = _fill(keys, hashes[:contexts], np.uint64(64 - bits), slots)
    best, probability = np.zeros(len(keys), np.int32), np.zeros(len(keys), np.float32)
    best[slots], probability[slots] = table.best, table.values("best_probability")
    pairs = np.ones((nodes, 2), np.float32)
    pairs[:V, 0], pairs[V:, 0] = table.unigrams, table.values("probabilities")
    pairs[: len(table.backoffs), 1] = table.backoffs
    records = pairs.view(np.uint64)[:, 0]
    gram_bits = max(int(2 * (nodes - V) - 1).bit_length() - 2, 1)
    grams = _lines(1 << gram_bits)
    gram_probes = _fill_buckets(grams, hashes[V:], records[V:], np.uint64(64 - gram_bits))
    root = int(np.argmax(table.unigrams))
    return DeviceTable(
        table.order, V, seed, bits, int(probes), root, float(table.unigrams[root]), table.strict, gram_bits,
        int(gram_probes), keys.view(np.int64), best, probability, grams.view(np.int64), records[:V].view(np.int64).copy())


def _lines(count: int) -> np.ndarray:
    """[count, 8] uint64 zeros, aligned to 64 bytes."""
    buffer = np.zeros(count * 2 * BUCKET + 7, np.uint64)
    skipped = -buffer.ctypes.data % 64 // 8
    return buffer[skipped : skipped + count * 2 * BUCKET].reshape(count, 2 * BUCKET)


def save_device(device: DeviceTable, path: str | Path) -> None:
    """Write every field to an `.npz` file under its name, atomically."""
    with open_atomic(path) as file:
        np.savez(file, **{one.name: getattr(device, one.name) for one in fields(device)})


def _parents(table: Table) -> np.ndarray:
    """[M] int64: the node of all tokens but the last; -1 for a single token."""
    children = np.diff(table.first_child.astype(np.int64))
    return np.concatenate([np.full(table.vocab_size, -1), np.repeat(np.arange(len(children)), children)])


@njit()
def _hash_nodes(ids, parents, vocab_size, nodes, seed):
    """[M] uint64: the hash of every node's tokens."""
    hashes = np.empty(nodes, np.uint64)
    for start in range(nodes):
        value, node = seed, np.int64(start)
        while node >= 0:
            token = node if node < vocab_size else np.int64(ids[node - vocab_size])
            value = mix(value, token)
            node = parents[node]
        hashes[start] = value if value != np.uint64(0) else np.uint64(1)
    return hashes


@njit()
def _fill(keys, hashes, shift, slots):
    """Insert every hash; returns the largest number of slots that a look-up reads."""
    longest, mask = 0, len(keys) - 1
    for context in range(len(hashes)):
        slot = np.int64(hashes[context] >> shift)
        probes = 1
        while keys[slot] != np.uint64(0):
            slot = (slot + 1) & mask
            probes += 1
        keys[slot] = hashes[context]
        slots[context] = slot
        longest = max(longest, probes)
    return longest


@njit()
def _fill_buckets(grams, hashes, records, shift):
    """Insert every n-gram; returns the largest number of buckets that a look-up reads."""
    longest, mask = 1, len(grams) - 1
    for gram in range(len(hashes)):
        bucket, probes = np.int64(hashes[gram] >> shift), 1
        while grams[bucket, BUCKET - 1] != np.uint64(0):
            grams[bucket, 2 * BUCKET - 1] |= np.uint64(OVERFLOW)
            bucket = (bucket + 1) & mask
            probes += 1
        entry = 0
        while grams[bucket, entry] != np.uint64(0):
            entry += 1
        grams[bucket, entry], grams[bucket, BUCKET + entry] = hashes[gram], records[gram]
        longest = max(longest, probes)
    return longest
