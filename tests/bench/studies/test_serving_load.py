"""The lines that compare the loops of a record, whatever numbers of clients ran."""

from __future__ import annotations

from foredraft.bench.studies.serving_load import comparisons


def loop(clients: int, rate: float, first: float | None = None) -> dict:
    return {"loop": "closed", "clients": clients, "requests_per_second": rate, "first": first and {"p95": first}}


def test_comparisons():
    record = {"offline": {"requests_per_second": 10.0}, "complete": [loop(2, 3.0), loop(16, 9.0), {"loop": "poisson"}],
              "streamed": [loop(2, 3.0, 0.5), loop(16, 9.0, 1.0), loop(32, 0.0)],
              "transformers": [loop(2, 1.5), loop(4, 1.0)]}
    offline, peer, first = comparisons(record)
    assert "16 clients" in offline and "90.0%" in offline
    assert "16 clients" in peer and "6.0 times" in peer
    assert "16 clients: 2.00 times that with 2" in first
    del record["transformers"]
    assert len(comparisons(record)) == 2
