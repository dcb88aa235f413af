"""Fixtures of the measuring tests."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def script(monkeypatch, capsys):
    """script(module, *arguments): exit code, stdout, stderr of `python -m MODULE ARGUMENTS`."""
    from foredraft.cli.measuring import run_script

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
        try:
            run_script(module.main)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run
