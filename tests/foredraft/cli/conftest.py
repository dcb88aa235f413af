"""Fixtures of the command line's tests."""

from __future__ import annotations

import pytest

import foredraft


@pytest.fixture
def fake_load(monkeypatch, fake_model):
    """foredraft.load gives the fake model; the list of its calls."""
    calls = []

    def load(target=None, **options):
        calls.append((target, options))
        return fake_model

    monkeypatch.setattr(foredraft, "load", load, raising=False)
    return calls
