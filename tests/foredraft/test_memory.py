"""A process's memory: the peak stays when memory goes, and can be forgotten."""

import numpy as np
import pytest

from foredraft.memory import forget_peak, give_back_freed, resident_bytes


@pytest.mark.skipif(resident_bytes() is None, reason="the system does not tell a process's memory")
def test_the_peak_outlives_what_made_it():
    forget_peak()
    before = resident_bytes()
    held = np.ones(40_000_000, np.uint8)
    assert resident_bytes() > before + 35_000_000
    del held
    give_back_freed()
    assert resident_bytes() < before + 20_000_000
    assert resident_bytes(peak=True) > before + 35_000_000
