"""`foredraft bench compare`: has a part become slower?"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options


def compare(
    before: Annotated[Path, typer.Argument(help="A run that `make bench` stored, or a folder of runs.")],
    after: Annotated[
        Path | None, typer.Argument(help="The run or runs to compare. Default: this checkout is timed.", show_default=False)
    ] = None,
    limit: Annotated[float | None, typer.Option(help="Alarm above this ratio. Default: 1.22, half way to 1.5.")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Longest timing of a case.")] = 0.5,
    as_json: options.Json = False,
) -> None:
    """Flag cases that became slower, in units of a calibration beside each; exit code 1 then.

    If this checkout is timed, a case that raises the alarm is timed again, up to eight times, while the alarm lasts.
    """
    from foredraft.bench.regression import alarm, compare_runs
    from foredraft.bench.report.tables import Table
    from foredraft.cli.measuring import show

    limit, runs = limit or compare_runs.LIMIT, compare_runs.read_runs(before)
    if after is None:
        alarm.check_checkout()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "now.json")
            alarm.time_cases(file, [str(alarm.CASES)], 1, seconds)
            rows, _ = alarm.compare_timed(runs, file, 1, seconds, limit)
    else:
        rows = compare_runs.compare(runs, compare_runs.read_runs(after), limit)
    lines = [[row["case"].replace("bench/regression/", ""), *(
        "-" if row[name] is None else f"{row[name]:.3g}" for name in ("before", "after", "change")), row["result"]]
        for row in rows]
    show([Table("", ("case", "cost before", "cost after", "change", "result"), lines,
                caption="cost: fastest round over the fastest calibration")])
    slower = [row["case"] for row in rows if row["result"] == "slower"]
    if as_json:
        print(json.dumps({"slower": slower, "rows": rows}))
    if slower:
        raise typer.Exit(1)
