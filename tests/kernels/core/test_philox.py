"""Philox: published vectors, agreement of numba and the reference, range, independent streams."""

import numpy as np

from foredraft.kernels.core.philox import ACCEPT, DRAFT, philox_reference, request_seed, uniform, uniform_reference


def test_known_answers_of_the_paper():
    """Salmon et al. 2011, known-answer tests of philox4x32-10: all zeros, all ones."""
    assert philox_reference((0, 0), (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox_reference((ones, ones), (ones,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


def test_compiled_equals_the_reference():
    for seed in (0, 1, -1, 2**62 + 12345, -(2**63)):
        for stream, position, offset in ((0, 0, 0), (3, 7, 2), (1, 2**31, 5)):
            assert uniform(seed, stream, position, offset) == uniform_reference(seed, stream, position, offset)


def test_uniform_is_uniform_and_open():
    draws = np.array([uniform(5, DRAFT, i, 0) for i in range(20_000)])
    assert 0 < draws.min() and draws.max() < 1
    counts = np.histogram(draws, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 10 * (2 * 19) ** 0.5


def test_streams_are_not_correlated():
    a = np.array([uniform(5, DRAFT, i, 0) for i in range(20_000)])
    b = np.array([uniform(5, ACCEPT, i, 0) for i in range(20_000)])
    assert abs(np.corrcoef(a, b)[0, 1]) < 6 / 20_000**0.5


def test_request_seeds_differ():
    assert len({request_seed(seed, request) for seed in range(50) for request in range(50)}) == 2500
