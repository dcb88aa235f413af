"""Where a draft stops: compiled equals reference, and the rule drafts tokens that are worth their cost and no others."""

import numpy as np
import pytest

from foredraft.kernels.drafting.draft_stopping import CHECK_STOPS, StopRule


def stop_rule(B, K, min_probability=0.0, position_cost=0.0, token_cost=0.0, **state):
    state = {name: np.zeros(B, np.int64) for name in ("num_steps", "last_tested", "last_accepted")} | state
    return StopRule(min_probability, position_cost, token_cost, np.zeros((B, 3)), np.zeros((B, K)), np.full(B, -1),
                    np.ones((B, 2)), **state)


def draft(backend, logits, temperature, rule):
    """Lengths [B] of drafts from logits [B, K, V]."""
    B, K, V = logits.shape
    counts, is_drafting = np.zeros(B, np.int64), np.ones(B, bool)
    lse = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1).astype(np.float64))
    for i in range(K):
        sequences = np.flatnonzero(is_drafting)
        if len(sequences):
            CHECK_STOPS[backend](rule, sequences, i, logits[sequences, i], np.full(B, V), temperature, lse, counts,
                                 is_drafting)
    return counts.tolist()


def random_logits(B=40, K=6, V=20, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((B, K, V)) * rng.choice([1, 3, 9], (B, 1, 1))).astype(np.float32)


TEMPERATURE = np.array([0.0, 1.0] * 20, np.float32)


@pytest.mark.parametrize("options", [dict(), dict(min_probability=0.5), dict(position_cost=0.1, token_cost=0.05),
                                     dict(min_probability=0.3, position_cost=0.1)])
def test_numba_agrees_with_the_reference_over_steps(options):
    found = {}
    for backend in CHECK_STOPS:
        rng = np.random.default_rng(3)
        num_steps, tested, accepted = (np.zeros(40, np.int64) for _ in range(3))
        rule = stop_rule(40, 6, **options, num_steps=num_steps, last_tested=tested, last_accepted=accepted)
        found[backend] = []
        for step in range(5):
            lengths = draft(backend, random_logits(seed=step), TEMPERATURE, rule)
            found[backend].append((lengths, rule.records.tolist()))
            accepted[:] = np.minimum(rng.integers(0, 6, 40), lengths)
            tested[:] = np.minimum(accepted + 1, lengths)
            num_steps += 1
    for (ours, records), (theirs, others) in zip(*found.values(), strict=True):
        assert ours == theirs
        np.testing.assert_allclose(records, others, rtol=1e-5)


def test_without_costs_nothing_stops_and_a_least_probability_stops_before_the_unlikely_token():
    q, temperature = random_logits(), np.zeros(40, np.float32)
    assert draft("numba", q, temperature, stop_rule(40, 6)) == [6] * 40
    largest = 1 / np.exp(q - q.max(-1, keepdims=True)).sum(-1)
    for least in (0.2, 0.6, 1.0):
        expected = [int(np.argmax(np.append(sequence < least, True))) for sequence in largest]
        assert draft("numba", q, temperature, stop_rule(40, 6, least)) == expected
    assert {0, 6} < set(draft("numba", q, temperature, stop_rule(40, 6, 0.6)))


def test_larger_probabilities_and_lower_costs_draft_more():
    q, temperature = random_logits(K=12), np.zeros(40, np.float32)
    by_cost = [sum(draft("numba", q, temperature, stop_rule(40, 12, 0.0, cost, cost))) for cost in (0.02, 0.1, 0.4)]
    assert by_cost[0] > by_cost[1] > by_cost[2] > 0
    sharp, flat = q * 4, q / 4
    assert sum(draft("numba", sharp, temperature, stop_rule(40, 12, 0.0, 0.1, 0.1))) > 3 * sum(
        draft("numba", flat, temperature, stop_rule(40, 12, 0.0, 0.1, 0.1)))


def test_a_request_whose_drafts_are_rejected_drafts_less():
    q, num_steps = np.zeros((1, 6, 20), np.float32), np.zeros(1, np.int64)
    q[:, :, 3] = 5
    rule = stop_rule(1, 6, position_cost=0.1, token_cost=0.05, num_steps=num_steps)
    first = draft("numba", q, np.zeros(1, np.float32), rule)[0]
    for _ in range(20):
        rule.last_tested[:], rule.last_accepted[:] = 1, 0
        num_steps += 1
        last = draft("numba", q, np.zeros(1, np.float32), rule)[0]
    assert first > last
