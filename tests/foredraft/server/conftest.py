"""A server of the tiny model, and the same model offline to compare with."""

from __future__ import annotations

import pytest

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package)

from live_server import endless, live  # noqa: E402  the checks above come first


@pytest.fixture(scope="module")
def offline(tiny_model_path):
    return endless(tiny_model_path)


@pytest.fixture(scope="module")
def server(tiny_model_path):
    with live(endless(tiny_model_path)) as found:
        yield found
