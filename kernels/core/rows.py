"""Copies and sums of rows, for compiled kernels.

numba takes seconds to compile `out[:] = row` and `out += row`, because they also handle rows of different sizes. These two
functions expect that the row fits, and compile quickly.
"""

from __future__ import annotations

from foredraft.kernels.core.backend import njit


@njit()
def copy_row(row, out):
    """Write a row [n] to the first n elements of `out`."""
    for i in range(row.shape[0]):
        out[i] = row[i]


@njit()
def add_row(row, out):
    """Add a row [n] to out [n]."""
    for i in range(row.shape[0]):
        out[i] += row[i]
