"""Damaged files of every kind; tests/mutated_files.py says how they are made and what is a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("inputs", "seed"), [
    pytest.param(230, 1), pytest.param(10_000, 0, marks=pytest.mark.slow)])
def test_readers_refuse_damaged_files_in_one_line(inputs, seed):
    """In a process of its own: a crash ends it."""
    code = "from mutated_files import main; main()"
    paths = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])
    done = subprocess.run([sys.executable, "-c", code, "--inputs", str(inputs), "--seed", str(seed)], cwd=CHECKOUT,
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    # most mutations are noticed
    _, _, tried, refused, *_ = done.stdout.strip().splitlines()[-1].split("|")
    assert int(refused) > 0.3 * int(tried) > 0.2 * inputs
