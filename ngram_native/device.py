"""A table as flat open-addressing arrays that a GPU kernel can probe, and the probe on the CPU that says what is right.

Layout. One slot array of S = 2^bits entries holds every context of 1..N-1 ids, whatever its length:

    keys              [S] int64     the context's hash as a bit pattern; 0: an empty slot
    best              [S] int32     the id with the largest probability after the context
    best_probability  [S] float32   that probability
    root_best         int           the same two after no context, for a text whose last id was never seen
    root_probability  float

Hash of a context, computed from its NEWEST id back, so that one pass over the last ids gives the hash of every suffix,
shortest first (all in uint64, wrapping; `>>` shifts in zeros):

    h = seed
    for id in the context, the last one first:
        h = (h ^ (id + 1)) * 0x9E3779B97F4A7C15        as int64: -7046029254386353131
        h = h ^ (h >> 32)
    if h == 0: h = 1

Probing. slot = h >> (64 - bits); while keys[slot] is neither h nor 0: slot = (slot + 1) mod S. No context is further than
`probes` - 1 slots from its first, so a kernel may unroll a loop of `probes`. At most half of the slots are used. All keys of
a table differ (the seed is chosen so); an id sequence that is no context is taken for one with probability below
probes / 2^64.

A draft. For the text so far, look up the suffixes of min(N - 1, length) ids down to 1 and take the LONGEST that is there (a
suffix of a context is a context, so going up from 1 id and stopping at the first that is missing gives the same). Append
its `best`, multiply the reach by `best_probability`, and so on by the stopping rule of foredraft.ngram_native.query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from foredraft.ngram_native.table import Table

MULTIPLIER = 0x9E3779B97F4A7C15
EMPTY = 0
SEED_STEP = 0x1D8E4E27C47D124F


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
    keys: np.ndarray
    best: np.ndarray
    best_probability: np.ndarray


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


def next_reference(device: DeviceTable, text: list[int]) -> tuple[int, float]:
    """The likeliest id after `text` and its probability, by the longest context that is there."""
    answer = device.root_best, device.root_probability
    for size in range(1, min(device.order - 1, len(text)) + 1):
        found = probe_reference(device, text[-size:])
        if found is None:
            break
        answer = found
    return answer


def export_device(table: Table) -> DeviceTable:
    """Flatten a table's contexts."""
    contexts = len(table.best)
    bits = max(int(2 * contexts - 1).bit_length(), 1)
    parents = _parents(table)
    for attempt in range(1, 100):
        # far from any id: small seeds would cancel against small ids
        seed = attempt * SEED_STEP % 2**63
        hashes = _hash_contexts(table.ids, parents, table.vocab_size, contexts, np.uint64(seed))
        if len(np.unique(hashes)) == contexts:
            break
    keys, slots = np.zeros(1 << bits, np.uint64), np.zeros(contexts, np.int64)
    probes = _fill(keys, hashes, np.uint64(64 - bits), slots)
    best, probability = np.zeros(1 << bits, np.int32), np.zeros(1 << bits, np.float32)
    best[slots], probability[slots] = table.best, table.best_probability
    root = int(np.argmax(table.alphas[: table.vocab_size]))
    return DeviceTable(
        table.order, table.vocab_size, seed, bits, int(probes), root, float(table.alphas[root]), keys.view(np.int64), best,
        probability)


def _parents(table: Table) -> np.ndarray:
    """[M] int64: the node of all ids but the last; -1 for a single id."""
    children = np.diff(table.first_child.astype(np.int64))
    return np.concatenate([np.full(table.vocab_size, -1), np.repeat(np.arange(len(children)), children)])


@njit(cache=True, nogil=True)
def _hash_contexts(ids, parents, vocab_size, contexts, seed):
    """[C] uint64: the hash of every context, which starts from its node's own id and climbs."""
    hashes = np.empty(contexts, np.uint64)
    for context in range(contexts):
        value, node = seed, np.int64(context)
        while node >= 0:
            token = node if node < vocab_size else np.int64(ids[node - vocab_size])
            value = (value ^ np.uint64(token + 1)) * np.uint64(MULTIPLIER)
            value ^= value >> np.uint64(32)
            node = parents[node]
        hashes[context] = value if value != np.uint64(0) else np.uint64(1)
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
