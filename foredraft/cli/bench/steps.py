"""`foredraft bench steps`: what a decode step costs at a real model's sizes, against its floor and other engines."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.errors import UserError


def steps(
    geometry: Annotated[str, typer.Option(help="Sizes of t5-small, flan-t5-small, -base, -large or -xl.")] = "flan-t5-base",
    weights: Annotated[
        str, typer.Option(help="Storages of the decoder, separated by commas.")] = "fp32,bf16,int8,int4",
    dtype: options.Dtype = "float32",
    rows: Annotated[
        str, typer.Option("--rows", help="Query positions of a pass (K + 1), separated by commas.")] = "1,2,3,4,5,6,7,8,9",
    source: Annotated[int, typer.Option(min=2, help="Source tokens.")] = 512,
    repeats: options.Repeats = 7,
    peers: Annotated[str, typer.Option(help="Engines that decode plainly, separated by commas; all or none.")] = "all",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens the engines decode; timed after the first quarter.")] = 40,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
    wide: options.Wide = False,
) -> None:
    """Time plain decode steps on random weights."""
    from foredraft.bench.harness.geometry import write_checkpoint
    from foredraft.bench.harness.peers.step_peers import PEERS, compare_peers
    from foredraft.bench.harness.record import common_fields
    from foredraft.bench.harness.steps import loaded_target, measure_steps, random_source
    from foredraft.bench.report.steps_tables import tables
    from foredraft.cli.measuring import finish
    from foredraft.cli.output import announce_compilation
    from foredraft.engine.models.t5_weights import fastest_dtype

    names = list(PEERS) if peers == "all" else [] if peers == "none" else peers.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise UserError(f"--peers: no engine named {unknown[0]!r}; choose from {', '.join(PEERS)}")
    counts = options.parse_numbers("--rows", rows, int, 1)
    announce_compilation()
    with tempfile.TemporaryDirectory(prefix="foredraft-steps-") as folder:
        checkpoint = write_checkpoint(geometry, folder)
        storages = {}
        for stored in weights.split(","):
            target, memory = loaded_target(checkpoint, stored, fastest_dtype(stored) if dtype == "auto" else dtype)
            storages[stored] = memory | measure_steps(target, source, counts, repeats)
            del target
        found = compare_peers(checkpoint, names, random_source(source), tokens // 4, tokens, repeats) if names else {}
    row = common_fields("steps") | {"geometry": geometry, "source_tokens": source, "dtype": dtype, "repeats": repeats,
                                    "weights": storages, "peers": found}
    finish([row], out, tables(row), as_json, wide)
