"""Draft lengths of a step: those with the most expected tokens a second (Leviathan et al. 2023, section 3).

    requests, estimates   draft_length_estimates.py
    pooled_weight  float  expected tokens of a request's own record that weigh as much as the record of all requests

A step emits one token a sequence, and each drafted token with the probability that it and all tokens before it are accepted
(its survival). Survival never rises along a draft, so the best m drafted tokens of a batch are those with the largest
survival; the best m is found by trying all. A call of the drafter costs by its longest draft, for which this order may be
slightly off.

Exploration: what is not tried is not measured. Where nothing is worth drafting, drafts of one token take EXPLORATION of the
time at most; where every step drafts, some steps are plain on purpose.

Lossless: lengths are chosen before any random number of the step is drawn, from steps whose random numbers are not used
again. With `repeatable` they depend on a sequence's own request and on B alone, so that a seeded request repeats.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.drafting.draft_length_estimates import (
    ASSUMED_CALL,
    ASSUMED_TOKEN,
    CALLS_REJECTED,
    CREDIT,
    MEAN_POSITIONS,
    NUM_FIRST_PLAIN,
    NUM_PLAIN,
    NUM_TIMED,
    RESUME_TIME,
    RUNNING,
    SINCE_CALL,
    SINCE_PLAIN,
    estimate_loop,
)
from foredraft.kernels.drafting.draft_stopping import MAX_ACCEPTANCE

# More draft tokens must promise so much more: of many estimates the best one is likely too high.
MARGIN = 1.01
# Share of the time for exploring drafts: what a useless drafter may cost.
EXPLORATION = 0.01
# Every BACKOFF_CALLS calls without an accepted token lengthen the wait for the next exploration by once its first length, up
# to MAX_BACKOFF times it: a useless drafter then costs a quarter of EXPLORATION.
BACKOFF_CALLS, MAX_BACKOFF = 4.0, 4.0
# Where every step drafts, after p plain steps on purpose the next one waits FIRST_WAIT 2^p steps, at most MAX_WAIT: the
# cost of a plain step changes slowly. MAX_WAIT also bounds the reuses of a plain choice with `repeatable`.
FIRST_WAIT, MAX_WAIT = 8, 256
# Further steps that reuse a choice, plain ones and ones with drafts, the latter after STEADY timed steps: to choose and to
# record takes 1 to 2 % of the embedded target's step.
REUSES_PLAIN, REUSES_DRAFTING, STEADY = 4, 3, 64

# With `repeatable`, measured with the embedded LSTM and target:
# a draft has one token, and this many more for each token accepted in the request's last drafts
TOKENS_PER_ACCEPTED = 2.0
# plain steps of one sequence that its first exploration takes to read the source, and a later one to read missed tokens
ASSUMED_SOURCE, ASSUMED_RESUME = 2.3, 0.3


@njit()
def _maximise_rate(survival, coverage, max_tokens, running, call_costs, position_costs, plain_cost, draft_lengths):
    """Write the draft_lengths [B] with the most expected tokens a unit of time; survival [B, K]. Returns their sum."""
    B, K = survival.shape
    order, size = np.empty(B * K, np.int64), 0
    draft_lengths[:] = 0
    expected, num_positions, longest, best, found = float(running), 0.0, 0, running / plain_cost, 0
    while True:
        sequence = -1
        for b in range(B):
            if draft_lengths[b] < max_tokens[b] and (
                    sequence < 0 or survival[b, draft_lengths[b]] > survival[sequence, draft_lengths[sequence]]):
                sequence = b
        if sequence < 0:
            break
        i = draft_lengths[sequence]
        draft_lengths[sequence] += 1
        order[size] = sequence
        size += 1
        expected += coverage[i] * survival[sequence, i]
        num_positions += coverage[i]
        longest = max(longest, i + 1)
        call = call_costs[0] + coverage[0] * (call_costs[longest] - call_costs[0])
        positions = position_costs[min(int(num_positions + 0.5), position_costs.shape[0] - 1)]
        rate = expected / (plain_cost + positions + call)
        if rate > MARGIN * best:
            best, found = rate, size
    draft_lengths[:] = 0
    for i in range(found):
        draft_lengths[order[i]] += 1
    return found


@njit()
def _survival(acceptance, requests, pooled_weight):
    """[B, K]: the probability that a token and all tokens before it are accepted."""
    survival = np.empty((requests.shape[0], acceptance.shape[0]))
    for b in range(survival.shape[0]):
        product, ratio = 1.0, (requests[b, 0] + pooled_weight) / (requests[b, 1] + pooled_weight)
        for i in range(survival.shape[1]):
            product *= min(acceptance[i] * ratio, MAX_ACCEPTANCE)
            survival[b, i] = product
    return survival


@njit()
def choose_loop(lengths, limits, finished, draft_lengths, max_tokens, requests, acceptance_counts, plain_times,
                position_times, call_times, scalars, pooled_weight, repeatable):
    """choose_numba, with the fields of `estimates` as arguments."""
    B, K = draft_lengths.shape[0], acceptance_counts.shape[0]
    acceptance, coverage, position_costs, call_costs = estimate_loop(acceptance_counts, position_times, call_times, B,
                                                                     repeatable)
    survival, room, running = _survival(acceptance, requests, pooled_weight), np.zeros(B, np.int64), 0
    for b in range(B):
        if not finished[b]:
            running += 1
            room[b] = max(min(max_tokens[b], limits[b] - lengths[b] - 1), 0)
    scalars[RUNNING] = running
    if running == 0:
        draft_lengths[:] = 0
        return 1.0, 0.0, False, 0
    if repeatable:
        reuses = int(MAX_WAIT)
        for b in range(B):
            room[b] = min(room[b], int(1.0 + TOKENS_PER_ACCEPTED * requests[b, 0]))
            total = _maximise_rate(survival[b : b + 1], coverage, room[b : b + 1], 1, call_costs, position_costs, 1.0,
                                   draft_lengths[b : b + 1])
            requests[b, 2] = requests[b, 2] + 1 if total == 0 else 0.0
            cost = ASSUMED_CALL + ASSUMED_TOKEN + position_costs[1] + (ASSUMED_SOURCE if requests[b, 1] == 0
                                                                       else ASSUMED_RESUME)
            wait = int(np.ceil(cost / EXPLORATION)) - int(requests[b, 2])
            if room[b] > 0 and wait <= 0:
                draft_lengths[b], requests[b, 2] = 1, 0.0
            elif room[b] > 0:
                reuses = min(reuses, wait - 1)
        if draft_lengths.any():
            return position_costs[1], ASSUMED_TOKEN, True, 0
        # nothing changes before the next exploration; the caller takes back the reuses that a new request ends
        for b in range(B):
            requests[b, 2] += reuses
        return position_costs[1], ASSUMED_TOKEN, False, reuses
    plain_cost = max(plain_times[running, 0], 1e-3)
    total = _maximise_rate(survival, coverage, room, running, call_costs, position_costs, plain_cost, draft_lengths)
    scalars[SINCE_PLAIN] += 1
    reuses = 0
    if scalars[NUM_PLAIN] < NUM_FIRST_PLAIN or (
            total > 0 and scalars[SINCE_PLAIN] >= min(FIRST_WAIT * 2.0 ** scalars[NUM_PLAIN], MAX_WAIT)):
        draft_lengths[:] = 0
        scalars[NUM_PLAIN] += 1
    elif total == 0:
        reuses = REUSES_PLAIN
        scalars[CREDIT] += (1 + reuses) * EXPLORATION * plain_cost
        scalars[SINCE_CALL] += reuses
        cost = max(call_costs[1], scalars[RESUME_TIME]) + position_costs[min(running, position_costs.shape[0] - 1)]
        if scalars[CREDIT] >= cost * min(1.0 + scalars[CALLS_REJECTED] / BACKOFF_CALLS, MAX_BACKOFF):
            for b in range(B):
                draft_lengths[b] = min(room[b], 1)
            scalars[CREDIT], reuses = 0.0, 0
    else:
        # a sequence that drafts nothing beside others that do: its exploration costs one query position
        cost = running * position_costs[1] / plain_cost
        reuses = REUSES_DRAFTING if scalars[NUM_TIMED] > STEADY else 0
        scalars[SINCE_PLAIN] += reuses
        for b in range(B):
            requests[b, 2] = requests[b, 2] + (1 + reuses) * EXPLORATION if draft_lengths[b] == 0 else 0.0
            if requests[b, 2] >= cost and room[b] > 0:
                # an exploration is one step, so nothing is reused
                draft_lengths[b], requests[b, 2], reuses = 1, 0.0, 0
    at = min(max(running, int(scalars[MEAN_POSITIONS] + 0.5)), position_costs.shape[0] - 1)
    token = (call_costs[K] - call_costs[1]) / max(K - 1, 1)
    return running * position_costs[at] / (max(at, 1) * plain_cost), token / plain_cost, bool(draft_lengths.any()), reuses


@njit()
def shorten_loop(drafted, requests, acceptance_counts, plain_times, position_times, call_times, scalars, pooled_weight,
                 read):
    """shorten_numba, with the fields of `estimates` as arguments."""
    acceptance, coverage, position_costs, call_costs = estimate_loop(acceptance_counts, position_times, call_times,
                                                                     drafted.shape[0], False)
    coverage[:] = 1.0
    call_costs[:] = call_costs[drafted.max()]
    running = int(scalars[RUNNING])
    _maximise_rate(_survival(acceptance, requests, pooled_weight), coverage, drafted, running, call_costs, position_costs,
                   max(plain_times[running, 0], 1e-3), read)
    for b in range(drafted.shape[0]):
        read[b] = max(read[b], min(drafted[b], 1))


def choose_numba(lengths, limits, finished, draft_lengths, max_tokens, requests, estimates, pooled_weight,
                 repeatable) -> tuple[float, float, bool, int]:
    """Write how many tokens each sequence drafts in the next step.

    lengths, limits  [B] int64, finished [B] bool, of the state;  max_tokens [B] int64: each request's longest draft
    draft_lengths    [B] int64  out

    Returns the costs of a further query position of every sequence and of a further drafted token, as shares of a plain
    step; whether a sequence drafts; and how many further steps may reuse the lengths.
    """
    return choose_loop(lengths, limits, finished, draft_lengths, max_tokens, requests, *estimates, pooled_weight, repeatable)


def shorten_numba(drafted, requests, estimates, pooled_weight, read) -> None:
    """Write how many of the drafted [B] tokens the target reads to read [B]; at least one of each draft, to learn from.

    For drafts that the output does not depend on, at temperature 0 or of point masses: their call is paid for.
    """
    shorten_loop(drafted, requests, *estimates, pooled_weight, read)
