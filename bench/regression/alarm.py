"""The regression alarm: pytest-benchmark cases are timed in their own process, and timed again while they raise it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from foredraft.bench.regression import compare_runs
from foredraft.errors import UserError

# how often a case that raises the alarm is timed again at most
AGAIN = 8
# rounds of a case at least
ROUNDS = 20
# as in `make bench`: with two threads, a case would wait for the one that another process interrupts
ONE_THREAD = {"OMP_NUM_THREADS": "1", "FOREDRAFT_THREADS": "1"}
CASES = Path("bench", "regression")


def check_checkout() -> None:
    """Raise UserError outside a checkout."""
    if not (CASES / "conftest.py").is_file():
        raise UserError("bench/ is not here; run this in a checkout of foredraft")


def time_cases(file: Path, asked: Sequence[str], slow: float, seconds: float) -> None:
    """Time the cases that pytest's arguments `asked` select and write `file`, unless it exists.

    A case takes about `seconds` at most, and `slow` times as long as it would. UserError if pytest fails.
    """
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


def compare_timed(before: Sequence[compare_runs.Run], file: Path, slow: float, seconds: float,
                  limit: float = compare_runs.LIMIT) -> tuple[list[dict], int]:
    """compare() of a timed run, and how many cases were timed again.

    Cases that raise the alarm are timed again, AGAIN times at most, into files beside `file`.
    """
    taken = [compare_runs.read_run(file)]
    rows, timed = compare_runs.compare(before, taken, limit), 0
    for number in range(AGAIN):
        alarms = [row["case"] for row in rows if row["result"] == "slower"]
        if not alarms:
            break
        other = file.with_name(f"{file.stem}-again-{number}.json")
        time_cases(other, alarms, slow, seconds)
        taken.append(compare_runs.read_run(other))
        rows, timed = compare_runs.compare(before, taken, limit), max(timed, len(alarms))
    return rows, timed
