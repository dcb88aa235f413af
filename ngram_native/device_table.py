"""A table as flat open-addressing arrays that a GPU kernel can probe, and the probe on the CPU that says what is right.

Layout. One slot array of S = 2^bits entries holds every context of 1..N-1 ids, whatever its length:

    keys              [S] int64     the context's hash as a bit pattern; 0: an empty slot
    best              [S] int32     the id with the largest probability after the context
    best_probability  [S] float32   that probability

A second one holds every n-gram of 2..N ids in G = 2^gram_bits buckets of one cache line:

    grams             [G, 8] int64  four hashes of all an n-gram's ids (0: empty, filled from the first), then four records:
                                    p(last id | the ids before) as the low 32 bits, the back-off as a context as the high
                                    ones, both float32; the last record's sign bit 31 marks a bucket that was full when
                                    another n-gram came, which then lies in the next bucket that had room
    singles           [V] int64     the records of single ids

Hash of a context, computed from its NEWEST id back, so that one pass over the last ids gives the hash of every suffix,
shortest first (all in uint64, wrapping; `>>` shifts in zeros):

    h = seed
    for id in the context, the last one first:
        h = (h ^ (id + 1)) * 0x9E3779B97F4A7C15        as int64: -7046029254386353131
        h = h ^ (h >> 32)
    if h == 0: h = 1

Probing for a context: slot = h >> (64 - bits); while keys[slot] is neither h nor 0: slot = (slot + 1) mod S. No context is
further than `probes` - 1 slots from its first, so a kernel may unroll a loop of `probes`. At most half of the slots are
used. Probing for an n-gram: bucket = h >> (64 - gram_bits); while h is not in it and it is marked: bucket = (bucket + 1)
mod G, and no n-gram is further than `gram_probes` - 1 buckets from its first. All hashes of a table differ (the seed is
chosen so); ids that are not there are taken for ones that are with probability below 4 (probes + gram_probes) / 2^64.

A draft. For the text so far, look up the suffixes of min(N - 1, length) ids down to 1 and take the LONGEST that is there (a
suffix of a context is a context, so going up from 1 id and stopping at the first that is missing gives the same). Append
its `best`, multiply the reach by `best_probability`, and so on by the stopping rule of foredraft.ngram_native.query. In a
`strict` table only all the last min(N - 1, length) ids count; where they are missing, id 0 with probability 1 / V follows.

A probability. p(w | context): for size = min(N - 1, length) down to 1, if the last `size` ids and w are an n-gram, its
probability times the back-offs met so far; else multiply by the back-off of those ids if they are a context; at size 0
the unigram. (`strict` tables: at the first size, found or not, the back-off so far times 1 / V.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numba import njit

from foredraft.ngram_native.table import Table

MULTIPLIER = 0x9E3779B97F4A7C15
EMPTY = 0
SEED_STEP = 0x1D8E4E27C47D124F
BUCKET = 4  # n-grams of a bucket
MARK = 1 << 31


@dataclass(frozen=True)
class DeviceTable:
    """See the module docstring. Every array may be moved to a device as it is."""

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
    """(best, best_probability) of exactly this context of 1..N-1 ids, or None."""
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


def gram_reference(device: DeviceTable, ids: list[int]) -> tuple[float, float] | None:
    """(probability, back-off) of exactly this n-gram of 1..N ids, or None."""
    if len(ids) == 1:
        return _pair(device.singles[ids[0]])
    value = hash_reference(ids, device.seed)
    bucket = value >> (64 - device.gram_bits)
    for _ in range(device.gram_probes):
        line = device.grams[bucket]
        for place in range(BUCKET):
            if int(line[place]) % 2**64 == value:
                return _pair(line[BUCKET + place])
        if not int(line[-1]) & MARK:
            return None
        bucket = (bucket + 1) % len(device.grams)
    return None


def _pair(record: np.int64) -> tuple[float, float]:
    return tuple(np.array([int(record) & ~MARK]).view(np.float32).tolist())


def probability_reference(device: DeviceTable, context: list[int], word: int) -> float:
    """p(word | context), context of any length."""
    weight = 1.0
    for size in range(min(device.order - 1, len(context)), 0, -1):
        last = context[-size:]
        if (gram := gram_reference(device, [*last, word])) is not None:
            return weight * gram[0]
        if (gram := gram_reference(device, last)) is not None:
            weight *= gram[1]
        if device.strict:
            return weight / device.vocab_size
    return weight * gram_reference(device, [word])[0]


@njit(cache=True, nogil=True)
def mixed(value, token):
    value = (value ^ np.uint64(token + 1)) * np.uint64(MULTIPLIER)
    return value ^ (value >> np.uint64(32))


def next_reference(device: DeviceTable, text: list[int]) -> tuple[int, float]:
    """The likeliest id after `text` and its probability, by the longest context that is there."""
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
    """Flatten a table."""
    contexts, nodes, V = len(table.best), sum(table.sizes), table.vocab_size
    parents = _parents(table)
    for attempt in range(1, 100):
        # far from any id: small seeds would cancel against small ids
        seed = attempt * SEED_STEP % 2**63
        hashes = _hash_nodes(table.ids, parents, V, nodes, np.uint64(seed))
        if len(np.unique(hashes)) == nodes:
            break
    # at most half of the slots and of the places in buckets are used
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
    """[count, 8] uint64 zeros, at multiples of 64 bytes."""
    room = np.zeros(count * 2 * BUCKET + 7, np.uint64)
    skipped = -room.ctypes.data % 64 // 8
    return room[skipped : skipped + count * 2 * BUCKET].reshape(count, 2 * BUCKET)


def save_device(device: DeviceTable, path: str | Path) -> None:
    """Write the layout as .npz, every field by its name: a temporary file, flushed to the disk, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "wb") as file:
        np.savez(file, **{one.name: getattr(device, one.name) for one in fields(device)})
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _parents(table: Table) -> np.ndarray:
    """[M] int64: the node of all ids but the last; -1 for a single id."""
    children = np.diff(table.first_child.astype(np.int64))
    return np.concatenate([np.full(table.vocab_size, -1), np.repeat(np.arange(len(children)), children)])


@njit(cache=True, nogil=True)
def _hash_nodes(ids, parents, vocab_size, nodes, seed):
    """[M] uint64: the hash of every node's ids, from its own one up."""
    hashes = np.empty(nodes, np.uint64)
    for start in range(nodes):
        value, node = seed, np.int64(start)
        while node >= 0:
            token = node if node < vocab_size else np.int64(ids[node - vocab_size])
            value = mixed(value, token)
            node = parents[node]
        hashes[start] = value if value != np.uint64(0) else np.uint64(1)
    return hashes


@njit(cache=True, nogil=True)
def _fill(keys, hashes, shift, slots):
    """Place every hash; returns the longest way that a probe may go."""
    longest, mask = 0, len(keys) - 1
    for context in range(len(hashes)):
        slot = np.int64(hashes[context] >> shift)
        way = 1
        while keys[slot] != np.uint64(0):
            slot = (slot + 1) & mask
            way += 1
        keys[slot] = hashes[context]
        slots[context] = slot
        longest = max(longest, way)
    return longest


@njit(cache=True, nogil=True)
def _fill_buckets(grams, hashes, records, shift):
    """Place every n-gram; returns the most buckets that a probe may go through."""
    longest, mask = 1, len(grams) - 1
    for gram in range(len(hashes)):
        bucket, way = np.int64(hashes[gram] >> shift), 1
        while grams[bucket, BUCKET - 1] != np.uint64(0):
            grams[bucket, 2 * BUCKET - 1] |= np.uint64(MARK)
            bucket = (bucket + 1) & mask
            way += 1
        place = 0
        while grams[bucket, place] != np.uint64(0):
            place += 1
        grams[bucket, place], grams[bucket, BUCKET + place] = hashes[gram], records[gram]
        longest = max(longest, way)
    return longest
