"""Drafts copied from the source or the output so far, on a device, and where a table takes turns with them.

The contract is ngram_native/prompt_lookup/copy_rules.py's, without a history, and with confidences that each row learns for itself; the few
places that its hash chains give up early (VISITS) are found here. Without an index: one program a row compares every
position of both texts with the last ids, again whenever a place to copy from has ended inside a draft.

    source [B', S] int64, source_lengths [B'] int64        the rows' source texts, B' >= B
    tokens [B, T + 1], lengths [B] int64, finished [B] bool, limits, widths [B] int64     the state
    tested [B', M + 1, 2] float64      how many copied ids were tested and kept, by match 0..M, prior counts included
    last   [B', 1 + 2 K'] int64        the last draft, K' >= K: its length before it (0: none), then id and match (-1: not
                                       copied) of each id, -1 behind them
    table  chain.py's Hash, or None
    proposed [B, K], proposed_lengths [B] int64, proposers [B, K] uint8     out: the draft, 0 past its end
"""

from __future__ import annotations

from foredraft.kernels.core.backend import constexpr, jit, power_of_2, tl
from foredraft.kernels.drafting.ngram_lookup_triton import Hash, likeliest
from foredraft.kernels.step.step_inputs_triton import drafts_allowed

# Positions compared together.
BLOCK = 256
# Places of each text that are weighed against each other.
CANDIDATES = 16
_LOOKUP, _NGRAM = constexpr(1), constexpr(2)


@jit
def _matches(text, j, inside, first, recent, known, MIN_MATCH: tl.constexpr, MAX_MATCH: tl.constexpr, PAD: tl.constexpr,
             BLOCK: tl.constexpr):
    """How many ids up to each position j agree with the last ones, `recent` [PAD], the newest first; 0 below MIN_MATCH."""
    s = tl.arange(0, PAD)
    match = tl.zeros((BLOCK,), tl.int64)
    runs = inside
    for m in tl.static_range(MAX_MATCH):
        # whatever came before, so that all loads are under way together
        reached = (inside & (j - first >= m) & (known > m)) != 0
        ours = tl.load(text + j - m, mask=reached, other=-1)
        runs = runs & reached & (ours == tl.sum(tl.where(s == m, recent, 0), axis=0))
        match += runs.to(tl.int64)
    return tl.where(match >= MIN_MATCH, match, 0)


@jit
def _longest(text, first, begin, end, recent, known, MIN_MATCH: tl.constexpr, MAX_MATCH: tl.constexpr, PAD: tl.constexpr,
             BLOCK: tl.constexpr):
    """The longest match that ends at positions begin .. end - 1; none reaches below `first`."""
    best = tl.zeros((BLOCK,), tl.int64)
    for start in range(begin, end, BLOCK):
        j = start + tl.arange(0, BLOCK)
        best = tl.maximum(best, _matches(text, j, j < end, first, recent, known, MIN_MATCH, MAX_MATCH, PAD, BLOCK))
    return tl.max(best, axis=0)


@jit
def _best(text, first, begin, end, stop, recent, known, match, allowed, favourite, IS_SOURCE: tl.constexpr,
          MIN_MATCH: tl.constexpr, MAX_MATCH: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
          CANDIDATES: tl.constexpr):
    """The rank, -1: none, of the best of the first CANDIDATES positions with this match, of the source from its beginning,
    of the output from its end: ids to copy, the favourite next, the source, the first of them."""
    best = tl.full((BLOCK,), -1, tl.int64)
    seen = match * 0
    for start in range(begin, tl.where(match > 0, end, begin), BLOCK):
        i = start - begin + tl.arange(0, BLOCK)
        inside = i < end - begin
        j = begin + i if IS_SOURCE else end - 1 - i
        hit = (inside & (_matches(text, j, inside, first, recent, known, MIN_MATCH, MAX_MATCH, PAD, BLOCK) == match)) != 0
        number = seen + tl.cumsum(hit.to(tl.int64), axis=0)
        favours = tl.load(text + j + 1, mask=hit, other=-2) == favourite
        copied = tl.minimum(allowed, stop - 1 - j)
        order = (0x7FFFFFFF - j if IS_SOURCE else j).to(tl.int64)
        rank = (copied << 33) | (favours.to(tl.int64) << 32) | order
        if IS_SOURCE:
            rank = rank | (1 << 31)
        best = tl.maximum(best, tl.where(hit & (number <= CANDIDATES), rank, -1))
        seen = tl.max(number, axis=0)
    return tl.max(best, axis=0)


@jit
def _learn(row, output, length, live, tested, last, LAST, MAX_MATCH: tl.constexpr, M_PAD: tl.constexpr, K: tl.constexpr,
           FADE: tl.constexpr):
    """Count which ids of the last draft were tested and kept."""
    begin = tl.load(last + row * LAST, mask=live, other=0)
    m = tl.arange(0, M_PAD)
    at = tested + (row * (MAX_MATCH + 1) + m) * 2
    trials = tl.load(at, mask=m <= MAX_MATCH, other=1.0)
    kept = tl.load(at + 1, mask=m <= MAX_MATCH, other=0.0)
    runs = begin > 0
    for place in range(K):
        # a draft of another width may have been shorter
        drafted = (runs & (1 + 2 * place < LAST)) != 0
        token = tl.load(last + row * LAST + 1 + 2 * place, mask=drafted, other=-1)
        match = tl.load(last + row * LAST + 2 + 2 * place, mask=drafted, other=-1)
        runs = (drafted & (token >= 0) & (begin + place < length)) != 0
        right = runs & (tl.load(output + begin + place, mask=runs, other=-1) == token)
        counted = (m == match) & runs
        trials += counted.to(tl.float64)
        kept += (counted & right).to(tl.float64)
        faded = counted & (trials > FADE)
        trials = tl.where(faded, trials * 0.5, trials)
        kept = tl.where(faded, kept * 0.5, kept)
        runs = right
    # every warp holds all counts: none may load them when another has stored its own
    tl.debug_barrier()
    tl.store(at, trials, mask=m <= MAX_MATCH)
    tl.store(at + 1, kept, mask=m <= MAX_MATCH)
    return m, kept / trials


@jit
def _prompt_lookup_kernel(
    source, source_lengths, tokens, lengths, finished, limits, widths, tested, last, keys, best, best_probability, seed,
    root_best, root_probability, V, proposed, proposed_lengths, proposers, end_token, S, T1, LAST, K: tl.constexpr,
    K_PAD: tl.constexpr, WINDOW: tl.constexpr, MIN_MATCH: tl.constexpr, MAX_MATCH: tl.constexpr, PAD: tl.constexpr,
    M_PAD: tl.constexpr, BLOCK: tl.constexpr, CANDIDATES: tl.constexpr, COST: tl.constexpr, FADE: tl.constexpr,
    TABLE: tl.constexpr, BITS: tl.constexpr, SUFFIXES: tl.constexpr, SUFFIXES_PAD: tl.constexpr, PROBES: tl.constexpr,
    PROBES_PAD: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    allowed = tl.minimum(drafts_allowed(row, row >= 0, lengths, limits, finished, widths), K)
    length = tl.load(lengths + row)
    emitted = length - 1
    text, output = source + row * S, tokens + row * T1
    m, confidence = _learn(row, output, length, tl.load(finished + row) == 0, tested, last, LAST, MAX_MATCH, M_PAD, K, FADE)
    stop = tl.load(source_lengths + row)
    # the source's own end is not for copying
    ended = tl.load(text + stop - 1, mask=stop > 0, other=0) == end_token
    stop = tl.where((stop > 0) & ended, stop - 1, stop)
    oldest = tl.maximum(1, emitted - WINDOW + 1)
    # the last ids, the newest first; the start token is among them for the table alone
    s, k = tl.arange(0, PAD), tl.arange(0, K_PAD)
    recent = tl.load(output + emitted - s, mask=s <= emitted, other=0)
    drafted, matched = tl.zeros((K_PAD,), tl.int64), tl.zeros((K_PAD,), tl.int64) - 1
    reach, expected = tl.full((), 1.0, tl.float64), tl.full((), 1.0, tl.float64)
    count, position, match = length * 0, length * 0, length * 0
    # 1 where the place to copy from is in the source
    is_source = length * 0 + 1
    held = (emitted == 0) & (stop > 0)
    growing = allowed > 0
    for step in range(K):
        word, likely = length * 0 - 1, tl.full((), -1.0, tl.float64)
        if TABLE:
            newest = tl.sum(tl.where(tl.arange(0, SUFFIXES_PAD)[:, None] == s[None, :], recent[None, :], 0), axis=1)
            word, likely = likeliest(keys, best, best_probability, seed, root_best, root_probability, V, newest,
                                     length + step, growing, BITS, SUFFIXES, SUFFIXES_PAD, PROBES, PROBES_PAD, STRICT)
        if growing & (held == 0) & (emitted + step > 0):
            known = emitted + step
            match = tl.maximum(
                _longest(text, 0, 0, stop - 1, recent, known, MIN_MATCH, MAX_MATCH, PAD, BLOCK),
                _longest(output, 1, oldest, emitted, recent, known, MIN_MATCH, MAX_MATCH, PAD, BLOCK))
            rank = tl.maximum(
                _best(text, 0, 0, stop - 1, stop, recent, known, match, allowed - step, word, True, MIN_MATCH, MAX_MATCH,
                      PAD, BLOCK, CANDIDATES),
                _best(output, 1, oldest, emitted, length, recent, known, match, allowed - step, word, False, MIN_MATCH,
                      MAX_MATCH, PAD, BLOCK, CANDIDATES))
            held = rank >= 0
            is_source = (rank >> 31) & 1
            position = tl.where(is_source == 1, 0x7FFFFFFF - (rank & 0x7FFFFFFF), rank & 0x7FFFFFFF) + 1
        copying = (growing & held) != 0
        candidate = tl.load(tl.where(is_source == 1, text, output) + position, mask=copying, other=0)
        sure = tl.sum(tl.where(m == match, confidence, 0.0), axis=0)
        copies = held & (sure >= likely)
        token, trust = tl.where(copies, candidate, word), tl.where(copies, sure, likely)
        reach *= trust
        # a further id must promise more tokens a pass than the draft has without it (ngram_native/stopping.py)
        pays = reach * (1 + COST * count.to(tl.float64)) > COST * expected
        growing = growing & (count < allowed) & pays
        if not TABLE:
            growing = growing & copies
        expected += tl.where(growing, reach, 0.0)
        here = (k == step) & growing
        drafted = tl.where(here, token, drafted)
        matched = tl.where(here, tl.where(copies, match, -1), matched)
        count += growing.to(tl.int64)
        held = held & (candidate == token)
        position += 1
        match = tl.minimum(match + 1, MAX_MATCH)
        held = held & (position < tl.where(is_source == 1, stop, length))
        growing = growing & (token != end_token)
        older = tl.sum(tl.where(s[:, None] == s[None, :] + 1, recent[None, :], 0), axis=1)
        recent = tl.where(s == 0, token, older)
    tl.store(proposed + row * K + k, drafted, mask=k < K)
    tl.store(proposers + row * K + k, tl.where(matched >= 0, _LOOKUP, _NGRAM).to(tl.uint8), mask=k < count)
    tl.store(proposed_lengths + row, count)
    tl.store(last + row * LAST, tl.where(count > 0, length, 0))
    tl.store(last + row * LAST + 1 + 2 * k, tl.where(k < count, drafted, -1), mask=1 + 2 * k < LAST)
    tl.store(last + row * LAST + 2 + 2 * k, matched, mask=1 + 2 * k < LAST)


def prompt_lookup_triton(source, source_lengths, tokens, lengths, finished, limits, widths, tested, last, table: Hash | None,
                         end_token, window, min_match, fade, cost, proposed, proposed_lengths, proposers) -> None:
    """window: how far back an output's positions are found; fade: where counts are halved. One launch, no wait."""
    B, K = proposed.shape
    max_match = tested.shape[1] - 1
    constants = {name: 1 for name in ("BITS", "SUFFIXES", "SUFFIXES_PAD", "PROBES", "PROBES_PAD", "STRICT")}
    if table is not None:
        constants = table.constants()
    _prompt_lookup_kernel[(B,)](
        source, source_lengths, tokens, lengths, finished, limits, widths, tested, last,
        *((None,) * 7 if table is None else table.tensors()), proposed, proposed_lengths, proposers, end_token,
        source.shape[1], tokens.shape[1], last.shape[1], K=K, K_PAD=power_of_2(max(K, 1)), WINDOW=window,
        MIN_MATCH=min_match, MAX_MATCH=max_match, PAD=power_of_2(max(max_match, constants["SUFFIXES"])),
        M_PAD=power_of_2(max_match + 1), BLOCK=BLOCK, CANDIDATES=CANDIDATES, COST=cost, FADE=fade,
        TABLE=table is not None, **constants, num_warps=4)
