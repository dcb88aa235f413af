"""Requests made from the OpenAPI schema, right and wrong ones: never a 500, always JSON in the route's shape of errors."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from live_server import PATIENCE, endless, live

schemathesis = pytest.importorskip("schemathesis")
ROUTES = ("/v1/completions", "/v1/chat/completions", "/generate", "/generate_stream")


@pytest.fixture(scope="module")
def server(tiny_model_path):
    with live(endless(tiny_model_path), max_tokens=16, max_choices=8, timeout=20) as found:
        yield found


# 1,250 for each route, right and wrong ones: 10,000 requests
@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.full),
                                   pytest.param(1250, marks=pytest.mark.slow)])
@pytest.mark.parametrize("route", ROUTES)
def test_no_request_breaks_the_server(server, route, count):
    from schemathesis.generation import GenerationMode

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operation = schema[route]["POST"]
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        @settings(max_examples=count, deadline=None, database=None, derandomize=True,
                  suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            answer = case.call(base_url=server.url, timeout=PATIENCE)
            assert answer.status_code in (200, 400, 404, 405, 411, 413, 415, 422), (answer.status_code, case.body)
            if answer.status_code != 200 and route != "/generate_stream":
                error = answer.json()["error"]
                assert isinstance(error, str) if route == "/generate" else error["message"]

        check()
    assert server.engine.is_alive and server.call("/v1/completions", {"prompt": "w5", "max_tokens": 2})[0] == 200
    assert not any('"engine failed"' in line or '"request failed"' in line for line in server.lines)
