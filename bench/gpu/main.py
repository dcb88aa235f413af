"""Checks and times foredraft on a GPU machine, in one call: `foredraft bench gpu`, or `bash bench/gpu.sh` in a bare
checkout.

Each section runs in a process of its own under a time budget and writes its records one by one: a section that fails or runs
out of time keeps the records that were complete, and does not affect the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from foredraft import embedded
from foredraft.atomic_write import write_atomic
from foredraft.bench.gpu import checks, device_drafters, precompile, times, transformers_peer, verification_peers
from foredraft.bench.gpu.goals import goals_met
from foredraft.bench.gpu.sizes import Sizes
from foredraft.bench.report.tables import Table
from foredraft.engine.load import check_device
from foredraft.errors import UserError

# seconds of all sections together
TOTAL = 570


@dataclass(frozen=True)
class Section:
    """`run(sizes, known)` yields records; `known` has the records of earlier sections by name."""

    seconds: int
    run: Callable[[Sizes, dict[str, list[dict]]], Iterator[dict]]


def _checks(sizes: Sizes, known: dict) -> Iterator[dict]:
    for check in (checks.check_kernels, checks.check_drafters, checks.check_bits, checks.check_model):
        try:
            yield from check(sizes)
        except Exception as error:  # a failed check must not hide the others
            yield {"check": check.__name__, "passed": False, "error": f"{type(error).__name__}: {error}"[:2000]}


def _distribution(sizes: Sizes, known: dict) -> Iterator[dict]:
    """The tests that are valid on a GPU (chi-square and its mutants among them), with kernels compiled for it.

    Most of the time is compilation, so pytest-xdist uses all processors; without it each file runs in its own process.
    """
    # they stop before this section is stopped, so that their output is not lost
    ends = time.monotonic() + SECTIONS["distribution"].seconds - 5
    files, spread = gpu_tests(), ["-n", str(os.cpu_count())] if find_spec("xdist") else []
    with ExitStack() as stack:
        running = []
        for together in [files] if spread else [[file] for file in files]:
            said = stack.enter_context(tempfile.TemporaryFile("w+"))
            # overrides pyproject.toml, whose options need a plug-in that the machine may not have
            command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib", *together, "-m", "gpu",
                       "-k", "not compiled_for", "-p", "no:cacheprovider", *spread]
            running.append((together, said, subprocess.Popen(
                command, env=os.environ | {"TRITON_INTERPRET": "0"}, stdout=said, stderr=subprocess.STDOUT)))
        for together, said, child in running:
            try:
                code = child.wait(timeout=max(ends - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                child.kill()
                code = child.wait()
            said.seek(0)
            yield {"check": f"pytest -m gpu {' '.join(together)}", "passed": code == 0, "said": said.read()[-1500:]}


def gpu_tests() -> list[str]:
    """Only the files with such tests: others may import packages that the machine does not have."""
    return [str(file) for file in sorted(Path("tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]


def _verification(sizes: Sizes, known: dict) -> Iterator[dict]:
    yield from verification_peers.check_verification(sizes.device)
    bandwidth = next((row["copy_gb_s"] for row in known.get("bandwidth", [])), None)
    yield from verification_peers.measure_verification(sizes, bandwidth)


def _model(sizes: Sizes, known: dict) -> Iterator[dict]:
    accepted = [row["tokens_per_step"] for row in known.get("family", []) if row["method"] == "lookup"]
    return times.model_xl(sizes, known.get("bandwidth", []), accepted[0] if accepted else 1.0, known.get("steps", []),
                          known.get("loop", []))


# the most important first; those before "peers" leave it 80 seconds even if each takes all of its time
SECTIONS = {
    "compile": Section(70, lambda sizes, known: precompile.compile_all(sizes, SECTIONS["compile"].seconds - 5)),
    "checks": Section(110, _checks),
    "distribution": Section(80, _distribution),
    "bandwidth": Section(15, lambda sizes, known: times.measure_bandwidth(sizes)),
    "steps": Section(90, lambda sizes, known: times.measure_steps(sizes, known.get("bandwidth", []))),
    "verification": Section(40, _verification),
    "loop": Section(40, lambda sizes, known: times.measure_loop(sizes)),
    "family": Section(35, lambda sizes, known: device_drafters.measure_family(sizes)),
    "model": Section(10, _model),
    "peers": Section(180, lambda sizes, known: transformers_peer.measure_peers(sizes)),
    "library": Section(20, lambda sizes, known: checks.compare_library(sizes)),
    "drafters": Section(80, lambda sizes, known: device_drafters.measure_drafters(sizes)),
}


def read_records(out: Path) -> dict[str, list[dict]]:
    files = {name: out / f"{name}.jsonl" for name in SECTIONS}
    return {name: [json.loads(line) for line in file.read_text().splitlines()]
            for name, file in files.items() if file.exists()}


def run_section(name: str, out: Path, sizes: Sizes) -> None:
    """Run one section in this process and write its records to OUT/NAME.jsonl one by one."""
    known = read_records(out)
    with open(out / f"{name}.jsonl", "w") as file:
        for row in SECTIONS[name].run(sizes, known):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{name}: {json.dumps(row)}", flush=True)


def run_all(out: Path, names: list[str], extra: tuple[str, ...] = ()) -> dict:
    """Run sections one after another, each in its own process; how each ended, and its seconds."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        # records of an earlier run, perhaps on another machine
        (out / f"{name}.jsonl").unlink(missing_ok=True)
    began, ends = time.monotonic(), {}
    for name in names:
        left = min(SECTIONS[name].seconds, TOTAL - (time.monotonic() - began))
        if left < 5:
            ends[name] = {"ended": "no time left", "seconds": 0.0}
            continue
        start = time.monotonic()
        command = [sys.executable, "-m", "foredraft.bench.gpu.main", "--section", name, "--out", str(out), *extra]
        child = subprocess.Popen(command, start_new_session=True)
        try:
            code = child.wait(timeout=left)
            ended = "done" if code == 0 else f"failed with code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            child.wait()
            ended = f"stopped after {left:.0f} s"
        ends[name] = {"ended": ended, "seconds": round(time.monotonic() - start, 1)}
        print(f"== {name}: {ended} ({ends[name]['seconds']} s)", flush=True)
    return ends


def show(rows: dict[str, list[dict]], ends: dict) -> None:
    """A table for each section, then failed checks, then the goals."""
    console = Console(highlight=False, width=150)
    for name, found in rows.items():
        columns = list(dict.fromkeys(key for row in found for key in row if key not in ("said", "error", "parts")))
        if found:
            Table(f"{name} ({ends.get(name, {}).get('ended', '?')})", columns,
                  [[_cell(row.get(column)) for column in columns] for row in found]).show(console, wide=True)
    for name, found in rows.items():
        for row in found:
            if row.get("passed") is False:
                console.print(f"FAILED {name}: {row['check']}: {row.get('error') or row.get('said', '')}", markup=False)
    for name, end in ends.items():
        if end["ended"] != "done":
            console.print(f"{name}: {end['ended']}", markup=False)
    met = {True: "yes", False: "NO", None: "not measured"}
    Table("goals", ("goal", "bound", "found", "met"), [
        [row["goal"], f"{'<=' if row['at_most'] else '>='} {_cell(row['bound'])}", _cell(row["found"]), met[row["met"]]]
        for row in goals_met(rows)]).show(console, wide=True)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("median")
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)


def check_and_time(out: Path, sections: str | None = None, drafters: Path | None = None) -> None:
    """Run the sections, write OUT/gpu.json, print the tables and one line of JSON.

    Parameters
    ----------
    out : Path
        Folder of the records.
    sections : str, optional
        Names separated by commas; all by default.
    drafters : Path, optional
        A folder of trained drafters' folders; the embedded family's by default.

    Raises
    ------
    UserError
        There is no GPU, or a section is not known.
    """
    check_device("cuda")
    names = sections.split(",") if sections else list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise UserError(f"--sections: no section named {unknown[0]!r}; choose from {', '.join(SECTIONS)}")
    ends = run_all(out, names, ("--drafters", str(drafters or embedded.LSTM.parent)))
    rows = read_records(out)
    machine = (rows.get("bandwidth") or [{}])[0].get("device")
    write_atomic(out / "gpu.json", json.dumps(
        {"machine": machine, "goals": goals_met(rows), "sections": ends, "rows": rows}))
    show(rows, ends)
    print(json.dumps({"machine": machine, "json": str(out / "gpu.json"), "goals": goals_met(rows)}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one section in this process.")
    parser.add_argument("--section", choices=list(SECTIONS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drafters", type=Path, default=embedded.LSTM.parent)
    options = parser.parse_args()
    run_section(options.section, options.out, Sizes(drafters=str(options.drafters)))


if __name__ == "__main__":
    main()
