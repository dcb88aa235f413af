"""How many ids each row drafts in a round: the widths of the highest rate; how many of those drafted are read; and after the
round, what is to be learned of it.

    lengths, limits   [B] int64      of the state;  finished [B] bool
    most      [B] int64              each row's widest draft, at most K
    widths            [B] int64      out: how many ids each row may draft; learned from: what it might
    tested, accepted  [B] int64      of each row's draft in the round
    drafted           [B] int64      how many ids the drafter gave it
    read              [B] int64      how many of them the target read
    seconds, drafting float          of the round, and of its drafts
    rows              [B, 3] float64     of a row's request: ids accepted, ids that were expected to be, and its credit, or
                                         with `fixed` rounds since it drafted
    places            [K, 4] float64     of all rows, by place in the draft: asked for, drafted, tested, accepted
    base              [B + 1, 2] float64    seconds of a plain round by running rows, and how often seen
    extra             [B K + 1, 3] float64  what further rows of a pass add, by their number, how often and when last seen
    spent             [K + 1, 2] float64    of a drafter's call, by its longest draft; all three in units of `clock[UNIT]`
    clock             [CLOCK] float64    the rest of what is remembered, below
    own               float          how many ids of its own a row's record takes to count as much as all rows'
    fixed             bool           only `rows` are learned, and each row is decided by itself, at costs for B rows

A round's rate is what it is expected to emit, one id a row and every further one by the chance that all ids up to it are
right, over its seconds. Chances fall along a draft, so that the best m drafts of a batch are those of the m largest, and
the best m is found by trying all (where calls cost by their longest draft, a little may be missed). A place's chance is the
share of tested ids that were accepted there, times how a row has done against that.

Nothing drafted is nothing learned: 1 % of the time (PROBE) pays for drafts that do not promise to pay, one id wide, and
plain rounds are made now and then where rows always draft. Waits for those double up to LONGEST rounds, and for a draft
grow up to RARE times while nothing stands that is drafted. Where no row drafts the next REST rounds are not thought about,
and where much was seen the next BRIEF ones of any draft.

Lossless: lengths are fixed before any random number of the step is drawn, from steps whose random numbers are not used
again (their keys hold the length at the step's start), so the next tokens follow the target's distribution. With `fixed`
they depend on the sequence's own request and on B alone: a seeded request repeats on any machine, whatever sequences are
beside it.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.gemm_microkernel import ROW_TILE

# clock: seconds of a unit and how often seen, running rows of the last round, units saved for a probe, rounds since one
# without a draft, plain ones on purpose, rounds since a call, what calls after a pause cost, a running mean of further rows,
# calls since an id was accepted
UNIT, SEEN, RUNNING, CREDIT, SINCE, PLAIN, IDLE, PAUSED, FURTHER, MISSED = range(10)
CLOCK = 10
PROBE, RARE, PATIENCE = 0.01, 4.0, 4.0
# further rounds like the last where no draft promised to pay, and where one did and STEADY rounds were seen: to choose and
# to learn take 1 to 2 % of a small target's round
REST, BRIEF, STEADY = 4, 3, 64
# in plain rounds: where nothing promises to pay at first, the first probe need not wait
ADVANCE = 1.5
FIRST, LONGEST = 8, 256
# how much better a wider draft must promise to be: of many estimates the best is likely one that errs
MARGIN = 1.01
# plain rounds at the start, and how slowly a cost changes once it is known
PLAINS, SLOWEST = 3, 0.04
# how late a round may be against what was expected, the rest being a pause; after how many rounds a cost is old, and what a
# lower one then counts at least: a machine may be late, never early
LATE, OLD, NEWS = 1.6, 20, 0.3
# before anything is seen: the chance of an id, what it counts, and shares of a plain round for a further row (no more than
# each of the B that are there), a call, an id
CHANCE, PRIOR, ROW, CALL, ID = 0.7, 2.0, 0.05, 0.03, 0.1
# what one query position adds within a tile that is read together: a pass has steps (kernels/core/gemm_microkernel.py)
WITHIN = 0.05
# the same where nothing is learned: an LSTM beside the embedded target; a row's share of a round grows with the batch
FIXED_CHANCE, FIXED_ROW, FIXED_GROWTH, FIXED_CALL, FIXED_ID = 0.62, 0.05, 1.4, 0.15, 0.12
# there a draft is one id wide, and as many wider for each id that stood in the request's last drafts
FIXED_TRUST = 2.0
# what a drafter makes of a source before its first draft, and what it has to catch up with before a probe, in rounds of the
# row: a share of the batch's time, B of them
FIXED_SOURCE, FIXED_PAUSED = 2.3, 0.3
# tested ids that a place remembers, and how fast a row's own record fades
MEMORY, FADE = 200.0, 0.95
SURE = 0.98


def new_memory(B: int, K: int) -> tuple[np.ndarray, ...]:
    """places, base, extra, spent, clock for batches of B rows and drafts of K ids."""
    places, base, extra, spent = (np.zeros(shape) for shape in ((K, 4), (B + 1, 2), (B * K + 1, 3), (K + 1, 2)))
    clock = np.zeros(CLOCK)
    clock[CREDIT] = ADVANCE
    base[:, 0] = 0.2 + 0.8 * np.arange(B + 1) / B
    return places, base, extra, spent, clock


@njit()
def _chances(places, fixed, chance, cover):
    """Of a tested id at each place [K], and of being drafted at all [K]; a place little seen follows the one before."""
    before, reach, weight = CHANCE, 1.0, PRIOR
    for i in range(places.shape[0]):
        if fixed:
            chance[i], cover[i] = FIXED_CHANCE, 1.0
            continue
        before = (places[i, 3] + weight * before) / (places[i, 2] + weight)
        reach = min(reach, (places[i, 1] + reach) / (places[i, 0] + 1.0))
        chance[i], cover[i] = before, reach
        weight = 4.0


@njit()
def _fill(table, start, slope, few, at, out):
    """A table of [value, times seen] without its gaps: the never-falling values nearest to what was seen (isotonic
    regression), straight along `at` between them. What was seen less than `few` times leans to the line through all. at:
    places of the entries, rising from 0."""
    height, length = 0.0, 0.0
    for i in range(1, table.shape[0]):
        seen = min(table[i, 1], 1 / SLOWEST)
        height, length = height + seen * (table[i, 0] - start), length + seen * at[i]
    # blocks of one value each: value, times seen, and the first and last entry
    blocks, size = np.zeros((table.shape[0], 4)), 0
    blocks[0, 0], blocks[0, 1] = start, 1e9
    for i in range(1, table.shape[0]):
        if table[i, 1] > 0:
            seen = min(table[i, 1], 1 / SLOWEST)
            size += 1
            blocks[size, 0] = (seen * table[i, 0] + few * (start + height / length * at[i])) / (seen + few)
            blocks[size, 1], blocks[size, 2], blocks[size, 3] = table[i, 1], i, i
            while size > 0 and blocks[size - 1, 0] > blocks[size, 0]:
                size -= 1
                seen = blocks[size, 1] + blocks[size + 1, 1]
                blocks[size, 0] += (blocks[size + 1, 0] - blocks[size, 0]) * blocks[size + 1, 1] / seen
                blocks[size, 1], blocks[size, 3] = seen, blocks[size + 1, 3]
    out[0] = start
    for block in range(size + 1):
        value, first, last = blocks[block, 0], int(blocks[block, 2]), int(blocks[block, 3])
        for i in range(first, last + 1):
            out[i] = value
        if block > 0:
            before, value_before = int(blocks[block - 1, 3]), blocks[block - 1, 0]
            for i in range(before + 1, first):
                out[i] = value_before + (value - value_before) * (at[i] - at[before]) / (at[first] - at[before])
    last = int(blocks[size, 3])
    if last > 0:
        slope = (blocks[size, 0] - start) / at[last]
    for i in range(last + 1, table.shape[0]):
        out[i] = blocks[size, 0] + slope * (at[i] - at[last])


@njit()
def _costs(extra, spent, B, fixed, rows, calls):
    """What further rows of a pass and a call add, by their number and by its longest draft, in plain rounds."""
    if fixed:
        for i in range(rows.shape[0]):
            rows[i] = FIXED_ROW * B**FIXED_GROWTH * i
        for i in range(calls.shape[0]):
            calls[i] = FIXED_CALL + FIXED_ID * i
    else:
        at = np.arange(extra.shape[0]).astype(np.float64)
        _fill(spent, spent[0, 0] if spent[0, 1] > 0 else CALL, ID, 0.0, at, calls)
        if B == 1:
            for i in range(at.shape[0]):
                at[i] = (i // ROW_TILE + WITHIN * i) / (1 / ROW_TILE + WITHIN)
        _fill(extra, 0.0, min(ROW, 1.0 / B), 8.0, at, rows)


@njit()
def _known(places, extra, spent, B, fixed):
    """chance [K], cover [K], more [B K + 1], calls [K + 1]: what _chances and _costs make of what is remembered."""
    chance, cover = np.empty(places.shape[0]), np.empty(places.shape[0])
    more, calls = np.empty(extra.shape[0]), np.empty(spent.shape[0])
    _chances(places, fixed, chance, cover)
    _costs(extra, spent, B, fixed, more, calls)
    return chance, cover, more, calls


@njit()
def _see(table, i, value, least=SLOWEST):
    """Take a value in: the mean at first, later a running mean, in which it counts `least`."""
    table[i, 1] += 1
    table[i, 0] += max(1 / table[i, 1], least) * (value - table[i, 0])


@njit()
def _near(value, known):
    """A value, near what was expected: pauses of the machine count little."""
    return min(max(value, 0.5 * known), LATE * known)


@njit()
def learn_loop(tested, accepted, drafted, read, widths, seconds, drafting, rows, places, base, extra, spent, clock, fixed):
    """Take a round in, in the widths that pace_loop had set; before rows are handed over. seconds 0: it was not a usual
    one, and no costs are learned."""
    chance, _cover, more, calls = _known(places, extra, spent, widths.shape[0], fixed)
    further, longest, asked, stood = 0, 0, False, False
    for b in range(widths.shape[0]):
        if widths[b] == 0:
            continue
        asked = True
        further += read[b]
        longest, stood = max(longest, drafted[b]), stood or accepted[b] > 0
        rows[b, 0] *= FADE
        rows[b, 1] *= FADE
        for i in range(tested[b]):
            rows[b, 0] += 1.0 if accepted[b] > i else 0.0
            rows[b, 1] += chance[i]
        if fixed:
            continue
        # of a row that ended inside its draft the next id fell too: wide drafts meet more ends
        looked_at = tested[b] + 1 if accepted[b] == tested[b] < read[b] else tested[b]
        for i in range(widths[b]):
            places[i, 0] += 1
            places[i, 1] += 1 if drafted[b] > i else 0
            places[i, 2] += 1 if looked_at > i else 0
            places[i, 3] += 1 if accepted[b] > i else 0
            if places[i, 0] > MEMORY:
                places[i] *= 0.5
    if asked and not fixed:
        clock[MISSED] = 0.0 if stood else clock[MISSED] + 1
    running = int(clock[RUNNING])
    if fixed or running == 0:
        return
    if seconds == 0:
        clock[IDLE] = 0 if asked else clock[IDLE] + 1
        return
    known = base[running, 0] + more[further]
    taken = max(seconds - drafting, 1e-9)
    clock[SEEN] += 1
    if clock[SEEN] <= PLAINS:
        # a machine may be late, never early
        clock[UNIT] = min(clock[UNIT], taken / known) if clock[SEEN] > 1 else taken / known
    clock[UNIT] *= 1 + 0.1 * (_near(taken / clock[UNIT], known) / known - 1)
    taken, drafting = _near(taken / clock[UNIT], known), drafting / clock[UNIT]
    if further == 0:
        _see(base, running, taken)
        clock[SINCE] = 0
    else:
        more_now = max(taken - base[running, 0], 0.0)
        # costs of a machine that was busy would keep drafts away long after
        fresh = clock[SEEN] - extra[further, 2] > OLD and more_now < extra[further, 0]
        _see(extra, further, more_now, NEWS if fresh else SLOWEST)
        extra[further, 2] = clock[SEEN]
        clock[FURTHER] += 0.1 * (further - clock[FURTHER])
    if asked and clock[IDLE] > 1:
        # the drafter has first read what it had missed
        clock[PAUSED] += 0.5 * (min(drafting, 2.0) - clock[PAUSED])
    elif asked:
        _see(spent, longest, _near(drafting, calls[longest]))
    clock[IDLE] = 0 if asked else clock[IDLE] + 1


@njit()
def _widen(survival, cover, room, running, calls, more, unit, widths):
    """Set widths [B] to those of the highest rate; survival [B, K] never rises along a row. Returns their sum."""
    B, K = survival.shape
    order, size = np.empty(B * K, np.int64), 0
    widths[:] = 0
    expected, further, longest, best, found = float(running), 0.0, 0, running / unit, 0
    while True:
        row = -1
        for b in range(B):
            if widths[b] < room[b] and (row < 0 or survival[b, widths[b]] > survival[row, widths[row]]):
                row = b
        if row < 0:
            break
        i = widths[row]
        widths[row] += 1
        order[size] = row
        size += 1
        expected += cover[i] * survival[row, i]
        further += cover[i]
        longest = max(longest, i + 1)
        call = calls[0] + cover[0] * (calls[longest] - calls[0])
        rate = expected / (unit + more[min(int(further + 0.5), more.shape[0] - 1)] + call)
        if rate > MARGIN * best:
            best, found = rate, size
    widths[:] = 0
    for i in range(found):
        widths[order[i]] += 1
    return found


@njit()
def _survivals(chance, rows, own):
    """The chance of each id of each row, and of all before it, to be right: [B, K]."""
    survival = np.empty((rows.shape[0], chance.shape[0]))
    for b in range(survival.shape[0]):
        reach, better = 1.0, (rows[b, 0] + own) / (rows[b, 1] + own)
        for i in range(survival.shape[1]):
            reach *= min(chance[i] * better, SURE)
            survival[b, i] = reach
    return survival


@njit()
def pace_loop(lengths, limits, finished, widths, most, rows, places, base, extra, spent, clock, own, fixed):
    """Returns what a further row read for every sequence and a further id drafted cost, in shares of a plain round, whether
    a row drafts, and how many rounds may follow this one with the same widths, without a look at them."""
    B, K = widths.shape[0], places.shape[0]
    chance, cover, more, calls = _known(places, extra, spent, B, fixed)
    survival, room, running = _survivals(chance, rows, own), np.zeros(B, np.int64), 0
    for b in range(B):
        if not finished[b]:
            running += 1
            room[b] = max(min(most[b], limits[b] - lengths[b] - 1), 0)
    clock[RUNNING] = running
    if running == 0:
        widths[:] = 0
        return 1.0, 0.0, False, 0
    if fixed:
        rest = int(LONGEST)
        for b in range(B):
            room[b] = min(room[b], int(1.0 + FIXED_TRUST * rows[b, 0]))
            total = _widen(survival[b : b + 1], cover, room[b : b + 1], 1, calls, more, 1.0, widths[b : b + 1])
            rows[b, 2] = rows[b, 2] + 1 if total == 0 else 0.0
            price = FIXED_CALL + FIXED_ID + more[1] + (FIXED_SOURCE if rows[b, 1] == 0 else FIXED_PAUSED)
            wait = int(np.ceil(price / PROBE)) - int(rows[b, 2])
            if room[b] > 0 and wait <= 0:
                widths[b], rows[b, 2] = 1, 0.0
            elif room[b] > 0:
                rest = min(rest, wait - 1)
        if widths.any():
            return more[1], FIXED_ID, True, 0
        # nothing changes before a row's next probe; whoever ends the rest sooner takes the rest of it back
        rows[:, 2] += rest
        return more[1], FIXED_ID, False, rest
    unit = max(base[running, 0], 1e-3)
    total = _widen(survival, cover, room, running, calls, more, unit, widths)
    clock[SINCE] += 1
    rest = 0
    if clock[PLAIN] < PLAINS or (total > 0 and clock[SINCE] >= min(FIRST * 2.0 ** clock[PLAIN], LONGEST)):
        widths[:] = 0
        clock[PLAIN] += 1
    elif total == 0:
        rest = REST
        clock[CREDIT] += (1 + rest) * PROBE * unit
        clock[IDLE] += rest
        price = max(calls[1], clock[PAUSED]) + more[min(running, more.shape[0] - 1)]
        if clock[CREDIT] >= price * min(1.0 + clock[MISSED] / PATIENCE, RARE):
            for b in range(B):
                widths[b] = min(room[b], 1)
            clock[CREDIT], rest = 0.0, 0
    else:
        # a row that drafts nothing beside others that do: a probe of its own costs it one row of the pass
        price = running * more[1] / unit
        rest = BRIEF if clock[SEEN] > STEADY else 0
        clock[SINCE] += rest
        for b in range(B):
            rows[b, 2] = rows[b, 2] + (1 + rest) * PROBE if widths[b] == 0 else 0.0
            if rows[b, 2] >= price and room[b] > 0:
                # once, not for as long
                widths[b], rows[b, 2], rest = 1, 0.0, 0
    at = min(max(running, int(clock[FURTHER] + 0.5)), more.shape[0] - 1)
    each = (calls[K] - calls[1]) / max(K - 1, 1)
    return running * more[at] / (max(at, 1) * unit), each / unit, bool(widths.any()), rest


@njit()
def trim_loop(drafted, rows, places, base, extra, spent, clock, own, read):
    """read [B] of the highest rate, of drafts that are there and paid for. Their first ids stay, for these teach.

    For drafts whose target's ids do not depend on them: greedy rows and point masses.
    """
    chance, cover, more, calls = _known(places, extra, spent, drafted.shape[0], False)
    cover[:] = 1.0
    calls[:] = calls[drafted.max()]
    running = int(clock[RUNNING])
    _widen(_survivals(chance, rows, own), cover, drafted, running, calls, more, max(base[running, 0], 1e-3), read)
    for b in range(drafted.shape[0]):
        read[b] = max(read[b], min(drafted[b], 1))


def pace_numba(*arguments) -> tuple[float, float, bool, int]:
    return pace_loop(*arguments)


def trim_numba(*arguments) -> None:
    trim_loop(*arguments)


def learn_numba(*arguments) -> None:
    learn_loop(*arguments)
