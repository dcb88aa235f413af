"""Where a draft stops: compiled equals reference, and the rule adds ids a second or leaves them."""

import numpy as np
import pytest

from foredraft.kernels.drafting.draft_stopping import WEIGH, Stops


def stops(B, K, floor=0.0, row=0.0, each=0.0, **state):
    known = {name: np.zeros(B, np.int64) for name in ("rounds", "tested", "accepted")} | state
    return Stops(floor, row, each, np.zeros((B, 3)), np.zeros((B, K)), np.full(B, -1), np.ones((B, 2)), *known.values())


def draft(backend, distributions, temperature, stop):
    """Lengths [B] of drafts from distributions [B, K, V] of logits."""
    B, K, V = distributions.shape
    counts, going = np.zeros(B, np.int64), np.ones(B, bool)
    lse = np.log(np.exp(distributions - distributions.max(-1, keepdims=True)).sum(-1).astype(np.float64))
    for i in range(K):
        rows = np.flatnonzero(going)
        if len(rows):
            WEIGH[backend](stop, rows, i, distributions[rows, i], np.full(B, V), temperature, lse, counts, going)
    return counts.tolist()


def distributions(B=40, K=6, V=20, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((B, K, V)) * rng.choice([1, 3, 9], (B, 1, 1))).astype(np.float32)


TEMPERATURE = np.array([0.0, 1.0] * 20, np.float32)


@pytest.mark.parametrize("options", [dict(), dict(floor=0.5), dict(row=0.1, each=0.05), dict(floor=0.3, row=0.1)])
def test_numba_agrees_with_the_reference_over_rounds(options):
    found = {}
    for backend in WEIGH:
        rng, stop = np.random.default_rng(3), stops(40, 6, **options)
        rounds, tested, accepted = (np.zeros(40, np.int64) for _ in range(3))
        stop = stop._replace(rounds=rounds, tested=tested, accepted=accepted)
        found[backend] = []
        for number in range(5):
            lengths = draft(backend, distributions(seed=number), TEMPERATURE, stop)
            found[backend].append((lengths, stop.records.tolist()))
            accepted[:] = np.minimum(rng.integers(0, 6, 40), lengths)
            tested[:] = np.minimum(accepted + 1, lengths)
            rounds += 1
    for (ours, records), (theirs, others) in zip(*found.values(), strict=True):
        assert ours == theirs
        np.testing.assert_allclose(records, others, rtol=1e-5)


def test_off_it_stops_nothing_and_a_floor_stops_before_the_unsure_id():
    q, temperature = distributions(), np.zeros(40, np.float32)
    assert draft("numba", q, temperature, stops(40, 6)) == [6] * 40
    sure = 1 / np.exp(q - q.max(-1, keepdims=True)).sum(-1)
    for floor in (0.2, 0.6, 1.0):
        expected = [int(np.argmax(np.append(row < floor, True))) for row in sure]
        assert draft("numba", q, temperature, stops(40, 6, floor)) == expected
    assert {0, 6} < set(draft("numba", q, temperature, stops(40, 6, 0.6)))


def test_surer_distributions_and_cheaper_rows_draft_more():
    q, temperature = distributions(K=12), np.zeros(40, np.float32)
    by_cost = [sum(draft("numba", q, temperature, stops(40, 12, 0.0, row, row))) for row in (0.02, 0.1, 0.4)]
    assert by_cost[0] > by_cost[1] > by_cost[2] > 0
    sure, unsure = q * 4, q / 4
    assert sum(draft("numba", sure, temperature, stops(40, 12, 0.0, 0.1, 0.1))) > 3 * sum(
        draft("numba", unsure, temperature, stops(40, 12, 0.0, 0.1, 0.1)))


def test_a_request_whose_drafts_fail_is_trusted_less():
    q, rounds = np.zeros((1, 6, 20), np.float32), np.zeros(1, np.int64)
    q[:, :, 3] = 5
    stop = stops(1, 6, row=0.1, each=0.05, rounds=rounds)
    first = draft("numba", q, np.zeros(1, np.float32), stop)[0]
    for _ in range(20):
        stop.tested[:], stop.accepted[:] = 1, 0
        rounds += 1
        last = draft("numba", q, np.zeros(1, np.float32), stop)[0]
    assert first > last
