"""`foredraft bench compare` and `foredraft bench regression`: has a part become slower, and would we see it?"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

# runs whose least costs are the measure of what follows
BEFORE = 5
SECONDS = typer.Option(min=0.01, help="Longest timing of a case.")


def compare(
    before: Annotated[Path, typer.Argument(help="A run that `make bench` stored, or a folder of runs.")],
    after: Annotated[Path | None, typer.Argument(help="The same, of what is to be verified; default: this checkout is timed.",
                                                 show_default=False)] = None,
    limit: Annotated[float | None, typer.Option(help="Alarm above this ratio; default: 1.22, half way to 1.5.")] = None,
    seconds: Annotated[float, SECONDS] = 0.5,
) -> None:
    """Flag cases that became slower, in units of a calibration beside each; exit code 1 then. Timed here, a case that raises
    the alarm is timed up to eight times more, for as long as it does. The last line is JSON."""
    from foredraft.bench.regression import alarm
    from foredraft.bench.regression import compare_runs as regression

    limit, runs = limit or regression.LIMIT, regression.read_runs(before)
    if after is None:
        alarm.here()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "now.json")
            alarm.time_cases(file, [str(alarm.CASES)], 1, seconds)
            rows, _ = alarm.verify(runs, file, 1, seconds, limit)
    else:
        rows = regression.compare(runs, regression.read_runs(after), limit)
    show_table(rows)
    slower = [row["case"] for row in rows if row["verification"] == "slower"]
    print(json.dumps({"slower": slower, "rows": rows}))
    if slower:
        raise typer.Exit(1)


def regression(
    runs: Annotated[int, typer.Option(min=1, help="Unchanged runs; each is held against five before them.")] = 10,
    slow: Annotated[float, typer.Option(min=1.0, help="The seeded slowdown of the last run.")] = 1.5,
    seconds: Annotated[float, SECONDS] = 0.5,
    cases: Annotated[str, typer.Option("-k", help="Only cases that pytest's -k chooses.")] = "",
    keep: Annotated[Path, typer.Option(help="Folder for the runs' files; finished ones are not run again.")] = Path(
        ".benchmarks/regression"),
    out: Annotated[Path, typer.Option(help="The record's folder; a line is added.")] = Path("bench/results"),
) -> None:
    """Check the alarm: no case of unchanged runs raises it, every case of a slowed run does. A case that raises it is timed
    up to eight times more, for as long as it does. The last line is JSON."""
    import foredraft
    from foredraft.bench.harness import machine, record
    from foredraft.bench.regression import alarm
    from foredraft.bench.regression import compare_runs as held

    alarm.here()
    keep.mkdir(parents=True, exist_ok=True)
    names = [*(f"before-{number}" for number in range(BEFORE)), *(f"unchanged-{number}" for number in range(runs))]
    files = [keep / f"{name}.json" for name in (*names, f"slowed-{slow:g}")]
    slowed = files[-1]
    for file in files:
        alarm.time_cases(file, [str(alarm.CASES), "-k", cases], slow if file is slowed else 1, seconds)
    before = [held.read_run(file) for file in files[:BEFORE]]
    runs_compared = [alarm.verify(before, file, 1, seconds) for file in files[BEFORE:-1]]
    unchanged = [row | {"run": number} for number, (rows, _) in enumerate(runs_compared) for row in rows]
    timed_again = sum(count for _, count in runs_compared)
    seeded, _ = alarm.verify(before, slowed, slow, seconds)
    false = [row for row in unchanged if row["verification"] == "slower"]
    missed = [row["case"] for row in seeded if row["verification"] != "slower"]
    changes = sorted(row["change"] for row in unchanged)
    row = {
        "kind": "regression", "time": datetime.now(UTC).isoformat(timespec="seconds"), "foredraft": foredraft.__version__,
        "command": shlex.join(["foredraft", *sys.argv[1:]]), "machine": machine.describe(), "runs": runs, "slow": slow,
        "limit": held.LIMIT, "cases": [
            {"case": one["case"], "unchanged": [row["change"] for row in unchanged if row["case"] == one["case"]],
             "seeded": one["change"]} for one in seeded],
        "timed_again": timed_again, "false_alarms": false, "missed": missed,
        "unchanged": {"least": changes[0], "most": changes[-1]},
        "seeded": {"least": seeded[-1]["change"], "most": seeded[0]["change"]},
    }
    print(f"{runs} unchanged runs of {len(seeded)} cases: {len(false)} false alarms ({timed_again} timed again), changes "
          f"{changes[0]:.2f} to {changes[-1]:.2f}; slowed {slow:g} times: {len(missed)} missed, changes "
          f"{seeded[-1]['change']:.2f} to {seeded[0]['change']:.2f}")
    path = out / f"regression-{machine.file_name(row['machine'])}.jsonl"
    record.append_lines(path, [row])
    print(json.dumps({"record": str(path), "row": row}))
    if false or missed:
        raise typer.Exit(1)


def show_table(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(caption="cost: fastest round over the fastest calibration", caption_justify="left")
    for name in ("case", "cost before", "cost after", "change", "verification"):
        table.add_column(name, justify="left" if name in ("case", "verification") else "right")
    for row in rows:
        numbers = ["-" if row[name] is None else f"{row[name]:.3g}" for name in ("before", "after", "change")]
        table.add_row(row["case"], *numbers, row["verification"])
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(table)
