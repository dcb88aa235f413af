"""`foredraft bench steps`: what a decode step costs at a real model's sizes, against the floor and against others."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from foredraft.errors import UserError


def steps(
    geometry: Annotated[str, typer.Option(help="Sizes of t5-small, flan-t5-small, -base, -large or -xl.")] = "flan-t5-base",
    weights: Annotated[str, typer.Option(help="Storage of the decoder, with commas: fp32, bf16, int8.")] = "fp32,bf16,int8",
    most_rows: Annotated[int, typer.Option(min=1, help="Rows in a pass: 1 to this many (K + 1).")] = 9,
    source: Annotated[int, typer.Option(min=2, help="Source tokens.")] = 512,
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns.")] = 7,
    peers: Annotated[str, typer.Option(help="Engines to decode plainly with, with commas; all, or none.")] = "all",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens the engines decode; timed past the first quarter.")] = 40,
    out: Annotated[Path, typer.Option(help="The record's folder; a line is added.")] = Path("bench/results"),
) -> None:
    """Time plain decode steps on random weights. The last line is JSON."""
    from rich.console import Console

    import foredraft
    from foredraft.bench.harness import machine, record
    from foredraft.bench.harness.geometry import write_checkpoint
    from foredraft.bench.harness.step_peers import PEERS, compare_peers
    from foredraft.bench.harness.steps import loaded_target, measure_steps, random_source
    from foredraft.bench.report import steps_tables as steps_report
    from foredraft.cli.output import announce_compilation

    names = list(PEERS) if peers == "all" else [] if peers == "none" else peers.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise UserError(f"--peers: no engine called {unknown[0]!r}; choose from {', '.join(PEERS)}")
    announce_compilation()
    with tempfile.TemporaryDirectory(prefix="foredraft-steps-") as folder:
        checkpoint = write_checkpoint(geometry, folder)
        storages = {}
        for stored in weights.split(","):
            target, memory = loaded_target(checkpoint, stored)
            storages[stored] = memory | measure_steps(target, source, range(1, most_rows + 1), repeats)
            del target
        found = compare_peers(checkpoint, names, random_source(source), tokens // 4, tokens, repeats) if names else {}
    row = {
        "kind": "steps", "time": datetime.now(UTC).isoformat(timespec="seconds"), "foredraft": foredraft.__version__,
        "command": shlex.join(["foredraft", *sys.argv[1:]]), "machine": machine.describe(), "geometry": geometry,
        "source_tokens": source, "repeats": repeats, "weights": storages, "peers": found,
    }
    steps_report.show(row, Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    path = out / f"steps-{machine.file_name(row['machine'])}.jsonl"
    record.append_lines(path, [row])
    print(json.dumps({"record": str(path), "row": row}))
