"""Records: one JSON object a line, one line for each method of a run, in a file for each kind of machine."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

from foredraft.errors import UserError

# The one row schema: what every row states, and what it adds when the method ran.
FIELDS = {
    "schema": "version of this table",
    "time": "UTC, ISO 8601",
    "foredraft": "version",
    "command": "what was typed",
    "machine": "machine.describe()",
    "target": "model, hash, dtype, weights, parameters, threads",
    "device": "cpu or cuda",
    "data": "cases.describe()",
    "method": "key of methods.METHODS, with its argument",
    "batch_size": "rows decoded together",
    "max_new_tokens": "limit of a row's output, the end token included",
    "draft_tokens": "K",
    "temperature": "0 is greedy",
    "seed": "of the sampling",
    "repeats": "timed passes",
    "absent": "why the method did not run, else None",
}
MEASURED = {
    "differ": "articles whose tokens are not plain decoding's; None: noise of its own, not comparable",
    "tokens": "ids emitted in one pass, up to and with the end token",
    "seconds": "of one pass: total, encode, draft, verify, other; None: not told",
    "tokens_per_second": "decoding alone: median, p20, p80 over the passes",
    "tokens_per_second_encoding": "the same with the encoder's time",
    "speed_up": "over plain in the same run: median, p20, p80, and low, high: the 95 % interval over batches",
    "speed_up_encoding": "the same with the encoder's time",
    "acceptance": "measure.acceptance() and alpha_tv, None for a method that does not tell",
}
# What rows state besides since schema 3; None where it was not measured.
SINCE_3 = {
    "rouge": "rouge1, rouge2, rougeL, rougeLsum against the human summaries, F1 in percent",
    "floor": "throughput.floor(), seconds of one pass",
    "footprint": "footprint.measure(): load_seconds, first_token_ms, peak_bytes",
}
SCHEMA = 3


def check(row: dict) -> None:
    """ValueError naming a missing or an unknown field."""
    measured = set(MEASURED) | (set(SINCE_3) if row.get("schema") == SCHEMA else set())
    wanted = set(FIELDS) | (measured if row.get("absent") is None else set())
    if missing := wanted - set(row):
        raise ValueError(f"row without {sorted(missing)}")
    if unknown := set(row) - wanted:
        raise ValueError(f"row with unknown {sorted(unknown)}")


def append(path: str | Path, rows: Sequence[dict]) -> None:
    """Add the rows of a comparison (FIELDS, MEASURED) to a record file."""
    for row in rows:
        check(row)
    append_lines(path, rows)


def append_lines(path: str | Path, rows: Sequence[dict]) -> None:
    """Add objects to a file, a line each: all or none, whatever happens in between, and one writer at a time.

    The old lines and the new go to a temporary file, which is flushed to the disk and renamed over the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        kept = path.read_bytes() if path.exists() else b""
        added = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        with open(partial, "wb") as file:
            file.write(kept + added.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        os.fsync(folder)
    finally:
        partial.unlink(missing_ok=True)
        os.close(folder)


def read(path: str | Path) -> list[dict]:
    """All rows of a record file. UserError names a broken line."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            check(row)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: no record ({error}); restore it or delete the line") from None
        rows.append(row)
    return rows
