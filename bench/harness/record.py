"""Records: one JSON object a line. The comparisons of `bench run` have a schema of their own, one line for each method."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from foredraft import __version__
from foredraft.atomic_write import write_atomic
from foredraft.bench.harness import machine
from foredraft.output_lock import OutputLock

# The schema of a comparison: the fields of every line, and those of a method that ran.
FIELDS = {
    "schema": "version of this table",
    "time": "UTC, ISO 8601",
    "foredraft": "version",
    "command": "the command line",
    "machine": "machine.describe()",
    "target": "model, hash, dtype, weights, parameters, threads",
    "device": "cpu or cuda",
    "data": "cases.describe()",
    "method": "key of methods.METHODS, with its argument",
    "batch_size": "articles decoded together",
    "max_new_tokens": "limit of an output, the end token included",
    "draft_tokens": "K",
    "temperature": "0 is greedy",
    "seed": "of the sampling",
    "repeats": "timed passes",
    "absent": "why the method did not run, else None",
}
MEASURED = {
    "differ": "articles whose tokens are not plain decoding's; None: a sampler with other random numbers, not comparable",
    "tokens": "tokens emitted in one pass, up to and with the end token",
    "seconds": "of one pass: total, encode, draft, verify, other; None: not reported",
    "tokens_per_second": "decoding alone: median, p20, p80 over the passes",
    "tokens_per_second_encoding": "the same with the encoder's time",
    "speed_up": "over plain in the same run: median, p20, p80, and low, high: the 95 % interval over batches",
    "speed_up_encoding": "the same with the encoder's time",
    "acceptance": "measure.acceptance() and alpha_tv, None for a method that does not report it",
    "rouge": "rouge1, rouge2, rougeL, rougeLsum against the human summaries, F1 in percent",
    "floor": "throughput.floor(), seconds of one pass; None: not measured, as for rouge and footprint",
    "footprint": "footprint.measure(): load_seconds, first_token_ms, peak_bytes",
}
SCHEMA = 3
TARGET = ("model", "hash", "dtype", "weights", "parameters", "threads")


def common_fields(kind: str | None = None, *, model=None, data: dict | None = None, device: str = "cpu") -> dict:
    """What every record states: its kind, when, the command, the machine, the target and the articles.

    Parameters
    ----------
    kind : str, optional
        None for the lines of a comparison, which have none.
    model : Model, optional
        The model whose target is described.
    data : dict, optional
        `cases.describe()` of the articles.
    """
    found = {} if kind is None else {"kind": kind}
    found |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), "foredraft": __version__,
              "command": command_line(), "machine": machine.describe(device)}
    if model is not None:
        known = model.describe()
        found["target"] = {name: known[name] for name in TARGET}
    return found if data is None else found | {"data": data}


def command_line() -> str:
    """The command that runs now, as a user types it: `foredraft ...`, or `python -m` of a script in bench/."""
    path = Path(sys.argv[0])
    script = path.parent.parent.name == "bench" and path.suffix == ".py"
    program = ["python", "-m", f"foredraft.bench.{path.parent.name}.{path.stem}"] if script else ["foredraft"]
    # a path of this machine means nothing on another one
    words = [os.path.relpath(word) if os.path.isabs(word) and os.path.exists(word) else word for word in sys.argv[1:]]
    return shlex.join([*program, *words])


def store(rows: Sequence[dict], folder: Path) -> Path:
    """Append records of one kind to the file of their kind and machine in `folder`; its path."""
    path = folder / f"{rows[0]['kind']}-{machine.file_name(rows[0]['machine'])}.jsonl"
    append_lines(path, rows)
    return path


def check(row: dict) -> None:
    """Raise ValueError naming a missing or an unknown field."""
    wanted = set(FIELDS) | (set(MEASURED) if row.get("absent") is None else set())
    if missing := wanted - set(row):
        raise ValueError(f"row without {sorted(missing)}")
    if unknown := set(row) - wanted:
        raise ValueError(f"row with unknown {sorted(unknown)}")


def append(path: str | Path, rows: Sequence[dict]) -> None:
    """Append the lines of a comparison (FIELDS, MEASURED) to a record file."""
    for row in rows:
        check(row)
    append_lines(path, rows)


def append_lines(path: str | Path, rows: Sequence[dict]) -> None:
    """Append objects to a file, a line each: all or none, one writer at a time."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = OutputLock(path)
    lock.acquire(wait=True)
    try:
        kept = path.read_text(encoding="utf-8") if path.exists() else ""
        write_atomic(path, kept + "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    finally:
        lock.release()
