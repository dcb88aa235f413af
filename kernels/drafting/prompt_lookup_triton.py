"""Prompt-lookup drafts on a GPU, copied from the source or from the output so far; an n-gram table may complement them.

The rules are those of ngram_native/prompt_lookup/copy_rules.py, but there is no history, nothing is copied from behind a
corrected word, and outputs begin at the source's first token; each sequence learns its own confidences.
Matches that the CPU's hash chains give up on (VISITS) are found here. There is no index: one program a sequence compares
every position of both texts with the last tokens, and again when a copied run ends inside a draft.

    source [B', S] int64, source_lengths [B'] int64        the sequences' sources, B' >= B
    tokens [B, T + 1], lengths [B] int64, finished [B] bool, limits, budgets [B] int64     the decode state
    tested [B', M + 1, 2] float64      copied tokens that were tested and accepted by length of match 0..M, with prior counts
    last   [B', 1 + 2 K'] int64        the last draft, K' >= K: its start length (0: none), then for each token its value and
                                       its length of match (-1: not copied); -1 past the draft
    table  ngram_lookup_triton.Hash, or None
    proposed [B, K], proposed_lengths [B] int64, proposers [B, K] uint8     out: the draft, 0 past its end
"""

from __future__ import annotations

from foredraft.kernels.core.backend_triton import constexpr, jit, power_of_2, tl
from foredraft.kernels.drafting.ngram_lookup_triton import Hash, is_worth_drafting, most_likely_token
from foredraft.kernels.step.step_inputs_triton import drafts_allowed

# Positions compared together.
BLOCK = 256
# Positions of each text that are compared with each other.
CANDIDATES = 16
_LOOKUP, _NGRAM = constexpr(1), constexpr(2)


@jit
def _matches(text, j, inside, first, recent, known, MIN_MATCH: tl.constexpr, MAX_MATCH: tl.constexpr, PAD: tl.constexpr,
             BLOCK: tl.constexpr):
    """How many tokens up to each position j equal the last ones, `recent` [PAD], newest first; 0 below MIN_MATCH."""
    s = tl.arange(0, PAD)
    match = tl.zeros((BLOCK,), tl.int64)
    runs = inside
    for m in tl.static_range(MAX_MATCH):
        # independent of earlier comparisons, so that all loads are issued together
        reached = (inside & (j - first >= m) & (known > m)) != 0
        here = tl.load(text + j - m, mask=reached, other=-1)
        runs = runs & reached & (here == tl.sum(tl.where(s == m, recent, 0), axis=0))
        match += runs.to(tl.int64)
    return tl.where(match >= MIN_MATCH, match, 0)


@jit
def _longest(text, first, begin, end, recent, known, MIN_MATCH: tl.constexpr, MAX_MATCH: tl.constexpr, PAD: tl.constexpr,
             BLOCK: tl.constexpr):
    """The longest match that ends at a position in begin..end - 1 and starts at `first` or later."""
    best = tl.zeros((BLOCK,), tl.int64)
    for start in range(begin, end, BLOCK):
        j = start + tl.arange(0, BLOCK)
        best = tl.maximum(best, _matches(text, j, j < end, first, recent, known, MIN_MATCH, MAX_MATCH, PAD, BLOCK))
    return tl.max(best, axis=0)


@jit
def _best(text, first, begin, end, stop, recent, known, match, allowed, favourite, IS_SOURCE: tl.constexpr,
          MIN_MATCH: tl.constexpr, MAX_MATCH: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
          CANDIDATES: tl.constexpr):
    """The rank of the best candidate with this match, -1: none. Candidates are the first CANDIDATES positions, of the source
    from its start, of the output from its end. Order: tokens to copy, `favourite` follows, source, earliest candidate."""
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
def _learn(b, output, length, live, tested, last, LAST, MAX_MATCH: tl.constexpr, M_PAD: tl.constexpr, K: tl.constexpr,
           FADE: tl.constexpr):
    """Count the tested and the accepted tokens of the last draft; returns the confidence of each length of match."""
    begin = tl.load(last + b * LAST, mask=live, other=0)
    m = tl.arange(0, M_PAD)
    at = tested + (b * (MAX_MATCH + 1) + m) * 2
    trials = tl.load(at, mask=m <= MAX_MATCH, other=1.0)
    accepted = tl.load(at + 1, mask=m <= MAX_MATCH, other=0.0)
    runs = begin > 0
    for i in range(K):
        # the last draft's buffer may have been shorter
        drafted = (runs & (1 + 2 * i < LAST)) != 0
        token = tl.load(last + b * LAST + 1 + 2 * i, mask=drafted, other=-1)
        match = tl.load(last + b * LAST + 2 + 2 * i, mask=drafted, other=-1)
        runs = (drafted & (token >= 0) & (begin + i < length)) != 0
        right = runs & (tl.load(output + begin + i, mask=runs, other=-1) == token)
        counted = (m == match) & runs
        trials += counted.to(tl.float64)
        accepted += (counted & right).to(tl.float64)
        faded = counted & (trials > FADE)
        trials = tl.where(faded, trials * 0.5, trials)
        accepted = tl.where(faded, accepted * 0.5, accepted)
        runs = right
    # all warps load before any warp stores
    tl.debug_barrier()
    tl.store(at, trials, mask=m <= MAX_MATCH)
    tl.store(at + 1, accepted, mask=m <= MAX_MATCH)
    return m, accepted / trials


@jit(do_not_specialize=["S", "T1", "LAST"])
def _prompt_lookup_kernel(
    source, source_lengths, tokens, lengths, finished, limits, budgets, tested, last, keys, best, best_probability, seed,
    root_best, root_probability, V, proposed, proposed_lengths, proposers, end_token, S, T1, LAST, K: tl.constexpr,
    K_PAD: tl.constexpr, WINDOW: tl.constexpr, MIN_MATCH: tl.constexpr, MAX_MATCH: tl.constexpr, PAD: tl.constexpr,
    M_PAD: tl.constexpr, BLOCK: tl.constexpr, CANDIDATES: tl.constexpr, COST: tl.constexpr, FADE: tl.constexpr,
    TABLE: tl.constexpr, BITS: tl.constexpr, SUFFIXES: tl.constexpr, SUFFIXES_PAD: tl.constexpr, PROBES: tl.constexpr,
    PROBES_PAD: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    allowed = tl.minimum(drafts_allowed(b, b >= 0, lengths, limits, finished, budgets), K)
    length = tl.load(lengths + b)
    emitted = length - 1
    text, output = source + b * S, tokens + b * T1
    m, confidence = _learn(b, output, length, tl.load(finished + b) == 0, tested, last, LAST, MAX_MATCH, M_PAD, K, FADE)
    stop = tl.load(source_lengths + b)
    # the source's end token is not copied
    ended = tl.load(text + stop - 1, mask=stop > 0, other=0) == end_token
    stop = tl.where((stop > 0) & ended, stop - 1, stop)
    oldest = tl.maximum(1, emitted - WINDOW + 1)
    # the last tokens, the newest first; only the table may use the start token
    s, k = tl.arange(0, PAD), tl.arange(0, K_PAD)
    recent = tl.load(output + emitted - s, mask=s <= emitted, other=0)
    drafted, matched = tl.zeros((K_PAD,), tl.int64), tl.zeros((K_PAD,), tl.int64) - 1
    reach, expected = tl.full((), 1.0, tl.float64), tl.full((), 1.0, tl.float64)
    count, position, match = length * 0, length * 0, length * 0
    # 1 if the copied run is in the source
    is_source = length * 0 + 1
    has_match = (emitted == 0) & (stop > 0)
    growing = allowed > 0
    for step in range(K):
        word, likely = length * 0 - 1, tl.full((), -1.0, tl.float64)
        if TABLE:
            newest = tl.sum(tl.where(tl.arange(0, SUFFIXES_PAD)[:, None] == s[None, :], recent[None, :], 0), axis=1)
            word, likely = most_likely_token(keys, best, best_probability, seed, root_best, root_probability, V, newest,
                                             length + step, growing, BITS, SUFFIXES, SUFFIXES_PAD, PROBES, PROBES_PAD,
                                             STRICT)
        if growing & (has_match == 0) & (emitted + step > 0):
            known = emitted + step
            match = tl.maximum(
                _longest(text, 0, 0, stop - 1, recent, known, MIN_MATCH, MAX_MATCH, PAD, BLOCK),
                _longest(output, 1, oldest, emitted, recent, known, MIN_MATCH, MAX_MATCH, PAD, BLOCK))
            rank = tl.maximum(
                _best(text, 0, 0, stop - 1, stop, recent, known, match, allowed - step, word, True, MIN_MATCH, MAX_MATCH,
                      PAD, BLOCK, CANDIDATES),
                _best(output, 1, oldest, emitted, length, recent, known, match, allowed - step, word, False, MIN_MATCH,
                      MAX_MATCH, PAD, BLOCK, CANDIDATES))
            has_match = rank >= 0
            is_source = (rank >> 31) & 1
            position = tl.where(is_source == 1, 0x7FFFFFFF - (rank & 0x7FFFFFFF), rank & 0x7FFFFFFF) + 1
        copying = (growing & has_match) != 0
        candidate = tl.load(tl.where(is_source == 1, text, output) + position, mask=copying, other=0)
        confidence_now = tl.sum(tl.where(m == match, confidence, 0.0), axis=0)
        copies = has_match & (confidence_now >= likely)
        token, chance = tl.where(copies, candidate, word), tl.where(copies, confidence_now, likely)
        reach *= chance
        growing = growing & (count < allowed) & is_worth_drafting(reach, count.to(tl.float64), expected, COST)
        if not TABLE:
            growing = growing & copies
        expected += tl.where(growing, reach, 0.0)
        here = (k == step) & growing
        drafted = tl.where(here, token, drafted)
        matched = tl.where(here, tl.where(copies, match, -1), matched)
        count += growing.to(tl.int64)
        has_match = has_match & (candidate == token)
        position += 1
        match = tl.minimum(match + 1, MAX_MATCH)
        has_match = has_match & (position < tl.where(is_source == 1, stop, length))
        growing = growing & (token != end_token)
        older = tl.sum(tl.where(s[:, None] == s[None, :] + 1, recent[None, :], 0), axis=1)
        recent = tl.where(s == 0, token, older)
    tl.store(proposed + b * K + k, drafted, mask=k < K)
    tl.store(proposers + b * K + k, tl.where(matched >= 0, _LOOKUP, _NGRAM).to(tl.uint8), mask=k < count)
    tl.store(proposed_lengths + b, count)
    tl.store(last + b * LAST, tl.where(count > 0, length, 0))
    tl.store(last + b * LAST + 1 + 2 * k, tl.where(k < count, drafted, -1), mask=1 + 2 * k < LAST)
    tl.store(last + b * LAST + 2 + 2 * k, matched, mask=1 + 2 * k < LAST)


def prompt_lookup_triton(source, source_lengths, tokens, lengths, finished, limits, budgets, tested, last,
                         table: Hash | None, end_token, window, min_match, fade, cost, proposed, proposed_lengths,
                         proposers) -> None:
    """One launch, without synchronisation. window: output positions searched; fade: counts above it are halved."""
    B, K = proposed.shape
    max_match = tested.shape[1] - 1
    constants = {name: 1 for name in ("BITS", "SUFFIXES", "SUFFIXES_PAD", "PROBES", "PROBES_PAD", "STRICT")}
    if table is not None:
        constants = table.constants()
    _prompt_lookup_kernel[(B,)](
        source, source_lengths, tokens, lengths, finished, limits, budgets, tested, last,
        *((None,) * 7 if table is None else table.tensors()), proposed, proposed_lengths, proposers, end_token,
        source.shape[1], tokens.shape[1], last.shape[1], K=K, K_PAD=power_of_2(max(K, 1)), WINDOW=window,
        MIN_MATCH=min_match, MAX_MATCH=max_match, PAD=power_of_2(max(max_match, constants["SUFFIXES"])),
        M_PAD=power_of_2(max_match + 1), BLOCK=BLOCK, CANDIDATES=CANDIDATES, COST=cost, FADE=fade,
        TABLE=table is not None, **constants, num_warps=4)
