"""Tests that compare with transformers, whose behaviour differs from version to version."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def needs_transformers(lowest: str) -> None:
    """Skip the test that calls it under earlier versions, which behave otherwise."""
    if Version(version("transformers")) < Version(lowest):
        pytest.skip(f"transformers does so since {lowest}")
