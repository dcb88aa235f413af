"""Does the alarm of `foredraft bench compare` work? No case of unchanged runs may raise it, every case of a slowed run must.

    python -m foredraft.bench.studies.regression_proof
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.bench.harness.record import common_fields
from foredraft.bench.regression import alarm, compare_runs
from foredraft.cli import options
from foredraft.cli.measuring import finish, run_script

# runs with which the others are compared
BEFORE = 5


def main(
    runs: Annotated[int, typer.Option(min=1, help="Unchanged runs; each is compared with five runs before them.")] = 10,
    slow: Annotated[float, typer.Option(min=1.0, help="Slowdown of the last run.")] = 1.5,
    seconds: Annotated[float, typer.Option(min=0.01, help="Longest timing of a case.")] = 0.5,
    cases: Annotated[str, typer.Option("-k", help="Only cases that pytest's -k selects.")] = "",
    keep: Annotated[
        Path, typer.Option(help="Folder for the runs' files; complete ones are not "
                                "repeated.")] = Path(".benchmarks/regression"),
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
) -> None:
    """Time unchanged runs and a slowed one. A case that raises the alarm is timed again, up to eight times."""
    alarm.check_checkout()
    keep.mkdir(parents=True, exist_ok=True)
    names = [*(f"before-{number}" for number in range(BEFORE)), *(f"unchanged-{number}" for number in range(runs))]
    files = [keep / f"{name}.json" for name in (*names, f"slowed-{slow:g}")]
    slowed = files[-1]
    for file in files:
        alarm.time_cases(file, [str(alarm.CASES), "-k", cases], slow if file is slowed else 1, seconds)
    before = [compare_runs.read_run(file) for file in files[:BEFORE]]
    compared = [alarm.compare_timed(before, file, 1, seconds) for file in files[BEFORE:-1]]
    unchanged = [row | {"run": number} for number, (rows, _) in enumerate(compared) for row in rows]
    timed_again = sum(count for _, count in compared)
    seeded, _ = alarm.compare_timed(before, slowed, slow, seconds)
    false = [row for row in unchanged if row["result"] == "slower"]
    missed = [row["case"] for row in seeded if row["result"] != "slower"]
    changes = sorted(row["change"] for row in unchanged)
    row = common_fields("regression") | {
        "runs": runs, "slow": slow, "limit": compare_runs.LIMIT, "cases": [
            {"case": one["case"], "unchanged": [row["change"] for row in unchanged if row["case"] == one["case"]],
             "seeded": one["change"]} for one in seeded],
        "timed_again": timed_again, "false_alarms": false, "missed": missed,
        "unchanged": {"least": changes[0], "most": changes[-1]},
        "seeded": {"least": seeded[-1]["change"], "most": seeded[0]["change"]},
    }
    finish([row], out, [
        f"{runs} unchanged runs of {len(seeded)} cases: {len(false)} false alarms ({timed_again} timed again), changes "
        f"{changes[0]:.2f} to {changes[-1]:.2f}; slowed {slow:g} times: {len(missed)} missed, changes "
        f"{seeded[-1]['change']:.2f} to {seeded[0]['change']:.2f}"], as_json)
    if false or missed:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_script(main)
