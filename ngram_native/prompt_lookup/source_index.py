"""The prompt-lookup index: drafts by the rules of copy_rules without a scan of the texts at each step."""

from __future__ import annotations

import threading

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.rows import copy_row
from foredraft.ngram_native.prompt_lookup.copy_branches import _branch_loop
from foredraft.ngram_native.prompt_lookup.hash_chains import (
    BUCKETS,
    OUTPUT,
    SOURCE,
    WINDOW,
    add_to_history,
    find_copy,
    index_output,
    index_source,
)
from foredraft.ngram_native.prompt_lookup.word_gap import behind_word
from foredraft.ngram_native.query import likeliest
from foredraft.ngram_native.stopping import is_worth_drafting_jit
from foredraft.ngram_native.table import Table

LOOKUP, NGRAM = 1, 2  # the proposer of a token, an index into foredraft.engine.drafters.registry.PROPOSERS
# Weight of the prior confidences, in tokens.
PRIOR = 20.0
# Counts above this are halved, so that confidences follow a change of temperature or of texts.
MAX_COUNT = 2000.0
# Confidence by match length before anything was verified, and that of copies from behind a word.
PRIOR_CONFIDENCE = (0.6, 0.7, 0.8, 0.9, 0.95)
PRIOR_GAP = 0.6
# Positions at which an output may begin, more than a task's prefix has tokens.
STARTS = 32
# Outputs that begin at the first token of their source, before any was seen.
PRIOR_STARTS = 2.0
NO_TABLE = Table(2, (2,), "kneser-ney", (), None, np.full(2, 0.5, np.float32), np.zeros(0, np.uint16),
                 np.zeros(0, np.float32), np.zeros(1, np.uint16), np.zeros(0, np.float32), np.zeros(0, np.uint16),
                 np.zeros(0, np.float32))


class PromptLookupIndex:
    """Prompt lookup for a batch: the indexed texts of every slot, and the history of outputs that all slots share.

    Memory per slot is O(max_match (S + WINDOW) + BUCKETS), whatever the number of requests. Calls are serialised by a lock,
    so threads that use different slots may share an index.

    Parameters
    ----------
    min_match, max_match
        Shortest and longest match, in tokens.
    history
        Tokens of earlier outputs that can be found; 0 keeps none.
    word_starts
        [V] bool, the tokens that begin a word; empty: nothing is copied from behind a word (word_gap.py).

    Attributes
    ----------
    source, source_lengths
        [n, S] and [n] int64, the sources of n slots; `admit` grows all arrays.
    heads
        [n, 2, BUCKETS] int32, the first link of each chain of output and source, -1: none.
    source_links, output_links
        [n, max_match, S] and [n, max_match, WINDOW] int32, the next link.
    indexed
        [n] int64, the next output position to index.
    last
        [n, 1 + 2 K] int64, the last draft: length of the sequence at the draft (0: none), then token and match length (-1:
        not copied) of each drafted token.
    tested
        [max_match + 2, 2] float64, verified and accepted copies by match length; the last row: from behind a word.
    starts
        [STARTS] float64, how many outputs began at each position of their source.
    """

    def __init__(self, min_match: int, max_match: int, history: int = 0, word_starts: np.ndarray | None = None):
        if not 1 <= min_match <= max_match:
            raise ValueError(f"min_match is {min_match} and max_match {max_match}; 1 <= min_match <= max_match is required")
        self.min_match, self.max_match = min_match, max_match
        self.source = np.zeros((0, 0), np.int64)
        self.source_links = np.zeros((0, max_match, 0), np.int32)
        self.source_lengths = np.zeros(0, np.int64)
        self.heads = np.zeros((0, 2, BUCKETS), np.int32)
        self.output_links = np.zeros((0, max_match, WINDOW), np.int32)
        self.indexed = np.zeros(0, np.int64)
        self.last = np.zeros((0, 1), np.int64)
        self.history = np.zeros(history, np.int64)
        self.history_links = np.zeros((max_match, history), np.int64)
        self.history_heads = np.full(max(BUCKETS, 2 * history) if history else 1, -1, np.int64)
        self.history_count = np.zeros(1, np.int64)
        prior = [PRIOR_CONFIDENCE[min(m, len(PRIOR_CONFIDENCE) - 1)] for m in range(max_match + 1)]
        self.tested = np.array([[PRIOR, PRIOR * p] for p in (*prior, PRIOR_GAP)])
        self.starts = np.zeros(STARTS)
        self.starts[0] = PRIOR_STARTS
        self.word_starts = np.zeros(0, np.bool_) if word_starts is None else word_starts
        self._lock = threading.Lock()

    @property
    def confidence(self) -> np.ndarray:
        """[max_match + 1]: estimated acceptance probability of a copied token, by match length."""
        return self.tested[:-1, 1] / self.tested[:-1, 0]

    @property
    def gap_confidence(self) -> float:
        """Estimated acceptance probability of a token copied from behind a word."""
        return float(self.tested[-1, 1] / self.tested[-1, 0])

    def admit(self, slot: int, source: np.ndarray) -> None:
        """Begin a request in `slot` with the source [S] int64; the slot's earlier request is removed."""
        with self._lock:
            self._grow(slot + 1, len(source))
            self.source[slot, : len(source)] = source
            self.source_lengths[slot] = len(source)
            self.indexed[slot], self.last[slot, 0] = 1, 0
            index_source(slot, self.max_match, self.source, self.source_lengths, self.heads, self.source_links)

    def release(self, slot: int) -> None:
        """Remove the slot's request."""
        if slot < len(self.indexed):
            self.admit(slot, np.zeros(0, np.int64))

    def remember(self, output: np.ndarray) -> None:
        """Append the output [n] int64 of a finished request to the history, which drops its oldest tokens."""
        if len(self.history):
            with self._lock:
                add_to_history(output, self.max_match, self.history, self.history_links, self.history_heads,
                               self.history_count)

    def propose(
        self, tokens: np.ndarray, lengths: np.ndarray, allowed: np.ndarray, end_token: int,
        proposed: np.ndarray, proposed_lengths: np.ndarray, proposers: np.ndarray, cost: float = 0.0,
        table: Table | None = None, min_match: int = 0,
    ) -> None:
        """Draft for every sequence of a batch, in place; sequence b uses slot b.

        Parameters
        ----------
        tokens
            [B, T + 1] int64, start token and output of each sequence.
        lengths
            [B] int64, tokens of each sequence so far, with the start token.
        allowed
            [B] int64, the most tokens to draft.
        end_token
            A draft ends with it.
        proposed, proposed_lengths
            [B, K] and [B] int64, written: the drafts, 0 past their ends.
        proposers
            [B, K] uint8, written: LOOKUP for a copied token, NGRAM for the table's.
        cost
            Cost of a further query position in passes (foredraft.ngram_native.stopping).
        table
            The n-gram table to combine copies with.
        min_match
            Shortest match of this draft, if it is more than the index's own.
        """
        with self._lock:
            if self.last.shape[1] < 1 + 2 * proposed.shape[1]:
                self.last = _enlarged(self.last, (len(self.last), 1 + 2 * proposed.shape[1]))
            _propose_loop(
                tokens, lengths, allowed, end_token, max(min_match, self.min_match), self.max_match, self.source,
                self.source_lengths, self.heads, self.source_links, self.output_links, self.indexed, self.last, self.history,
                self.history_links, self.history_heads, self.history_count, self.tested, self.starts, self.word_starts,
                (NO_TABLE if table is None else table).packed, table is not None, cost, proposed, proposed_lengths,
                proposers)

    def branch(
        self, tokens: np.ndarray, lengths: np.ndarray, allowed: np.ndarray, end_token: int, tree: np.ndarray,
        proposed: np.ndarray, proposed_lengths: np.ndarray, parents: np.ndarray, proposers: np.ndarray,
    ) -> None:
        """Add branches to the drafts of the last `propose` (see copy_branches), in place, up to `allowed` tokens.

        tree [N] int64 is the shape's parents; parents [B, K] int64 is written.
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


@njit()
def _learn(b, tokens, length, last, tested):
    """Count which copies of the last draft were verified and accepted."""
    begin = last[b, 0]
    if begin == 0:
        return
    for i in range((last.shape[1] - 1) // 2):
        token, match = last[b, 1 + 2 * i], last[b, 2 + 2 * i]
        if token < 0 or begin + i >= length:
            break
        accepted = tokens[begin + i] == token
        if match >= 0:
            tested[match, 0] += 1.0
            tested[match, 1] += 1.0 if accepted else 0.0
            if tested[match, 0] > MAX_COUNT:
                # one by one: numba takes seconds to compile an assignment to a whole row
                tested[match, 0] *= 0.5
                tested[match, 1] *= 0.5
        if not accepted:
            break
    last[b, 0] = 0


@njit()
def _learn_start(output, source, stop, starts):
    """Count where in its source an output begins: the earliest position of its first two tokens."""
    for position in range(min(len(starts), stop - 1)):
        if source[position] == output[1] and source[position + 1] == output[2]:
            starts[position] += 1.0
            if starts[position] > MAX_COUNT:
                starts *= 0.5
            return


@njit()
def _propose_loop(
    tokens, lengths, allowed, end_token, min_match, max_match, source, source_lengths, heads, source_links, output_links,
    indexed, last_draft, history, history_links, history_heads, history_count, tested, starts, word_starts, packed,
    has_table, cost, proposed, proposed_lengths, proposers,
):  # fmt: skip
    for b in range(tokens.shape[0]):
        proposed[b] = 0
        proposed_lengths[b] = 0
        room = min(allowed[b], proposed.shape[1])
        if b >= indexed.shape[0]:
            continue
        _learn(b, tokens[b], lengths[b], last_draft, tested)
        emitted = lengths[b] - 1
        # the source without its end token
        text, stop = source[b], source_lengths[b]
        if stop > 0 and text[stop - 1] == end_token:
            stop -= 1
        if indexed[b] == 1 and emitted >= 2:
            _learn_start(tokens[b], text, stop, starts)
        index_output(b, max_match, tokens[b], indexed[b], emitted, heads, output_links)
        indexed[b] = max(indexed[b], emitted)
        if room <= 0:
            continue
        # the output with the drafted tokens, after which matches are searched too
        output = np.empty(emitted + 1 + room, np.int64)
        copy_row(tokens[b, : emitted + 1], output)
        kind, position, match, copying = SOURCE, np.argmax(starts), 0, emitted == 0 and stop > 0
        if position >= stop or min_match > 1:
            position = np.int64(0)
        # the row of `tested` for copies from behind a word
        gap = max_match + 1
        reach, expected, count = 1.0, 1.0, 0
        while count < room:
            best, likely = np.int64(-1), -1.0
            if has_table:
                best, likely = likeliest(packed, output, emitted + 1 + count)
            if not copying and emitted + count > 0:
                kind, position, match = find_copy(
                    b, output, emitted, emitted + count, room - count, min_match, max_match, text, stop, heads,
                    source_links, output_links, history, history_links, history_heads, history_count[0], best)
                copying = match > 0
                if len(word_starts) and match < 2 and count == 0 and min_match == 1 and (
                        match == 0 or tested[gap, 1] / tested[gap, 0] >= tested[1, 1] / tested[1, 0]):
                    behind = behind_word(b, output, emitted, max_match, text, stop, heads, source_links, word_starts)
                    if behind >= 0:
                        kind, position, match, copying = SOURCE, behind, gap, True
            token, trust, copies = best, likely, False
            candidate = np.int64(-1)
            if copying:
                candidate = (text[position] if kind == SOURCE else output[position] if kind == OUTPUT
                             else history[position % len(history)])
                confidence = tested[match, 1] / tested[match, 0]
                copies = confidence >= likely
                if copies:
                    token, trust = candidate, confidence
            if not copies and not has_table:
                break
            reach *= trust
            if not is_worth_drafting_jit(reach, count, expected, cost):
                break
            expected += reach
            proposed[b, count] = output[emitted + 1 + count] = token
            proposers[b, count] = LOOKUP if copies else NGRAM
            last_draft[b, 1 + 2 * count] = token
            last_draft[b, 2 + 2 * count] = match if copies else -1
            count += 1
            if copying and candidate == token:
                position += 1
                match = min(2 if match == gap else match + 1, max_match)
                end = stop if kind == SOURCE else emitted + 1 if kind == OUTPUT else history_count[0]
                copying = position < end
            else:
                copying = False
            if token == end_token:
                break
        proposed_lengths[b] = count
        if count:
            last_draft[b, 0] = emitted + 1
            if 1 + 2 * count < last_draft.shape[1]:
                last_draft[b, 1 + 2 * count] = -1
