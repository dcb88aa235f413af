"""What draft lengths are chosen by: estimates of acceptance and of costs, and how each step updates them.

    estimates  Estimates, of all requests of one batch size B and draft limit K; times in units of scalars[UNIT_SECONDS]:
      acceptance_counts  [K, 4] float64        by position in the draft: tokens allowed, drafted, tested, accepted
      plain_times        [B + 1, 2] float64    time of a plain step by running sequences; number of measurements
      position_times     [B K + 1, 3] float64  time that so many further query positions add to the pass; number of
                                               measurements; timed steps at the last one
      call_times         [K + 1, 2] float64    time of a drafter's call by its longest draft; number of measurements
      scalars            [NUM_SCALARS] float64 the rest, by the indices below
    requests   [B, 3] float64   of a sequence's request: tokens accepted and tokens expected to be, both fading; exploration
                                credit in plain steps, or, with `repeatable`, steps since it last drafted
    repeatable bool             costs and acceptance by position are assumed constants; only `requests` is updated

The acceptance probability at a position is the share of tested tokens that were accepted there; few tests lean to the
position before. Costs are running means, made monotone and interpolated (isotonic_fit).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.gemm_microkernel import ROW_TILE
from foredraft.kernels.drafting.draft_stopping import PRIOR_ACCEPTANCE

# scalars: seconds of a plain step of B sequences; timed steps; running sequences of this step; exploration credit, in units;
# steps since a plain one; plain steps made on purpose; steps since the drafter was called, and what a call costs after a
# pause; running mean of the query positions that drafts add; calls since a token was accepted
(UNIT_SECONDS, NUM_TIMED, RUNNING, CREDIT, SINCE_PLAIN, NUM_PLAIN, SINCE_CALL, RESUME_TIME, MEAN_POSITIONS,
 CALLS_REJECTED) = range(10)
NUM_SCALARS = 10

# Before anything is measured, as shares of a plain step:
# a further query position, measured with the embedded target; a batch counts it at most as one sequence of B
POSITION_COST = 0.05
# a call of the drafter, and a drafted token: between a copy and a small neural drafter
PRIOR_CALL, PRIOR_TOKEN = 0.03, 0.1

# Assumed where lengths must repeat; measured with the embedded LSTM and target:
# acceptance probability of every token
ASSUMED_ACCEPTANCE = 0.62
# power of B by which a further query position's share of a plain step grows: large batches are compute-bound
ASSUMED_BATCH_POWER = 1.4
# a call of the drafter, and a drafted token
ASSUMED_CALL, ASSUMED_TOKEN = 0.15, 0.12

# Tests that the estimate before a position's own counts as: at the first position, and at the following ones.
FIRST_WEIGHT, NEXT_WEIGHT = 2.0, 4.0
# Tokens allowed at a position after which its counts are halved: older requests fade.
WINDOW = 200.0
# Factor of a request's record for each later draft: its text changes within about 20 drafts.
REQUEST_FADE = 0.95

# Exploration credit at the start, in plain steps: the first exploration need not wait.
FIRST_CREDIT = 1.5
# The first plain steps: the least of their times is the unit, as a machine may be late, never early.
NUM_FIRST_PLAIN = 3
# Least weight of a measurement in a running mean.
MIN_WEIGHT = 0.04
# Weight of a step in the unit and in MEAN_POSITIONS.
STEP_WEIGHT = 0.1
# Weight of a call after a pause: such calls are rare.
RESUME_WEIGHT = 0.5
# A call after a pause costs at most so many plain steps.
MAX_RESUME = 2.0
# A time counts within these factors of its expectation: pauses of the machine are no costs.
MIN_FACTOR, MAX_FACTOR = 0.5, 1.6
# A lower position time after so many timed steps has this weight: a cost measured on a busy machine must not stay.
STALE, STALE_WEIGHT = 20, 0.3
# Measurements that the line through all position times counts as.
LINE_WEIGHT = 8.0
# Cost of a further query position within a tile of the GEMM kernel, as a share of the step to the next tile.
WITHIN_TILE = 0.05


class Estimates(NamedTuple):
    acceptance_counts: np.ndarray
    plain_times: np.ndarray
    position_times: np.ndarray
    call_times: np.ndarray
    scalars: np.ndarray


def new_estimates(B: int, K: int) -> Estimates:
    """Estimates before the first step of batches of B sequences and drafts of at most K tokens."""
    estimates = Estimates(np.zeros((K, 4)), np.zeros((B + 1, 2)), np.zeros((B * K + 1, 3)), np.zeros((K + 1, 2)),
                          np.zeros(NUM_SCALARS))
    estimates.scalars[CREDIT] = FIRST_CREDIT
    # a fifth of a plain step does not depend on the number of sequences
    estimates.plain_times[:, 0] = 0.2 + 0.8 * np.arange(B + 1) / B
    return estimates


@njit()
def _estimate_acceptance(acceptance_counts, repeatable, acceptance, coverage):
    """Fill acceptance [K], of a tested token at a position, and coverage [K]: the probability that a draft reaches it."""
    before, reach, weight = PRIOR_ACCEPTANCE, 1.0, FIRST_WEIGHT
    for i in range(acceptance_counts.shape[0]):
        if repeatable:
            acceptance[i], coverage[i] = ASSUMED_ACCEPTANCE, 1.0
            continue
        before = (acceptance_counts[i, 3] + weight * before) / (acceptance_counts[i, 2] + weight)
        reach = min(reach, (acceptance_counts[i, 1] + reach) / (acceptance_counts[i, 0] + 1.0))
        acceptance[i], coverage[i] = before, reach
        weight = NEXT_WEIGHT


@njit()
def isotonic_fit(table, start, slope, line_weight, positions, out):
    """Fill out [n] with never-falling costs nearest to a table of measurements (isotonic regression).

    table        [n, >= 2] float64   mean and number of measurements; entry 0 is `start`
    slope        float               of the line without any measurement
    line_weight  float               measurements that the line through all entries counts as
    positions    [n] float64         of the entries, rising from 0; the fit is linear between measured ones
    """
    height, length = 0.0, 0.0
    for i in range(1, table.shape[0]):
        count = min(table[i, 1], 1 / MIN_WEIGHT)
        height, length = height + count * (table[i, 0] - start), length + count * positions[i]
    # blocks of one value each: value, measurements, first and last entry (pool adjacent violators)
    blocks, size = np.zeros((table.shape[0], 4)), 0
    blocks[0, 0], blocks[0, 1] = start, 1e9
    for i in range(1, table.shape[0]):
        if table[i, 1] > 0:
            count = min(table[i, 1], 1 / MIN_WEIGHT)
            size += 1
            blocks[size, 0] = (count * table[i, 0] + line_weight * (start + height / length * positions[i])) / (
                count + line_weight)
            blocks[size, 1], blocks[size, 2], blocks[size, 3] = table[i, 1], i, i
            while size > 0 and blocks[size - 1, 0] > blocks[size, 0]:
                size -= 1
                count = blocks[size, 1] + blocks[size + 1, 1]
                blocks[size, 0] += (blocks[size + 1, 0] - blocks[size, 0]) * blocks[size + 1, 1] / count
                blocks[size, 1], blocks[size, 3] = count, blocks[size + 1, 3]
    out[0] = start
    for block in range(size + 1):
        value, first, last = blocks[block, 0], int(blocks[block, 2]), int(blocks[block, 3])
        for i in range(first, last + 1):
            out[i] = value
        if block > 0:
            before, value_before = int(blocks[block - 1, 3]), blocks[block - 1, 0]
            for i in range(before + 1, first):
                out[i] = value_before + (value - value_before) * (positions[i] - positions[before]) / (
                    positions[first] - positions[before])
    last = int(blocks[size, 3])
    if last > 0:
        slope = (blocks[size, 0] - start) / positions[last]
    for i in range(last + 1, table.shape[0]):
        out[i] = blocks[size, 0] + slope * (positions[i] - positions[last])


@njit()
def _estimate_costs(position_times, call_times, B, repeatable, position_costs, call_costs):
    """Fill position_costs [B K + 1], of so many further query positions, and call_costs [K + 1], by the longest draft."""
    if repeatable:
        for i in range(position_costs.shape[0]):
            position_costs[i] = POSITION_COST * B**ASSUMED_BATCH_POWER * i
        for i in range(call_costs.shape[0]):
            call_costs[i] = ASSUMED_CALL + ASSUMED_TOKEN * i
    else:
        positions = np.arange(position_times.shape[0]).astype(np.float64)
        first_call = call_times[0, 0] if call_times[0, 1] > 0 else PRIOR_CALL
        isotonic_fit(call_times, first_call, PRIOR_TOKEN, 0.0, positions, call_costs)
        if B == 1:
            # one sequence: the pass costs more by whole tiles of query positions
            for i in range(positions.shape[0]):
                positions[i] = (i // ROW_TILE + WITHIN_TILE * i) / (1 / ROW_TILE + WITHIN_TILE)
        isotonic_fit(position_times, 0.0, min(POSITION_COST, 1.0 / B), LINE_WEIGHT, positions, position_costs)


@njit()
def estimate_loop(acceptance_counts, position_times, call_times, B, repeatable):
    """acceptance [K], coverage [K], position_costs [B K + 1] and call_costs [K + 1], in units."""
    acceptance, coverage = np.empty(acceptance_counts.shape[0]), np.empty(acceptance_counts.shape[0])
    position_costs, call_costs = np.empty(position_times.shape[0]), np.empty(call_times.shape[0])
    _estimate_acceptance(acceptance_counts, repeatable, acceptance, coverage)
    _estimate_costs(position_times, call_times, B, repeatable, position_costs, call_costs)
    return acceptance, coverage, position_costs, call_costs


@njit()
def _average(table, i, value, min_weight=MIN_WEIGHT):
    """Add a measurement to entry i: a mean at first, later a running mean in which it has the weight `min_weight`."""
    table[i, 1] += 1
    table[i, 0] += max(1 / table[i, 1], min_weight) * (value - table[i, 0])


@njit()
def _bound(value, expected):
    return min(max(value, MIN_FACTOR * expected), MAX_FACTOR * expected)


@njit()
def record_loop(tested, accepted, drafted, read, draft_lengths, seconds, drafting, requests, acceptance_counts, plain_times,
                position_times, call_times, scalars, repeatable):
    """record_numba, with the fields of `estimates` as arguments."""
    acceptance, _coverage, position_costs, call_costs = estimate_loop(acceptance_counts, position_times, call_times,
                                                                      draft_lengths.shape[0], repeatable)
    num_positions, longest, is_called, is_any_accepted = 0, 0, False, False
    for b in range(draft_lengths.shape[0]):
        if draft_lengths[b] == 0:
            continue
        is_called = True
        num_positions += read[b]
        longest, is_any_accepted = max(longest, drafted[b]), is_any_accepted or accepted[b] > 0
        requests[b, 0] *= REQUEST_FADE
        requests[b, 1] *= REQUEST_FADE
        for i in range(tested[b]):
            requests[b, 0] += 1.0 if accepted[b] > i else 0.0
            requests[b, 1] += acceptance[i]
        if repeatable:
            continue
        # a sequence that ended inside its draft counts as a rejection: longer drafts meet more ends
        num_tested = tested[b] + 1 if accepted[b] == tested[b] < read[b] else tested[b]
        for i in range(draft_lengths[b]):
            acceptance_counts[i, 0] += 1
            acceptance_counts[i, 1] += 1 if drafted[b] > i else 0
            acceptance_counts[i, 2] += 1 if num_tested > i else 0
            acceptance_counts[i, 3] += 1 if accepted[b] > i else 0
            if acceptance_counts[i, 0] > WINDOW:
                acceptance_counts[i] *= 0.5
    if is_called and not repeatable:
        scalars[CALLS_REJECTED] = 0.0 if is_any_accepted else scalars[CALLS_REJECTED] + 1
    running = int(scalars[RUNNING])
    if repeatable or running == 0:
        return
    if seconds == 0:
        scalars[SINCE_CALL] = 0 if is_called else scalars[SINCE_CALL] + 1
        return
    expected = plain_times[running, 0] + position_costs[num_positions]
    time = max(seconds - drafting, 1e-9)
    scalars[NUM_TIMED] += 1
    if scalars[NUM_TIMED] <= NUM_FIRST_PLAIN:
        scalars[UNIT_SECONDS] = (min(scalars[UNIT_SECONDS], time / expected) if scalars[NUM_TIMED] > 1
                                 else time / expected)
    scalars[UNIT_SECONDS] *= 1 + STEP_WEIGHT * (_bound(time / scalars[UNIT_SECONDS], expected) / expected - 1)
    time, drafting = _bound(time / scalars[UNIT_SECONDS], expected), drafting / scalars[UNIT_SECONDS]
    if num_positions == 0:
        _average(plain_times, running, time)
        scalars[SINCE_PLAIN] = 0
    else:
        added = max(time - plain_times[running, 0], 0.0)
        is_stale = (scalars[NUM_TIMED] - position_times[num_positions, 2] > STALE
                    and added < position_times[num_positions, 0])
        _average(position_times, num_positions, added, STALE_WEIGHT if is_stale else MIN_WEIGHT)
        position_times[num_positions, 2] = scalars[NUM_TIMED]
        scalars[MEAN_POSITIONS] += STEP_WEIGHT * (num_positions - scalars[MEAN_POSITIONS])
    if is_called and scalars[SINCE_CALL] > 1:
        # after a pause the drafter also read what it had missed
        scalars[RESUME_TIME] += RESUME_WEIGHT * (min(drafting, MAX_RESUME) - scalars[RESUME_TIME])
    elif is_called:
        _average(call_times, longest, _bound(drafting, call_costs[longest]))
    scalars[SINCE_CALL] = 0 if is_called else scalars[SINCE_CALL] + 1


def record_numba(tested, accepted, drafted, read, draft_lengths, seconds, drafting, requests, estimates, repeatable) -> None:
    """Update `requests` and `estimates` by a step; before its sequences start other requests.

    tested, accepted  [B] int64  tokens of each sequence's draft in the step
    drafted, read     [B] int64  tokens that the drafter returned, and how many of them the target read
    draft_lengths     [B] int64  tokens that the drafter was allowed
    seconds, drafting float      of the step, and of the drafter's call in it; seconds 0: not a usual step, record no costs
    """
    record_loop(tested, accepted, drafted, read, draft_lengths, seconds, drafting, requests, *estimates, repeatable)
