"""A table as flat open-addressing arrays that a GPU kernel can probe, and the probe on the CPU that says what is right.

Layout. One slot array of S = 2^bits entries holds every context of 1..N-1 ids, whatever its length:

    keys              [S] int64     the context's hash as a bit pattern; 0: an empty slot
    best              [S] int32     the id with the largest probability after the context
    best_probability  [S] float32   that probability

A second one, of G = 2^gram_bits entries and with the same rules (gram_probes), holds every n-gram of 2..N ids:

    grams             [G, 2] int64  the hash of all its ids; then p(last id | the ids before) as the low 32 bits, its
                                    back-off as a context as the high ones, both float32
    unigrams          [V] float32   p(id) after no context
    backoff           [V] float32   the back-off of a single id

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
BLOCK = 32  # look-ups under way together


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
    unigrams: np.ndarray
    backoff: np.ndarray


def hash_reference(context: list[int], seed: int) -> int:
    """The hash of a context as an unsigned integer."""
    value = seed
    for token in reversed(context):
        value = (value ^ (token + 1)) * MULTIPLIER % 2**64
        value ^= value >> 32
    return value or 1


def probe_reference(device: DeviceTable, context: list[int]) -> tuple[int, float] | None:
    """(best, best_probability) of exactly this context of 1..N-1 ids, or None."""
    slot = _slot(device.keys, device.bits, device.probes, hash_reference(context, device.seed))
    return None if slot is None else (int(device.best[slot]), float(device.best_probability[slot]))


def _slot(keys: np.ndarray, bits: int, probes: int, value: int) -> int | None:
    slot = value >> (64 - bits)
    for _ in range(probes):
        key = int(keys[slot]) % 2**64
        if key == value:
            return slot
        if key == EMPTY:
            return None
        slot = (slot + 1) % len(keys)
    return None


def _gram_reference(device: DeviceTable, ids: list[int]) -> tuple[float, float] | None:
    """(probability, back-off) of exactly this n-gram of 2..N ids, or None."""
    keys = np.ascontiguousarray(device.grams[:, 0])
    slot = _slot(keys, device.gram_bits, device.gram_probes, hash_reference(ids, device.seed))
    return None if slot is None else tuple(device.grams[slot, 1:].view(np.float32).tolist())


def probability_reference(device: DeviceTable, context: list[int], word: int) -> float:
    """p(word | context), context of any length."""
    weight = 1.0
    for size in range(min(device.order - 1, len(context)), 0, -1):
        last = context[-size:]
        if (gram := _gram_reference(device, [*last, word])) is not None:
            return weight * gram[0]
        if size == 1:
            weight *= float(device.backoff[last[0]])
        elif (gram := _gram_reference(device, last)) is not None:
            weight *= gram[1]
        if device.strict:
            return weight / device.vocab_size
    return weight * float(device.unigrams[word])


def probabilities(device: DeviceTable, contexts: np.ndarray, words: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """p(words[i] | contexts[i]) for a batch, compiled: contexts [n, L] int64, L up to N - 1, words [n] int64 -> [n] float64.

    The table's own answers (query.probabilities), several times sooner: the first slots of a block of look-ups are all read
    before any is needed, so that their ways to memory overlap.
    """
    out = np.empty(len(words)) if out is None else out
    _batch_loop(device.grams.view(np.uint64), device.unigrams, device.backoff, np.uint64(device.seed),
                np.uint64(64 - device.gram_bits), min(device.order - 1, contexts.shape[1]), device.strict, contexts, words,
                out)
    return out


@njit(cache=True, nogil=True)
def _mixed(value, token):
    value = (value ^ np.uint64(token + 1)) * np.uint64(MULTIPLIER)
    return value ^ (value >> np.uint64(32))


@njit(cache=True, nogil=True)
def _probe(grams, slot, value):
    """The slot of `value` from `slot` on, or -1."""
    mask = len(grams) - 1
    while grams[slot, 0] != np.uint64(0):
        if grams[slot, 0] == value:
            return slot
        slot = (slot + 1) & mask
    return -1


@njit(cache=True, nogil=True)
def _batch_loop(grams, unigrams, backoff, seed, shift, longest, strict, contexts, words, out):
    """[0] of the work arrays: the n-gram that ends in the word, [1]: the context, both by j + 1 context ids."""
    n, last, one = len(words), contexts.shape[1] - 1, np.uint64(1)
    hashes, places = np.empty((2, BLOCK, longest), np.uint64), np.empty((2, BLOCK, longest), np.int64)
    found, values = np.empty((2, BLOCK, longest), np.uint64), np.empty((2, BLOCK, longest), np.uint64)
    # the two floats of a record, seen through the same memory
    record = np.empty(1, np.uint64)
    pair = record.view(np.float32)
    for begin in range(0, n, BLOCK):
        size = min(BLOCK, n - begin)
        for i in range(size):
            gram, context = _mixed(seed, words[begin + i]), seed
            for j in range(longest):
                token = contexts[begin + i, last - j]
                gram, context = _mixed(gram, token), _mixed(context, token)
                place = np.int64(max(gram, one) >> shift)
                hashes[0, i, j], places[0, i, j] = max(gram, one), place
                found[0, i, j], values[0, i, j] = grams[place, 0], grams[place, 1]
                if j > 0:
                    place = np.int64(max(context, one) >> shift)
                    hashes[1, i, j], places[1, i, j] = max(context, one), place
                    found[1, i, j], values[1, i, j] = grams[place, 0], grams[place, 1]
        for i in range(size):
            weight, answer = 1.0, -1.0
            for j in range(longest - 1, -1, -1):
                hit = found[0, i, j] == hashes[0, i, j]
                record[0] = values[0, i, j]
                if not hit and found[0, i, j] != np.uint64(0):
                    place = _probe(grams, places[0, i, j], hashes[0, i, j])
                    if place >= 0:
                        hit, record[0] = True, grams[place, 1]
                if hit:
                    answer = weight * pair[0]
                    break
                if j == 0:
                    weight *= backoff[contexts[begin + i, last]]
                else:
                    hit = found[1, i, j] == hashes[1, i, j]
                    record[0] = values[1, i, j]
                    if not hit and found[1, i, j] != np.uint64(0):
                        place = _probe(grams, places[1, i, j], hashes[1, i, j])
                        if place >= 0:
                            hit, record[0] = True, grams[place, 1]
                    if hit:
                        weight *= pair[1]
                if strict:
                    answer = weight / len(unigrams)
                    break
            out[begin + i] = answer if answer >= 0 else weight * unigrams[words[begin + i]]


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
    keys, bits, probes, slots = _placed(hashes[:contexts])
    best, probability = np.zeros(len(keys), np.int32), np.zeros(len(keys), np.float32)
    best[slots], probability[slots] = table.best, table.values("best_probability")
    gram_keys, gram_bits, gram_probes, slots = _placed(hashes[V:])
    grams = np.zeros((len(gram_keys), 2), np.int64)
    grams[:, 0] = gram_keys
    pairs = np.ones((nodes - V, 2), np.float32)
    pairs[:, 0] = table.values("probabilities")
    pairs[: contexts - V, 1] = table.backoffs[V:]
    grams[slots, 1] = pairs.view(np.int64)[:, 0]
    backoff = np.ones(V, np.float32)
    backoff[: len(table.backoffs)] = table.backoffs[:V]
    root = int(np.argmax(table.unigrams))
    return DeviceTable(
        table.order, V, seed, bits, probes, root, float(table.unigrams[root]), table.strict, gram_bits, gram_probes, keys,
        best, probability, grams, np.array(table.unigrams), backoff)


def _placed(hashes: np.ndarray) -> tuple[np.ndarray, int, int, np.ndarray]:
    """(keys, bits, probes, the slot of each hash) of an array at most half full."""
    bits = max(int(2 * len(hashes) - 1).bit_length(), 1)
    keys, slots = np.zeros(1 << bits, np.uint64), np.zeros(len(hashes), np.int64)
    probes = _fill(keys, hashes, np.uint64(64 - bits), slots)
    return keys.view(np.int64), bits, int(probes), slots


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
            value = _mixed(value, token)
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
