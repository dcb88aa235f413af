"""Two runs of `make bench` held against each other, in units of a calibration that ran in the same processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from foredraft.errors import UserError

CALIBRATION = "calibration"
# half way, by ratio, between no change and 1.5, which must raise the alarm
LIMIT = 1.5**0.5


class Run(NamedTuple):
    """Seconds of the fastest round of each case, and of the fastest calibration."""

    seconds: dict[str, float]
    unit: float


def read_runs(path: Path) -> list[Run]:
    """A file of pytest-benchmark, or all files in a folder and its subfolders.

    UserError: no file, a file of another kind, a case without its calibration.
    """
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds no .json file; `make bench` writes them")
    return [read_run(file) for file in files]


def read_run(file: Path) -> Run:
    try:
        cases = json.loads(file.read_text(encoding="utf-8"))["benchmarks"]
        return Run({one["fullname"]: one["stats"]["min"] for one in cases},
                   min(one["extra_info"][CALIBRATION] for one in cases))
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not a run of `make bench` with calibrations ({why}); run it again") from None


def compare(before: Sequence[Run], after: Sequence[Run], limit: float = LIMIT) -> list[dict]:
    """A dict for each case, the largest change first.

    `before` and `after` are costs: the least seconds of a side over its least calibration, so that a slower machine does not
    matter. `change` is after over before. `result`: slower or faster (by more than `limit`), same, new, gone.
    The runs of a side come from one machine.
    """
    names = dict.fromkeys(name for run in (*before, *after) for name in run.seconds)
    units = [min(run.unit for run in runs) for runs in (before, after)]
    rows = []
    for name in names:
        old, new = ([run.seconds[name] / unit for run in runs if name in run.seconds]
                    for runs, unit in zip((before, after), units, strict=True))
        if not old or not new:
            rows.append({"case": name, "before": None, "after": None, "change": None, "result": "new" if new else "gone"})
            continue
        change = min(new) / min(old)
        result = "slower" if change > limit else "faster" if change < 1 / limit else "same"
        rows.append({"case": name, "before": min(old), "after": min(new), "change": change, "result": result})
    return sorted(rows, key=lambda row: -(row["change"] or 0))
