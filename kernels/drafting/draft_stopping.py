"""Where a neural drafter ends a draft: from the distribution of the next token, before that token is sampled.

    rule       StopRule, of B sequences:
      min_probability  float           no token is drafted from a distribution whose largest probability is below it; 0: off
      position_cost, token_cost float  of one more query position of the target's pass and of one more distribution of the
                                       drafter, as shares of a plain step; position_cost 0: off
      records          [B, 3] float64  of a sequence's request: tokens tested, accepted and expected to be accepted, fading
      acceptance       [B, K] float64  estimated acceptance probability of each token of the sequence's last draft
      last_drafted     [B] int64       steps of the sequence when it last drafted, -1: it is new
      running          [B, 2] float64  of the current draft: the probability that all of it is accepted, and the tokens that
                                       the step is expected to emit
      num_steps, last_tested, last_accepted [B] int64   of the state
    scores     [n] float32       a sequence's logits over the draft vocabulary;  lse [1] float64: their log-sum-exp, above
                                 temperature 0

The acceptance probability is estimated by the distribution's largest probability at temperature 0, where a draft is accepted
if the target agrees, and by the line OVERLAP of it above, where acceptance is the overlap of two distributions; both times
the ratio of accepted to expected tokens of the request. As in ngram_native/stopping.py a token is drafted only if it raises
the expected tokens a second of the step, and the next distribution is computed only if a token of the request's mean
acceptance probability would.

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

# The overlap of two distributions where q's largest probability is s: OVERLAP[0] + OVERLAP[1] s, fitted to the embedded
# LSTM's acceptances at temperature 1.
OVERLAP = (0.5, 0.24)
# Acceptance probability of a token before anything is measured: a usual mean of trained drafters.
PRIOR_ACCEPTANCE = 0.7
# No estimate is above: a draft never counts as certain.
MAX_ACCEPTANCE = 0.98
# Tokens that the estimate before a request's own record counts as.
PRIOR_TOKENS = 8.0
# Factor of a request's record for each later token: its text changes within about 50 tokens.
RECORD_FADE = 0.98


class StopRule(NamedTuple):
    min_probability: float
    position_cost: float
    token_cost: float
    records: np.ndarray
    acceptance: np.ndarray
    last_drafted: np.ndarray
    running: np.ndarray
    num_steps: np.ndarray
    last_tested: np.ndarray
    last_accepted: np.ndarray


def start_draft_reference(rule, b) -> None:
    if rule.position_cost > 0:
        if rule.num_steps[b] == rule.last_drafted[b] + 1:
            for i in range(int(rule.last_tested[b])):
                rule.records[b] = RECORD_FADE * rule.records[b] + (1, rule.last_accepted[b] > i, rule.acceptance[b, i])
        rule.last_drafted[b] = rule.num_steps[b]
        rule.running[b] = 1.0


def check_stop_reference(rule, b, i, scores, is_sampled, lse) -> tuple[bool, bool]:
    if is_sampled:
        largest = math.exp(-lse[0])
    else:
        largest = 1 / sum_of_exp_reference(scores)
    if largest < rule.min_probability:
        return False, False
    if rule.position_cost == 0:
        return True, True
    tested, accepted, expected = rule.records[b]
    estimate = OVERLAP[0] + OVERLAP[1] * largest if is_sampled else largest
    acceptance = min(estimate * (accepted + PRIOR_TOKENS) / (expected + PRIOR_TOKENS), MAX_ACCEPTANCE)
    reach, emitted = rule.running[b, 0] * acceptance, rule.running[b, 1]
    # without this token, whose distribution is computed already
    cost = 1 + rule.position_cost * i + rule.token_cost * (i + 1)
    if reach / rule.position_cost <= emitted / cost:
        return False, False
    rule.acceptance[b, i], rule.running[b] = acceptance, (reach, emitted + reach)
    following = reach * (accepted + PRIOR_TOKENS * PRIOR_ACCEPTANCE) / (tested + PRIOR_TOKENS)
    return True, (following / (rule.position_cost + rule.token_cost)
                  > (emitted + reach) / (cost + rule.position_cost))


@njit()
def start_draft_loop(rule, b):
    """Start a draft of sequence b: record the acceptance of its last draft if that was in the step before."""
    if rule.position_cost > 0:
        if rule.num_steps[b] == rule.last_drafted[b] + 1:
            for i in range(rule.last_tested[b]):
                rule.records[b, 0] = RECORD_FADE * rule.records[b, 0] + 1.0
                rule.records[b, 1] = RECORD_FADE * rule.records[b, 1] + (1.0 if rule.last_accepted[b] > i else 0.0)
                rule.records[b, 2] = RECORD_FADE * rule.records[b, 2] + rule.acceptance[b, i]
        rule.last_drafted[b] = rule.num_steps[b]
        rule.running[b, 0] = rule.running[b, 1] = 1.0


@njit()
def check_stop_loop(rule, b, i, scores, is_sampled, lse):
    """Whether token i of sequence b is drafted, and whether the distribution after it is computed."""
    if rule.min_probability == 0 and rule.position_cost == 0:
        return True, True
    largest = np.exp(-lse[0]) if is_sampled else 1.0 / sum_of_exp_loop(scores)
    if largest < rule.min_probability:
        return False, False
    if rule.position_cost == 0:
        return True, True
    tested, accepted, expected = rule.records[b, 0], rule.records[b, 1], rule.records[b, 2]
    estimate = OVERLAP[0] + OVERLAP[1] * largest if is_sampled else largest
    acceptance = min(estimate * (accepted + PRIOR_TOKENS) / (expected + PRIOR_TOKENS), MAX_ACCEPTANCE)
    reach, emitted = rule.running[b, 0] * acceptance, rule.running[b, 1]
    cost = 1.0 + rule.position_cost * i + rule.token_cost * (i + 1)
    if reach * cost <= rule.position_cost * emitted:
        return False, False
    rule.acceptance[b, i] = acceptance
    rule.running[b, 0], rule.running[b, 1] = reach, emitted + reach
    following = reach * (accepted + PRIOR_TOKENS * PRIOR_ACCEPTANCE) / (tested + PRIOR_TOKENS)
    return True, following * (cost + rule.position_cost) > (rule.position_cost + rule.token_cost) * (emitted + reach)


def check_stops_reference(rule, sequences, i, scores, sizes, temperature, lse, counts, is_drafting) -> None:
    """check_stop of sequences [n] with scores [n, >= sizes[b]], lse [B, K]: adds to counts [B], writes is_drafting [B]."""
    for j, b in enumerate(sequences):
        if i == 0:
            start_draft_reference(rule, b)
        own_lse = lse[b, i : i + 1] if temperature[b] > 0 else None
        is_drafted, is_drafting[b] = check_stop_reference(rule, b, i, scores[j, : sizes[b]], temperature[b] > 0, own_lse)
        counts[b] += is_drafted


@njit()
def _check_stops_loop(rule, sequences, i, scores, sizes, temperature, lse, counts, is_drafting):
    no_lse = np.empty(0)
    for j in range(sequences.shape[0]):
        b = sequences[j]
        if i == 0:
            start_draft_loop(rule, b)
        own_lse = no_lse
        if temperature[b] > 0:
            own_lse = lse[b, i : i + 1]
        is_drafted, is_drafting[b] = check_stop_loop(rule, b, i, scores[j, : sizes[b]], temperature[b] > 0, own_lse)
        counts[b] += is_drafted


def check_stops_numba(rule, sequences, i, scores, sizes, temperature, lse, counts, is_drafting) -> None:
    _check_stops_loop(rule, sequences, i, scores, sizes, temperature, lse, counts, is_drafting)


CHECK_STOPS = {"reference": check_stops_reference, "numba": check_stops_numba}
