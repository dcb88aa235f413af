"""exp32 against the exact exponential, alone and inside a loop."""

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.exp import HIGHEST, exp32, exp_reference


@njit(cache=False)
def many(values, out):
    for i in range(values.shape[0]):
        out[i] = exp32(values[i])


def test_two_units_in_the_last_place():
    values = np.linspace(-87, HIGHEST, 200_003).astype(np.float32)
    out = np.empty_like(values)
    many(values, out)
    exact = np.exp(values.astype(np.float64))
    assert (np.abs(out - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    assert exp_reference(values[7]) == exact[7]


def test_smallest_and_largest_arguments():
    values = np.array([0.0, -np.inf, -500.0, np.nan], np.float32)
    out = np.empty_like(values)
    many(values, out)
    assert out[0] == 1.0
    assert (out[1:3] > 0).all() and (out[1:3] < 1e-37).all()
    assert np.isnan(out[3])
