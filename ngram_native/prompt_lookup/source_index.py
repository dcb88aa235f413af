"""The index of the ids that requests may copy: it applies the rules of foredraft.ngram_native.prompt_lookup.copy_rules without a rescan."""

from __future__ import annotations

import threading

import numpy as np
from numba import njit

from foredraft.ngram_native.prompt_lookup.copy_branches import _branch_loop
from foredraft.ngram_native.prompt_lookup.hash_chains import (
    BUCKETS,
    OUTPUT,
    SOURCE,
    WINDOW,
    file_output,
    file_source,
    find,
    remember,
)
from foredraft.ngram_native.query import likeliest
from foredraft.ngram_native.table import Table

LOOKUP, NGRAM = 1, 2  # who proposed an id
PRIOR = 20.0
# counts are halved here, so that confidences follow a change of temperature or of texts
FADE = 2000.0
PRIOR_CONFIDENCE = (0.6, 0.7, 0.8, 0.9, 0.95)
NO_TABLE = Table(2, (2,), "kneser-ney", (), None, np.full(2, 0.5, np.float32), np.zeros(0, np.uint16),
                 np.zeros(0, np.float32), np.zeros(1, np.uint16), np.zeros(0, np.float32), np.zeros(0, np.uint16),
                 np.zeros(0, np.float32))


class PromptLookupIndex:
    """The index of every slot (batch row), and the history that slots share.

    Memory per slot: O(max_match (S + WINDOW) + BUCKETS), whatever the number of requests. history: ids of earlier outputs
    that stay findable; 0 keeps none. Calls take turns under a lock, so that threads may share an index with slots apart.

    Arrays (n slots, grown by `admit` only): source [n, S] int64, source_lengths [n], heads [n, 2, BUCKETS] int32 the first
    position of each hash (-1: none), source_links [n, max_match, S] and output_links [n, max_match, WINDOW] int32 the
    next one, indexed [n] int64 the next output position to file. last_* hold the last draft, for the confidences.
    """

    def __init__(self, min_match: int, max_match: int, history: int = 0):
        if not 1 <= min_match <= max_match:
            raise ValueError(f"need 1 <= min_match <= max_match, got {min_match} and {max_match}")
        self.min_match, self.max_match = min_match, max_match
        self.source = np.zeros((0, 0), np.int64)
        self.source_links = np.zeros((0, max_match, 0), np.int32)
        self.source_lengths = np.zeros(0, np.int64)
        self.heads = np.zeros((0, 2, BUCKETS), np.int32)
        self.output_links = np.zeros((0, max_match, WINDOW), np.int32)
        self.indexed = np.zeros(0, np.int64)
        # [n, 1 + 2 * most drafted]: length at the draft (0: none), then id and match (-1: not copied) of each
        self.last = np.zeros((0, 1), np.int64)
        self.history = np.zeros(history, np.int64)
        self.history_links = np.zeros((max_match, history), np.int64)
        self.history_heads = np.full(max(BUCKETS, 2 * history) if history else 1, -1, np.int64)
        self.remembered = np.zeros(1, np.int64)
        prior = [PRIOR_CONFIDENCE[min(m, len(PRIOR_CONFIDENCE) - 1)] for m in range(max_match + 1)]
        # [max_match + 1, 2]: tested and kept, by match
        self.tested = np.array([[PRIOR, PRIOR * p] for p in prior])
        self._lock = threading.Lock()

    @property
    def confidence(self) -> np.ndarray:
        """[max_match + 1]: how often a copied id was right, by the length of the match before it."""
        return self.tested[:, 1] / self.tested[:, 0]

    def admit(self, slot: int, source: np.ndarray) -> None:
        """Start a request in `slot`: forget the old one, file `source` [S] int64."""
        with self._lock:
            self._grow(slot + 1, len(source))
            self.source[slot, : len(source)] = source
            self.source_lengths[slot] = len(source)
            self.indexed[slot], self.last[slot, 0] = 1, 0
            file_source(slot, self.max_match, self.source, self.source_lengths, self.heads, self.source_links)

    def release(self, slot: int) -> None:
        """Forget the slot's request; it then proposes nothing from a source."""
        if slot < len(self.indexed):
            self.admit(slot, np.zeros(0, np.int64))

    def remember(self, output: np.ndarray) -> None:
        """Add a finished request's ids, [n] int64, to the history; the oldest make room."""
        if len(self.history):
            with self._lock:
                remember(output, self.max_match, self.history, self.history_links, self.history_heads, self.remembered)

    def propose(
        self, tokens: np.ndarray, lengths: np.ndarray, allowed: np.ndarray, end_token: int,
        proposed: np.ndarray, proposed_lengths: np.ndarray, proposers: np.ndarray, cost: float = 0.0,
        table: Table | None = None, min_match: int = 0,
    ) -> None:
        """Propose for every row, in place.

        tokens [B, T + 1] int64 hold each row's start token and output, lengths [B] int64 count both, allowed [B] int64.
        Writes proposed [B, K] int64 (0 past a row's proposal), proposed_lengths [B] int64, and proposers [B, K] uint8:
        LOOKUP for a copied id, NGRAM for the table's. min_match: of this proposal, at least the index's own.
        """
        with self._lock:
            if self.last.shape[1] < 1 + 2 * proposed.shape[1]:
                self.last = _enlarged(self.last, (len(self.last), 1 + 2 * proposed.shape[1]))
            _propose_loop(
                tokens, lengths, allowed, end_token, max(min_match, self.min_match), self.max_match, self.source,
                self.source_lengths, self.heads, self.source_links, self.output_links, self.indexed, self.last, self.history,
                self.history_links, self.history_heads, self.remembered, self.tested,
                (NO_TABLE if table is None else table).packed, table is not None, cost, proposed, proposed_lengths,
                proposers)

    def branch(
        self, tokens: np.ndarray, lengths: np.ndarray, allowed: np.ndarray, end_token: int, tree: np.ndarray,
        proposed: np.ndarray, proposed_lengths: np.ndarray, parents: np.ndarray, proposers: np.ndarray,
    ) -> None:
        """Make trees (branches.py) of the proposals that `propose` has just made, in place: up to `allowed` ids.

        tree [N] int64: the shape's parents. Writes parents [B, K] int64 as well.
        """
        with self._lock:
            _branch_loop(
                tokens, lengths, allowed, end_token, self.min_match, self.max_match, self.source, self.source_lengths,
                self.heads, self.source_links, self.output_links, tree, LOOKUP, proposed, proposed_lengths, parents,
                proposers)

    def _grow(self, slots: int, source: int) -> None:
        old_slots, old_source = self.source.shape
        if slots <= old_slots and source <= old_source:
            return
        slots = old_slots if slots <= old_slots else max(slots, 2 * old_slots)
        source = old_source if source <= old_source else max(source, 2 * old_source)
        self.source = _enlarged(self.source, (slots, source))
        self.source_links = _enlarged(self.source_links, (slots, self.max_match, source))
        self.source_lengths = _enlarged(self.source_lengths, (slots,))
        self.heads = _enlarged(self.heads, (slots, 2, BUCKETS))
        self.heads[old_slots:] = -1
        self.output_links = _enlarged(self.output_links, (slots, self.max_match, WINDOW))
        self.indexed = _enlarged(self.indexed, (slots,))
        self.indexed[old_slots:] = 1
        self.last = _enlarged(self.last, (slots, self.last.shape[1]))


def _enlarged(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    larger = np.zeros(shape, array.dtype)
    larger[tuple(slice(0, size) for size in array.shape)] = array
    return larger


@njit(cache=True, nogil=True)
def _learn(row, tokens, length, last, tested):
    """Count which ids of the last draft were tested and kept."""
    begin = last[row, 0]
    if begin == 0:
        return
    for place in range((last.shape[1] - 1) // 2):
        token, match = last[row, 1 + 2 * place], last[row, 2 + 2 * place]
        if token < 0 or begin + place >= length:
            break
        right = tokens[begin + place] == token
        if match >= 0:
            tested[match, 0] += 1.0
            tested[match, 1] += 1.0 if right else 0.0
            if tested[match, 0] > FADE:
                tested[match] *= 0.5
        if not right:
            break
    last[row, 0] = 0


@njit(cache=True, nogil=True)
def _propose_loop(
    tokens, lengths, allowed, end_token, min_match, max_match, source, source_lengths, heads, source_links, output_links,
    indexed, last_draft, history, history_links, history_heads, remembered, tested, packed, has_table, cost, proposed,
    proposed_lengths, proposers,
):  # fmt: skip
    for row in range(tokens.shape[0]):
        proposed[row] = 0
        proposed_lengths[row] = 0
        room = min(allowed[row], proposed.shape[1])
        if row >= indexed.shape[0]:
            continue
        _learn(row, tokens[row], lengths[row], last_draft, tested)
        emitted = lengths[row] - 1
        file_output(row, max_match, tokens[row], indexed[row], emitted, heads, output_links)
        indexed[row] = max(indexed[row], emitted)
        if room <= 0:
            continue
        # a copy with the drafted ids behind it: places are looked for after them too
        output = np.empty(emitted + 1 + room, np.int64)
        output[: emitted + 1] = tokens[row, : emitted + 1]
        text, stop = source[row], source_lengths[row]
        if stop > 0 and text[stop - 1] == end_token:
            stop -= 1
        kind, position, match, held = SOURCE, np.int64(0), 0, emitted == 0 and stop > 0
        reach, expected, count = 1.0, 1.0, 0
        while count < room:
            word, likely = np.int64(-1), -1.0
            if has_table:
                word, likely = likeliest(packed, output, emitted + 1 + count)
            if not held and emitted + count > 0:
                kind, position, match = find(
                    row, output, emitted, emitted + count, room - count, min_match, max_match, text, stop, heads,
                    source_links, output_links, history, history_links, history_heads, remembered[0], word)
                held = match > 0
            token, trust, copies = word, likely, False
            candidate = np.int64(-1)
            if held:
                candidate = (text[position] if kind == SOURCE else output[position] if kind == OUTPUT
                             else history[position % len(history)])
                confidence = tested[match, 1] / tested[match, 0]
                copies = confidence >= likely
                if copies:
                    token, trust = candidate, confidence
            if not copies and not has_table:
                break
            reach *= trust
            if reach * (1 + cost * count) <= cost * expected:
                break
            expected += reach
            proposed[row, count] = output[emitted + 1 + count] = token
            proposers[row, count] = LOOKUP if copies else NGRAM
            last_draft[row, 1 + 2 * count] = token
            last_draft[row, 2 + 2 * count] = match if copies else -1
            count += 1
            if held and candidate == token:
                position += 1
                match = min(match + 1, max_match)
                end = stop if kind == SOURCE else emitted + 1 if kind == OUTPUT else remembered[0]
                held = position < end
            else:
                held = False
            if token == end_token:
                break
        proposed_lengths[row] = count
        if count:
            last_draft[row, 0] = emitted + 1
            if 1 + 2 * count < last_draft.shape[1]:
                last_draft[row, 1 + 2 * count] = -1
