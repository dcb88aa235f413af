"""A process's memory: the peak stays when memory is freed, and can be reset."""

import numpy as np
import pytest

from foredraft.memory import available_memory, peak_resident_bytes, reset_peak, resident_bytes, trim_heap


@pytest.mark.skipif(peak_resident_bytes() is None, reason="the system does not report a peak")
def test_the_peak_outlives_the_allocation():
    reset_peak()
    before = resident_bytes()
    allocated = np.ones(40_000_000, np.uint8)
    assert resident_bytes() > before + 35_000_000
    del allocated
    trim_heap()
    assert resident_bytes() < before + 20_000_000
    assert peak_resident_bytes() > before + 35_000_000


def test_the_machine_has_memory_left():
    assert 0 < available_memory() < 1 << 50
