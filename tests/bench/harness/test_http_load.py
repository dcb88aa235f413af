"""The load generator, against a server of the tiny model."""

from __future__ import annotations

import asyncio
import json

import pytest

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package)

from live_server import TEXTS, endless, live  # noqa: E402  the checks above come first

from foredraft.bench.harness.http_load import (  # noqa: E402
    closed_loop,
    figures,
    open_loop,
    percentile,
    streamed_text,
)


def test_percentiles():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (1, 20, 21, 50, 95, 100)] == [1, 1, 2, 3, 5, 5]


def test_loops(tiny_model_path):
    truth = endless(tiny_model_path).generate(TEXTS[:8], max_new_tokens=12).texts
    with live(endless(tiny_model_path)) as server:
        port = int(server.url.rpartition(":")[2])
        for stream, text_of in ((False, lambda answer: json.loads(answer.body)["choices"][0]["text"]),
                                (True, streamed_text)):
            bodies = [json.dumps({"prompt": text, "max_tokens": 12, "stream": stream}).encode() for text in TEXTS[:8]]
            for loop in (closed_loop(port, "/v1/completions", bodies, 3), open_loop(port, "/v1/completions", bodies, 200)):
                answers, seconds = asyncio.run(loop)
                found = figures(answers, seconds, text_of, truth)
                assert (found["requests"], found["failed"], found["differ"]) == (8, 0, 0)
                assert 0 < found["first"]["p50"] <= found["latency"]["p50"] <= found["latency"]["p99"] <= seconds
        assert figures(answers, seconds, text_of, ["", *truth[1:]])["differ"] == 1
        bad, seconds = asyncio.run(closed_loop(port, "/v1/completions", [b"{}"], 1))
        assert figures(bad, seconds, text_of, truth[:1])["failed"] == 1
