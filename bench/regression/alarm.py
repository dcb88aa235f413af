"""The alarm of regressions: the pytest-benchmark cases timed in a process of their own, those that raise it timed again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from foredraft.bench.regression import compare_runs as regression
from foredraft.errors import UserError

# how often a case that raises the alarm is timed once more
AGAIN = 8
# of a case, however long one takes
ROUNDS = 20
# as `make bench` does: a case on two threads waits for whichever of them another process has pushed aside
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
CASES = Path("bench", "regression")


def here() -> None:
    """UserError: this is no checkout."""
    if not (CASES / "conftest.py").is_file():
        raise UserError("bench/: not here; run this in a checkout of foredraft")


def time_cases(file: Path, asked: Sequence[str], slow: float, seconds: float) -> None:
    """A run of the cases that pytest's arguments `asked` choose, into `file`, unless it is there; at most about `seconds` a
    case, made to take `slow` times as long. UserError: pytest failed."""
    if file.is_file():
        return
    print(file.stem, file=sys.stderr, flush=True)
    partial = file.with_suffix(".part")
    command = [sys.executable, "-m", "pytest", "-q", *asked, "-p", "no:cacheprovider", "--benchmark-enable",
               f"--benchmark-max-time={seconds}", f"--benchmark-min-rounds={ROUNDS}", f"--benchmark-json={partial}"]
    done = subprocess.run(command, env=os.environ | ONE_THREAD | {"FOREDRAFT_BENCH_SLOW": str(slow)}, capture_output=True,
                          text=True)
    if done.returncode:
        raise UserError(f"{file}: pytest ended with {done.returncode}: {done.stdout.strip().splitlines()[-1:]}")
    partial.replace(file)


def verify(before: Sequence[regression.Run], file: Path, slow: float, seconds: float,
          limit: float = regression.LIMIT) -> tuple[list[dict], int]:
    """regression.compare()'s rows of a timed run, and how many cases were timed again: those that raise the alarm, for as
    long as they do and AGAIN times at most, into files beside it."""
    taken = [regression.read_run(file)]
    rows, timed = regression.compare(before, taken, limit), 0
    for number in range(AGAIN):
        alarms = [row["case"] for row in rows if row["verification"] == "slower"]
        if not alarms:
            break
        other = file.with_name(f"{file.stem}-again-{number}.json")
        time_cases(other, alarms, slow, seconds)
        taken.append(regression.read_run(other))
        rows, timed = regression.compare(before, taken, limit), max(timed, len(alarms))
    return rows, timed
