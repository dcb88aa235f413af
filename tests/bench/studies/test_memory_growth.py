"""Memory over requests and loads: a leak is found, and the script runs."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest

from foredraft.bench.studies import memory_growth
from foredraft.memory import peak_resident_bytes


@pytest.mark.skipif(peak_resident_bytes() is None, reason="the system does not report resident memory as Linux does")
def test_a_leak_is_found():
    kept = []
    # the collector passes over the objects of earlier tests, which would take most of the time
    gc.freeze()
    leak = memory_growth.over_loads(lambda: kept.append(np.ones(1 << 18, np.uint8)), 60)["slope"]
    none = memory_growth.over_loads(lambda: np.ones(1 << 18, np.uint8), 60)["slope"]
    gc.unfreeze()
    assert 0.8 * 2**18 < leak["low"] <= leak["slope"] < 1.2 * 2**18
    assert abs(none["slope"]) < 0.1 * 2**18


@pytest.mark.full
def test_the_script(script, tmp_path):
    code, out, err = script(memory_growth, "--requests", 40, "--loads", 3, "--out", tmp_path, "--json")
    assert code == 0, err
    row = json.loads(out.splitlines()[-1])["rows"][0]
    counts = row["requests"]["counts"]
    assert counts.pop("requests") == sum(counts.values()) >= 40 and "error" not in counts
    assert len(row["loads"]["rss"]) == 3 and sum(one["streams"] for one in row["requests"]["limits"]) >= 2
    assert all(one["keys_and_values"] <= one["kv_memory"] for one in row["requests"]["limits"])
