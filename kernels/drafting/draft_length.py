"""Draft lengths by expected throughput (docs/draft-lengths.md): choose them, learn from a step, stop a draft early.

    lengths, limits, most  [B] int64    committed tokens, their limit and the request's own K;  finished [B] bool
    max_tokens  [B] int64           out of `choose`: the most tokens each sequence may draft
    drafted, accepted  [B] int64    of each sequence's draft in the step
    sequences   [B, 2] float64      of a sequence's request: tokens accepted, and tokens expected to be; fading
    positions   [A, K, 4] float64   of an arm by position: asked for, drafted, reached (all before it accepted), accepted
    costs       [A, 4] float64      of an arm: cost of query positions, their number, cost of calls, calls and tokens;
                                    costs in plain steps of all B sequences
    plain       [B + 1, 2] float64  seconds of a plain step by the number of running sequences, times measured
    credit      [A + 1] float64     budget for exploring each choice, in plain steps

An arm is a way to draft: most drafters have one, AutoDrafter has several. Choice 0 is a plain step, choice a + 1 is arm a.
Every compiled function has its Python source as reference: `function.py_func`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.sum_of_exp import sum_of_exp_loop, sum_of_exp_reference

# Share of the time spent on choices that do not promise the most; as much again may go into choosing and learning.
EXPLORE = 0.01
# Before anything is measured: the probability that a drafted token is accepted, and the shares of a plain step that a query
# position, and a drafted token or call, cost. An LSTM beside the embedded target.
CHANCE, QUERY, TOKEN = 0.65, 0.05, 0.13
# Tokens after which measurements weigh as much as what was believed before; of a request that knows only itself, where a
# useless drafter has to show soon.
WEIGHT, WEIGHT_ALONE = 8.0, 2.0
# Steps after which a measurement has lost most of its weight (e-fold).
WINDOW = 100.0
# A time is taken as at most LATE times what was expected, and at least 1 / LATE of it: the machine paused.
LATE = 2.0


def new_memory(A: int, B: int, K: int) -> tuple[np.ndarray, ...]:
    """positions, costs, plain, credit of A arms, B sequences and K drafted tokens, nothing measured."""
    costs = np.tile(WEIGHT * np.array([QUERY, 1.0, TOKEN, 1.0]), (A, 1))
    return np.zeros((A, K, 4)), costs, np.zeros((B + 1, 2)), np.zeros(A + 1)


@njit()
def _plain_seconds(plain, running):
    """Of a plain step: as measured, else from the nearest measured number of sequences, at (1 + running) to one another."""
    for distance in range(plain.shape[0]):
        for near in (running + distance, running - distance):
            if 0 < near < plain.shape[0] and plain[near, 1] > 0:
                return plain[near, 0] * (1.0 + running) / (1.0 + near)
    return 0.0


@njit()
def _estimate(positions, chance, coverage):
    """Per position [K]: the probability that its token is accepted once it is reached, and that it is drafted at all."""
    before, drafted = CHANCE, 1.0
    for i in range(positions.shape[0]):
        before = (positions[i, 3] + WEIGHT * before) / (positions[i, 2] + WEIGHT)
        drafted = min(drafted, (positions[i, 1] + WEIGHT * drafted) / (positions[i, 0] + WEIGHT))
        chance[i], coverage[i] = before, drafted


@njit()
def _maximise(chance, coverage, sequences, weight, room, running, plain, query, token, max_tokens):
    """Set max_tokens [B] to the highest rate, and return its expected tokens and cost. Survival falls along a draft, so the
    best n tokens of a batch are the n likeliest; all n are tried."""
    B, K = room.shape[0], chance.shape[0]
    survival = np.zeros((B, K))
    for b in range(B):
        reach, better = 1.0, (sequences[b, 0] + weight) / (sequences[b, 1] + weight)
        for i in range(min(room[b], K)):
            reach *= min(chance[i] * better, 1.0)
            survival[b, i] = reach
    order = np.argsort(-survival.ravel())
    tokens, cost, longest, found = running + 0.0, plain + token, 0, 0
    best_tokens, best_cost = running + 0.0, plain + 0.0
    max_tokens[:] = 0
    for n in range(B * K):
        b = order[n] // K
        i = max_tokens[b]
        if survival[b, i] == 0:
            break
        max_tokens[b] += 1
        if i >= longest:
            cost, longest = cost + token * coverage[i], i + 1
        tokens, cost = tokens + survival[b, i], cost + query * coverage[i]
        if tokens * best_cost > best_tokens * cost:
            best_tokens, best_cost, found = tokens, cost, n + 1
    max_tokens[:] = 0
    for n in range(found):
        max_tokens[order[n] // K] += 1
    return best_tokens, best_cost


@njit()
def choose(lengths, limits, finished, most, sequences, positions, costs, plain, credit, held, max_tokens):
    """The choice of this step, whether it is for this step only, and the shares of a plain step that one more query position
    (of every running sequence) and one more drafted token cost. held: steps that the last choice was kept for."""
    B, (A, K) = lengths.shape[0], positions.shape[:2]
    room, running = np.zeros(B, np.int64), 0
    for b in range(B):
        if not finished[b]:
            running += 1
            room[b] = max(min(most[b], limits[b] - lengths[b] - 1), 0)
    max_tokens[:] = 0
    if running == 0 or plain[:, 1].max() == 0:
        return 0, True, 1.0, 1.0
    unit = _plain_seconds(plain, B)
    step = _plain_seconds(plain, running) / unit
    chance, coverage = np.empty(K), np.empty(K)
    lengths_of, tokens, cost = np.zeros((A + 1, B), np.int64), np.full(A + 1, running + 0.0), np.full(A + 1, step)
    best = 0
    for a in range(A):
        _estimate(positions[a], chance, coverage)
        query, token = costs[a, 0] / costs[a, 1], costs[a, 2] / costs[a, 3]
        tokens[a + 1], cost[a + 1] = _maximise(chance, coverage, sequences, WEIGHT, room, running, step, query, token,
                                                 lengths_of[a + 1])
        if lengths_of[a + 1].max() == 0:
            # what a draft of one token a sequence would cost and bring
            for b in range(B):
                lengths_of[a + 1, b] = min(room[b], 1)
                tokens[a + 1] += lengths_of[a + 1, b] * chance[0]
                cost[a + 1] += lengths_of[a + 1, b] * query
            cost[a + 1] += 2 * token
        if tokens[a + 1] * cost[best] > tokens[best] * cost[a + 1]:
            best = a + 1
    chosen = best
    for c in range(A + 1):
        if c == best or room.max() == 0:
            continue
        credit[c] += EXPLORE / A * (1 + held) * cost[best]
        if chosen == best and credit[c] >= cost[c] - tokens[c] * cost[best] / tokens[best]:
            chosen, credit[c] = c, 0.0
    max_tokens[:] = lengths_of[chosen]
    a = max(chosen - 1, 0)
    return chosen, chosen != best, running * costs[a, 0] / costs[a, 1] / step, costs[a, 2] / costs[a, 3] / step


@njit()
def choose_alone(lengths, limits, finished, most, sequences, K, max_tokens):
    """As `choose`, but each sequence by its own request, at assumed costs, so that it is the same in any company. In a batch
    of B a query position costs a sequence QUERY B^1.5: B times its share, which grows with the square root of B."""
    B = lengths.shape[0]
    chance, coverage, room, query = np.full(K, CHANCE), np.ones(K), np.zeros(1, np.int64), QUERY * B**1.5
    for b in range(B):
        # a draft is at most one token longer than what was accepted lately: a useless drafter costs little
        room[0] = 0 if finished[b] else max(min(most[b], limits[b] - lengths[b] - 1, 1 + int(sequences[b, 0])), 0)
        _maximise(chance, coverage, sequences[b : b + 1], WEIGHT_ALONE, room, 1, 1.0, query, TOKEN, max_tokens[b : b + 1])
    return int(max_tokens.max() > 0), query, TOKEN


@njit()
def _near(value, expected):
    return min(max(value, expected / LATE), expected * LATE)


@njit()
def learn(drafted, accepted, max_tokens, choice, explored, running, seconds, drafting, admitting, sequences, positions,
          costs, plain, credit, alone):
    """Take in a step: its seconds without drafting and admitting (0: not to be timed), and those two.

    explored: the choice did not promise the most. alone: only `sequences` are learned."""
    B, K, a = drafted.shape[0], positions.shape[1], max(choice - 1, 0)
    chance, coverage, further, longest = np.full(K, CHANCE), np.empty(K), 0, 0
    if not alone:
        _estimate(positions[a], chance, coverage)
    keep = 1.0 - 1.0 / WINDOW
    # a record fades where nothing is drafted too: the sequence comes back to what the batch does
    sequences *= keep
    if choice > 0 and not alone:
        positions[a] *= keep
    for b in range(B):
        further += drafted[b]
        longest = max(longest, drafted[b])
        for i in range(max_tokens[b]):
            stood, reached = accepted[b] > i, accepted[b] >= i
            if reached:
                sequences[b, 0] += stood
                sequences[b, 1] += chance[i]
            if not alone:
                positions[a, i, 0] += 1
                positions[a, i, 1] += drafted[b] > i
                positions[a, i, 2] += reached
                positions[a, i, 3] += stood
    if alone or seconds <= 0 or running == 0:
        return
    unit, expected = _plain_seconds(plain, B), _plain_seconds(plain, running)
    if choice == 0:
        plain[running, 1] += 1
        if plain[running, 1] > 1:
            seconds = _near(seconds, plain[running, 0])
        plain[running, 0] += max(1 / plain[running, 1], 2 / WINDOW) * (seconds - plain[running, 0])
        return
    query, token = costs[a, 0] / costs[a, 1] * further, costs[a, 2] / costs[a, 3] * (1 + longest)
    spent, admitting = drafting / unit, admitting / unit
    if explored:
        # it cost more than was expected: a source to read, tokens to catch up with
        credit[choice] -= admitting + max(spent - token, 0.0)
    costs[a] *= keep
    costs[a, 0] += max(_near(seconds / unit, expected / unit + query) - expected / unit, 0.0)
    costs[a, 1] += further
    costs[a, 2] += _near(spent, token)
    costs[a, 3] += 1 + longest


class Costs(NamedTuple):
    """Of one more query position of the pass and of one more drafted token, as shares of a plain step; 0: not known."""

    query: float = 0.0
    token: float = 0.0


class Stops(NamedTuple):
    """Where drafts end early.

    floor: least largest probability of a distribution that a token is drafted from, 0 for none. query, token: Costs.
    progress [B, 2] float64: of each draft, 1 at first, the probability that all of it is accepted, and the tokens that the
    step is expected to emit.
    """

    floor: float
    query: float
    token: float
    progress: np.ndarray


def _weigh(stops, b, i, sure, sampled):
    """Whether token i of sequence b is drafted, and whether the distribution of the next one is computed; sure: the largest
    probability of token i's distribution."""
    if sure < stops.floor:
        return False, False
    if stops.query == 0 or sampled:
        return True, True
    reach, emitted = stops.progress[b, 0] * sure, stops.progress[b, 1]
    cost = 1.0 + stops.query * i + stops.token * (i + 1)
    if reach * cost <= stops.query * emitted:
        return False, False
    stops.progress[b, 0], stops.progress[b, 1] = reach, emitted + reach
    # the next token is expected to be as sure as this one
    return True, reach * sure * (cost + stops.query) > (stops.query + stops.token) * (emitted + reach)


_weigh_compiled = njit()(_weigh)


def weigh_reference(stops, b, i, scores, sampled, lse) -> tuple[bool, bool]:
    """scores [n] float32: logits over the tokens that may be drafted; lse [1] float64, where sampled: log-sum-exp of the
    warped distribution, whose largest logit is 0."""
    return _weigh(stops, b, i, np.exp(-lse[0]) if sampled else 1.0 / sum_of_exp_reference(scores), sampled)


@njit()
def weigh_loop(stops, b, i, scores, sampled, lse):
    if stops.floor == 0 and (stops.query == 0 or sampled):
        return True, True
    return _weigh_compiled(stops, b, i, np.exp(-lse[0]) if sampled else 1.0 / sum_of_exp_loop(scores), sampled)


def weigh_sequences_reference(stops, sequences, i, scores, sizes, temperature, lse, drafted, drafting) -> None:
    """`weigh` of sequences [n] with scores [n, >= sizes[b]], lse [B, K]: counted into drafted [B], drafting [B] bool."""
    for j, b in enumerate(sequences):
        taken, drafting[b] = weigh_reference(stops, b, i, scores[j, : sizes[b]], temperature[b] > 0, lse[b, i : i + 1])
        drafted[b] += taken


@njit()
def _weigh_sequences_loop(stops, sequences, i, scores, sizes, temperature, lse, drafted, drafting):
    for j in range(sequences.shape[0]):
        b = sequences[j]
        own = lse[b, i : i + 1] if temperature[b] > 0 else np.zeros(1)
        taken, drafting[b] = weigh_loop(stops, b, i, scores[j, : sizes[b]], temperature[b] > 0, own)
        drafted[b] += taken


def weigh_sequences_numba(stops, sequences, i, scores, sizes, temperature, lse, drafted, drafting) -> None:
    _weigh_sequences_loop(stops, sequences, i, scores, sizes, temperature, lse, drafted, drafting)


WEIGH = {"reference": weigh_sequences_reference, "numba": weigh_sequences_numba}
