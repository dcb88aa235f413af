"""The estimates that draft lengths are chosen by: costs that never fall, and what a step records."""

import numpy as np
import pytest

from foredraft.kernels.drafting.draft_length_estimates import (
    NUM_TIMED,
    RUNNING,
    SINCE_CALL,
    isotonic_fit,
    new_estimates,
    record_numba,
)

K = 6


def test_a_rarely_measured_cost_does_not_lift_a_well_known_one_behind_it():
    table, out = np.zeros((9, 3)), np.zeros(9)
    table[[1, 5, 8], :2] = [[0.9, 4], [0.2, 400], [0.5, 100]]
    isotonic_fit(table, 0.0, 0.05, 0.0, np.arange(9.0), out)
    # the first two as one value, by their numbers of measurements
    assert out[1] == out[5] == pytest.approx((4 * 0.9 + 400 * 0.2) / 404) and out[8] == pytest.approx(0.5)
    assert (np.diff(out) >= 0).all() and out[6] == pytest.approx(out[5] + (0.5 - out[5]) / 3)


@pytest.mark.parametrize("accepted, is_rejected", [(2, True), (1, False)])
def test_a_sequence_that_ends_inside_its_draft_counts_as_a_rejection(accepted, is_rejected):
    """Two of four tokens were tested: both were accepted and the sequence ended, or the second was rejected."""
    estimates, count = new_estimates(1, K), np.array([4])
    estimates.scalars[[RUNNING, SINCE_CALL]] = 1, 9
    record_numba(np.array([2]), np.array([accepted]), count, count, count, 0.0, 0.0, np.zeros((1, 3)), estimates, False)
    counts = estimates.acceptance_counts
    assert counts[:4, 2].tolist() == [1, 1, int(is_rejected), 0] and counts[:4, 3].tolist() == [1, int(is_rejected), 0, 0]
    # without a time, no costs are recorded
    assert not estimates.position_times.any() and estimates.scalars[NUM_TIMED] == estimates.scalars[SINCE_CALL] == 0
