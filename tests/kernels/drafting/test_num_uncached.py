import numpy as np
import pytest

from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.drafting.num_uncached import NUM_UNCACHED


@pytest.mark.parametrize("backend", ["reference", "numba"] if HAS_NUMBA else ["reference"])
def test_what_is_to_be_read(backend):
    tokens = np.array([[0, 5, 6, 7, 9]] * 6)
    fed = np.array([[0, 5, 6, 7, 8], [0, 5, 3, 7, 9], [4, 5, 6, 7, 9], [0, 5, 6, 7, 9], [0, 5, 6, 7, 9], [0, 0, 0, 0, 0]])
    lengths, counts, unread = np.array([5, 5, 5, 5, 4, 1]), np.array([5, 5, 5, 3, 5, 0]), np.full(6, -1)
    NUM_UNCACHED[backend](tokens, lengths, fed, counts, unread)
    # a wrong last id; a wrong id within; wrong from the start; not far enough; the last one always; nothing read
    assert unread.tolist() == [1, 3, 5, 2, 1, 1]
