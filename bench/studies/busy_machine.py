"""A decode step and an encoded source beside other processes, over the same on a quiet machine; other engines the same way.

    python -m foredraft.bench.studies.busy_machine [--geometry flan-t5-base] [--neighbours 0,1,2]

A neighbour is a process that computes without pause. The last case is a second process that decodes with foredraft.
The seconds of a step are the difference between two lengths; those of the source are what the shorter one takes beyond its
steps.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import typer

from foredraft.bench.harness.geometry import write_checkpoint
from foredraft.bench.harness.interleave import orders, wait_until_idle
from foredraft.bench.harness.methods import Absent
from foredraft.bench.harness.peers.step_peers import PEERS, Run
from foredraft.bench.harness.record import common_fields
from foredraft.bench.harness.steps import random_source
from foredraft.bench.report.tables import Table, number
from foredraft.cli import options
from foredraft.cli.measuring import counting, finish, open_model, run_script
from foredraft.errors import UserError

# The two lengths, in tokens.
SHORT, LONG = 2, 42
COMPUTE = "while True: pass"
ENGINE = """
import sys
from foredraft.bench.harness.peers.step_peers import PEERS
run = PEERS[sys.argv[2]](sys.argv[1])
source = [int(token) for token in sys.argv[3].split(",")]
run(source, 2)
print("ready", flush=True)
while True:
    run(source, 42)
"""
ANOTHER = "another foredraft"


@contextmanager
def neighbours(case: str, engine: Sequence[str]) -> Iterator[None]:
    """Run the processes of a case: a number of them that compute, or one that decodes."""
    with ExitStack() as stack:
        commands = [["-c", ENGINE, *engine]] if case == ANOTHER else [["-c", COMPUTE]] * int(case)
        for command in commands:
            running = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
            stack.callback(running.wait)
            stack.callback(running.kill)
            if case == ANOTHER and running.stdout.readline() != "ready\n":
                raise UserError("the second engine did not start; its message is above")
        yield


def measure(runs: dict[str, Run], source: Sequence[int], cases: Sequence[str], engine: Sequence[str], repeats: int,
            on_step) -> list[dict]:
    """For each engine and case, all seconds of a step and of the source."""
    rows = {(name, case): {"engine": name, "neighbours": case, "steps": [], "sources": []}
            for name in runs for case in cases}
    for run in runs.values():
        run(source, LONG)
    order = orders(list(runs), 0)
    for _ in range(repeats):
        for case in cases:
            with neighbours(case, engine):
                for name in next(order):
                    wait_until_idle()
                    taken = []
                    for tokens in (SHORT, LONG):
                        began = time.perf_counter()
                        runs[name](source, tokens)
                        taken.append(time.perf_counter() - began)
                    step = (taken[1] - taken[0]) / (LONG - SHORT)
                    rows[name, case]["steps"].append(step)
                    rows[name, case]["sources"].append(taken[0] - SHORT * step)
                    on_step()
    return list(rows.values())


def main(
    target: options.Target = None,
    geometry: Annotated[str | None, typer.Option(help="Random weights of this size instead: flan-t5-base, ...")] = None,
    engines: Annotated[str, typer.Option(help=f"Separated by commas: {', '.join(PEERS)}.")] =
        "foredraft-fp32,transformers,ctranslate2-fp32",
    neighbours: Annotated[str, typer.Option(help="Numbers of processes that compute, separated by commas.")] = "0,1,2",
    source_length: Annotated[int, typer.Option(min=2, help="Tokens of the source.")] = 512,
    repeats: options.Repeats = 5,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
) -> None:
    """Measure engines beside other processes."""
    if unknown := [name for name in engines.split(",") if name not in PEERS]:
        raise UserError(f"--engines {unknown[0]!r} is not known; one of {', '.join(PEERS)}")
    cases = [str(one) for one in options.parse_numbers("--neighbours", neighbours, int, 0)]
    if cases[0] != "0":
        raise UserError(f"--neighbours {neighbours}: begins with 0, the quiet machine")
    cases.append(ANOTHER)
    with tempfile.TemporaryDirectory() as folder:
        path = target if geometry is None else str(write_checkpoint(geometry, folder))
        model = open_model(path)
        source = random_source(source_length, model.target.config.vocab_size - 200)
        record = common_fields("busy-machine", model=model)
        runs, absent = {}, {}
        for name in engines.split(","):
            try:
                runs[name] = PEERS[name](model.path)
            except Absent as reason:
                absent[name] = str(reason)
        engine = (str(model.path), engines.split(",")[0], ",".join(map(str, source)))
        del model
        with counting(repeats * len(runs) * len(cases)) as advance:
            rows = measure(runs, source, cases, engine, repeats, advance)
    record |= {"geometry": geometry, "source": source_length, "lengths": [SHORT, LONG], "repeats": repeats, "rows": rows,
               "absent": absent}
    finish([record], out, _tables(record), as_json)


def _tables(record: dict) -> Iterator[Table | str]:
    quiet = {row["engine"]: row for row in record["rows"] if row["neighbours"] == "0"}
    columns = ("engine", "neighbours", "ms a step", "times quiet", "mean ms a step", "source ms", "times quiet")
    rows = []
    for row in record["rows"]:
        base = quiet[row["engine"]]
        step, source = median(row["steps"]), median(row["sources"])
        rows.append([row["engine"], row["neighbours"], number(step * 1e3, 2), number(step / median(base["steps"])),
                     number(mean(row["steps"]) * 1e3, 2), number(source * 1e3, 0),
                     number(source / median(base["sources"]))])
    yield Table(f"beside other processes, {record['geometry'] or 'target'}", columns, rows)
    for name, reason in record["absent"].items():
        yield f"{name}: {reason}"


if __name__ == "__main__":
    run_script(main)
