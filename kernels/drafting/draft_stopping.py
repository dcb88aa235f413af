"""Where a neural drafter ends a draft: from the distribution of the next token, before that token is sampled.

    stops      Stops, of B sequences:
      floor      float           no token is drafted from a distribution whose largest probability is below it; 0: off
      row, each  float           cost of one more query position of the target's pass and of one more distribution of the
                                 drafter, as shares of a plain step; row 0: off
      records    [B, 3] float64  of a sequence's request: tokens tested, accepted and expected to be accepted, fading
      chances    [B, K] float64  estimated acceptance probability of each token of the sequence's last draft
      asked      [B] int64       steps of the sequence when it last drafted, -1: it is new
      running    [B, 2] float64  of the current draft: the probability that all of it is accepted, and the tokens that the
                                 step is expected to emit
      rounds, tested, accepted [B] int64   num_steps, last_tested and last_accepted of the state
    scores     [n] float32       a sequence's logits over the draft vocabulary;  lse [1] float64: their log-sum-exp, above
                                 temperature 0

The acceptance probability is estimated by the distribution's largest probability at temperature 0, where a draft is accepted
if the target agrees, and by the line CURVE of it above, where acceptance is the overlap of two distributions; both times the
ratio of accepted to expected tokens of the request. As in ngram_native/stopping.py a token is drafted only if it raises the
expected tokens a second of the step, and the next distribution is computed only if a token of the request's mean acceptance
probability would.

Lossless: whether x_i is drafted depends on q_1 .. q_i, x_1 .. x_i-1 and on steps whose random numbers are not used again,
not on x_i. Given that it is drafted, x_i has the distribution q_i that verification receives, and the tokens before it stay.
So both verification rules hold for any such length (accept.py, block.py). A rule that stops by the sampled token's own
probability would not be lossless: unlikely tokens would hardly ever be drafted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.sum_of_exp import sum_of_exp_loop, sum_of_exp_reference

# The overlap of two distributions where q's largest probability is s: CURVE[0] + CURVE[1] s, fitted to the embedded LSTM's
# acceptances at temperature 1. At temperature 0 the acceptance probability is s itself.
CURVE = (0.5, 0.24)
# A request starts from this mean acceptance probability, which weighs as much as so many tokens; how fast its record fades;
# the largest probability that is believed.
USUAL, OWN, FADE, SURE = 0.7, 8.0, 0.98, 0.98


class Stops(NamedTuple):
    floor: float
    row: float
    each: float
    records: np.ndarray
    chances: np.ndarray
    asked: np.ndarray
    running: np.ndarray
    rounds: np.ndarray
    tested: np.ndarray
    accepted: np.ndarray


def begin_reference(stops, b) -> None:
    if stops.row > 0:
        if stops.rounds[b] == stops.asked[b] + 1:
            for i in range(int(stops.tested[b])):
                stops.records[b] = FADE * stops.records[b] + (1, stops.accepted[b] > i, stops.chances[b, i])
        stops.asked[b] = stops.rounds[b]
        stops.running[b] = 1.0


def weigh_reference(stops, b, i, scores, sampled, lse) -> tuple[bool, bool]:
    if sampled:
        sure = math.exp(-lse[0])
    else:
        sure = 1 / sum_of_exp_reference(scores)
    if sure < stops.floor:
        return False, False
    if stops.row == 0:
        return True, True
    tested, accepted, expected = stops.records[b]
    promised = CURVE[0] + CURVE[1] * sure if sampled else sure
    chance = min(promised * (accepted + OWN) / (expected + OWN), SURE)
    reach, emitted = stops.running[b, 0] * chance, stops.running[b, 1]
    # without the id, whose distribution is paid for
    spent = 1 + stops.row * i + stops.each * (i + 1)
    if reach / stops.row <= emitted / spent:
        return False, False
    stops.chances[b, i], stops.running[b] = chance, (reach, emitted + reach)
    following = reach * (accepted + OWN * USUAL) / (tested + OWN)
    return True, following / (stops.row + stops.each) > (emitted + reach) / (spent + stops.row)


@njit()
def begin_loop(stops, b):
    """A row begins to draft: take in how its last draft did, if that was in the round before."""
    if stops.row > 0:
        if stops.rounds[b] == stops.asked[b] + 1:
            for i in range(stops.tested[b]):
                stops.records[b, 0] = FADE * stops.records[b, 0] + 1.0
                stops.records[b, 1] = FADE * stops.records[b, 1] + (1.0 if stops.accepted[b] > i else 0.0)
                stops.records[b, 2] = FADE * stops.records[b, 2] + stops.chances[b, i]
        stops.asked[b] = stops.rounds[b]
        stops.running[b, 0] = stops.running[b, 1] = 1.0


@njit()
def weigh_loop(stops, b, i, scores, sampled, lse):
    """(whether place i is drafted, whether the distribution of the next one is looked at), of row b."""
    if stops.floor == 0 and stops.row == 0:
        return True, True
    sure = np.exp(-lse[0]) if sampled else 1.0 / sum_of_exp_loop(scores)
    if sure < stops.floor:
        return False, False
    if stops.row == 0:
        return True, True
    tested, accepted, expected = stops.records[b, 0], stops.records[b, 1], stops.records[b, 2]
    promised = CURVE[0] + CURVE[1] * sure if sampled else sure
    chance = min(promised * (accepted + OWN) / (expected + OWN), SURE)
    reach, emitted = stops.running[b, 0] * chance, stops.running[b, 1]
    spent = 1.0 + stops.row * i + stops.each * (i + 1)
    if reach * spent <= stops.row * emitted:
        return False, False
    stops.chances[b, i] = chance
    stops.running[b, 0], stops.running[b, 1] = reach, emitted + reach
    following = reach * (accepted + OWN * USUAL) / (tested + OWN)
    return True, following * (spent + stops.row) > (stops.row + stops.each) * (emitted + reach)


def weigh_rows_reference(stops, rows, i, scores, sizes, temperature, lse, drafted, going) -> None:
    """weigh of rows [n] with scores [n, >= sizes[row]], lse [B, K]: counted into drafted [B], going [B] bool."""
    for j, b in enumerate(rows):
        if i == 0:
            begin_reference(stops, b)
        own = lse[b, i : i + 1] if temperature[b] > 0 else None
        taken, going[b] = weigh_reference(stops, b, i, scores[j, : sizes[b]], temperature[b] > 0, own)
        drafted[b] += taken


@njit()
def _weigh_rows_loop(stops, rows, i, scores, sizes, temperature, lse, drafted, going):
    nothing = np.empty(0)
    for j in range(rows.shape[0]):
        b = rows[j]
        if i == 0:
            begin_loop(stops, b)
        own = nothing
        if temperature[b] > 0:
            own = lse[b, i : i + 1]
        taken, going[b] = weigh_loop(stops, b, i, scores[j, : sizes[b]], temperature[b] > 0, own)
        drafted[b] += taken


def weigh_rows_numba(stops, rows, i, scores, sizes, temperature, lse, drafted, going) -> None:
    _weigh_rows_loop(stops, rows, i, scores, sizes, temperature, lse, drafted, going)


WEIGH = {"reference": weigh_rows_reference, "numba": weigh_rows_numba}
