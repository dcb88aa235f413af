"""`foredraft bench kernels`: GB/s of the skinny linear against the bandwidth measured in the same process."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from foredraft.errors import UserError


def kernels(
    shapes: Annotated[
        str, typer.Option(help="Weights, outputs x inputs, with commas.")
    ] = "8192x4096,2048x768,768x768,32128x768",
    weights: Annotated[str, typer.Option(help="Storage of the weights, with commas: fp32, bf16, int8.")] = "fp32,bf16,int8",
    rows: Annotated[str, typer.Option(help="Rows of a pass, with commas.")] = "1,2,4,6,8,16",
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes.")] = 5,
    out: Annotated[Path, typer.Option(help="The record's folder; a line is added.")] = Path("bench/results"),
) -> None:
    """Time the skinny linear on random weights that no cache holds. The last line is JSON."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    import foredraft
    from foredraft.bench.harness import machine, record
    from foredraft.bench.studies.linear_bandwidth import STORED, measure_shape, parse_shape
    from foredraft.cli.output import announce_compilation

    sizes = {shape: parse_shape(shape) for shape in shapes.split(",")}
    names = weights.split(",")
    if unknown := [name for name in names if name not in STORED]:
        raise UserError(f"--weights: {unknown[0]!r} is not known; choose from {', '.join(STORED)}")
    if not all(count.isdigit() and int(count) > 0 for count in rows.split(",")):
        raise UserError(f"--rows: {rows!r} holds something that is no count above 0; write them as 1,2,6")
    counts = [int(count) for count in rows.split(",")]
    announce_compilation()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    found = {shape: measure_shape(*sizes[shape], counts, names, repeats)
             for shape in track(sizes, description="shapes", console=Console(stderr=True), transient=True)}
    row = {
        "kind": "kernels", "time": datetime.now(UTC).isoformat(timespec="seconds"), "foredraft": foredraft.__version__,
        "command": shlex.join(["foredraft", *sys.argv[1:]]), "machine": machine.describe(), "repeats": repeats,
        "shapes": found,
    }
    for shape, figures in found.items():
        title = f"{shape}: GB/s of weights by rows; memory reads at {figures['read_gb_s']:.1f}"
        table = Table("weights", *map(str, counts), title=title, title_justify="left")
        for name, speeds in figures["gb_s"].items():
            table.add_row(name, *(f"{speeds[str(count)]:.1f}" for count in counts))
        console.print(table)
    path = out / f"kernels-{machine.file_name(row['machine'])}.jsonl"
    record.append_lines(path, [row])
    print(json.dumps({"record": str(path), "row": row}))
