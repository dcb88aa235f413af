"""Copying: what followed the last ids the previous time they were seen, and where copying and a table take turns.

Contract of one proposal, for one row (ids are int64):

    source   [S]  the ids of the request's source text
    output   [n]  the ids emitted so far, without the start token
    allowed       the most ids that may be proposed
    -> ids [0..allowed], each copied, or the table's likeliest (foredraft.ngram_native.query), if there is a table

Id by id: while a place to copy from is known, its next id is the candidate, trusted with confidence[m], m being the length
of the match that led there, ids copied since included, up to max_match. Else such a place is looked for: an earlier
occurrence of the last m ids (drafted ones included), m from max_match down to min_match, in the source, in the output, in
the history of earlier requests. Of the first CANDIDATES of each text at the largest m that has any, the best one has, in
this order: the most ids to copy (up to those still allowed), the table's likeliest id next, the source before the output
before the history, and is the earliest of the source, the latest elsewhere. With no output yet, copying begins at the
source's first id, with confidence[0]. If the table's likeliest id has a larger probability than the copy's confidence, it is
taken instead; where it is another id, the place is given up. The draft ends with the end token, where neither has a
candidate, and where the next id would not pay (the rule of foredraft.ngram_native.query). Copying never runs past the end of
its text, and never proposes the source's own end token: a summary rarely ends where its article does.

The order of the ranks, and the source's beginning, are measured on a trained target's greedy summaries: a match a few ids
back leaves little to copy, and summaries prefer what an article says first. Matches longer than four ids drafted no better.

`SuffixIndex` finds places without rescanning, by hash chains (as deflate does: Deutsch 1996, RFC 1951 section 4): every
position is filed under the hashes of its last 1..max_match ids, and what a chain offers is compared id by id, so that a
collision costs time but never a false match. A step costs O(max_match) whatever the length of the texts. Against a suffix
automaton it keeps several places of one match to choose from, in flat arrays.

Confidences are counted: copied ids that the target tested and kept, by m, PRIOR of them assumed before.
"""

from __future__ import annotations

import threading

import numpy as np
from numba import njit

from foredraft.ngram_native.query import likeliest
from foredraft.ngram_native.table import Table

BUCKET_BITS = 13
BUCKETS = 1 << BUCKET_BITS  # per text and slot
WINDOW = 4096  # output positions that stay findable
CANDIDATES = 16
VISITS = 64  # links followed in one chain, collisions included
OUTPUT, SOURCE, HISTORY = 0, 1, 2
LOOKUP, NGRAM = 1, 2  # who proposed an id
PRIOR = 20.0
# counts are halved here, so that confidences follow a change of temperature or of texts
FADE = 2000.0
PRIOR_CONFIDENCE = (0.6, 0.7, 0.8, 0.9, 0.95)
NO_TABLE = Table(2, (2,), "kneser-ney", (), None, np.full(2, 0.5, np.float32), np.zeros(0, np.uint16),
                 np.zeros(0, np.float32), np.zeros(1, np.uint16), np.zeros(0, np.float32), np.zeros(0, np.uint16),
                 np.zeros(0, np.float32))


def find_reference(source: list[int], output: list[int], emitted: int, room: int, min_match: int, max_match: int,
                   history: list[int], favourite: int | None) -> tuple[list[int], int] | None:
    """The ids that can be copied from the best place, and its match, by brute force. `output` includes drafted ids; only
    the first `emitted` of it can be copied from."""
    texts = ((OUTPUT, output[:emitted]), (SOURCE, source), (HISTORY, history))
    for m in range(min(max_match, len(output)), min_match - 1, -1):
        best, rank = None, None
        for kind, text in texts:
            places = [j for j in range(m - 1, len(text) - 1) if text[j - m + 1 : j + 1] == output[len(output) - m :]]
            if kind != SOURCE:
                places.reverse()
            for j in places[:CANDIDATES]:
                copied = text[j + 1 : j + 1 + room]
                order = {SOURCE: 2, OUTPUT: 1, HISTORY: 0}[kind]
                this = (len(copied), copied[0] == favourite, order, -j if kind == SOURCE else j)
                if rank is None or this > rank:
                    best, rank = text[j + 1 :], this
        if best is not None:
            return best, m
    return None


def propose_reference(source: list[int], output: list[int], allowed: int, min_match: int, max_match: int, end_token: int,
                      confidence: list[float], cost: float = 0.0, table: Table | None = None, history: list[int] = ()):
    """The contract by brute force: (ids, who proposed each: "lookup" or "ngram")."""
    if source and source[-1] == end_token:
        source = source[:-1]
    drafted, origins, place, match = [], [], [], 0
    reach, expected = 1.0, 1.0
    while len(drafted) < allowed and drafted[-1:] != [end_token]:
        text = [0, *output, *drafted]
        word, likely = likeliest(table.packed, np.array(text), len(text)) if table else (None, -1.0)
        if not place and not output and not drafted:
            place, match = source, 0
        elif not place:
            found = find_reference(source, output + drafted, len(output), allowed - len(drafted), min_match, max_match,
                                   list(history), word)
            place, match = found or ([], 0)
        copies = bool(place) and confidence[match] >= likely
        if not copies and not table:
            break
        token, trust = (place[0], confidence[match]) if copies else (word, likely)
        reach *= trust
        if reach * (1 + cost * len(drafted)) <= cost * expected:
            break
        expected += reach
        drafted.append(token)
        origins.append("lookup" if copies else "ngram")
        kept = bool(place) and place[0] == token
        place, match = (place[1:], min(match + 1, max_match)) if kept else ([], 0)
    return drafted, origins


class SuffixIndex:
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
            _file_source(slot, self.max_match, self.source, self.source_lengths, self.heads, self.source_links)

    def release(self, slot: int) -> None:
        """Forget the slot's request; it then proposes nothing from a source."""
        if slot < len(self.indexed):
            self.admit(slot, np.zeros(0, np.int64))

    def remember(self, output: np.ndarray) -> None:
        """Add a finished request's ids, [n] int64, to the history; the oldest make room."""
        if len(self.history):
            with self._lock:
                _remember(output, self.max_match, self.history, self.history_links, self.history_heads, self.remembered)

    def propose(
        self, tokens: np.ndarray, lengths: np.ndarray, allowed: np.ndarray, end_token: int,
        proposed: np.ndarray, proposed_lengths: np.ndarray, origins: np.ndarray, cost: float = 0.0,
        table: Table | None = None,
    ) -> None:
        """Propose for every row, in place.

        tokens [B, T + 1] int64 hold each row's start token and output, lengths [B] int64 count both, allowed [B] int64.
        Writes proposed [B, K] int64 (0 past a row's proposal), proposed_lengths [B] int64, and origins [B, K] uint8:
        LOOKUP for a copied id, NGRAM for the table's.
        """
        with self._lock:
            if self.last.shape[1] < 1 + 2 * proposed.shape[1]:
                self.last = _enlarged(self.last, (len(self.last), 1 + 2 * proposed.shape[1]))
            _propose_loop(
                tokens, lengths, allowed, end_token, self.min_match, self.max_match, self.source, self.source_lengths,
                self.heads, self.source_links, self.output_links, self.indexed, self.last, self.history,
                self.history_links, self.history_heads, self.remembered, self.tested,
                (NO_TABLE if table is None else table).packed, table is not None, cost, proposed, proposed_lengths,
                origins)

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
def _hash(text, last, count):
    """Hash of text[last - count + 1 : last + 1] and of its length (Fibonacci hashing, Knuth vol. 3, 6.4)."""
    value = np.uint64(count)
    for offset in range(count):
        value = (value ^ np.uint64(text[last - offset])) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(32)
    return value


@njit(cache=True, nogil=True)
def _bucket(text, last, count):
    return np.int64(_hash(text, last, count) >> np.uint64(32)) & (BUCKETS - 1)


@njit(cache=True, nogil=True)
def _file_source(slot, max_match, source, source_lengths, heads, source_links):
    """From the end, so that a chain begins with the earliest position."""
    heads[slot] = -1
    text = source[slot]
    for position in range(source_lengths[slot] - 2, -1, -1):
        for match in range(1, min(max_match, position + 1) + 1):
            bucket = _bucket(text, position, match)
            source_links[slot, match - 1, position] = heads[slot, SOURCE, bucket]
            heads[slot, SOURCE, bucket] = position * max_match + match - 1


@njit(cache=True, nogil=True)
def _remember(output, max_match, history, links, heads, remembered):
    H = len(history)
    begin = remembered[0]
    for token in output:
        position = remembered[0]
        history[position % H] = token
        remembered[0] = position + 1
        value = np.uint64(0)
        for match in range(1, min(max_match, position - begin + 1) + 1):
            value = np.uint64(match)
            for offset in range(match):
                value = (value ^ np.uint64(history[(position - offset) % H])) * np.uint64(0x9E3779B97F4A7C15)
                value ^= value >> np.uint64(32)
            bucket = np.int64(value >> np.uint64(1)) % len(heads)
            links[match - 1, position % H] = heads[bucket]
            heads[bucket] = position * max_match + match - 1


@njit(cache=True, nogil=True)
def _agrees(text, position, output, last, match):
    for offset in range(match):
        if text[position - offset] != output[last - offset]:
            return False
    return True


@njit(cache=True, nogil=True)
def _find(row, output, emitted, last, room, min_match, max_match, text, stop, heads, source_links, output_links, history,
          history_links, history_heads, remembered, favourite):
    """(kind, next position to copy, match) of the best place after output[1 : last + 1]; match 0: none.

    Links hold position * max_match + match - 1, and each leads on in the chain of its own match.
    """
    H = len(history)
    for match in range(min(max_match, last), min_match - 1, -1):
        best_kind, best_position, best_copied, best_favours = OUTPUT, 0, 0, False
        bucket = _bucket(output, last, match)
        # the source comes first: it wins ties
        link, found, visits = np.int64(heads[row, SOURCE, bucket]), 0, 0
        while link >= 0 and found < CANDIDATES and visits < VISITS:
            visits += 1
            position, length = link // max_match, link % max_match + 1
            if length == match and position + 1 < stop and _agrees(text, position, output, last, match):
                found += 1
                copied, favours = min(room, stop - 1 - position), text[position + 1] == favourite
                if copied > best_copied or (copied == best_copied and favours and not best_favours):
                    best_kind, best_position, best_copied, best_favours = SOURCE, position + 1, copied, favours
            link = np.int64(source_links[row, length - 1, position])
        link, found, visits = np.int64(heads[row, OUTPUT, bucket]), 0, 0
        # A link may be overwritten once its position has left the window, so the walk ends before it.
        oldest = max(1, emitted - WINDOW + 1)
        while link >= 0 and found < CANDIDATES and visits < VISITS:
            visits += 1
            position, length = link // max_match, link % max_match + 1
            if position < oldest:
                break
            if length == match and _agrees(output, position, output, last, match):
                found += 1
                copied, favours = min(room, emitted - position), output[position + 1] == favourite
                if copied > best_copied or (copied == best_copied and favours and not best_favours):
                    best_kind, best_position, best_copied, best_favours = OUTPUT, position + 1, copied, favours
            link = np.int64(output_links[row, length - 1, position % WINDOW])
        if H:
            bucket = np.int64(_hash(output, last, match) >> np.uint64(1)) % len(history_heads)
            link, found, visits = history_heads[bucket], 0, 0
            while link >= 0 and found < CANDIDATES and visits < VISITS:
                visits += 1
                position, length = link // max_match, link % max_match + 1
                if position - match < remembered - H:
                    break
                if length == match and position + 1 < remembered:
                    same = True
                    for offset in range(match):
                        same &= history[(position - offset) % H] == output[last - offset]
                    if same:
                        found += 1
                        copied, favours = min(room, remembered - 1 - position), history[(position + 1) % H] == favourite
                        if copied > best_copied or (copied == best_copied and favours and not best_favours):
                            best_kind, best_position, best_copied, best_favours = HISTORY, position + 1, copied, favours
                link = history_links[length - 1, position % H]
        if best_copied > 0:
            return best_kind, best_position, match
    return OUTPUT, np.int64(0), 0


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
    proposed_lengths, origins,
):  # fmt: skip
    for row in range(tokens.shape[0]):
        proposed[row] = 0
        proposed_lengths[row] = 0
        room = min(allowed[row], proposed.shape[1])
        if row >= indexed.shape[0]:
            continue
        _learn(row, tokens[row], lengths[row], last_draft, tested)
        emitted = lengths[row] - 1
        for position in range(indexed[row], emitted):
            for match in range(1, min(max_match, position) + 1):
                bucket = _bucket(tokens[row], position, match)
                output_links[row, match - 1, position % WINDOW] = heads[row, OUTPUT, bucket]
                heads[row, OUTPUT, bucket] = position * max_match + match - 1
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
                kind, position, match = _find(
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
            origins[row, count] = LOOKUP if copies else NGRAM
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
